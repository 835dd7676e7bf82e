"""`decode` understands every message, and answers damage with one kind of error."""

from __future__ import annotations

import struct
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.pgoutput import messages as m
from cdc.pgoutput.decoder import decode
from tests.unit.pgoutput_encoder import encode

LSN = Lsn.parse("16/B374D848")
END = LSN + 48

TUPLE = (
    m.Value(b"b", b"\0\0\0\7"),
    m.Value(b"t", "élève".encode()),
    m.Value(b"n"),
    m.Value(b"u"),
    m.Value(b"b", b""),
)
KEY = (m.Value(b"b", b"\0\0\0\7"), *[m.Value(b"n")] * 4)
COLUMNS = (m.RelationColumn(1, "id", 23, -1), m.RelationColumn(0, 'the "name"', 1043, 259))


def outside() -> list[m.Message]:
    """Every kind of message as it stands outside of a streamed block."""
    return [
        m.Begin(LSN, 7, 4_294_967_295),
        m.Commit(0, LSN, Lsn(END), -7),
        m.Origin(LSN, "another server"),
        *changes(None),
        m.StreamStart(9, is_first=True),
        m.StreamStart(9, is_first=False),
        m.StreamCommit(9, 0, LSN, Lsn(END), 7),
        m.StreamAbort(9, 10),
        m.BeginPrepare(LSN, Lsn(END), 7, 9, "gid"),
        m.Prepare(0, LSN, Lsn(END), 7, 9, "gid"),
        m.CommitPrepared(0, LSN, Lsn(END), 7, 9, "gid"),
        m.RollbackPrepared(0, LSN, Lsn(END), 7, 8, 9, "gid"),
        m.StreamPrepare(0, LSN, Lsn(END), 7, 9, "gid"),
    ]


def inside() -> list[m.Message]:
    """Every kind of message as it stands inside of a streamed block."""
    return [m.Origin(LSN, ""), *changes(9), m.StreamStop()]


def changes(xid: int | None) -> list[m.Message]:
    return [
        m.RelationMessage(xid, 16384, "public", "knowledge-elements", "d", COLUMNS),
        m.RelationMessage(xid, 16385, "pg_catalog", "empty", "n", ()),
        m.Type(xid, 16386, "public", "mood"),
        m.Insert(xid, 16384, TUPLE),
        m.Insert(xid, 16385, ()),
        m.Update(xid, 16384, None, None, TUPLE),
        m.Update(xid, 16384, "K", KEY, TUPLE),
        m.Update(xid, 16384, "O", TUPLE, TUPLE),
        m.Delete(xid, 16384, "K", KEY),
        m.Delete(xid, 16384, "O", TUPLE),
        m.Truncate(xid, (), cascade=False, restart_identity=False),
        m.Truncate(xid, (16384, 16385), cascade=True, restart_identity=True),
        m.LogicalMessage(xid, True, LSN, "cdc.heartbeat", b"{}"),
        m.LogicalMessage(xid, False, LSN, "", b"\0\xff"),
    ]


ALL = [(message, False) for message in outside()] + [(message, True) for message in inside()]
ENCODED = [(encode(message), in_stream) for message, in_stream in ALL]


def test_the_examples_hold_every_kind_of_message() -> None:
    assert {type(message) for message, _ in ALL} == set(get_args(m.Message))


@pytest.mark.parametrize(("message", "in_stream"), ALL, ids=lambda value: type(value).__name__)
def test_what_was_encoded_is_decoded(message: m.Message, in_stream: bool) -> None:
    assert decode(encode(message), protocol=4, in_stream=in_stream) == message


def test_an_abort_of_a_parallel_stream_carries_its_lsn_and_time() -> None:
    message = m.StreamAbort(9, 10, LSN, 7)
    assert decode(encode(message), protocol=4, parallel=True) == message
    with pytest.raises(ProtocolError, match="the end, but 16 bytes follow"):
        decode(encode(message), protocol=4)
    with pytest.raises(ProtocolError, match="the message ends"):
        decode(encode(m.StreamAbort(9, 10)), protocol=4, parallel=True)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4])
def test_a_message_of_a_later_protocol_version_is_refused(protocol: int) -> None:
    since = {b"S": 2, b"E": 2, b"c": 2, b"A": 2, b"b": 3, b"P": 3, b"K": 3, b"r": 3, b"p": 3}
    for encoded, in_stream in ENCODED:
        if since.get(encoded[:1], 1) <= protocol:
            decode(encoded, protocol=protocol, in_stream=in_stream)
        else:
            with pytest.raises(ProtocolError, match=f"of protocol version {protocol}, and this one is of"):
                decode(encoded, protocol=protocol, in_stream=in_stream)


def test_a_message_at_a_place_where_it_cannot_stand_is_refused() -> None:
    for message in outside():
        if not isinstance(message, m.Origin) and getattr(message, "xid", 0) is not None:
            with pytest.raises(ProtocolError, match="inside a streamed block"):
                decode(encode(message), protocol=4, in_stream=True)
    with pytest.raises(ProtocolError, match="outside of a streamed block"):
        decode(encode(m.StreamStop()), protocol=4)


