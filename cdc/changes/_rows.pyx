# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Tuples of packed rows, and what ``COPY … (FORMAT binary)`` wants of them: the compiled twin of `cdc.pgoutput.tuples`.

A `Projection` reads the tuples of one relation for one target, as a `cdc.changes.row_reader.RowReader` does that
translates nothing. Whatever it cannot read (damage, a value in the other format) it leaves to that reader, which then
says what is wrong: so there is one place that composes errors.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport UINT32_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cdc.changes._blocks cimport Block
from cdc.pgoutput._messages cimport NULL_VALUE, UNCHANGED, be16, be32

cdef uint32_t NONE = UINT32_MAX
cdef size_t FIRST_TUPLE = 6


cdef class Projection:
    """The columns ``indices`` of a relation whose values come in the formats ``wire``; the key is at ``key`` of those.

    Projections of equal ``content`` make the same bytes of a row. No column travels twice: a row would take more room
    than its message gives reason for.
    """

    def __cinit__(self, bytes wire not None, indices not None, key not None):
        cdef uint32_t number, place
        self.columns = len(wire)
        self.picks = len(indices)
        self.keys = len(key)
        self.wire = <unsigned char *>malloc(self.columns + 1)
        self.indices = <uint32_t *>malloc((self.picks + 1) * 4)
        self.key = <uint32_t *>malloc((self.keys + 1) * 4)
        self.at = <uint32_t *>malloc((self.columns + 1) * 4)
        if self.wire == NULL or self.indices == NULL or self.key == NULL or self.at == NULL:
            raise MemoryError()
        memcpy(self.wire, PyBytes_AS_STRING(wire), self.columns)
        for number in range(self.picks):
            self.indices[number] = indices[number]
            if self.indices[number] >= self.columns:
                raise IndexError(number)
        if len(set(indices)) != self.picks:
            raise ValueError("a column travels twice")
        for number in range(self.keys):
            place = key[number]
            if place >= self.picks:
                raise IndexError(place)
            self.key[number] = self.indices[place]
        self.content = wire, tuple(indices)
        self.is_identity = tuple(indices) == tuple(range(self.columns))

    def __dealloc__(self):
        free(self.wire)
        free(self.indices)
        free(self.key)
        free(self.at)

    cdef Py_ssize_t walk(self, const unsigned char *message, size_t size, size_t offset) noexcept:
        """Find the columns of the tuple at ``offset``: ``at`` is where each begins, with its kind.

        Returns where the tuple ends, or -1 where it is not as expected. ``has_unchanged``: one that travels is not sent.
        """
        cdef uint32_t column
        cdef size_t position = offset + 2
        cdef unsigned char kind
        cdef bint has_unchanged = False
        if position > size or be16(message + offset) != self.columns:
            return -1
        for column in range(self.columns):
            if position >= size:
                return -1
            kind = message[position]
            self.at[column] = <uint32_t>position
            if kind == self.wire[column]:
                if position + 5 > size or be32(message + position + 1) > size - position - 5:
                    return -1
                position += 5 + <size_t>be32(message + position + 1)
            elif kind == NULL_VALUE:
                position += 1
            elif kind == UNCHANGED:
                position += 1
                has_unchanged = True
            else:
                return -1
        if position > size:
            return -1
        self.at[self.columns] = <uint32_t>position
        self.has_unchanged = has_unchanged
        if has_unchanged and not self.is_identity:
            self.has_unchanged = False
            for column in range(self.picks):
                if message[self.at[self.indices[column]]] == UNCHANGED:
                    self.has_unchanged = True
        return position

    cdef size_t put(self, unsigned char *out, const unsigned char *message) noexcept:
        """Write the fields that travel, of the tuple that was walked last; returns how many bytes."""
        cdef unsigned char *start = out
        cdef uint32_t pick, column, size
        cdef const unsigned char *value
        for pick in range(self.picks):
            column = self.indices[pick]
            value = message + self.at[column]
            if value[0] == self.wire[column]:
                size = self.at[column + 1] - self.at[column] - 1
                memcpy(out, value + 1, size)
                out += size
            else:
                memset(out, 0xFF, 4)
                out += 4
        return out - start


