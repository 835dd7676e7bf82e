"""The frames inside CopyBoth: what a walsender sends, and what it wants to hear.

Every CopyData message of the server is either XLogData, which carries one message of the output plugin, or a keepalive;
the client answers with standby status updates (PostgreSQL's manual, "Streaming Replication Protocol"). Times are
microseconds since `EPOCH_UNIX_US`, on the sender's clock.

Whatever is read here is read wholly: a frame of an unknown kind, or one that is too short or too long, is a
`ProtocolError`; none is passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from cdc.lsn import Lsn
from cdc.pgoutput.damage import damaged

XLOG_DATA: Final = 0x77
"""The first byte of a frame that carries a message: ``w``."""

KEEPALIVE: Final = 0x6B
"""The first byte of a keepalive: ``k``."""

HEADER: Final = 25
"""Bytes of an XLogData frame before its message: kind, start LSN, end LSN, time.

They are skipped unread. The LSNs say where the server's decoding stands, and may go back from one transaction to the
next: neither is a position (only a Commit's end LSN is).
"""

EPOCH_UNIX_US: Final = 946_684_800_000_000
"""PostgreSQL's epoch, 2000-01-01 00:00 UTC, in microseconds since the epoch of Unix."""

_KEEPALIVE: Final = struct.Struct(">xQqB")
_STATUS: Final = struct.Struct(">cQQQqB")


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The server's sign of life.

    ``end_lsn`` is how far it has sent: with nothing in flight, everything before it that concerns the slot is here
    already. When ``reply_requested``, it closes the connection unless a status update follows soon.
    """

    end_lsn: Lsn
    sent_us: int
    reply_requested: bool


def split_frames(frames: Sequence[bytes]) -> tuple[list[bytes], list[Keepalive]]:
    """The messages of the XLogData frames, and the keepalives, each in their order.

    A frame is the payload of one CopyData message. Raises `ProtocolError` for the first one that is neither: a change
    whose frame is damaged must not get lost without a word.
    """
    try:
        messages = [frame[HEADER:] for frame in frames if frame[0] == XLOG_DATA]
    except IndexError:
        messages = []
    # Nearly always that was all there is.
    if len(messages) == len(frames) and all(messages):
        return messages, []
    keepalives = []
    for frame in frames:
        if frame[:1] == b"k":
            keepalives.append(read_keepalive(frame))
        elif frame[:1] != b"w" or len(frame) <= HEADER:
            refuse_frame(frame)
    return messages, keepalives


def refuse_frame(frame: bytes) -> NoReturn:
    """Raise `ProtocolError` for a frame that is neither a message nor a keepalive."""
    if not frame:
        raise damaged("a frame of the replication stream", 0, "its kind, but the frame is empty")
    if frame[0] == XLOG_DATA:
        raise damaged("an XLogData frame", HEADER, "a message behind its header")
    raise damaged("a frame of the replication stream", 0, "kind w (XLogData) or k (keepalive)")


def read_keepalive(frame: bytes) -> Keepalive:
    """Read the frame of a keepalive; raises `ProtocolError` for one that is damaged."""
    if len(frame) != _KEEPALIVE.size:
        raise damaged("a keepalive frame", min(len(frame), _KEEPALIVE.size), f"{_KEEPALIVE.size} bytes in all")
    end_lsn, sent_us, reply_requested = _KEEPALIVE.unpack(frame)
    if reply_requested > 1:
        raise damaged("a keepalive frame", _KEEPALIVE.size - 1, "0 or 1, whether a reply is requested")
    return Keepalive(Lsn(end_lsn), sent_us, reply_requested == 1)


def standby_status_update(write: Lsn, flush: Lsn, apply: Lsn, *, clock_us: int, reply_requested: bool = False) -> bytes:
    """Compose the frame that tells the server how far everything before an LSN is received, durable and visible.

    The server may forget everything before ``flush``: pass only what is durable everywhere (invariant 3). `INVALID_LSN`
    says nothing about that position. ``clock_us`` is this machine's clock, since `EPOCH_UNIX_US`; the server only shows
    it, as ``pg_stat_replication.reply_time``. With ``reply_requested`` the server answers with a keepalive at once.
    """
    return _STATUS.pack(b"r", write, flush, apply, clock_us, reply_requested)
