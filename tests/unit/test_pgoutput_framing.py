"""The frames of the replication stream, and the answer that the server wants."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import ProtocolError
from cdc.lsn import INVALID_LSN, Lsn
from cdc.pgoutput.framing import Keepalive, split_frames, standby_status_update

DATA = b"w" + struct.pack(">QQq", 1 << 40, 2, -3) + b"message"
ALIVE = b"k" + struct.pack(">QqB", 1 << 40, 3, 1)


def test_messages_and_keepalives_are_told_apart_and_keep_their_order() -> None:
    other = DATA[:25] + b"other"
    assert split_frames([DATA, ALIVE, other]) == ([b"message", b"other"], [Keepalive(Lsn(1 << 40), 3, True)])
    assert split_frames([DATA, DATA]) == ([b"message"] * 2, [])
    assert split_frames([ALIVE[:-1] + b"\0"]) == ([], [Keepalive(Lsn(1 << 40), 3, reply_requested=False)])
    assert split_frames([]) == ([], [])


def test_a_status_update_has_the_layout_of_the_manual() -> None:
    update = standby_status_update(Lsn(5), Lsn(4), INVALID_LSN, clock_us=-1, reply_requested=True)
    assert update == b"r" + struct.pack(">QQQqB", 5, 4, 0, -1, 1)
    assert standby_status_update(Lsn(5), Lsn(4), Lsn(3), clock_us=9)[-1] == 0


@pytest.mark.parametrize(
    "frame", [DATA[:25], DATA[:1], ALIVE[:-1], ALIVE + b"\0", ALIVE[:-1] + b"\2", b"", b"?", b"W" + DATA[1:]]
)
def test_a_damaged_frame_among_others_is_a_protocol_error_and_is_never_passed_over(frame: bytes) -> None:
    for frames in ([frame], [DATA, frame, DATA], [DATA, ALIVE, frame]):
        with pytest.raises(ProtocolError, match="is damaged at byte") as error:
            split_frames(frames)
        assert "message" not in str(error.value).replace("a message behind", "")


@given(st.sampled_from([b"", b"w", b"k"]), st.binary())
def test_random_bytes_are_a_frame_or_a_protocol_error_and_nothing_else(kind: bytes, rest: bytes) -> None:
    try:
        messages, keepalives = split_frames([DATA, kind + rest])
    except ProtocolError:
        return
    assert len(messages) + len(keepalives) == 2
