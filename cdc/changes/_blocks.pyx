# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Whole transactions packed into one buffer: what `cdc.changes.packed_accumulator` is made of.

A `Block` holds the row messages of consecutive transactions one behind the other, and beside them, in C arrays: where
each begins, which relation it belongs to, where the next one of the same relation is, and where each transaction
begins. 12 bytes a row and 32 a transaction are all that is added to what the source sent. `Packer` fills blocks. It
looks at a message's kind and its relation, at nothing else; whatever is not a row, a Begin or a Commit in its place, is
left to the caller.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport UINT32_MAX
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from cdc.pgoutput._messages cimport BEGIN, COMMIT, DELETE, INSERT, UPDATE, Messages, be32, be64, grown

cdef uint32_t NONE = UINT32_MAX


cdef class Block:
    """Row messages of whole consecutive transactions, or of one stretch of a large one. Read-only for Python.

    ``relations`` are those that have rows here, in the order of their first row; other methods name one by its number
    in that list. Messages and transactions are counted from 0. ``is_shared``: several targets take it.
    """

    def __cinit__(self):
        self.relations = []

    def __dealloc__(self):
        free(self.data)
        free(self.starts)
        free(self.relation)
        free(self.following)
        free(self.transaction)
        free(self.rows)

    def __len__(self):
        return self.count

    @property
    def transaction_count(self):
        """How many transactions it holds."""
        return self.transactions

    @property
    def size(self):
        """Bytes that it takes."""
        return (
            self.data_room
            + self.rows_room * 12
            + self.transactions_room * sizeof(Transaction)
            + self.many_room * (sizeof(Rows) + 8)
        )

    def message(self, uint32_t number):
        """One message."""
        if number >= self.count:
            raise IndexError(number)
        return PyBytes_FromStringAndSize(
            <char *>self.data + self.starts[number], self.starts[number + 1] - self.starts[number]
        )

    def row(self, uint32_t number):
        """One message, with the number of its relation."""
        return self.relation[number], self.message(number)

    def counts(self, Py_ssize_t number):
        """How many rows of a relation were inserted, updated and deleted."""
        if not 0 <= number < <Py_ssize_t>self.many:
            raise IndexError(number)
        return self.rows[number].inserts, self.rows[number].updates, self.rows[number].deletes

    def transaction_at(self, uint32_t number):
        """A transaction: xid, commit LSN, end LSN, commit time, its first message and the one behind its last."""
        if number >= self.transactions:
            raise IndexError(number)
        cdef Transaction *found = self.transaction + number
        behind = self.transaction[number + 1].first if number + 1 < self.transactions else self.count
        return found.xid, found.commit_lsn, found.end_lsn, found.commit_time_us, found.first, behind

    def runs(self, uint32_t first, uint32_t behind):
        """Stretches of messages of one relation and kind: the relation's number, the kind, first and behind the last."""
        cdef uint32_t index = first
        cdef uint32_t start
        behind = min(behind, self.count)
        while index < behind:
            start = index
            index += 1
            while (
                index < behind
                and self.relation[index] == self.relation[start]
                and self.data[self.starts[index]] == self.data[self.starts[start]]
            ):
                index += 1
            yield self.relation[start], self.data[self.starts[start]], start, index

    cdef int append(self, const unsigned char *message, size_t size, uint32_t number) except -1:
        cdef uint32_t index = self.count
        cdef Rows *rows = self.rows + number
        cdef size_t room
        if self.used + size > UINT32_MAX or index + 1 >= NONE:
            raise MemoryError("a block of changes is full")
        if self.used + size > self.data_room:
            room = max(self.used + size, self.data_room + (self.data_room >> 1), 512)
            self.data = <unsigned char *>grown(self.data, room)
            self.data_room = room
        if index + 2 > self.rows_room:
            room = max(index + 2, self.rows_room + (self.rows_room >> 1), 8)
            self.starts = <uint32_t *>grown(self.starts, room * 4)
            self.relation = <uint32_t *>grown(self.relation, room * 4)
            self.following = <uint32_t *>grown(self.following, room * 4)
            self.rows_room = room
            self.starts[index] = <uint32_t>self.used
        memcpy(self.data + self.used, message, size)
        self.used += size
        self.count = index + 1
        self.starts[index + 1] = <uint32_t>self.used
        self.relation[index] = number
        self.following[index] = NONE
        if rows.first == NONE:
            rows.first = index
        else:
            self.following[rows.last] = index
        rows.last = index
        if message[0] == INSERT:
            rows.inserts += 1
        elif message[0] == UPDATE:
            rows.updates += 1
        else:
            rows.deletes += 1
        return 0

    cdef int begin(self, const Transaction *transaction) except -1:
        cdef size_t room
        if self.transactions == self.transactions_room:
            room = max(1, self.transactions_room * 2)
            self.transaction = <Transaction *>grown(self.transaction, room * sizeof(Transaction))
            self.transactions_room = room
        self.transaction[self.transactions] = transaction[0]
        self.transaction[self.transactions].first = self.count
        self.transactions += 1
        return 0

    cdef uint32_t add_relation(self, object relation, uint32_t slot) except? 0xFFFFFFFF:
        cdef size_t room
        if self.many == self.many_room:
            room = max(4, self.many_room * 2)
            self.rows = <Rows *>grown(self.rows, room * sizeof(Rows))
            self.many_room = room
        memset(self.rows + self.many, 0, sizeof(Rows))
        self.rows[self.many].first = NONE
        self.rows[self.many].slot = slot
        self.relations.append(relation)
        self.many += 1
        return self.many - 1

    cdef int cut(self, uint32_t first) except -1:
        """Forget the rows from ``first`` on, and the relations that have no others."""
        cdef uint32_t index, number
        for index in range(first, self.count):
            number = self.relation[index]
            if self.data[self.starts[index]] == INSERT:
                self.rows[number].inserts -= 1
            elif self.data[self.starts[index]] == UPDATE:
                self.rows[number].updates -= 1
            else:
                self.rows[number].deletes -= 1
        while self.many and self.rows[self.many - 1].first >= first:
            self.many -= 1
            self.relations.pop()
        for index in range(first):
            self.rows[self.relation[index]].last = index
        for number in range(self.many):
            self.following[self.rows[number].last] = NONE
        self.count = first
        self.used = self.starts[first]
        return 0

    cdef int shrink(self) except -1:
        """Give back what was reserved and is not used."""
        if not self.count:
            # A transaction without rows may have the room of a large one that came behind it, and has moved.
            free(self.data)
            free(self.starts)
            free(self.relation)
            free(self.following)
            self.data = NULL
            self.starts = self.relation = self.following = NULL
            self.used = self.data_room = self.rows_room = 0
            return 0
        if self.data_room - self.used > 1024:
            self.data = <unsigned char *>grown(self.data, self.used)
            self.data_room = self.used
        if self.rows_room - self.count > 64:
            self.starts = <uint32_t *>grown(self.starts, (<size_t>self.count + 1) * 4)
            self.relation = <uint32_t *>grown(self.relation, (<size_t>self.count + 1) * 4)
            self.following = <uint32_t *>grown(self.following, (<size_t>self.count + 1) * 4)
            self.rows_room = self.count + 1
        return 0


