# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Many messages in one buffer: the compiled twin of a list of bytes objects (`cdc.pgoutput.packed`).

`Messages` is a sequence of bytes for everybody; other compiled modules read the buffer itself. It is filled once, frame
by frame, and never changes afterwards.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport UINT32_MAX
from libc.stdlib cimport free
from libc.string cimport memchr, memcpy

from cdc.pgoutput.framing import HEADER as _HEADER
from cdc.pgoutput.framing import read_keepalive, refuse_frame

cdef size_t HEADER = _HEADER
cdef unsigned char XLOG_DATA = 0x77
cdef unsigned char KEEPALIVE = 0x6B


cdef class Messages:
    """Messages of the stream, one behind the other in one buffer. Indexing copies one out; a slice shares the buffer."""

    def __cinit__(self):
        self.data = NULL
        self.starts = NULL
        self.count = 0
        self.used = 0
        self.room = 0
        self.starts_room = 0
        self.owner = None

    def __init__(self, messages=()):
        cdef bytes message
        if self.count or self.owner is not None:
            raise TypeError("messages never change")
        for item in messages:
            if item is None:
                raise TypeError("a message is bytes")
            message = item
            self.append(<const unsigned char *>PyBytes_AS_STRING(message), len(message))

    def __dealloc__(self):
        if self.owner is None:
            free(self.data)
            free(self.starts)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        cdef Py_ssize_t number
        cdef Messages part
        if isinstance(index, slice):
            first, last, step = index.indices(self.count)
            if step != 1:
                return [self[number] for number in range(first, last, step)]
            part = Messages.__new__(Messages)
            part.owner = self if self.owner is None else self.owner
            part.data = self.data
            part.starts = self.starts + <Py_ssize_t>first if self.starts != NULL else NULL
            part.count = max(0, last - first)
            return part
        number = index
        if number < 0:
            number += self.count
        if not 0 <= number < self.count:
            raise IndexError(index)
        return PyBytes_FromStringAndSize(
            <char *>self.data + self.starts[number], self.starts[number + 1] - self.starts[number]
        )

    def __iter__(self):
        cdef Py_ssize_t number
        for number in range(self.count):
            yield PyBytes_FromStringAndSize(
                <char *>self.data + self.starts[number], self.starts[number + 1] - self.starts[number]
            )

    @property
    def size_bytes(self):
        """Bytes of all messages."""
        return self.starts[self.count] - self.starts[0] if self.count else 0

    def find(self, bytes kinds not None, Py_ssize_t start=0):
        """The index of the first message, from ``start`` on, whose kind is among ``kinds``; -1 where there is none."""
        cdef const char *wanted = PyBytes_AS_STRING(kinds)
        cdef size_t many = len(kinds)
        cdef Py_ssize_t number
        for number in range(max(0, start), self.count):
            if self.starts[number] < self.starts[number + 1] and memchr(wanted, self.data[self.starts[number]], many):
                return number
        return -1

    cdef int append(self, const unsigned char *message, size_t size) except -1:
        return self.append_split(message, size, NULL, 0)

    cdef int append_split(
        self, const unsigned char *head, size_t head_size, const unsigned char *rest, size_t rest_size
    ) except -1:
        """Add a message that lies in two places."""
        cdef size_t size = head_size + rest_size
        cdef size_t wanted
        if self.owner is not None or self.used + size > UINT32_MAX:
            raise MemoryError("a buffer of messages is full")
        if self.used + size > self.room:
            wanted = max(self.used + size, 2 * self.room, 16 * 1024)
            self.data = <unsigned char *>grown(self.data, wanted)
            self.room = wanted
        if self.count + 2 > self.starts_room:
            wanted = max(2 * self.starts_room, 256)
            self.starts = <uint32_t *>grown(self.starts, wanted * sizeof(uint32_t))
            self.starts_room = wanted
            self.starts[self.count] = <uint32_t>self.used
        if head_size:
            memcpy(self.data + self.used, head, head_size)
        if rest_size:
            memcpy(self.data + self.used + head_size, rest, rest_size)
        self.used += size
        self.count += 1
        self.starts[self.count] = <uint32_t>self.used
        return 0

    cdef int take_frame(self, list keepalives, const unsigned char *frame, size_t size) except -1:
        """Take in the payload of one CopyData message; raises `ProtocolError` for what is neither XLogData nor `k`."""
        if size > HEADER and frame[0] == XLOG_DATA:
            return self.append(frame + HEADER, size - HEADER)
        if size > 0 and frame[0] == KEEPALIVE:
            keepalives.append(read_keepalive(PyBytes_FromStringAndSize(<const char *>frame, size)))
            return 0
        refuse_frame(PyBytes_FromStringAndSize(<const char *>frame, size))
        raise AssertionError("a frame that is refused")


def split_frames(frames):
    """What `cdc.pgoutput.framing.split_frames` does, packed."""
    cdef Messages messages = Messages()
    cdef list keepalives = []
    cdef bytes frame
    for item in frames:
        if item is None:
            raise TypeError("a frame is bytes")
        frame = item
        messages.take_frame(keepalives, <const unsigned char *>PyBytes_AS_STRING(frame), len(frame))
    return messages, keepalives
