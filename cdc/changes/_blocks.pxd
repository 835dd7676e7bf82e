# cython: language_level=3
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef struct Transaction:
    uint64_t commit_lsn
    uint64_t end_lsn
    int64_t commit_time_us
    uint32_t xid
    uint32_t first


cdef struct Rows:
    # Of one relation: how many of each kind, and the first and last of the chain through `Block.following`.
    uint32_t inserts
    uint32_t updates
    uint32_t deletes
    uint32_t first
    uint32_t last
    uint32_t slot


cdef class Block:
    cdef unsigned char *data
    cdef uint32_t *starts
    cdef uint32_t *relation
    cdef uint32_t *following
    cdef Transaction *transaction
    cdef Rows *rows
    cdef uint32_t count
    cdef uint32_t transactions
    cdef uint32_t many
    cdef size_t used
    cdef size_t data_room
    cdef size_t rows_room
    cdef size_t transactions_room
    cdef size_t many_room
    cdef readonly list relations
    cdef public bint is_shared

    cdef int append(self, const unsigned char *message, size_t size, uint32_t number) except -1
    cdef int begin(self, const Transaction *transaction) except -1
    cdef uint32_t add_relation(self, object relation, uint32_t slot) except? 0xFFFFFFFF
    cdef int cut(self, uint32_t first) except -1
    cdef int shrink(self) except -1
