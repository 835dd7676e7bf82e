"""The compiled core does what the plain modules do: the same result, or the same error, whatever the bytes.

Skipped where the compiled core is not built, or not wanted.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from cdc.changes.accumulator import Accumulator
from cdc.changes.packed_accumulator import PackedAccumulator
from cdc.changes.packed_folding import PackedCompaction
from cdc.changes.relation import Relation
from cdc.changes.row_reader import row_reader
from cdc.changes.transaction import Kind, Part
from cdc.lsn import Lsn
from cdc.pgoutput import framing, packed
from cdc.pgoutput import messages as m
from cdc.pgoutput.packed import Messages
from cdc.target.copy_encoding import CHUNK_BYTES, packed_stream, rows_stream
from cdc.target.steps import Group, PackedPiece, RoutedPart, split
from tests.twins import (
    Plan,
    Result,
    Shape,
    collected,
    compare_outcomes,
    content,
    encoded_plainly,
    fed_in_pieces,
    needs_compiled_core,
    outcome_of,
    whole,
)
from tests.unit.pgoutput_encoder import encode
from tests.unit.test_accumulator import TYPES, begin, commit, mark, relation
from tests.unit.test_compaction import KEYS, VALUES, histories, tuple_data, update

pytestmark = needs_compiled_core

BEYOND = st.sampled_from([0, 1, 4, 8, 0x42, 0x43, 0x49, 0x4B, 0x4E, 0x4F, 0x62, 0x6E, 0x74, 0x75, 0x7F, 0xFF])


def damaged(draw: st.DrawFn, messages: list[bytes]) -> list[bytes]:
    """Some bytes of some messages replaced, some cut, some lengthened; most often none."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if not messages:
            break
        index = draw(st.integers(0, len(messages) - 1))
        message = bytearray(messages[index])
        match draw(st.sampled_from(["replace", "cut", "lengthen", "drop", "twice"])):
            case "replace" if message:
                message[draw(st.integers(0, len(message) - 1))] = draw(BEYOND)
            case "cut":
                del message[draw(st.integers(0, len(message))) :]
            case "lengthen":
                message.append(draw(BEYOND))
            case "drop":
                del messages[index]
                continue
            case _:
                messages.insert(index, bytes(message))
        messages[index] = bytes(message)
    return messages


# --- frames


@given(st.lists(st.one_of(st.binary(max_size=30), st.builds(lambda tail: b"w" + bytes(24) + tail, st.binary()))))
@example([b"k" + bytes(17), b"w" + bytes(24) + b"x", b"k" + bytes(16) + b"\2"])
@example([b"w" + bytes(24), b""])
def test_frames_are_split_alike(frames: list[bytes]) -> None:
    def compiled() -> Any:
        messages, keepalives = packed.split_frames(frames)
        assert isinstance(messages, Messages)
        assert packed.size_bytes(messages) == sum(map(len, messages))
        return list(messages), keepalives

    assert outcome_of(compiled) == outcome_of(lambda: framing.split_frames(frames))


@given(st.lists(st.binary(max_size=5)), st.integers(0, 9), st.integers(0, 9))
def test_messages_are_a_sequence_of_bytes(messages: list[bytes], first: int, last: int) -> None:
    packed_messages = Messages(messages)
    assert list(packed_messages) == messages
    assert [packed_messages[index] for index in range(-len(messages), len(messages))] == messages * 2
    part = packed_messages[first:last]
    del packed_messages
    assert list(part) == messages[first:last]
    assert list(part[1:]) == messages[first:last][1:]
    assert len(part) == len(messages[first:last])
    for kinds in (b"I", b"\0\1", b""):
        assert packed.find_kind(Messages(messages), kinds, first) == packed.find_kind(messages, kinds, first)
    with pytest.raises(IndexError):
        part[len(part)]


# --- transactions


