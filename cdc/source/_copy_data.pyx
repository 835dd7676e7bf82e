# cython: language_level=3, boundscheck=False, wraparound=False
"""Frames out of libpq's buffer, many in one call: the compiled twin of a loop around ``PGconn.get_copy_data``.

libpq's functions come as addresses (`cdc.source.libpq` finds them in the library that psycopg has loaded), so nothing
is linked and no header is needed. The interpreter's lock is kept: the loop takes a millisecond or two.
"""

from libc.stdint cimport uintptr_t

from cdc.pgoutput._messages cimport Messages

ctypedef int (*GetCopyData)(void *connection, char **buffer, int is_async) noexcept
ctypedef void (*FreeMemory)(void *memory) noexcept
ctypedef int (*ConsumeInput)(void *connection) noexcept


def take(
    uintptr_t connection,
    uintptr_t get_copy_data,
    uintptr_t free_memory,
    uintptr_t consume_input,
    Messages messages not None,
    list keepalives not None,
    long budget_bytes,
    long budget_frames,
):
    """Move frames that are there into ``messages`` and ``keepalives``, as many as the budget allows.

    The socket is read for as long as it has more: one call of PQconsumeInput takes about as much as libpq's buffer is
    large, 16 kB, of the hundreds that the kernel may hold.

    Returns what PQgetCopyData said last (0: no more is there now, -1: the stream has ended, -2: an error), or 1 where
    more may be there. Raises `ProtocolError` for a damaged frame; those before it have been taken.
    """
    cdef GetCopyData get = <GetCopyData>get_copy_data
    cdef FreeMemory release = <FreeMemory>free_memory
    cdef ConsumeInput read_socket = <ConsumeInput>consume_input
    cdef bint is_read = False
    cdef char *buffer = NULL
    cdef int size
    while budget_bytes > 0 and budget_frames > 0:
        size = get(<void *>connection, &buffer, 1)
        if size == 0 and not is_read:
            if not read_socket(<void *>connection):
                return -2
            is_read = True
            continue
        if size <= 0:
            return size
        is_read = False
        try:
            messages.take_frame(keepalives, <const unsigned char *>buffer, size)
        finally:
            release(buffer)
        budget_bytes -= size
        budget_frames -= 1
    return 1
