"""What is kept of a transaction that is streamed before its commit: its messages as records, one behind the other.

A record is the length of a message (four bytes) and the message as protocol 2 sends it inside of a block: its kind, the
xid of its (sub)transaction, and the rest. ``keep`` makes records of messages, ``given_out`` makes messages of protocol
1 of them. Both have compiled twins (`cdc.changes._stream_records`), which make no object of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final

from cdc.pgoutput.compiled import is_compiled
from cdc.pgoutput.packed import Messages

if is_compiled():
    from cdc.changes import _stream_records

PLAIN: Final = b"IUDTM"
"""What only has to be kept: rows, truncations and messages of the application."""

HEADER: Final = 9
"""Kind, xid, and the oid of the relation or the like: nothing that can stand in a block is shorter, but its end."""

DESCRIPTIONS: Final = b"RY"

_SIZE: Final = Struct(">I")


def append(message: bytes, records: bytearray) -> None:
    """Add a record."""
    records += _SIZE.pack(len(message))
    records += message


def plain_keep(messages: Sequence[bytes], index: int, records: bytearray, limit: int) -> int:
    """Add a record for each message from ``index`` on, until there are ``limit`` bytes of them.

    Returns the index of the first that was not taken: because of the limit, or because it is not `PLAIN`.
    """
    for number in range(index, len(messages)):
        message = messages[number]
        if len(records) >= limit or message[0] not in PLAIN or len(message) <= HEADER:
            return number
        append(message, records)
    return len(messages)


def plain_given_out(
    records: bytes, has_aborted: Callable[[int], bool], described: Callable[[bytes], None]
) -> Sequence[bytes]:
    """The messages that ``has_aborted`` does not say of their xid, without it; ``described`` is told descriptions."""
    messages: list[bytes] = []
    at, end = 0, len(records)
    asked, is_out = b"", False
    while at < end:
        start = at + 4
        at = start + _SIZE.unpack_from(records, at)[0]
        xid = records[start + 1 : start + 5]
        if xid != asked:
            asked, is_out = xid, has_aborted(_SIZE.unpack(xid)[0])
        if not is_out:
            message = records[start : start + 1] + records[start + 5 : at]
            if message[0] in DESCRIPTIONS:
                described(message)
            messages.append(message)
    return messages


def keep(messages: Sequence[bytes], index: int, records: bytearray, limit: int) -> int:
    """`plain_keep`, or its twin where the messages are packed."""
    if isinstance(messages, Messages):
        return _stream_records.keep(messages, index, records, limit)
    return plain_keep(messages, index, records, limit)


given_out = _stream_records.given_out if is_compiled() else plain_given_out