def row(draw: st.DrawFn, oid: int) -> bytes:
    value = m.Value(b"b", draw(st.sampled_from([b"", b"1", bytes(60)])))
    kind = draw(st.sampled_from("IIUD"))
    if kind == "I":
        return encode(m.Insert(None, oid, (value,)))
    if kind == "U":
        return encode(m.Update(None, oid, None, None, (value,)))
    return encode(m.Delete(None, oid, "K", (value,)))


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Transactions of a few relations, with whatever else may stand in a stream; some of it damaged."""
    found: list[bytes] = []
    for number in range(1, draw(st.integers(1, 8))):
        found.append(begin(number))
        found += [relation(oid, draw(st.sampled_from(["t", "u"]))) for oid in draw(st.sets(st.integers(7, 9)))]
        if number == 1:
            found += [relation(oid) for oid in (7, 8, 9)]
        for _ in range(draw(st.integers(0, 8))):
            what = draw(st.sampled_from(["row"] * 8 + ["mark", "truncate", "other", "relation", "type"]))
            if what == "row":
                found.append(row(draw, draw(st.integers(7, 9))))
            elif what == "mark":
                found.append(mark("cdc.test", draw(st.sampled_from([b"", bytes(300)]))))
            elif what == "truncate":
                oids = tuple(draw(st.sets(st.integers(7, 9), min_size=1)))
                found.append(encode(m.Truncate(None, oids, cascade=False, restart_identity=True)))
            elif what == "relation":
                found.append(relation(draw(st.integers(7, 9)), draw(st.sampled_from(["t", "u"]))))
            elif what == "type":
                found.append(encode(m.Type(None, 99, "public", "mood")))
            else:
                found.append(mark("theirs"))
        found.append(commit(number))
        if draw(st.booleans()):
            found.append(mark("theirs"))
    return damaged(draw, found)


@settings(max_examples=150)
@given(streams(), st.data())
def test_the_same_messages_come_to_the_same_transactions(stream: list[bytes], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    plain = outcome_of(lambda: [content(part) for part in fed_in_pieces(Accumulator(part_bytes=1 << 20), stream, cuts)])
    compiled = outcome_of(
        lambda: [content(part) for part in fed_in_pieces(PackedAccumulator(part_bytes=1 << 20), stream, cuts)]
    )
    event(str(plain[0]))
    assert compiled == plain


@given(streams(), st.data(), st.integers(0, 3000))
def test_large_transactions_are_cut_and_lose_nothing(stream: list[bytes], data: st.DataObject, limit: int) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))

    def compiled() -> list[Result]:
        accumulator = PackedAccumulator(part_bytes=limit)
        parts = fed_in_pieces(accumulator, stream, cuts)
        first = True
        for part in parts:
            assert part.is_first is first
            first = part.is_last
        return whole(parts)

    plain = outcome_of(lambda: whole(fed_in_pieces(Accumulator(part_bytes=1 << 20), stream, cuts)))
    assert outcome_of(compiled) == plain


def test_invariant_10_the_size_of_a_part_is_what_its_block_takes() -> None:
    rows = [encode(m.Insert(None, 7, (m.Value(b"b", bytes(100)),)))] * 5_000
    stream = [begin(1), relation(7), *rows, commit(1)]
    accumulator = PackedAccumulator(part_bytes=1 << 20)
    [part] = fed_in_pieces(accumulator, stream, [])
    payload = sum(map(len, rows))
    assert payload <= part.size <= 1.3 * payload + 4_000
    many = [message for number in range(1, 500) for message in (begin(number), rows[0], commit(number))]
    accumulator.feed(many)
    [part] = accumulator.take()
    assert part.transaction_count == 499
    assert 499 * len(rows[0]) <= part.size
    assert sum(one.size for one in part.divided()) >= part.size


def test_a_large_transaction_is_cut_where_its_rows_have_grown_beyond_the_limit() -> None:
    rows = [encode(m.Insert(None, 7, (m.Value(b"b", bytes(100)),)))] * 1_000
    stream = [begin(1), relation(7), *rows, commit(1), begin(2), rows[0], commit(2)]
    parts = fed_in_pieces(PackedAccumulator(part_bytes=20_000), stream, [700])
    assert len(parts) > 5
    assert all(part.size < 30_000 for part in parts)
    assert [part.xid for part in parts if part.is_last] == [1, 2]
    assert sum(part.row_count for part in parts) == 1_001


# --- rows

SHAPES = [
    (b"bbb", (0, 1, 2), (0,)),
    (b"bbb", (2, 0), (1,)),
    (b"bbb", (0, 1, 2), (0, 2)),
    (b"btb", (1, 0, 2), (1, 0)),
    (b"bbb", (1,), (0,)),
]


def block_of(changes: Sequence[bytes], oids: int = 1) -> Part:
    accumulator = PackedAccumulator(part_bytes=1 << 30)
    accumulator.descriptions.learn(TYPES, frozenset(TYPES))
    described = [relation(oid, columns=("id", "a", "b")) for oid in range(1, oids + 1)]
    accumulator.feed([begin(1), *described, *changes, commit(1)])
    [part] = accumulator.take()
    return part


def groups(parts: Sequence[Part], wire: bytes, indices: tuple[int, ...], key: tuple[int, ...]) -> list[Group]:
    """The changes of parts on their way into one table."""
    shape = Shape(key)
    plans: dict[Relation, Any] = {}
    for part in parts:
        for found in part.relations:
            plans.setdefault(found, Plan(shape, row_reader(found, wire, indices, key)))
    return [
        group
        for step in split([RoutedPart(part, plans) for part in parts])
        for found in step.tables.values()
        for group in found
    ]


@st.composite
def inserts(draw: st.DrawFn) -> list[bytes]:
    value = st.one_of(st.none(), st.sampled_from([b"", b"x", b"n", bytes(4)]), st.sampled_from(["u"] + [b"y"] * 20))
    rows = draw(st.lists(st.tuples(value, value, value), min_size=1, max_size=12))
    oid = draw(st.sampled_from([1, 2]))
    found = damaged(draw, [b"I\0\0\0" + bytes([draw(st.integers(1, oid))]) + b"N" + tuple_data(row) for row in rows])
    return [one for one in found if len(one) >= 7 and one[:5] in (b"I\0\0\0\1", b"I\0\0\0\2")] or [
        b"I\0\0\0\1N" + tuple_data((b"x", b"x", b"x"))
    ]


@settings(max_examples=150)
@given(inserts(), st.sampled_from(SHAPES))
def test_inserts_are_encoded_alike(changes: list[bytes], shape: Any) -> None:
    wire, indices, key = shape
    part = block_of(changes, 2)
    [group] = groups([part], wire, indices, key)
    assert group.packed is not None
    pieces = group.packed
    compiled = outcome_of(lambda: asyncio.run(collected(packed_stream(pieces, len(indices)))))
    plain = outcome_of(lambda: encoded_plainly(group, len(indices)))
    event(str(plain[0]))
    assert compiled == plain


def test_rows_are_encoded_in_chunks_whatever_their_size() -> None:
    sizes = [10, CHUNK_BYTES, 3 * CHUNK_BYTES, *[100] * 6_000]
    changes = [b"I\0\0\0\1N" + tuple_data((bytes(size), None, b"x")) for size in sizes]
    [group] = groups([block_of(changes), block_of(changes[3:10])], b"bbb", (0, 1, 2), (0,))

    async def chunks(pieces: list[PackedPiece]) -> list[bytes]:
        return [chunk async for chunk in packed_stream(pieces, 3)]

    assert group.packed is not None
    found = asyncio.run(chunks(group.packed))
    assert max(map(len, found)) < 3 * CHUNK_BYTES + 1_000
    assert len(found) > 5
    assert b"".join(found) == encoded_plainly(group, 3)


# --- folding


def compare_folding(parts: Sequence[Part], shape: Any, *, keeps_rows: bool) -> str:
    """Fold both ways; returns what came of it."""
    wire, indices, key = shape
    [group] = groups(parts, wire, indices, key)
    return compare_outcomes(group, indices, key, keeps_rows=keeps_rows)


@settings(max_examples=200)
@given(histories(), st.booleans(), st.data())
def test_a_history_is_folded_alike(history: Any, keeps_rows: bool, data: st.DataObject) -> None:
    _, changes, _ = history
    messages = [message for _, message in changes]
    if not messages:
        return
    cut = data.draw(st.integers(0, len(messages)))
    parts = [block_of(some) for some in (messages[:cut], messages[cut:]) if some]
    # Parts of one table come with one relation each here: its object is another in each block, the shape the same.
    result = compare_folding(parts, SHAPES[0], keeps_rows=keeps_rows)
    event(result)
    if not any(message[5:6] == b"K" for kind, message in changes if kind is Kind.UPDATE):
        assert result == "folded"  # no key changes


@st.composite
def careless(draw: st.DrawFn) -> list[bytes]:
    """Changes that no source makes, some of them damaged."""
    value = st.one_of(VALUES, st.just("u"))
    found = []
    for _ in range(draw(st.integers(1, 10))):
        oid, key = draw(st.sampled_from([b"\1", b"\2"])), draw(st.sampled_from(KEYS))
        values = draw(st.tuples(value, value))
        match draw(st.sampled_from("IUUKD")):
            case "I":
                found.append(b"I\0\0\0" + oid + b"N" + tuple_data((key, *values)))
            case "D":
                found.append(b"D\0\0\0" + oid + b"K" + tuple_data((key, None, None)))
            case "U":
                found.append(b"U\0\0\0" + oid + b"N" + tuple_data((key, *values)))
            case _:
                moved = update(key, *values, old_key=draw(st.sampled_from(KEYS)))[1]
                found.append(moved[:4] + oid + moved[5:])
    kept = [one for one in damaged(draw, found) if len(one) >= 7 and one[:4] in (b"I\0\0\0", b"U\0\0\0", b"D\0\0\0")]
    return [one for one in kept if one[4] in (1, 2)] or [b"I\0\0\0\1N" + tuple_data((b"x", b"x", b"x"))]


@settings(max_examples=200)
@given(careless(), st.sampled_from(SHAPES), st.booleans())
def test_what_no_source_does_is_folded_alike_or_left_to_the_plain_way(
    changes: list[bytes], shape: Any, keeps_rows: bool
) -> None:
    event(compare_folding([block_of(changes, 2)], shape, keeps_rows=keeps_rows))


def test_a_hot_key_with_partial_updates_keeps_one_version_of_each_kind() -> None:
    base = b"I\0\0\0\1N" + tuple_data((b"k", b"first", b"second"))
    updates = [update(b"k", struct.pack(">I", number), "u")[1] for number in range(2_000)]
    part = block_of([base, *updates, update(b"k", "u", b"last")[1]])
    assert compare_folding([part], SHAPES[0], keeps_rows=False) == "folded"
    [group] = groups([part], *SHAPES[0])
    assert group.packed is not None
    compaction = PackedCompaction(3, (0,), keeps_rows=False)
    for piece in group.packed:
        list(compaction.add(piece.rows))
    outcome = compaction.finish()
    assert (outcome.deletes, outcome.updates, outcome.inserts) == (0, [], 1)
    data = asyncio.run(collected(rows_stream(outcome.inserted(), 3)))
    assert struct.pack(">I", 1999) in data
    assert b"last" in data
    assert outcome.folding.size < 200_000


def test_many_columns_and_many_keys_are_folded_alike() -> None:
    columns = 130

    def message(key: int, changed: int, unchanged: Sequence[int]) -> bytes:
        values = [b"%d" % key] + [b"v%d" % changed] * (columns - 1)
        row = tuple("u" if place in unchanged else value for place, value in enumerate(values))
        return b"U\0\0\0\1N" + tuple_data(row)

    changes = [message(number % 700, number, [1 + number % 129, 64, 129][: number % 4]) for number in range(2_100)]
    wire, indices = b"b" * columns, tuple(reversed(range(columns)))
    assert compare_folding([block_of(changes)], (wire, indices, (columns - 1,)), keeps_rows=True) == "folded"


def test_the_lsns_of_several_transactions_are_those_of_the_last_and_the_first() -> None:
    stream = [begin(1), relation(7), encode(m.Insert(None, 7, (m.Value(b"b", b"x"),))), commit(1)]
    stream += [message for number in (2, 3, 4) for message in (begin(number), stream[2], commit(number))]
    accumulator = PackedAccumulator(part_bytes=1 << 20)
    accumulator.descriptions.learn(TYPES, frozenset(TYPES))
    accumulator.feed(stream)
    [part] = accumulator.take()
    assert (part.begins_at, part.commit_lsn, part.end_lsn, part.xid) == (Lsn(10), Lsn(40), Lsn(45), 4)
    assert [one.commit_lsn for one in part.divided()] == [Lsn(10), Lsn(20), Lsn(30), Lsn(40)]
    assert part.without_changes().transaction_count == 4
