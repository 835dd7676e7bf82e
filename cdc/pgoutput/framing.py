"""The frames inside CopyBoth: what a walsender sends, and what it wants to hear.

Every CopyData message of the server is either XLogData, which carries one message of the output plugin, or a keepalive;
the client answers with standby status updates (PostgreSQL's manual, "Streaming Replication Protocol"). Times are
microseconds since `EPOCH_UNIX_US`, on the sender's clock.

Whatever is read here is read wholly: a frame that is too short or too long is a `ProtocolError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from cdc.lsn import Lsn
from cdc.pgoutput.damage import damaged

XLOG_DATA: Final = 0x77
"""The first byte of a frame that carries a message: ``w``."""

KEEPALIVE: Final = 0x6B
"""The first byte of a keepalive: ``k``."""

HEADER: Final = 25
"""Bytes of an XLogData frame before its message: kind, start LSN, end LSN, time. The hot path skips them unread."""

EPOCH_UNIX_US: Final = 946_684_800_000_000
"""PostgreSQL's epoch, 2000-01-01 00:00 UTC, in microseconds since the epoch of Unix."""

_XLOG_DATA: Final = struct.Struct(">xQQq")
_KEEPALIVE: Final = struct.Struct(">xQqB")
_STATUS: Final = struct.Struct(">cQQQqB")


@dataclass(frozen=True, slots=True)
class XLogData:
    """One message of the output plugin, on its way.

    ``start_lsn`` and ``end_lsn`` say where the server's decoding stands, and may go back from one transaction to the
    next: neither is a position (only a Commit's end LSN is). ``sent_us`` is the server's clock as it sent the frame.
    """

    start_lsn: Lsn
    end_lsn: Lsn
    sent_us: int
    message: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The server's sign of life.

    ``end_lsn`` is how far it has sent: with nothing in flight, everything before it that concerns the slot is here
    already. When ``reply_requested``, it closes the connection unless a status update follows soon.
    """

    end_lsn: Lsn
    sent_us: int
    reply_requested: bool


def parse(frame: bytes) -> XLogData | Keepalive:
    """Read one frame (the payload of one CopyData message). Raises `ProtocolError` for anything else."""
    kind = frame[0] if frame else None
    if kind == XLOG_DATA:
        if len(frame) <= HEADER:
            raise damaged("an XLogData frame", len(frame), f"{HEADER} bytes of header and a message")
        start_lsn, end_lsn, sent_us = _XLOG_DATA.unpack_from(frame)
        return XLogData(Lsn(start_lsn), Lsn(end_lsn), sent_us, frame[HEADER:])
    if kind == KEEPALIVE:
        return parse_keepalive(frame)
    raise damaged("a frame of the replication stream", 0, "kind w (XLogData) or k (keepalive)")


def parse_keepalive(frame: bytes) -> Keepalive:
    """Read one keepalive frame, whose first byte the caller has seen to be `KEEPALIVE`."""
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
