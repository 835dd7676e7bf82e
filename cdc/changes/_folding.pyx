# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Folding packed rows to one outcome per key: the compiled twin of `cdc.changes.compaction.Compaction`.

The rules are those of that module. What is kept of a key is where its last row stands in the blocks, and of a row that
lacks unchanged values (hazard 6) where the rows stand that may have them; nothing is copied but keys. Everything that
is not plain (a contradiction, a change of the key that must keep its row or lacks values, damage) ends the folding
with `UNCOVERED`: the caller then folds the same rows in Python, which knows what to do, or what to say.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport UINT32_MAX, int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from cdc.changes._blocks cimport Block
from cdc.changes._rows cimport BlockRows, Projection
from cdc.pgoutput._messages cimport INSERT, NEW_ROW, NULL_VALUE, OLD_KEY, UNCHANGED, UPDATE, be32, grown

UNCOVERED = -2

cdef uint32_t NONE = UINT32_MAX
cdef size_t FIRST_TUPLE = 6
cdef uint64_t SEED = int.from_bytes(os.urandom(8), "little")


cdef struct Version:
    # A row as one message left it. `unchanged`: which places it lacks, as words of bits (NONE: none); `previous`: the
    # version that may have them.
    const unsigned char *message
    uint32_t size
    uint32_t offset
    uint32_t projection
    uint32_t previous
    uint32_t unchanged


cdef struct Entry:
    # A key, and the row to be (`version` NONE: it is gone). `group`: which outcome it has, 0 for nothing.
    uint64_t hash
    uint32_t key_at
    uint32_t key_size
    uint32_t version
    uint32_t group
    uint8_t is_fresh


cdef size_t larger(size_t room, size_t least) except 0:
    """The next room of an array that is counted in 32 bits, `NONE` for nothing."""
    cdef size_t result = max(least, room + (room >> 1))
    if result >= UINT32_MAX:
        raise MemoryError("too many rows in one batch")
    return result


cdef inline uint64_t hash_of(const unsigned char *key, size_t size) noexcept:
    # Multiply and mix, eight bytes at a time, from a seed that nobody outside knows: keys are the application's.
    cdef uint64_t value = SEED ^ (<uint64_t>size * <uint64_t>0x9E3779B97F4A7C15)
    cdef uint64_t word
    while size >= 8:
        memcpy(&word, key, 8)
        value = (value ^ word) * <uint64_t>0xFF51AFD7ED558CCD
        value ^= value >> 32
        key += 8
        size -= 8
    if size:
        word = 0
        memcpy(&word, key, size)
        value = (value ^ word) * <uint64_t>0xC4CEB9FE1A85EC53
        value ^= value >> 29
    value *= <uint64_t>0x9FB21C651E98DF25
    return value ^ (value >> 32)


