"""Which version of a row is newer: by transaction ids and snapshots, never by LSNs (hazard 22)."""

from __future__ import annotations

import pytest

from cdc.changes.relation import Column, DataType, Relation, ReplicaIdentity
from cdc.changes.row_reader import row_reader
from cdc.changes.touched_keys import TOUCH_BYTES, TouchedKeys, TouchReader
from cdc.changes.transaction import Change, Kind, Part, Run, Truncation
from cdc.changes.transaction_ids import SnapshotIds, widen
from cdc.lsn import Lsn
from cdc.pgoutput.tuples import TEXT

WORD = DataType(25, "pg_catalog", "text", "text")
RELATION = Relation(
    1, "public", "t", ReplicaIdentity.DEFAULT, (Column("id", WORD, is_key=True), Column("a", WORD), Column("b", WORD))
)
READERS = {
    RELATION: TouchReader(row_reader(RELATION, bytes([TEXT] * 3), (0, 1, 2), (0,)), ("id", "a", "b"), "form"),
}


def key(text: str) -> tuple[bytes, ...]:
    return (len(text).to_bytes(4, "big") + text.encode(),)


def row(*values: str | None) -> bytes:
    """A tuple; `None` is an unchanged TOASTed value."""
    fields = (b"u" if v is None else b"t" + len(v).to_bytes(4, "big") + v.encode() for v in values)
    return len(values).to_bytes(2, "big") + b"".join(fields)


def update(*new: str | None, old: str | None = None) -> Run:
    before = b"" if old is None else b"K" + (3).to_bytes(2, "big") + b"t" + len(old).to_bytes(4, "big") + old.encode()
    marker = b"" if old is None else before + b"nn"
    return Run(RELATION, Kind.UPDATE, [b"U\0\0\0\1" + marker + b"N" + row(*new)])


def insert(*new: str) -> Run:
    return Run(RELATION, Kind.INSERT, [b"I\0\0\0\1N" + row(*new)])


def part(xid: int, *changes: Change) -> Part:
    return Part(xid, Lsn(10), 0, end_lsn=Lsn(20), changes=list(changes), relations={RELATION})


def touched(**options: int) -> TouchedKeys:
    return TouchedKeys("form", **{"near": 1000, "limit_bytes": 10_000, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("xid", "near", "wide"),
    [
        (5, 7, 5),
        (7, 5, 7),
        (0xFFFFFFF0, (3 << 32) + 5, (2 << 32) + 0xFFFFFFF0),
        (5, (2 << 32) + 0xFFFFFFF0, (3 << 32) + 5),
        (100, (3 << 32) + 90, (3 << 32) + 100),
    ],
)
def test_a_transaction_id_is_widened_to_the_nearest(xid: int, near: int, wide: int) -> None:
    assert widen(xid, near) == wide


def test_a_snapshot_sees_what_had_ended_and_nothing_else() -> None:
    snapshot = SnapshotIds.parse("10:20:12,15")
    assert [xid for xid in range(8, 23) if snapshot.sees(xid)] == [8, 9, 10, 11, 13, 14, 16, 17, 18, 19]
    assert SnapshotIds.parse("7:7:").sees(6)
    with pytest.raises(ValueError, match="not a pg_snapshot"):
        SnapshotIds.parse("7:7")


def test_hazard_22_a_later_commit_that_a_snapshot_sees_does_not_hide_an_earlier_one_that_it_does_not() -> None:
    keys = touched()
    keys.note(part(1000, insert("early", "a", "b")), READERS)  # its commit record came first, and waits for a standby
    keys.note(part(1001, insert("late", "a", "b")), READERS)
    keys.see(SnapshotIds.parse("1000:1002:1000"))
    assert keys.outdated().settled == (key("early"),)
    keys.see(SnapshotIds.parse("1003:1003:"))
    assert keys.outdated().settled == ()


def test_of_changes_that_lack_values_only_those_columns_come_from_the_chunk_that_none_has_sent() -> None:
    keys = touched()
    keys.note(part(1000, update("k", "new", None), update("l", None, None)), READERS)
    keys.note(part(1001, update("l", None, "new")), READERS)
    outdated = keys.outdated()
    assert outdated.settled == ()
    assert dict(outdated.partial) == {
        frozenset({"b"}): [(key("k"), (1000,))],
        frozenset({"a"}): [(key("l"), (1000, 1001))],
    }
    keys.note(part(1002, update("k", "all", "sent")), READERS)
    assert keys.outdated().settled == (key("k"),)


def test_a_row_that_came_from_another_key_without_all_its_values_is_read_again_also_when_it_is_seen() -> None:
    keys = touched()
    (arrival,) = keys.note(part(1000, update("to", "x", None, old="of")), READERS)
    assert (arrival.xid, arrival.key, arrival.old_key) == (1000, key("to"), key("of"))
    assert set(keys.outdated().settled) == {key("to"), key("of")}
    keys.see(SnapshotIds.parse("2000:2000:"))
    assert keys.note(part(1000, update("to", "x", None, old="of")), READERS) == [arrival]
    assert keys.outdated().settled == ()
    assert keys.note(part(2001, update("to", "x", "all", old="of")), READERS) == []


def test_a_truncate_that_the_snapshot_does_not_see_makes_the_chunk_useless() -> None:
    keys = touched()
    keys.note(part(1000, Truncation((RELATION,), cascade=False, restart_identity=False)), READERS)
    assert keys.outdated().is_emptied
    keys.see(SnapshotIds.parse("1001:1001:"))
    assert not keys.outdated().is_emptied


def test_invariant_10_beyond_its_limit_it_says_so_and_still_tells_what_is_to_be_read_again() -> None:
    keys = touched(limit_bytes=2 * TOUCH_BYTES)
    for number in range(3):
        keys.note(part(1000, insert(f"key {number}", "a", "b")), READERS)
    assert keys.has_overflowed
    assert keys.size == 0
    assert keys.note(part(1001, update("to", "x", None, old="of")), READERS) != []


def test_keys_of_another_form_break_it() -> None:
    keys = TouchedKeys("another form", near=1000, limit_bytes=1000)
    keys.see(SnapshotIds.parse("1000:1000:"))
    keys.note(part(999, insert("k", "a", "b")), READERS)
    assert not keys.is_broken  # what the snapshot sees is of no account
    keys.note(part(1000, insert("k", "a", "b")), READERS)
    assert keys.is_broken
