"""How much of the stream the kernel takes in on our side while nobody reads it.

A walsender sends each change by itself. As long as our side of the connection has room, the kernel carries each across,
at the walsender's cost; once it has none, changes pile up on the walsender's side and cross together. Linux lets the
room grow to many megabytes, so that this never happens: 6.8 µs of the walsender's CPU for a change, against 4.0 with
this bound (`make bench ARGS="--only bulk"`). A distant source needs the room: what crosses in a round trip has to fit.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from struct import Struct
from typing import Final

RECEIVE_BUFFER_BYTES: Final = 64 * 1024
"""What is asked for; Linux doubles it for its own bookkeeping. With `NEAR_S` it still lets 64 MB/s through."""

NEAR_S: Final = 0.001
"""A round trip up to which the source is near."""

_TCP_INFO_RTT: Final = Struct("=68xI")
"""The smoothed round trip time of ``struct tcp_info``, in microseconds (tcp(7))."""


def bound_receive_buffer(descriptor: int) -> None:
    """Bound it for a connection to a source that is near. Where that is not known, nothing is done."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family in (socket.AF_INET, socket.AF_INET6) and (round_trip_s(connection) or 1.0) <= NEAR_S:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)


def round_trip_s(connection: socket.socket) -> float | None:
    """The round trip time that the kernel has measured for a connection, in seconds; `None` where it says nothing."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return None
    said = connection.getsockopt(socket.IPPROTO_TCP, option, _TCP_INFO_RTT.size)
    return _TCP_INFO_RTT.unpack(said)[0] / 1_000_000 if len(said) == _TCP_INFO_RTT.size else None
