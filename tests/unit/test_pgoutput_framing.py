"""The frames of the replication stream, and the answer that the server wants."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import ProtocolError
from cdc.lsn import INVALID_LSN, Lsn
from cdc.pgoutput.framing import HEADER, Keepalive, XLogData, parse, standby_status_update

DATA = b"w" + struct.pack(">QQq", 1 << 40, 2, -3) + b"message"
ALIVE = b"k" + struct.pack(">QqB", 1 << 40, 3, 1)


def test_xlog_data_is_read() -> None:
    assert parse(DATA) == XLogData(Lsn(1 << 40), Lsn(2), -3, b"message")
    assert DATA[HEADER:] == b"message"


def test_a_keepalive_is_read() -> None:
    assert parse(ALIVE) == Keepalive(Lsn(1 << 40), 3, reply_requested=True)
    assert parse(ALIVE[:-1] + b"\0") == Keepalive(Lsn(1 << 40), 3, reply_requested=False)


def test_a_status_update_has_the_layout_of_the_manual() -> None:
    update = standby_status_update(Lsn(5), Lsn(4), INVALID_LSN, clock_us=-1, reply_requested=True)
    assert update == b"r" + struct.pack(">QQQqB", 5, 4, 0, -1, 1)
    assert standby_status_update(Lsn(5), Lsn(4), Lsn(3), clock_us=9)[-1] == 0


@pytest.mark.parametrize("frame", [DATA[:HEADER], DATA[:1], ALIVE[:-1], ALIVE + b"\0", ALIVE[:-1] + b"\2", b"", b"?"])
def test_a_damaged_frame_is_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(ProtocolError, match="is damaged at byte"):
        parse(frame)


@given(st.sampled_from([b"", b"w", b"k"]), st.binary())
def test_random_bytes_give_a_frame_or_a_protocol_error_and_nothing_else(kind: bytes, rest: bytes) -> None:
    try:
        frame = parse(kind + rest)
    except ProtocolError:
        return
    assert isinstance(frame, XLogData | Keepalive)


def test_no_frame_shows_a_value_of_a_row() -> None:
    assert "message" not in repr(parse(DATA))
