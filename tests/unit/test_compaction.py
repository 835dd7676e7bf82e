"""Folding: whatever a source did to a table, applying the outcomes set by set gives the same rows."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from hypothesis import event, given, settings
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


def fold(*changes: tuple[Kind, bytes], keeps_rows: bool = False, overlap: bool = False) -> list[Outcome | KeyChange]:
    compaction = Compaction(keeps_rows=keeps_rows, overlap=overlap)
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


CONTRADICTIONS = [
    (insert(b"a", None, None), insert(b"a", None, None)),
    (delete(b"a"), delete(b"a")),
    (delete(b"a"), update(b"a", None, None)),
    (delete(b"a"), update(b"b", None, None, old_key=b"a")),
    (update(b"b", None, None), update(b"b", None, None, old_key=b"a")),
]


@pytest.mark.parametrize("changes", CONTRADICTIONS)
def test_what_no_source_can_do_is_a_contradiction(changes: tuple[Any, ...]) -> None:
    with pytest.raises(Contradiction):
        fold(*changes)


@pytest.mark.parametrize("changes", CONTRADICTIONS)
def test_in_overlap_nothing_contradicts_and_the_last_word_counts(changes: tuple[Any, ...]) -> None:
    null = b"\xff\xff\xff\xff"
    *_, (kind, last) = changes
    [outcome] = fold(*changes, overlap=True)
    assert isinstance(outcome, Outcome)
    assert (outcome.updates, len(outcome.inserts) + len(outcome.deletes) > 0) == ({}, True)
    key = B if b"\x00\x01b" in last else A
    assert outcome.inserts == ([] if kind is Kind.DELETE else [[key, null, null]])
    assert ((A,) in outcome.deletes) == (kind is Kind.DELETE or key == B)


def test_in_overlap_an_insert_and_a_delete_are_a_delete() -> None:
    assert fold(insert(b"a", b"x", b"x"), delete(b"a"), overlap=True) == [Outcome(deletes=[(A,)])]


def test_in_overlap_a_row_that_is_wholly_known_is_inserted_whatever_happened_to_it() -> None:
    assert fold(update(b"a", b"x", b"y"), overlap=True) == [Outcome(inserts=[[A, X, Y]])]
    assert fold(delete(b"a"), insert(b"a", b"x", b"y"), overlap=True) == [Outcome(inserts=[[A, X, Y]])]
    assert fold(insert(b"a", b"x", b"x"), update(b"a", "u", b"y"), overlap=True) == [Outcome(inserts=[[A, X, Y]])]
    assert fold(update(b"a", "u", b"y"), overlap=True) == [Outcome(updates={(1,): [[A, UNCHANGED, Y]]})]


def test_in_overlap_a_partial_update_of_a_row_that_is_gone_is_nothing() -> None:
    assert fold(delete(b"a"), update(b"a", b"x", "u"), overlap=True) == [Outcome(deletes=[(A,)])]


def test_in_overlap_a_key_change_carries_what_the_stretch_knows() -> None:
    first, second = fold(update(b"a", b"x", "u"), update(b"b", "u", "u", old_key=b"a"), overlap=True)
    assert first == Outcome(updates={(2,): [[A, X, UNCHANGED]]})
    assert second == KeyChange((A,), [B, X, UNCHANGED])
    assert fold(insert(b"a", b"x", b"y"), update(b"b", "u", b"x", old_key=b"a"), overlap=True) == [
        Outcome(deletes=[(A,)], inserts=[[B, X, X]])
    ]


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
def histories(
    draw: st.DrawFn, *, full: bool = False
) -> tuple[dict[bytes, Row], list[tuple[Kind, bytes]], dict[bytes, Row]]:
    """Rows before, what a source did to them, and the rows after; ``full``: with whole old rows."""
    before = draw(st.dictionaries(st.sampled_from(KEYS), st.tuples(VALUES, VALUES)))
    rows, changes = dict(before), []
    for _ in range(draw(st.integers(0, 15))):
        key = draw(st.sampled_from(KEYS))
        if key not in rows:
            rows[key] = draw(st.tuples(VALUES, VALUES))
            changes.append(insert(key, *rows[key]))
            continue
        if draw(st.integers(0, 3)) == 0:
            old = rows.pop(key)
            changes.append((Kind.DELETE, b"D\0\0\0\1O" + tuple_data((key, *old))) if full else delete(key))
            continue
        new = draw(st.tuples(VALUES, VALUES))
        hidden = [draw(st.booleans()) and a == b and a is not None for a, b in zip(rows[key], new, strict=True)]
        sent = tuple("u" if hide else value for hide, value in zip(hidden, new, strict=True))
        target = draw(st.sampled_from([key, *(k for k in KEYS if k not in rows)]))
        old = rows.pop(key)
        rows[target] = new
        if full:
            whole = b"U\0\0\0\1O" + tuple_data((key, *old)) + b"N" + tuple_data((target, *sent))
            changes.append((Kind.UPDATE, whole))
        else:
            changes.append(update(target, *sent, old_key=None if target == key else key))
    return before, changes, rows


def merged(old: Any, new: Any) -> Any:
    return [was if value is UNCHANGED else value for was, value in zip(old or new, new, strict=True)]


def applied(rows: dict[bytes, Any], stretches: list[Outcome | KeyChange]) -> dict[bytes, Any]:
    """Apply stretches as the target does: deletes, updates, inserts; every row must be where it is expected."""
    for stretch in stretches:
        if isinstance(stretch, KeyChange):
            [key] = stretch.old_key
            row = merged(rows.pop(key), stretch.fields)
            assert row[0] not in rows
            rows[row[0]] = row
            continue
        for [key] in stretch.deletes:
            del rows[key]
        for unchanged, updates in stretch.updates.items():
            for row in updates:
                assert all((value is UNCHANGED) == (place in unchanged) for place, value in enumerate(row))
                rows[row[0]] = merged(rows[row[0]], row)
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


@st.composite
def overlaps(draw: st.DrawFn) -> tuple[list[dict[bytes, Row]], list[tuple[Kind, bytes]], bool]:
    """A source's rows before, between and after its changes, these, and whether it sent a new key without all values.

    No two values are alike unless one was kept.
    """
    values = (str(number).encode() for number in itertools.count())
    rows: dict[bytes, Row] = {
        key: (next(values), next(values)) for key in draw(st.lists(st.sampled_from(KEYS), unique=True))
    }
    states, changes, is_partial = [dict(rows)], [], False
    for _ in range(draw(st.integers(0, 12))):
        key = draw(st.sampled_from(KEYS))
        match draw(st.sampled_from(["delete", "update", "move", "move"])) if key in rows else "insert":
            case "insert":
                rows[key] = (next(values), next(values))
                changes.append(insert(key, *rows[key]))
            case "delete":
                del rows[key]
                changes.append(delete(key))
            case what:
                free = [other for other in KEYS if other not in rows]
                there = draw(st.sampled_from(free)) if what == "move" and free else key
                kept = [draw(st.sampled_from(["u", "sent", None])) for _ in range(2)]
                old = rows.pop(key)
                new = tuple(next(values) if how is None else was for how, was in zip(kept, old, strict=True))
                sent = tuple("u" if how == "u" else value for how, value in zip(kept, new, strict=True))
                rows[there] = (new[0], new[1])
                changes.append(update(there, *sent, old_key=None if there == key else key))
                is_partial |= there != key and "u" in sent
        states.append(dict(rows))
    return states, changes, is_partial


def streamed_over(rows: dict[bytes, Any], stretches: list[Outcome | KeyChange]) -> dict[bytes, Any] | None:
    """Apply stretches as a target in overlap does; `None` where the rows do not tell how."""
    for stretch in stretches:
        if isinstance(stretch, KeyChange):
            [key], new = stretch.old_key, stretch.fields
            if UNCHANGED in new and new[0] not in rows:
                return None
            rows.pop(key, None)
            rows[new[0]] = merged(rows.get(new[0]), new)
            continue
        for [key] in stretch.deletes:
            rows.pop(key, None)
        for updates in stretch.updates.values():
            rows |= {row[0]: merged(rows[row[0]], row) for row in updates if row[0] in rows}
        rows |= {row[0]: list(row) for row in stretch.inserts}
    return rows


@settings(max_examples=500)
@given(history=overlaps(), keeps_rows=st.booleans(), borders=st.sets(st.integers(1, 11)), data=st.data())
def test_changes_that_a_copy_may_hold_already_make_it_equal_or_are_known_to_be_undecidable(
    history: Any, keeps_rows: bool, borders: set[int], data: st.DataObject
) -> None:
    states, changes, is_partial = history
    rows = as_fields(states[data.draw(st.integers(0, len(changes)), label="changes that the copy holds")])
    places = [0, *sorted(border for border in borders if border < len(changes)), len(changes)]
    for low, high in itertools.pairwise(places):
        found = streamed_over(rows, fold(*changes[low:high], keeps_rows=keeps_rows, overlap=True))
        if found is None:
            event("undecidable")
            assert is_partial
            return
        rows = found
    event("equal")
    assert rows == as_fields(states[-1])
