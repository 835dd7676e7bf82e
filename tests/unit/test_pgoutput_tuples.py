"""`read_fields`: from the tuple of a change to the fields that COPY wants, or one kind of error."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdc.errors import ProtocolError
from cdc.pgoutput.messages import Insert, Update, Value
from cdc.pgoutput.tuples import (
    BINARY,
    FIRST_MARKER,
    FIRST_TUPLE,
    NEW,
    NULL,
    OLD_KEY,
    TEXT,
    UNCHANGED,
    UnexpectedFormat,
    read_fields,
)
from tests.unit.pgoutput_encoder import encode, encode_tuple

ROW = (Value(b"b", b"\0\0\0\7"), Value(b"n"), Value(b"t", b"s3cret"), Value(b"u"), Value(b"b", b""))
WIRE = bytes([BINARY, BINARY, TEXT, BINARY, BINARY])
FIELDS = [b"\0\0\0\4\0\0\0\7", NULL, b"\0\0\0\6s3cret", UNCHANGED, b"\0\0\0\0"]

values = st.one_of(
    st.builds(Value, st.sampled_from([b"b", b"t"]), st.binary(max_size=300)),
    st.sampled_from([Value(b"n"), Value(b"u")]),
)


def field(value: Value) -> bytes:
    if value.data is None:
        return NULL if value.kind == b"n" else UNCHANGED
    return struct.pack(">I", len(value.data)) + value.data


def test_the_fields_of_an_insert_are_what_copy_wants() -> None:
    message = encode(Insert(None, 16384, ROW))
    fields, end = read_fields(message, FIRST_TUPLE, WIRE)
    assert fields == FIELDS
    assert end == len(message)
    assert fields[1] is NULL
    assert fields[3] is UNCHANGED


def test_the_new_tuple_of_an_update_starts_one_byte_behind_the_old_one() -> None:
    key = (ROW[0], *[Value(b"n")] * 4)
    message = encode(Update(None, 16384, "K", key, ROW))
    assert message[FIRST_MARKER] == OLD_KEY
    old, end = read_fields(message, FIRST_TUPLE, WIRE)
    assert old == [FIELDS[0], NULL, NULL, NULL, NULL]
    assert message[end] == NEW
    assert read_fields(message, end + 1, WIRE) == (FIELDS, len(message))


@given(st.lists(values, max_size=40), st.binary(max_size=20), st.binary(max_size=20))
def test_any_tuple_is_read_where_it_stands(row: list[Value], before: bytes, behind: bytes) -> None:
    wire = bytes(TEXT if value.kind == b"t" else BINARY for value in row)
    message = before + encode_tuple(row) + behind
    assert read_fields(message, len(before), wire) == ([field(value) for value in row], len(message) - len(behind))


@pytest.mark.parametrize(("wire", "kind"), [(WIRE[:2] + b"b" + WIRE[3:], TEXT), (WIRE[:4] + b"t", BINARY)])
def test_a_value_in_the_other_format_is_named_by_its_column(wire: bytes, kind: int) -> None:
    with pytest.raises(UnexpectedFormat) as caught:
        read_fields(encode_tuple(ROW), 0, wire)
    assert caught.value.kind == kind
    assert caught.value.column_index == (2 if kind == TEXT else 4)
    assert f"column {caught.value.column_index + 1} of a row" in str(caught.value)


@pytest.mark.parametrize("wire", [WIRE[:4], WIRE + b"b", b""])
def test_another_number_of_columns_than_the_relation_has_is_a_protocol_error(wire: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"expected {len(wire)} columns, as its relation has"):
        read_fields(encode_tuple(ROW), 0, wire)


def test_a_tuple_cut_at_any_byte_is_a_protocol_error() -> None:
    message = encode(Insert(None, 16384, ROW))
    for length in range(FIRST_TUPLE, len(message)):
        with pytest.raises(ProtocolError, match="but the message ends"):
            read_fields(message[:length], FIRST_TUPLE, WIRE)


@pytest.mark.parametrize("length", [-1, -5, -(2**31), 2**31 - 1, 1])
def test_a_negative_length_or_one_beyond_the_message_is_a_protocol_error(length: int) -> None:
    with pytest.raises(ProtocolError, match="but the message ends"):
        read_fields(b"\0\1b" + struct.pack(">i", length), 0, b"b")
    with pytest.raises(ProtocolError, match="but the message ends"):
        read_fields(b"\0\2b" + struct.pack(">i", length) + b"n", 0, b"bb")


def test_an_unknown_kind_of_column_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="byte 2: expected a column of kind n, u, t or b"):
        read_fields(b"\0\1x", 0, b"b")


def fields_or_protocol_error(message: bytes, offset: int, wire: bytes) -> ProtocolError | None:
    try:
        fields, end = read_fields(message, offset, wire)
    except ProtocolError as error:
        return error
    assert len(fields) == len(wire)
    assert end <= len(message)
    return None


@given(message=st.binary(max_size=60), offset=st.integers(0, 70), wire=st.lists(st.sampled_from(b"bt"), max_size=5))
@example(message=b"\0\1b\0\0\0\1", offset=0, wire=[BINARY])
@example(message=b"\0\0", offset=0, wire=[])
def test_random_bytes_give_fields_or_a_protocol_error_and_nothing_else(
    message: bytes, offset: int, wire: list[int]
) -> None:
    fields_or_protocol_error(message, offset, bytes(wire))


@given(data=st.data())
def test_a_damaged_tuple_gives_fields_or_a_protocol_error_and_nothing_else(data: st.DataObject) -> None:
    message = bytearray(encode(Insert(None, 16384, ROW)))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(FIRST_TUPLE, len(message) - 1))] = data.draw(st.integers(0, 255))
    assert "s3cret" not in str(fields_or_protocol_error(bytes(message), FIRST_TUPLE, WIRE))
