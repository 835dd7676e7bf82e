"""From messages to whole transactions."""

from __future__ import annotations

import pytest

from cdc.changes.accumulator import MARK_OVERHEAD, PART_OVERHEAD, ROW_OVERHEAD, RUN_OVERHEAD, Accumulator, UnknownTypes
from cdc.changes.relation import DataType, ReplicaIdentity
from cdc.changes.transaction import Kind, Mark, Part, Run, Truncation
from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.pgoutput import messages as m
from tests.unit.pgoutput_encoder import encode

INT8 = DataType(20, "pg_catalog", "int8", "bigint")
TEXT = DataType(25, "pg_catalog", "text", "text")
TYPES = {(20, -1): INT8, (25, -1): TEXT}


def begin(number: int) -> bytes:
    return encode(m.Begin(final_lsn=Lsn(10 * number), commit_time_us=number, xid=number))


def commit(number: int) -> bytes:
    return encode(m.Commit(flags=0, commit_lsn=Lsn(10 * number), end_lsn=Lsn(10 * number + 5), commit_time_us=number))


def relation(oid: int, name: str = "t", columns: tuple[str, ...] = ("id",)) -> bytes:
    described = tuple(m.RelationColumn(int(i == 0), column, 20, -1) for i, column in enumerate(columns))
    return encode(m.RelationMessage(None, oid, "public", name, "d", described))


def insert(oid: int, value: bytes = b"\0" * 8) -> bytes:
    return encode(m.Insert(None, oid, (m.Value(b"b", value),)))


def delete(oid: int) -> bytes:
    return encode(m.Delete(None, oid, "K", (m.Value(b"b", b"\0" * 8),)))


def mark(prefix: str, content: bytes = b"") -> bytes:
    return encode(m.LogicalMessage(None, True, Lsn(9), prefix, content))


def fed(*messages: bytes, part_bytes: int = 1 << 20) -> list[Part]:
    accumulator = Accumulator(part_bytes=part_bytes)
    accumulator.descriptions.learn(TYPES, frozenset(TYPES))
    accumulator.feed(messages)
    return accumulator.take()


def test_consecutive_changes_of_one_kind_are_one_run() -> None:
    (part,) = fed(begin(1), relation(7), insert(7), insert(7), delete(7), insert(7), commit(1))
    runs = [change for change in part.changes if isinstance(change, Run)]
    assert [(run.kind, len(run.rows)) for run in runs] == [(Kind.INSERT, 2), (Kind.DELETE, 1), (Kind.INSERT, 1)]
    assert (part.xid, part.commit_lsn, part.end_lsn, part.row_count) == (1, Lsn(10), Lsn(15), 4)
    assert part.is_first
    assert part.is_last


def test_a_transaction_is_handed_out_only_when_it_is_whole() -> None:
    accumulator = Accumulator(part_bytes=1 << 20)
    accumulator.descriptions.learn(TYPES, frozenset(TYPES))
    accumulator.feed([begin(1), relation(7), insert(7)])
    assert accumulator.take() == []
    assert accumulator.in_transaction
    accumulator.feed([insert(7), commit(1), begin(2)])
    (part,) = accumulator.take()
    assert part.row_count == 2
    assert accumulator.in_transaction


def test_a_large_transaction_is_cut_and_only_its_last_part_knows_the_end() -> None:
    limit = PART_OVERHEAD + RUN_OVERHEAD + 4 * (len(insert(7)) + ROW_OVERHEAD)
    parts = fed(begin(1), relation(7), *[insert(7)] * 10, commit(1), part_bytes=limit)
    assert [part.row_count for part in parts] == [5, 5, 0]
    assert [part.is_first for part in parts] == [True, False, False]
    assert [part.end_lsn for part in parts] == [None, None, Lsn(15)]
    assert {part.commit_lsn for part in parts} == {Lsn(10)}


def test_a_relation_that_is_described_again_alike_stays_the_same_object() -> None:
    first, second = fed(begin(1), relation(7), insert(7), commit(1), begin(2), relation(7), insert(7), commit(2))
    assert first.relations == second.relations