cdef class Folding:
    """Folds the rows of one target table, which has ``columns`` columns that travel, the key at the places ``key``."""

    cdef list kept
    cdef list projections
    cdef dict numbers
    cdef Version *version
    cdef uint32_t versions
    cdef uint32_t version_room
    cdef Entry *entry
    cdef uint32_t entries
    cdef uint32_t entry_room
    cdef uint32_t *table
    cdef uint32_t table_room
    cdef unsigned char *keys
    cdef size_t key_used
    cdef size_t key_room
    cdef uint64_t *bits
    cdef uint32_t words
    cdef uint32_t bits_used
    cdef uint32_t bits_room
    cdef uint32_t columns
    cdef uint32_t *key_place
    cdef uint32_t key_places
    cdef bint keeps_rows
    # What `finish` finds: the entries in the order of their groups, and where each group begins.
    cdef uint32_t *order
    cdef uint32_t ordered
    cdef list groups

    def __cinit__(self, uint32_t columns, key not None, bint keeps_rows):
        cdef uint32_t number
        self.kept = []
        self.projections = []
        self.numbers = {}
        self.groups = []
        self.columns = columns
        self.words = (columns + 63) // 64
        self.keeps_rows = keeps_rows
        self.key_places = len(key)
        self.key_place = <uint32_t *>grown(NULL, (<size_t>self.key_places + 1) * 4)
        for number in range(self.key_places):
            self.key_place[number] = key[number]
            if self.key_place[number] >= columns:
                raise IndexError(key[number])
        self.table_room = 256
        self.table = <uint32_t *>grown(NULL, self.table_room * 4)
        memset(self.table, 0xFF, self.table_room * 4)

    def __dealloc__(self):
        free(self.version)
        free(self.entry)
        free(self.table)
        free(self.keys)
        free(self.bits)
        free(self.key_place)
        free(self.order)

    @property
    def size(self):
        """Bytes that it takes, beside the blocks."""
        return (
            self.version_room * sizeof(Version)
            + self.entry_room * (sizeof(Entry) + 4)
            + <size_t>self.table_room * 4
            + self.key_room
            + <size_t>self.bits_room * 8
        )

    def add(self, BlockRows rows not None, Py_ssize_t position, Py_ssize_t limit):
        """Fold in at most ``limit`` rows from a position on (the first is 0).

        Returns the position to go on at, -1 where there are no more rows, `UNCOVERED` where this cannot be folded here.
        """
        cdef Block block = rows.block
        cdef uint32_t index = rows.first() if position == 0 else <uint32_t>(position - 1)
        cdef const unsigned char *message
        cdef uint32_t size, number = 0, relation = NONE
        cdef Projection projection = None
        cdef bint is_covered
        if self.table == NULL:
            raise AssertionError("the folding is finished")
        if position and not 0 < position <= block.count:
            raise IndexError(position)
        if position == 0:
            self.kept.append(rows)
        while index != NONE and limit > 0:
            if block.relation[index] != relation:
                relation = block.relation[index]
                projection = <Projection>rows.projection[relation]
                number = self.number_of(projection)
            message = block.data + block.starts[index]
            size = block.starts[index + 1] - block.starts[index]
            if message[0] == UPDATE:
                is_covered = self.update(projection, number, message, size)
            elif message[0] == INSERT:
                is_covered = self.insert(projection, number, message, size)
            else:
                is_covered = self.delete(projection, message, size)
            if not is_covered:
                return UNCOVERED
            index = rows.behind(index)
            limit -= 1
        return -1 if index == NONE else <Py_ssize_t>index + 1

    cdef uint32_t number_of(self, Projection projection) except? 0xFFFFFFFF:
        found = self.numbers.get(projection)
        if found is None:
            if projection.picks != self.columns or projection.keys != self.key_places:
                raise ValueError("a projection of another table")
            found = self.numbers[projection] = len(self.projections)
            self.projections.append(projection)
        return found

    cdef bint insert(self, Projection projection, uint32_t number, const unsigned char *message, uint32_t size) except -1:
        cdef bint is_new = False
        cdef uint32_t found
        if projection.walk(message, size, FIRST_TUPLE) != <Py_ssize_t>size or projection.has_unchanged:
            return False
        found = self.find(projection, message, &is_new)
        if found == NONE:
            return False
        return self.arrive(found, is_new, number, message, size, FIRST_TUPLE)

    cdef bint arrive(
        self, uint32_t found, bint is_new, uint32_t number, const unsigned char *message, uint32_t size, uint32_t offset
    ) except -1:
        """A whole row comes to a key."""
        if is_new:
            self.entry[found].is_fresh = True
        elif self.entry[found].version != NONE:
            return False
        self.entry[found].version = self.new_version(number, message, size, offset)
        return True

    cdef bint delete(self, Projection projection, const unsigned char *message, uint32_t size) except -1:
        cdef bint is_new = False
        cdef uint32_t found
        if projection.walk(message, size, FIRST_TUPLE) != <Py_ssize_t>size or projection.has_unchanged:
            return False
        found = self.find(projection, message, &is_new)
        return found != NONE and self.leave(found, is_new)

    cdef bint leave(self, uint32_t found, bint is_new) noexcept:
        """The row of a key goes."""
        if not is_new and self.entry[found].version == NONE:
            return False
        self.entry[found].version = NONE
        return True

    cdef bint update(self, Projection projection, uint32_t number, const unsigned char *message, uint32_t size) except -1:
        cdef bint is_new = False, is_old_new = False
        cdef uint32_t found, left, known
        cdef Py_ssize_t end = FIRST_TUPLE
        if message[5] != NEW_ROW:
            # The old key is here. (A whole old row is not read here: such rows may share keys.)
            if message[5] != OLD_KEY:
                return False
            end = projection.walk(message, size, FIRST_TUPLE)
            if end < 0 or projection.has_unchanged or end + 1 >= size or message[end] != NEW_ROW:
                return False
            left = self.find(projection, message, &is_old_new)
            end += 1
            if left == NONE or projection.walk(message, size, end) != <Py_ssize_t>size or projection.has_unchanged:
                return False
            found = self.find(projection, message, &is_new)
            if found == NONE:
                return False
            if found != left:
                if self.keeps_rows:
                    return False
                return self.leave(left, is_old_new) and self.arrive(found, is_new, number, message, size, <uint32_t>end)
            # The key is as it was: a row like others.
            is_new = is_old_new
        else:
            if projection.walk(message, size, FIRST_TUPLE) != <Py_ssize_t>size:
                return False
            found = self.find(projection, message, &is_new)
            if found == NONE:
                return False
        known = self.entry[found].version
        if not is_new and known == NONE:
            return False
        if projection.has_unchanged:
            return self.merge(projection, number, found, is_new, message, size)
        if is_new:
            self.entry[found].version = self.new_version(number, message, size, <uint32_t>end)
        else:
            self.set_version(known, number, message, size, <uint32_t>end)
        return True

    cdef bint merge(
        self, Projection projection, uint32_t number, uint32_t found, bint is_new, const unsigned char *message, uint32_t size
    ) except -1:
        """A row that lacks values comes to a key whose last version may have them."""
        cdef uint32_t bits = self.bits_of(projection, message)
        cdef uint32_t known = self.entry[found].version
        cdef uint32_t made, word
        cdef bint adds_nothing
        if not is_new and self.version[known].unchanged != NONE:
            adds_nothing = True
            for word in range(self.words):
                if self.bits[bits + word] & ~self.bits[self.version[known].unchanged + word]:
                    adds_nothing = False
            if adds_nothing:
                # Whatever the last version has, this one has, too: it takes its place, and its bits.
                memcpy(self.bits + self.version[known].unchanged, self.bits + bits, <size_t>self.words * 8)
                self.bits_used -= self.words
                self.version[known].message = message
                self.version[known].size = size
                self.version[known].offset = FIRST_TUPLE
                self.version[known].projection = number
                return True
        made = self.new_version(number, message, size, FIRST_TUPLE)
        self.version[made].unchanged = bits
        self.version[made].previous = NONE if is_new else known
        self.entry[found].version = made
        return True

    cdef uint32_t bits_of(self, Projection projection, const unsigned char *message) except? 0xFFFFFFFF:
        cdef uint32_t at = self.bits_used, place
        cdef size_t room
        if <size_t>at + self.words > self.bits_room:
            room = max(<size_t>256, 2 * <size_t>self.bits_room, <size_t>at + self.words)
            if room > UINT32_MAX:
                raise MemoryError("too many rows in one batch")
            self.bits = <uint64_t *>grown(self.bits, room * 8)
            self.bits_room = <uint32_t>room
        memset(self.bits + at, 0, <size_t>self.words * 8)
        for place in range(self.columns):
            if message[projection.at[projection.indices[place]]] == UNCHANGED:
                self.bits[at + place // 64] |= <uint64_t>1 << (place % 64)
        self.bits_used += self.words
        return at

    cdef uint32_t new_version(
        self, uint32_t number, const unsigned char *message, uint32_t size, uint32_t offset
    ) except? 0xFFFFFFFF:
        cdef size_t room
        if self.versions == self.version_room:
            room = larger(self.version_room, 256)
            self.version = <Version *>grown(self.version, room * sizeof(Version))
            self.version_room = <uint32_t>room
        self.versions += 1
        self.set_version(self.versions - 1, number, message, size, offset)
        return self.versions - 1

    cdef void set_version(
        self, uint32_t at, uint32_t number, const unsigned char *message, uint32_t size, uint32_t offset
    ) noexcept:
        self.version[at].message = message
        self.version[at].size = size
        self.version[at].offset = offset
        self.version[at].projection = number
        self.version[at].previous = NONE
        self.version[at].unchanged = NONE

    cdef uint32_t find(self, Projection projection, const unsigned char *message, bint *is_new) except? 0xFFFFFFFF:
        """The entry of the key in the tuple that was walked last, made where there is none; `NONE`: it is not sent."""
        cdef uint32_t number, column, size, place
        cdef unsigned char *key
        cdef const unsigned char *value
        cdef size_t wanted = 0, used = 0, room
        cdef uint64_t hash
        cdef Entry *entry
        for number in range(projection.keys):
            column = projection.key[number]
            wanted += projection.at[column + 1] - projection.at[column] + 4
        if self.key_used + wanted > UINT32_MAX:
            raise MemoryError("too many keys in one batch")
        if self.key_used + wanted > self.key_room:
            room = max(self.key_used + wanted, self.key_room + (self.key_room >> 1), 4096)
            self.keys = <unsigned char *>grown(self.keys, room)
            self.key_room = room
        key = self.keys + self.key_used
        for number in range(projection.keys):
            column = projection.key[number]
            value = message + projection.at[column]
            if value[0] == UNCHANGED:
                return NONE
            if value[0] == NULL_VALUE:
                memset(key + used, 0xFF, 4)
                used += 4
            else:
                size = projection.at[column + 1] - projection.at[column] - 1
                memcpy(key + used, value + 1, size)
                used += size
        hash = hash_of(key, used)
        place = <uint32_t>hash & (self.table_room - 1)
        while self.table[place] != NONE:
            entry = self.entry + self.table[place]
            if entry.hash == hash and entry.key_size == used and memcmp(self.keys + entry.key_at, key, used) == 0:
                is_new[0] = False
                return self.table[place]
            place = (place + 1) & (self.table_room - 1)
        if self.entries == self.entry_room:
            room = larger(self.entry_room, 128)
            self.entry = <Entry *>grown(self.entry, room * sizeof(Entry))
            self.entry_room = <uint32_t>room
        entry = self.entry + self.entries
        entry.hash = hash
        entry.key_at = <uint32_t>self.key_used
        entry.key_size = <uint32_t>used
        entry.version = NONE
        entry.group = 0
        entry.is_fresh = False
        self.key_used += used
        self.table[place] = self.entries
        self.entries += 1
        if <size_t>self.entries * 2 > self.table_room:
            self.enlarge()
        is_new[0] = True
        return self.entries - 1

    cdef int enlarge(self) except -1:
        cdef uint32_t index, place
        cdef size_t room = 2 * <size_t>self.table_room
        if room > <size_t>1 << 31:
            raise MemoryError("too many keys in one batch")
        self.table = <uint32_t *>grown(self.table, room * 4)
        self.table_room = <uint32_t>room
        memset(self.table, 0xFF, room * 4)
        for index in range(self.entries):
            place = <uint32_t>self.entry[index].hash & (self.table_room - 1)
            while self.table[place] != NONE:
                place = (place + 1) & (self.table_room - 1)
            self.table[place] = index
        return 0

    # --- outcomes

    def finish(self):
        """The outcomes: how many deletes; (places that are not known, how many) of the updates; how many inserts.

        They are counted in this order, and so are the rows of `encode`.
        """
        cdef uint32_t index, group, at
        if self.table == NULL:
            raise AssertionError("the folding is finished")
        cdef list groups = [None, "deletes", "inserts"]  # the first is nothing
        cdef list counts
        cdef uint32_t *many = NULL
        cdef uint32_t whole = 0, last = 0
        # What the last row and the row before it lack: rows that lack the same mostly stand together.
        cdef uint64_t *lacks = <uint64_t *>grown(NULL, (2 * <size_t>self.words + 1) * 8)
        try:
            for index in range(self.entries):
                if self.entry[index].version == NONE:
                    group = 0 if self.entry[index].is_fresh else 1
                elif self.entry[index].is_fresh:
                    group = 2
                elif self.version[self.entry[index].version].unchanged == NONE:
                    if whole == 0:
                        whole = self.group_of((), groups)
                    group = whole
                else:
                    self.find_lacking(self.entry[index].version, lacks)
                    if last == 0 or memcmp(lacks, lacks + self.words, <size_t>self.words * 8):
                        last = self.group_of(self.places_of(lacks), groups)
                        memcpy(lacks + self.words, lacks, <size_t>self.words * 8)
                    group = last
                self.entry[index].group = group
            many = <uint32_t *>grown(NULL, len(groups) * 4)
            memset(many, 0, len(groups) * 4)
            for index in range(self.entries):
                many[self.entry[index].group] += 1
            counts = [many[group] for group in range(<uint32_t>len(groups))]
        finally:
            free(lacks)
            free(many)
        # In the order: deletes, updates, inserts.
        sequence = [1, *range(3, len(groups)), 2]
        many = <uint32_t *>grown(NULL, len(groups) * 4)
        try:
            at = 0
            for group in sequence:
                many[group] = at
                at += <uint32_t>counts[group]
            self.order = <uint32_t *>grown(self.order, (<size_t>at + 1) * 4)
            self.ordered = at
            for index in range(self.entries):
                group = self.entry[index].group
                if group:
                    self.order[many[group]] = index
                    many[group] += 1
        finally:
            free(many)
        free(self.table)
        self.table = NULL
        return counts[1], [(groups[group], counts[group]) for group in range(3, len(groups))], counts[2]

    cdef uint32_t group_of(self, tuple lacking, list groups) except? 0xFFFFFFFF:
        if lacking in groups:
            return groups.index(lacking)
        groups.append(lacking)
        return len(groups) - 1

    cdef void find_lacking(self, uint32_t version, uint64_t *bits) noexcept:
        """The places that no version of a row has, as bits."""
        cdef uint32_t word
        memset(bits, 0xFF, <size_t>self.words * 8)
        while version != NONE:
            if self.version[version].unchanged == NONE:
                memset(bits, 0, <size_t>self.words * 8)
                return
            for word in range(self.words):
                bits[word] &= self.bits[self.version[version].unchanged + word]
            version = self.version[version].previous

    cdef tuple places_of(self, const uint64_t *bits):
        cdef uint32_t place
        return tuple([place for place in range(self.columns) if bits[place // 64] >> (place % 64) & 1])

    def encode(self, uint32_t first, uint32_t behind, bytes prefix not None, size_t room, ordinal):
        """The rows ``first`` to ``behind`` of the outcomes for COPY, behind ``prefix``: as many as ``room`` holds.

        With an ``ordinal`` that of the first row, and on, is in front of each. A value that is not known is a NULL; of a
        row to be deleted all but the key is. Returns the bytes, and the row to go on with.
        """
        if behind > self.ordered:
            raise IndexError(behind)
        cdef size_t used = len(prefix), bound
        cdef unsigned char *out
        cdef bint has_ordinal = ordinal is not None
        cdef uint64_t number = <uint64_t>ordinal if has_ordinal else 0
        cdef uint32_t fields = self.columns + has_ordinal
        cdef uint32_t index = first
        cdef int shift
        cdef const unsigned char **cell = <const unsigned char **>grown(NULL, (self.columns + 1) * sizeof(void *))
        if first < behind:
            room = max(room, used + self.bound_of(self.order[first]))
        out = <unsigned char *>malloc(room)
        if out == NULL:
            free(cell)
            raise MemoryError()
        try:
            memcpy(out, PyBytes_AS_STRING(prefix), used)
            while index < behind:
                bound = self.bound_of(self.order[index])
                if used + bound > room:
                    break
                out[used] = <unsigned char>(fields >> 8)
                out[used + 1] = <unsigned char>(fields & 0xFF)
                used += 2
                if has_ordinal:
                    memset(out + used, 0, 3)
                    out[used + 3] = 8
                    for shift in range(8):
                        out[used + 4 + shift] = <unsigned char>(number >> (56 - 8 * shift))
                    used += 12
                    number += 1
                used += self.put(out + used, self.entry + self.order[index], cell)
                index += 1
            return PyBytes_FromStringAndSize(<char *>out, used), index
        finally:
            free(out)
            free(cell)

    cdef size_t bound_of(self, uint32_t index) noexcept:
        cdef size_t bound = self.entry[index].key_size + 8 * <size_t>self.columns + 32
        cdef uint32_t version = self.entry[index].version
        while version != NONE:
            bound += self.version[version].size
            version = self.version[version].previous
        return bound

    cdef size_t put(self, unsigned char *out, Entry *entry, const unsigned char **cell) noexcept:
        """Write the fields of one row; returns how many bytes."""
        cdef unsigned char *start = out
        cdef Version *version
        cdef Projection projection
        cdef const unsigned char *key
        cdef const unsigned char *value
        cdef uint32_t number, place, size, at
        if entry.version == NONE:
            memset(cell, 0, self.columns * sizeof(void *))
            key = self.keys + entry.key_at
            for number in range(self.key_places):
                cell[self.key_place[number]] = key
                size = be32(key)
                key += 4 if size == NONE else 4 + size
        else:
            version = self.version + entry.version
            projection = <Projection>self.projections[version.projection]
            projection.walk(version.message, version.size, version.offset)
            if version.unchanged == NONE:
                return projection.put(out, version.message)
            memset(cell, 0, self.columns * sizeof(void *))
            at = entry.version
            while at != NONE:
                version = self.version + at
                if at != entry.version:
                    projection = <Projection>self.projections[version.projection]
                    projection.walk(version.message, version.size, version.offset)
                for place in range(self.columns):
                    if cell[place] == NULL:
                        value = version.message + projection.at[projection.indices[place]]
                        if value[0] == NULL_VALUE:
                            cell[place] = NULL_FIELD
                        elif value[0] != UNCHANGED:
                            cell[place] = value + 1
                at = version.previous
        for place in range(self.columns):
            value = cell[place]
            size = NONE if value == NULL else be32(value)
            if size == NONE:
                memset(out, 0xFF, 4)
                out += 4
            else:
                memcpy(out, value, 4 + <size_t>size)
                out += 4 + <size_t>size
        return out - start


cdef unsigned char[4] NULL_BYTES = [0xFF, 0xFF, 0xFF, 0xFF]
cdef const unsigned char *NULL_FIELD = NULL_BYTES