cdef class BlockRows:
    """Those rows of a block whose relations have a projection; ``projections`` are by the relation's number there."""

    def __cinit__(self, Block block not None, list projections not None):
        cdef uint32_t number
        self.block = block
        self.projections = projections
        self.single = NONE
        if <uint32_t>len(projections) != block.many:
            raise IndexError(len(projections))
        self.projection = <void **>malloc((block.many + 1) * sizeof(void *))
        if self.projection == NULL:
            raise MemoryError()
        taken = 0
        for number in range(block.many):
            self.projection[number] = NULL
            if projections[number] is not None:
                self.projection[number] = <void *><Projection?>projections[number]
                self.single = number
                taken += 1
        if taken > 1:
            self.single = NONE

    def __dealloc__(self):
        free(self.projection)

    def __len__(self):
        cdef uint32_t number
        cdef size_t count = 0
        for number in range(self.block.many):
            if self.projection[number] != NULL:
                count += self.block.rows[number].inserts + self.block.rows[number].updates
                count += self.block.rows[number].deletes
        return count

    cdef uint32_t first(self) noexcept:
        if self.single != NONE:
            return self.block.rows[self.single].first
        return self.behind(NONE)

    cdef uint32_t behind(self, uint32_t index) noexcept:
        """The row behind ``index`` (`NONE`: the first); `NONE` at the end."""
        cdef Block block = self.block
        if self.single != NONE:
            return block.following[index]
        index += 1  # NONE wraps around to 0
        while index < block.count:
            if self.projection[block.relation[index]] != NULL:
                return index
            index += 1
        return NONE


def encode_inserts(BlockRows rows not None, Py_ssize_t position, size_t room, uint32_t columns):
    """The new rows of insert messages from a position on, for COPY: as many as about ``room`` bytes hold.

    The first position is 0, whatever is there. Returns the bytes, the position to go on at (-1: there are no more),
    and whether that row is left to the caller, because it cannot be read or is not whole.
    """
    cdef Block block = rows.block
    if not 0 <= position <= block.count:
        raise IndexError(position)
    cdef uint32_t index = rows.first() if position == 0 else <uint32_t>(position - 1)
    cdef const unsigned char *message
    cdef size_t size, used = 0
    cdef Projection projection
    cdef unsigned char *out
    cdef bint is_stuck = False
    if index != NONE:
        room = max(room, bound_of(block, index, columns))
    # No more than all the rows of the block could take.
    room = min(room, block.used + block.count * (4 * <size_t>columns + 16))
    out = <unsigned char *>malloc(room + 1)
    if out == NULL:
        raise MemoryError()
    try:
        while index != NONE and used + bound_of(block, index, columns) <= room:
            size = block.starts[index + 1] - block.starts[index]
            message = block.data + block.starts[index]
            projection = <Projection>rows.projection[block.relation[index]]
            if projection.picks != columns:
                raise ValueError("a projection of another table")
            if projection.walk(message, size, FIRST_TUPLE) != <Py_ssize_t>size or projection.has_unchanged:
                is_stuck = True
                break
            out[used] = <unsigned char>(columns >> 8)
            out[used + 1] = <unsigned char>(columns & 0xFF)
            used += 2 + projection.put(out + used + 2, message)
            index = rows.behind(index)
        return PyBytes_FromStringAndSize(<char *>out, used), -1 if index == NONE else <Py_ssize_t>index + 1, is_stuck
    finally:
        free(out)


cdef inline size_t bound_of(Block block, uint32_t index, uint32_t columns) noexcept:
    """A row takes no more than its message, and four bytes for each NULL, which are one there."""
    return block.starts[index + 1] - block.starts[index] + 4 * <size_t>columns + 16


def behind(BlockRows rows not None, Py_ssize_t position):
    """The position behind a row that the caller has taken; -1 where there are no more."""
    if not 0 < position <= rows.block.count:
        raise IndexError(position)
    cdef uint32_t index = rows.behind(<uint32_t>(position - 1))
    return -1 if index == NONE else <Py_ssize_t>index + 1