@pytest.mark.parametrize("number", range(len(ENCODED)))
def test_a_message_cut_at_any_byte_is_a_protocol_error(number: int) -> None:
    encoded, in_stream = ENCODED[number]
    for length in range(len(encoded)):
        with pytest.raises(ProtocolError):
            decode(encoded[:length], protocol=4, in_stream=in_stream)


@pytest.mark.parametrize("number", range(len(ENCODED)))
def test_a_byte_too_many_is_a_protocol_error(number: int) -> None:
    encoded, in_stream = ENCODED[number]
    with pytest.raises(ProtocolError, match="the end, but 1 bytes follow"):
        decode(encoded + b"\0", protocol=4, in_stream=in_stream)


def only_protocol_errors(damaged: bytes, *, in_stream: bool, parallel: bool = False) -> None:
    try:
        decoded = decode(damaged, protocol=4, in_stream=in_stream, parallel=parallel)
    except ProtocolError:
        return
    # What is not refused was understood completely. (That a name of a schema is pg_catalog has two spellings.)
    assert encode(decoded) == damaged or b"pg_catalog\0" in damaged


@given(data=st.data())
def test_damaged_bytes_give_a_message_or_a_protocol_error_and_nothing_else(data: st.DataObject) -> None:
    encoded, in_stream = data.draw(st.sampled_from(ENCODED))
    damaged = bytearray(encoded)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(damaged))] * 2)))
    if data.draw(st.booleans()):
        damaged[start:end] = data.draw(st.binary(max_size=8))
    only_protocol_errors(bytes(damaged), in_stream=in_stream, parallel=data.draw(st.booleans()))


@given(kind=st.sampled_from(sorted({encoded[:1] for encoded, _ in ENCODED})), rest=st.binary(), in_stream=st.booleans())
@example(kind=b"T", rest=b"\xff\xff\xff\xff\0", in_stream=False)
@example(kind=b"I", rest=b"\0\0\0\1N\0\1b\xff\xff\xff\xff", in_stream=False)
def test_random_bytes_give_a_message_or_a_protocol_error_and_nothing_else(
    kind: bytes, rest: bytes, in_stream: bool
) -> None:
    only_protocol_errors(kind + rest, in_stream=in_stream)


@pytest.mark.parametrize("message", [b"", b"?", b"\xff" * 40, b"w"])
def test_an_unknown_kind_of_message_is_a_protocol_error(message: bytes) -> None:
    with pytest.raises(ProtocolError, match="damaged at byte 0: expected the kind of a message"):
        decode(message, protocol=4)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"O" + struct.pack(">Q", 1) + b"\xff\xfe\0", r"\(Origin\) is damaged at byte 9: expected a string in UTF-8"),
        (b"O" + struct.pack(">Q", 1) + b"name", "byte 9: expected a string that ends with a zero byte"),
        (b"I\0\0\0\1K\0\0", "byte 5: expected N, a new tuple"),
        (b"U\0\0\0\1X\0\0", "byte 5: expected K, O or N"),
        (b"U\0\0\0\1K\0\0K\0\0", "byte 8: expected N, a new tuple"),
        (b"D\0\0\0\1N\0\0", "byte 5: expected K or O"),
        (b"I\0\0\0\1N\xff\xff", "byte 6: expected a number of columns that is not negative"),
        (b"I\0\0\0\1N\0\1x", "byte 8: expected a column of kind n, u, t or b"),
        (b"I\0\0\0\1N\0\1b\xff\xff\xff\xff", "byte 9: expected a length that is not negative"),
        (b"I\0\0\0\1N\0\1b\0\0\0\5abcd", "byte 13: expected 5 more bytes, but 4 are left"),
        (b"T\0\0\0\1\4\0\0\0\1", "byte 5: expected flags of the bits 0x3 only"),
        (b"T\0\0\0\2\0\0\0\0\1", "byte 10: expected an integer of 4 bytes, but the message ends"),
        (b"R\0\0\0\1\0t\0x\0\0", "byte 8: expected the replica identity d, f, i or n"),
        (b"B" + struct.pack(">QqI", 0, 0, 1), "byte 1: expected an LSN other than 0/0"),
        (b"C" + struct.pack(">BQQq", 1, 1, 1, 1), "byte 1: expected flags of the bits 0x0 only"),
    ],
)
def test_an_error_names_the_message_and_the_byte_and_what_should_be_there(message: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        decode(message, protocol=4)


def refusal(damaged: bytes) -> ProtocolError | None:
    try:
        decode(damaged)
    except ProtocolError as error:
        return error
    return None


def test_no_error_and_no_repr_shows_a_value_of_a_row() -> None:
    secret = m.Value(b"t", b"s3cret")
    assert "s3cret" not in repr(m.Insert(None, 1, (secret,)))
    assert "s3cret" not in repr(m.LogicalMessage(None, True, LSN, "prefix", b"s3cret"))
    encoded = encode(m.Update(None, 1, "K", (secret, secret), (secret,)))
    for position in range(len(encoded)):
        for damaged in (encoded[:position], encoded[:position] + b"\xff" + encoded[position + 1 :]):
            assert "s3cret" not in str(refusal(damaged))
