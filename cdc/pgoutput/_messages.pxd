# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport realloc

cdef enum:
    # Kinds of messages, of their tuples, and of the values in those (cdc.pgoutput.messages, cdc.pgoutput.tuples).
    BEGIN = 0x42  # B
    COMMIT = 0x43  # C
    INSERT = 0x49  # I
    UPDATE = 0x55  # U
    DELETE = 0x44  # D
    OLD_KEY = 0x4B  # K
    NEW_ROW = 0x4E  # N
    NULL_VALUE = 0x6E  # n
    UNCHANGED = 0x75  # u


cdef inline void *grown(void *memory, size_t size) except NULL:
    """Memory of another size, with the same content (`NULL`: new memory); what was there stays where there is none."""
    cdef void *result = realloc(memory, size)
    if result == NULL:
        raise MemoryError()
    return result


cdef inline uint32_t be16(const unsigned char *p) noexcept nogil:
    return (<uint32_t>p[0] << 8) | p[1]


cdef inline uint32_t be32(const unsigned char *p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline uint64_t be64(const unsigned char *p) noexcept nogil:
    return (<uint64_t>be32(p) << 32) | be32(p + 4)


cdef class Messages:
    cdef unsigned char *data
    cdef uint32_t *starts
    cdef Py_ssize_t count
    cdef size_t used
    cdef size_t room
    cdef Py_ssize_t starts_room
    cdef Messages owner

    cdef int append(self, const unsigned char *message, size_t size) except -1
    cdef int append_split(
        self, const unsigned char *head, size_t head_size, const unsigned char *rest, size_t rest_size
    ) except -1
    cdef int take_frame(self, list keepalives, const unsigned char *frame, size_t size) except -1
