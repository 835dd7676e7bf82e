"""`LayoutReader` reads whatever `read_fields` reads, and refuses whatever it refuses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdc.errors import ProtocolError
from cdc.pgoutput import layouts
from cdc.pgoutput.layouts import LayoutReader
from cdc.pgoutput.messages import Insert, Value
from cdc.pgoutput.tuples import FIRST_TUPLE, NULL, UNCHANGED, UnexpectedFormat, read_fields
from tests.unit.pgoutput_encoder import encode

# Few lengths, so that layouts are met again; values that look like the bytes of a layout.
values = st.one_of(
    st.builds(Value, st.just(b"b"), st.sampled_from([b"", b"n", b"u", b"b\0", b"nn", b"b\0\0\0\0", b"\0\0\0\1"])),
    st.sampled_from([Value(b"n"), Value(b"u")]),
)


def insert(*row: Value) -> bytes:
    return encode(Insert(None, 16384, row))


def plain(message: bytes, wire: bytes) -> list[bytes] | type[ProtocolError]:
    try:
        fields, end = read_fields(message, FIRST_TUPLE, wire)
    except ProtocolError as error:
        return type(error)
    return fields if end == len(message) else ProtocolError


def quick(reader: LayoutReader, message: bytes) -> list[bytes] | type[ProtocolError]:
    try:
        (fields,) = reader.read([message])
    except ProtocolError as error:
        return type(error)
    return list(fields)


@given(st.integers(0, 4).flatmap(lambda columns: st.lists(st.tuples(*[values] * columns), min_size=1, max_size=40)))
@example([(Value(b"n"),), (Value(b"n"),)])
def test_rows_are_read_as_read_fields_reads_them(table: list[tuple[Value, ...]]) -> None:
    messages = [insert(*row) for row in table]
    wire = b"b" * len(table[0])
    reader = LayoutReader(wire)
    expected = [plain(message, wire) for message in messages]
    for _ in range(3):
        read = reader.read(messages)
        assert [list(fields) for fields in read] == expected
    for fields in read:
        assert all(field is NULL for field in fields if field == NULL)
        assert all(field is UNCHANGED for field in fields if field == UNCHANGED)


@given(data=st.data())
def test_a_damaged_row_is_read_as_read_fields_reads_it(data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 4))
    reader = LayoutReader(b"b" * columns)
    known = data.draw(st.lists(st.tuples(*[values] * columns), min_size=1, max_size=5))
    messages = [insert(*row) for row in known]
    reader.read(messages)
    damaged = bytearray(data.draw(st.sampled_from(messages)))
    for _ in range(data.draw(st.integers(1, 3))):
        byte = data.draw(st.sampled_from(b"\0\1\2\5nubt\xff"))
        damaged[data.draw(st.integers(FIRST_TUPLE, len(damaged) - 1))] = byte
    assert quick(reader, bytes(damaged)) == plain(bytes(damaged), b"b" * columns)


def test_a_row_cut_at_any_byte_or_with_a_byte_too_many_is_a_protocol_error() -> None:
    message = insert(Value(b"b", b"s3cret"), Value(b"n"), Value(b"b", b"s3cret"))
    reader = LayoutReader(b"bbb")
    reader.read([message])
    for length in range(len(message)):
        with pytest.raises(ProtocolError) as caught:
            reader.read([message[:length]])
        assert "s3cret" not in str(caught.value)
    with pytest.raises(ProtocolError, match="the end, but 1 bytes follow"):
        reader.read([message + b"n"])


def test_a_value_in_the_other_format_is_unexpected_also_where_its_layout_is_known() -> None:
    reader = LayoutReader(b"bb")
    reader.read([insert(Value(b"b", b"same"), Value(b"n"))])
    with pytest.raises(UnexpectedFormat):
        reader.read([insert(Value(b"t", b"same"), Value(b"n"))])


def test_a_reader_that_learns_in_vain_rests_and_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[int] = []
    learn = LayoutReader._learn

    def counting(self: LayoutReader, message: bytes, fields: Sequence[bytes]) -> None:
        learned.append(len(message))
        learn(self, message, fields)

    monkeypatch.setattr(LayoutReader, "_learn", counting)
    reader = LayoutReader(b"b")
    different = [insert(Value(b"b", bytes(length))) for length in range(2000)]
    assert [len(fields[0]) - 4 for fields in reader.read(different)] == list(range(2000))
    assert len(learned) == layouts.CREDIT // layouts.LEARN
    for _ in range(layouts.REST // 2000):
        reader.read(different)
    assert len(learned) == layouts.CREDIT // layouts.LEARN
    same = [different[1999]] * 100
    assert [list(fields) for fields in reader.read(same)] == [[different[1999][9:]]] * 100
    assert len(learned) == layouts.CREDIT // layouts.LEARN + 1
