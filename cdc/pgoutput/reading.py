"""A cursor over one message: the primitive types of PostgreSQL's protocol, each checked as it is read.

The types are those of PostgreSQL's manual, "Message Data Types": integers in network byte order, strings that end with
a zero byte. Whatever is not there or not allowed raises the `ProtocolError` of `cdc.pgoutput.damage`: no loop in a
caller runs longer than the message is.
"""

from __future__ import annotations

import struct
from typing import Final

from cdc.lsn import Lsn
from cdc.pgoutput.damage import damaged

_UINT16: Final = struct.Struct(">H")
_UINT32: Final = struct.Struct(">I")
_INT32: Final = struct.Struct(">i")
_UINT64: Final = struct.Struct(">Q")
_INT64: Final = struct.Struct(">q")

_MAX_COUNT16: Final = 0x7FFF
"""Column counts are signed 16-bit integers; a relation has at most 1,600 columns."""

_MAX_LENGTH: Final = 0x7FFFFFFF
"""Lengths are signed 32-bit integers."""


class Reader:
    """Reads one message from its second byte on; ``what`` is how errors call it.

    ``with_xid`` and ``with_abort_info`` say which optional fields this message has: the bytes themselves do not.
    """

    __slots__ = ("_message", "_position", "_what", "with_abort_info", "with_xid")

    def __init__(self, message: bytes, what: str, *, with_xid: bool, with_abort_info: bool) -> None:
        self._message = message
        self._what = what
        self._position = 1
        self.with_xid = with_xid
        self.with_abort_info = with_abort_info

    def finish(self) -> None:
        """Make sure that the message ends here."""
        following = len(self._message) - self._position
        if following:
            raise damaged(self._what, self._position, f"the end, but {following} bytes follow")

    def uint32(self) -> int:
        """Read an oid, an xid or a count."""
        return self._integer(_UINT32)

    def int32(self) -> int:
        """Read a signed number, as a type modifier is."""
        return self._integer(_INT32)

    def int64(self) -> int:
        """Read a time: signed microseconds since 2000-01-01."""
        return self._integer(_INT64)

    def lsn(self) -> Lsn:
        """Read an LSN, which may be unset."""
        return Lsn(self._integer(_UINT64))

    def set_lsn(self) -> Lsn:
        """Read an LSN that PostgreSQL always sets here."""
        lsn = self.lsn()
        if not lsn:
            raise damaged(self._what, self._position - 8, "an LSN other than 0/0")
        return lsn

    def xid_in_stream(self) -> int | None:
        """Read the xid that a change carries inside a streamed block, and only there."""
        return self._integer(_UINT32) if self.with_xid else None

    def count16(self) -> int:
        """Read how many columns follow."""
        count = self._integer(_UINT16)
        if count > _MAX_COUNT16:
            raise damaged(self._what, self._position - 2, "a number of columns that is not negative")
        return count

    def flags(self, allowed: int) -> int:
        """Read one byte, of which only the ``allowed`` bits may be set."""
        flags = self._byte("a byte of flags")
        if flags & ~allowed:
            raise damaged(self._what, self._position - 1, f"flags of the bits {allowed:#x} only")
        return flags

    def no_flags(self) -> int:
        """Read a byte of flags that no version of the protocol uses yet: 0."""
        return self.flags(0)

    def one_of(self, allowed: bytes, expected: str) -> str:
        """Read one byte, as a character out of ``allowed``."""
        byte = self._byte(expected)
        if byte not in allowed:
            raise damaged(self._what, self._position - 1, expected)
        return chr(byte)

    def string(self) -> str:
        """Read a string up to its zero byte, in UTF-8, the client encoding of the replication connection."""
        end = self._message.find(b"\0", self._position)
        if end < 0:
            raise damaged(self._what, self._position, "a string that ends with a zero byte")
        try:
            text = self._message[self._position : end].decode()
        except UnicodeDecodeError:
            raise damaged(self._what, self._position, "a string in UTF-8") from None
        self._position = end + 1
        return text

    def namespace(self) -> str:
        """Read a schema's name; ``pg_catalog`` travels as an empty string."""
        return self.string() or "pg_catalog"

    def counted(self) -> bytes:
        """Read a length and that many bytes."""
        length = self._integer(_UINT32)
        if length > _MAX_LENGTH:
            raise damaged(self._what, self._position - 4, "a length that is not negative")
        start, end = self._position, self._position + length
        if end > len(self._message):
            raise damaged(self._what, start, f"{length} more bytes, but {len(self._message) - start} are left")
        self._position = end
        return self._message[start:end]

    def _byte(self, expected: str) -> int:
        if self._position >= len(self._message):
            raise damaged(self._what, self._position, f"{expected}, but the message ends")
        self._position += 1
        return self._message[self._position - 1]

    def _integer(self, form: struct.Struct) -> int:
        start = self._position
        if start + form.size > len(self._message):
            raise damaged(self._what, start, f"an integer of {form.size} bytes, but the message ends")
        self._position = start + form.size
        value: int = form.unpack_from(self._message, start)[0]
        return value
