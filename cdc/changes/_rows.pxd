# cython: language_level=3
from libc.stdint cimport uint32_t

from cdc.changes._blocks cimport Block


cdef class Projection:
    cdef unsigned char *wire
    cdef uint32_t *indices
    cdef uint32_t *key
    cdef uint32_t *at
    cdef uint32_t columns
    cdef readonly uint32_t picks
    cdef readonly tuple content
    cdef uint32_t keys
    cdef bint is_identity
    cdef bint has_unchanged

    cdef Py_ssize_t walk(self, const unsigned char *message, size_t size, size_t offset) noexcept
    cdef size_t put(self, unsigned char *out, const unsigned char *message) noexcept


cdef class BlockRows:
    cdef readonly Block block
    cdef readonly list projections
    cdef void **projection
    cdef uint32_t single

    cdef uint32_t first(self) noexcept
    cdef uint32_t behind(self, uint32_t index) noexcept
