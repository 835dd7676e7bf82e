"""Folding: whatever a source did to a table, applying the outcomes set by set gives the same rows."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.changes.compaction import Compaction, Contradiction, KeyChange, Outcome
from cdc.changes.relation import Relation, ReplicaIdentity
from cdc.changes.row_reader import FormatChanged, KeyNotSent, row_reader
from cdc.changes.transaction import Kind
from cdc.pgoutput.tuples import UNCHANGED

RELATION = Relation(1, "public", "t", ReplicaIdentity.DEFAULT, ())
READER = row_reader(RELATION, b"bbb", (0, 1, 2), (0,))

Value = bytes | None | str
"""A value, a NULL, or "u" for unchanged."""


def tuple_data(values: tuple[Value, ...]) -> bytes:
    def column(value: Value) -> bytes:
        if value is None:
            return b"n"
        return b"u" if isinstance(value, str) else b"b" + struct.pack(">i", len(value)) + value

    return struct.pack(">h", len(values)) + b"".join(map(column, values))


def insert(*values: Value) -> tuple[Kind, bytes]:
    return Kind.INSERT, b"I\0\0\0\1N" + tuple_data(values)


def update(*values: Value, old_key: bytes | None = None) -> tuple[Kind, bytes]:
    old = b"" if old_key is None else b"K" + tuple_data((old_key, None, None))
    return Kind.UPDATE, b"U\0\0\0\1" + old + b"N" + tuple_data(values)


def delete(key: bytes) -> tuple[Kind, bytes]:
    return Kind.DELETE, b"D\0\0\0\1K" + tuple_data((key, None, None))


def fold(*changes: tuple[Kind, bytes], keeps_rows: bool = False) -> list[Outcome | KeyChange]:
    compaction = Compaction(keeps_rows=keeps_rows)
    for kind, message in changes:
        compaction.add(READER, kind, [message])
    return compaction.finish()


def field(value: bytes) -> bytes:
    return struct.pack(">i", len(value)) + value


A, B, X, Y = (field(value) for value in (b"a", b"b", b"x", b"y"))


def test_an_insert_and_a_delete_of_a_new_row_come_to_nothing() -> None:
    assert fold(insert(b"a", b"x", b"x"), delete(b"a")) == []


def test_a_delete_and_an_insert_are_a_full_update() -> None:
    assert fold(delete(b"a"), insert(b"a", b"x", b"y")) == [Outcome(updates={(): [[A, X, Y]]})]


def test_a_partial_update_merges_into_what_is_known() -> None:
    assert fold(update(b"a", b"x", b"x"), update(b"a", b"y", "u")) == [Outcome(updates={(): [[A, Y, X]]})]
    assert fold(insert(b"a", b"x", b"x"), update(b"a", "u", b"y")) == [Outcome(inserts=[[A, X, Y]])]


def test_partial_updates_are_grouped_by_what_they_leave_unchanged() -> None:
    [outcome] = fold(update(b"a", "u", b"x"), update(b"b", "u", b"y"), update(b"c", b"x", "u"))
    assert isinstance(outcome, Outcome)
    assert sorted(outcome.updates) == [(1,), (2,)]
    assert outcome.updates[1,] == [[A, UNCHANGED, X], [B, UNCHANGED, Y]]


def test_a_key_change_is_a_delete_and_an_insert() -> None:
    assert fold(update(b"b", b"x", b"y", old_key=b"a")) == [Outcome(deletes=[(A,)], inserts=[[B, X, Y]])]


def test_a_key_change_that_lacks_values_ends_the_stretch() -> None:
    first, second, third = fold(update(b"a", b"x", "u"), update(b"b", b"y", "u", old_key=b"a"), delete(b"b"))
    assert first == Outcome(updates={(2,): [[A, X, UNCHANGED]]})
    assert second == KeyChange((A,), [B, Y, UNCHANGED])
    assert third == Outcome(deletes=[(B,)])


def test_a_key_change_stays_one_where_rows_must_be_kept() -> None:
    assert fold(update(b"b", b"x", b"y", old_key=b"a"), keeps_rows=True) == [KeyChange((A,), [B, X, Y])]


@pytest.mark.parametrize(
    "changes",
    [
        (insert(b"a", None, None), insert(b"a", None, None)),
        (delete(b"a"), delete(b"a")),
        (delete(b"a"), update(b"a", None, None)),
        (delete(b"a"), update(b"b", None, None, old_key=b"a")),
        (update(b"b", None, None), update(b"b", None, None, old_key=b"a")),
    ],
)
def test_what_no_source_can_do_is_a_contradiction(changes: tuple[Any, ...]) -> None:
    with pytest.raises(Contradiction):
        fold(*changes)


def test_a_key_that_was_not_sent_is_noticed() -> None:
    with pytest.raises(KeyNotSent):
        fold(update("u", b"x", b"x"))


def test_a_value_in_the_other_format_is_named() -> None:
    with pytest.raises(FormatChanged) as caught:
        fold((Kind.INSERT, b"I\0\0\0\1N" + tuple_data((b"a", b"x", b"x")).replace(b"b\0\0\0\1x", b"t\0\0\0\1x", 1)))
    assert (caught.value.relation, caught.value.column_index) == (RELATION, 1)


Row = tuple[bytes | None, bytes | None]
KEYS = [b"1", b"2", b"3", b"4"]
VALUES = st.sampled_from([None, b"", b"p", b"q"])


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[bytes, Row], list[tuple[Kind, bytes]], dict[bytes, Row]]:
    """Rows before, what a source did to them, and the rows after."""
    before = draw(st.dictionaries(st.sampled_from(KEYS), st.tuples(VALUES, VALUES)))
    rows, changes = dict(before), []
    for _ in range(draw(st.integers(0, 15))):
        key = draw(st.sampled_from(KEYS))
        if key not in rows:
            rows[key] = draw(st.tuples(VALUES, VALUES))
            changes.append(insert(key, *rows[key]))
            continue
        if draw(st.integers(0, 3)) == 0:
            del rows[key]
            changes.append(delete(key))
            continue
        new = draw(st.tuples(VALUES, VALUES))
        hidden = [draw(st.booleans()) and a == b and a is not None for a, b in zip(rows[key], new, strict=True)]
        sent = tuple("u" if hide else value for hide, value in zip(hidden, new, strict=True))
        target = draw(st.sampled_from([key, *(k for k in KEYS if k not in rows)]))
        del rows[key]
        rows[target] = new
        changes.append(update(target, *sent, old_key=None if target == key else key))
    return before, changes, rows


def applied(rows: dict[bytes, Any], stretches: list[Outcome | KeyChange]) -> dict[bytes, Any]:
    """Apply stretches as the target does: deletes, updates, inserts; every row must be where it is expected."""

    def merge(old: Any, new: Any) -> Any:
        return [was if value is UNCHANGED else value for was, value in zip(old, new, strict=True)]

    for stretch in stretches:
        if isinstance(stretch, KeyChange):
            [key] = stretch.old_key
            row = merge(rows.pop(key), stretch.fields)
            assert row[0] not in rows
            rows[row[0]] = row
            continue
        for [key] in stretch.deletes:
            del rows[key]
        for unchanged, updates in stretch.updates.items():
            for row in updates:
                assert all((value is UNCHANGED) == (place in unchanged) for place, value in enumerate(row))
                rows[row[0]] = merge(rows[row[0]], row)
        for row in stretch.inserts:
            assert row[0] not in rows
            rows[row[0]] = row
    return rows


def as_fields(rows: dict[bytes, Row]) -> dict[bytes, Any]:
    null = b"\xff\xff\xff\xff"
    return {
        field(key): [field(key), *(null if value is None else field(value) for value in values)]
        for key, values in rows.items()
    }


@given(histories(), st.booleans())
def test_applying_what_a_history_comes_to_gives_the_rows_of_the_history(history: Any, keeps_rows: bool) -> None:
    before, changes, after = history
    outcome = applied(as_fields(before), fold(*changes, keeps_rows=keeps_rows))
    assert outcome == as_fields(after)
