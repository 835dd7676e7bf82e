# cython: language_level=3, boundscheck=False, wraparound=False
"""Records of streamed transactions: the compiled twin of `cdc.changes.stream_records`."""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t
from libc.string cimport memchr, memcpy

from cdc.pgoutput._messages cimport Messages, be32

# Those of cdc.changes.stream_records, which imports this module.
cdef bytes _plain = b"IUDTM"
cdef bytes _descriptions = b"RY"
cdef size_t _header = 9


def keep(Messages messages not None, Py_ssize_t index, bytearray records not None, size_t limit):
    """What `cdc.changes.stream_records.plain_keep` does."""
    cdef const char *kinds = PyBytes_AS_STRING(_plain)
    cdef size_t many = len(_plain)
    cdef size_t used = len(records)
    cdef size_t at = used
    cdef size_t size
    cdef Py_ssize_t behind = index
    cdef const unsigned char *message
    cdef unsigned char *to
    while behind < messages.count and used < limit:
        size = messages.starts[behind + 1] - messages.starts[behind]
        if size <= _header or not memchr(kinds, messages.data[messages.starts[behind]], many):
            break
        used += 4 + size
        behind += 1
    if behind == index:
        return index
    PyByteArray_Resize(records, used)
    to = <unsigned char *>PyByteArray_AS_STRING(records) + at
    while index < behind:
        message = messages.data + messages.starts[index]
        size = messages.starts[index + 1] - messages.starts[index]
        to[0] = <unsigned char>(size >> 24)
        to[1] = <unsigned char>(size >> 16)
        to[2] = <unsigned char>(size >> 8)
        to[3] = <unsigned char>size
        memcpy(to + 4, message, size)
        to += 4 + size
        index += 1
    return behind


def given_out(bytes records not None, has_aborted, described):
    """What `cdc.changes.stream_records.plain_given_out` does, packed. Raises `ValueError` for records that are none."""
    cdef const unsigned char *record = <const unsigned char *>PyBytes_AS_STRING(records)
    cdef const char *descriptions = PyBytes_AS_STRING(_descriptions)
    cdef size_t many = len(_descriptions)
    cdef size_t left = len(records)
    cdef size_t size
    cdef uint32_t xid = 0, asked = 0
    cdef bint is_out = False, has_asked = False
    cdef Messages messages = Messages()
    while left:
        if left < 4:
            raise ValueError("a record is cut off")
        size = be32(record)
        if size <= _header or size > left - 4:
            raise ValueError("a record is cut off")
        xid = be32(record + 5)
        if xid != asked or not has_asked:
            asked, has_asked = xid, True
            is_out = has_aborted(xid)
        if not is_out:
            messages.append_split(record + 4, 1, record + 9, size - 5)
            if memchr(descriptions, record[4], many):
                described(
                    PyBytes_FromStringAndSize(<const char *>record + 4, 1)
                    + PyBytes_FromStringAndSize(<const char *>record + 9, size - 5)
                )
        record += 4 + size
        left -= 4 + size
    return messages
