"""The values of one row, from pgoutput's bytes to COPY's bytes: the hot path.

A TupleData of pgoutput (PostgreSQL's manual, "Logical Replication Message Formats") is an int16 number of columns, then
per column a kind byte: ``n`` is NULL, ``u`` a TOASTed value that did not change and is not sent, ``t`` and ``b`` are
followed by an int32 length and that many bytes of the type's text or binary format. A tuple of ``COPY … (FORMAT
binary)`` (manual, "COPY", "Binary Format") is an int16 number of fields, then per field an int32 length and the value,
where the length -1 is a NULL. A *field* here is what COPY wants of one column: a slice of the message, never parsed.

`read_fields` promises: it returns the fields of an undamaged tuple, or raises `ProtocolError`; it never reads beyond
the message, never raises anything else, and ends after one step per column whatever the bytes say. It is at the same
time the specification of a compiled twin: same arguments, same results, same errors.
"""

from __future__ import annotations

import struct
from typing import Final

from cdc.errors import ProtocolError
from cdc.pgoutput.damage import damaged

BINARY: Final = 0x62
"""The kind byte ``b``: a value in its type's binary format."""

TEXT: Final = 0x74
"""The kind byte ``t``: a value as text, which is what a type without a send function gets even in a binary stream."""

NULL: Final = b"\xff\xff\xff\xff"
"""The field of a NULL: COPY's length -1. Compare by identity."""

UNCHANGED: Final = b"u"
"""Stands for a TOASTed value that the source did not send because it did not change (hazard 6). Compare by identity.

It is no field: whoever writes it to COPY writes garbage. No field equals it, a field has at least four bytes.
"""

FIRST_TUPLE: Final = 6
"""Where the first tuple of an ``I``, ``U`` or ``D`` message starts: behind the kind, the relation's oid and a marker.

The marker is byte `FIRST_MARKER`: `NEW` a new tuple, `OLD_KEY` the old key, `OLD_ROW` the whole old row. In an ``U``
message an old tuple is followed by `NEW` and the new tuple, which then starts one byte behind the offset that
`read_fields` returns for the old one. (Outside of a streamed block; inside one, four bytes of xid follow the kind.)
"""

FIRST_MARKER: Final = 5
"""Where an ``I``, ``U`` or ``D`` message says which tuple comes first."""

NEW: Final = 0x4E
"""The marker ``N``: a new tuple follows."""

OLD_KEY: Final = 0x4B
"""The marker ``K``: the old values of the replica identity's columns follow; the other columns are NULL."""

OLD_ROW: Final = 0x4F
"""The marker ``O``: the whole old row follows (REPLICA IDENTITY FULL)."""

_NULL_KIND: Final = 0x6E
_UNCHANGED_KIND: Final = 0x75

_read_count = struct.Struct(">H").unpack_from
_read_length = struct.Struct(">I").unpack_from


class UnexpectedFormat(ProtocolError):
    """A value came as text where binary was expected, or the other way round.

    ``column_index`` counts from 0 in the order of the relation's columns; ``kind`` is what came, `TEXT` or `BINARY`.
    """

    def __init__(self, column_index: int, kind: int) -> None:
        expected, got = ("binary", "text") if kind == TEXT else ("text", "binary")
        super().__init__(
            f"column {column_index + 1} of a row came in {got} format where {expected} was expected: its type has "
            "gained or lost its binary send function since the catalog was read. Start the worker again."
        )
        self.column_index = column_index
        self.kind = kind


def read_fields(message: bytes, offset: int, wire: bytes) -> tuple[list[bytes], int]:
    """Read the tuple that starts at ``offset``; return its fields, and the offset of the first byte behind it.

    ``wire`` holds per column of the relation the kind in which its values are expected, `BINARY` or `TEXT`: for another
    kind the caller's COPY would be wrong, so that is an error. An unchanged TOASTed value gives `UNCHANGED`.

    Raises `UnexpectedFormat` for a value in the other format, and `ProtocolError` for a number of columns other than
    ``len(wire)``, an unknown kind, or a tuple that goes on beyond the end of the message.
    """
    fields: list[bytes] = []
    append = fields.append
    read_length = _read_length
    position = offset + 2
    try:
        if _read_count(message, offset)[0] != len(wire):
            raise damaged("a row's tuple", offset, f"{len(wire)} columns, as its relation has")
        for expected in wire:
            kind = message[position]
            if kind == expected:
                start = position + 1
                # The length is read as unsigned: a negative one points far behind the end, and is found below.
                position += 5 + read_length(message, start)[0]
                append(message[start:position])
            elif kind == _NULL_KIND:
                append(NULL)
                position += 1
            elif kind == _UNCHANGED_KIND:
                append(UNCHANGED)
                position += 1
            elif kind in (BINARY, TEXT):
                raise UnexpectedFormat(len(fields), kind)
            else:
                raise damaged("a row's tuple", position, "a column of kind n, u, t or b")
    except (IndexError, struct.error):
        raise damaged("a row's tuple", min(position, len(message)), "more columns, but the message ends") from None
    # Slicing never fails, it only returns less: one comparison here instead of one per column.
    if position > len(message):
        raise damaged("a row's tuple", len(message), "the rest of a value, but the message ends")
    return fields, position