def test_hazard_15_a_change_keeps_the_shape_that_was_in_force_where_it_stands() -> None:
    (part,) = fed(begin(1), relation(7), insert(7), relation(7, columns=("id", "more")), insert(7), commit(1))
    before, after = (change.relation for change in part.changes if isinstance(change, Run))
    assert [column.name for column in before.columns] == ["id"]
    assert [column.name for column in after.columns] == ["id", "more"]
    assert after.replica_identity is ReplicaIdentity.DEFAULT
    assert after.key == (0,)


def test_an_unknown_type_stops_the_feeding_exactly_before_its_relation() -> None:
    accumulator = Accumulator(part_bytes=1 << 20)
    with pytest.raises(UnknownTypes) as stopped:
        accumulator.feed([begin(1), relation(7), insert(7), commit(1)])
    assert stopped.value.keys == {(20, -1)}
    assert len(stopped.value.remaining) == 3
    accumulator.descriptions.learn(TYPES, stopped.value.keys)
    accumulator.feed(stopped.value.remaining)
    assert accumulator.take()[0].row_count == 1


def test_a_type_that_was_dropped_since_keeps_the_name_that_the_stream_gave_it() -> None:
    accumulator = Accumulator(part_bytes=1 << 20)
    described = (m.RelationColumn(1, "mood", 9999, -1),)
    stream = [
        begin(1),
        encode(m.Type(None, 9999, "public", "mood")),
        encode(m.RelationMessage(None, 7, "public", "t", "d", described)),
        insert(7),
        commit(1),
    ]
    with pytest.raises(UnknownTypes) as stopped:
        accumulator.feed(stream)
    accumulator.descriptions.learn({}, stopped.value.keys)
    accumulator.feed(stopped.value.remaining)
    (known,) = accumulator.take()[0].relations
    assert (known.columns[0].type.schema, known.columns[0].type.name) == ("public", "mood")


def test_truncates_and_marks_keep_their_place() -> None:
    truncate = encode(m.Truncate(None, (7, 8), False, True))
    (part,) = fed(
        begin(1), relation(7), relation(8, "u"), insert(7), truncate, mark("cdc.heartbeat"), insert(8), commit(1)
    )
    assert [type(change) for change in part.changes] == [Run, Truncation, Mark, Run]
    truncation = part.changes[1]
    assert isinstance(truncation, Truncation)
    assert [relation.name for relation in truncation.relations] == ["t", "u"]
    assert truncation.restart_identity
    assert part.marks == [part.changes[2]]


def test_invariant_10_what_other_programs_put_into_the_wal_is_not_kept() -> None:
    stream = [begin(1), *[mark("theirs", b"x" * 1000)] * 100, mark("cdcs"), mark("cdc.heartbeat"), commit(1)]
    (part,) = fed(*stream, part_bytes=10_000)
    assert [change.prefix for change in part.changes if isinstance(change, Mark)] == ["cdc.heartbeat"]
    assert part.marks == part.changes
    assert part.size == PART_OVERHEAD + MARK_OVERHEAD


def test_invariant_10_a_transaction_of_many_messages_of_ours_is_cut() -> None:
    limit = PART_OVERHEAD + 10 * (MARK_OVERHEAD + 20)
    parts = fed(begin(1), *[mark("cdc.watermark", b"x" * 20)] * 100, commit(1), part_bytes=limit)
    assert sum(len(part.marks) for part in parts) == 100
    assert len(parts) == 10
    assert max(part.size for part in parts) <= limit + MARK_OVERHEAD + 20
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]


def test_invariant_10_a_transaction_of_many_truncates_is_cut() -> None:
    truncate = encode(m.Truncate(None, (7,), False, False))
    parts = fed(begin(1), relation(7), *[truncate] * 100, commit(1), part_bytes=5000)
    assert sum(len(part.changes) for part in parts) == 100
    assert max(part.size for part in parts) < 6000


@pytest.mark.parametrize(
    "stream",
    [
        [insert(7)],
        [begin(1), insert(7)],
        [begin(1), begin(2)],
        [commit(1)],
        [begin(1), commit(2)],
        [begin(1), b""],
        [begin(1), b"I\0\0"],
        [begin(1), b"\xff\xff\xff\xff\xff\xff\xff"],
        [begin(1), encode(m.Truncate(None, (99,), False, False))],
        [encode(m.StreamStop())],
    ],
)
def test_messages_that_cannot_follow_one_another_are_a_damaged_stream(stream: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        fed(*stream)