cdef struct Slot:
    # A relation that the stream has described; `number` is its number in the block `block`.
    uint32_t oid
    uint32_t number
    uint64_t block


cdef class Packer:
    """Packs the rows of one stream. ``part_bytes``: how large one open transaction may grow before it has to be cut."""

    cdef Block block
    cdef uint64_t block_number
    cdef Slot *slot
    cdef uint32_t slots
    cdef uint32_t *table
    cdef uint32_t table_room
    cdef list known
    cdef size_t part_bytes
    cdef size_t open_used
    cdef readonly bint in_transaction
    cdef readonly bint has_outgrown
    cdef public bint is_careful
    cdef public size_t beside

    def __cinit__(self, size_t part_bytes):
        self.part_bytes = part_bytes
        self.known = []
        self.block = Block()
        self.block_number = 1

    def __dealloc__(self):
        free(self.slot)
        free(self.table)

    def describe(self, uint32_t oid, relation):
        """From now on the rows of ``oid`` belong to ``relation``."""
        cdef uint32_t slot = self.find(oid)
        if slot == NONE:
            # First here: a slot that is found has a relation, even if memory ends in between.
            self.known.append(relation)
            try:
                slot = self.add(oid)
            except MemoryError:
                self.known.pop()
                raise
        else:
            self.known[slot] = relation
        self.slot[slot].block = 0

    @property
    def open_size(self):
        """Bytes of the open transaction's rows, with what is kept beside them."""
        if not self.in_transaction:
            return 0
        return self.used_by_open()

    @property
    def whole_size(self):
        """Bytes of the rows of the transactions that are complete."""
        if not self.in_transaction:
            return self.block.used
        return self.block.starts[self.first_of_open()] if self.first_of_open() else 0

    @property
    def open_rows(self):
        """How many rows of the open transaction have come."""
        if not self.in_transaction:
            return 0
        return self.block.count - self.first_of_open()

    def feed(self, Messages messages not None, Py_ssize_t index):
        """Take in messages from ``index`` on; returns the index of the first that is left to the caller, or how many.

        Stops behind a row with which the open transaction ``has_outgrown`` its limit. While it ``is_careful``, Commit
        is left to the caller. ``beside`` are bytes that the caller holds of the open transaction.
        """
        cdef const unsigned char *message
        cdef size_t size
        cdef uint32_t oid, slot, number
        cdef Transaction begun
        cdef Block block = self.block
        while index < messages.count:
            message = messages.data + messages.starts[index]
            size = messages.starts[index + 1] - messages.starts[index]
            if size < 7:
                break
            if message[0] == INSERT or message[0] == UPDATE or message[0] == DELETE:
                if not self.in_transaction:
                    break
                oid = be32(message + 1)
                slot = self.find(oid)
                if slot == NONE:
                    break
                if self.slot[slot].block == self.block_number:
                    number = self.slot[slot].number
                else:
                    number = block.add_relation(self.known[slot], slot)
                    self.slot[slot].block = self.block_number
                    self.slot[slot].number = number
                block.append(message, size, number)
                index += 1
                if self.used_by_open() > self.part_bytes:
                    self.has_outgrown = True
                    break
            elif message[0] == BEGIN:
                if size != 21 or self.in_transaction:
                    break
                begun.commit_lsn = be64(message + 1)
                begun.end_lsn = 0
                begun.commit_time_us = <int64_t>be64(message + 9)
                begun.xid = be32(message + 17)
                block.begin(&begun)
                self.open_used = block.used
                self.in_transaction = True
                index += 1
            elif message[0] == COMMIT:
                if size != 26 or not self.in_transaction or self.is_careful:
                    break
                if message[1] or be64(message + 2) != block.transaction[block.transactions - 1].commit_lsn:
                    break
                block.transaction[block.transactions - 1].end_lsn = be64(message + 10)
                self.in_transaction = False
                index += 1
            else:
                break
        return index

    def take_whole(self):
        """Hand out the transactions that are complete, in one block; `None` without any. The open one stays."""
        if self.block.transactions <= <uint32_t>self.in_transaction:
            return None
        cdef Block whole = self.block
        cdef Block block = Block()
        cdef uint32_t first
        # The new block is made first: where memory ends, everything is as it was.
        if self.in_transaction:
            first = whole.transaction[whole.transactions - 1].first
            block.begin(whole.transaction + whole.transactions - 1)
            if first < whole.count:
                self.move(whole, first, block)
            else:
                self.new_block(block)
            self.open_used = 0
            whole.transactions -= 1
        else:
            self.new_block(block)
        whole.shrink()
        return whole

    def take_open(self, uint64_t end_lsn, bint is_over):
        """Hand out what has come of the open transaction, which is alone in its block; ``is_over``: with its end."""
        if not self.in_transaction or self.block.transactions != 1:
            raise AssertionError("no transaction is open, or it is not alone")
        cdef Block taken = self.block
        cdef Block block = Block()
        taken.transaction[0].end_lsn = end_lsn
        if not is_over:
            block.begin(taken.transaction)
        self.new_block(block)
        self.open_used = 0
        self.has_outgrown = False
        if is_over:
            self.in_transaction = False
        taken.shrink()
        return taken

    @property
    def open_transaction(self):
        """The open transaction: xid, commit LSN, commit time."""
        if not self.in_transaction:
            raise AssertionError("no transaction is open")
        cdef Transaction *found = self.block.transaction + self.block.transactions - 1
        return found.xid, found.commit_lsn, found.commit_time_us

    cdef int move(self, Block whole, uint32_t first, Block block) except -1:
        """Move the rows from ``first`` on to a new block, which then is the one that is filled."""
        cdef uint32_t index, old, slot
        cdef uint32_t *numbers = <uint32_t *>grown(NULL, <size_t>whole.many * 4)
        try:
            memset(numbers, 0xFF, <size_t>whole.many * 4)
            for index in range(first, whole.count):
                old = whole.relation[index]
                if numbers[old] == NONE:
                    numbers[old] = block.add_relation(whole.relations[old], whole.rows[old].slot)
                block.append(whole.data + whole.starts[index], whole.starts[index + 1] - whole.starts[index], numbers[old])
            self.new_block(block)
            for old in range(whole.many):
                slot = whole.rows[old].slot
                if numbers[old] != NONE and self.known[slot] is whole.relations[old]:
                    self.slot[slot].block = self.block_number
                    self.slot[slot].number = numbers[old]
        finally:
            free(numbers)
        whole.cut(first)
        return 0

    cdef int new_block(self, Block block) except -1:
        self.block = block
        self.block_number += 1
        return 0

    cdef inline uint32_t first_of_open(self) noexcept:
        return self.block.transaction[self.block.transactions - 1].first

    cdef inline size_t used_by_open(self) noexcept:
        cdef Block block = self.block
        cdef uint32_t count = block.count - block.transaction[block.transactions - 1].first
        return block.used - self.open_used + 12 * <size_t>count + self.beside

    cdef inline uint32_t find(self, uint32_t oid) noexcept:
        cdef uint32_t place
        if self.table_room == 0:
            return NONE
        place = (oid * <uint32_t>2654435761) & (self.table_room - 1)
        while self.table[place] != NONE:
            if self.slot[self.table[place]].oid == oid:
                return self.table[place]
            place = (place + 1) & (self.table_room - 1)
        return NONE

    cdef uint32_t add(self, uint32_t oid) except? 0xFFFFFFFF:
        cdef uint32_t index
        cdef size_t room
        self.slot = <Slot *>grown(self.slot, (<size_t>self.slots + 1) * sizeof(Slot))
        self.slot[self.slots].oid = oid
        self.slot[self.slots].number = 0
        self.slot[self.slots].block = 0
        if 2 * (<size_t>self.slots + 1) > self.table_room:
            room = max(<size_t>64, 2 * <size_t>self.table_room)
            self.table = <uint32_t *>grown(self.table, room * 4)
            self.table_room = <uint32_t>room
            memset(self.table, 0xFF, room * 4)
            for index in range(self.slots):
                self.enter(index)
        self.enter(self.slots)
        self.slots += 1
        return self.slots - 1

    cdef void enter(self, uint32_t slot) noexcept:
        cdef uint32_t place = (self.slot[slot].oid * <uint32_t>2654435761) & (self.table_room - 1)
        while self.table[place] != NONE:
            place = (place + 1) & (self.table_room - 1)
        self.table[place] = slot
