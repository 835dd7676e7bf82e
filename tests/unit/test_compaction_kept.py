"""Folding where deleted rows stay: what becomes of each row does not depend on where batches begin and end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.changes.compaction import Compaction, Contradiction, KeyChange, Outcome, time_field
from cdc.changes.relation import Relation, ReplicaIdentity
from cdc.changes.row_reader import row_reader
from cdc.changes.shared_keys import Arrivals, SharedKeys
from cdc.changes.transaction import Kind
from cdc.pgoutput.tuples import NULL, UNCHANGED
from tests.unit.test_compaction import (
    RELATION,
    A,
    X,
    Y,
    as_fields,
    delete,
    field,
    histories,
    insert,
    merged,
    tuple_data,
    update,
)

FULL = Relation(1, "public", "t", ReplicaIdentity.FULL, ())
B = field(b"b")


def fold(
    *changes: tuple[Kind, bytes],
    notes: bool = True,
    first: int = 1,
    overlap: bool = False,
    folding: type[Compaction] = Compaction,
    relation: Relation = RELATION,
) -> list[Outcome | KeyChange]:
    """Change number n is committed at time n."""
    compaction = folding(keeps_rows=False, overlap=overlap, keeps_deleted=True, notes_time=notes)
    reader = row_reader(relation, b"bbb", (0, 1, 2), (0,), notes_time=notes)
    for number, (kind, message) in enumerate(changes, first):
        compaction.add(reader, kind, [message], number)
    return compaction.finish()


def test_a_delete_of_an_unknown_row_is_its_key_and_the_time() -> None:
    assert fold(delete(b"a"), delete(b"b")) == [Outcome(deletes=[(A, time_field(1)), (B, time_field(2))])]
    assert fold(delete(b"a"), notes=False) == []


def test_a_row_that_comes_and_goes_is_inserted_as_a_deleted_one() -> None:
    assert fold(insert(b"a", b"x", b"y"), delete(b"a")) == [Outcome(inserts=[[A, X, Y, time_field(2)]])]
    assert fold(insert(b"a", b"x", b"y"), delete(b"a"), notes=False) == [Outcome(inserts=[[A, X, Y]])]


def test_an_update_before_the_delete_is_not_lost() -> None:
    assert fold(update(b"a", b"x", "u"), delete(b"a")) == [Outcome(updates={(2,): [[A, X, UNCHANGED, time_field(2)]]})]
    assert fold(update(b"a", b"x", "u"), delete(b"a"), notes=False) == [Outcome(updates={(2,): [[A, X, UNCHANGED]]})]


def test_a_key_that_is_used_again_is_not_noted_any_more() -> None:
    assert fold(delete(b"a"), insert(b"a", b"x", b"y")) == [Outcome(updates={(): [[A, X, Y, NULL]]})]
    assert fold(insert(b"a", b"y", b"y"), delete(b"a"), insert(b"a", b"x", b"y")) == [
        Outcome(inserts=[[A, X, Y, NULL]])
    ]


def test_a_row_that_moves_is_not_deleted() -> None:
    assert fold(update(b"b", b"x", b"y", old_key=b"a")) == [KeyChange((A,), [B, X, Y, NULL])]


@pytest.mark.parametrize(
    "changes",
    [
        (delete(b"a"), delete(b"a")),
        (insert(b"a", b"x", b"x"), delete(b"a"), update(b"a", b"x", b"y")),
        (delete(b"a"), update(b"a", b"x", b"y")),
        (insert(b"a", b"x", b"x"), delete(b"a"), update(b"b", b"x", b"y", old_key=b"a")),
        (insert(b"a", b"x", b"x"), insert(b"a", b"x", b"x")),
    ],
)
def test_a_change_of_a_deleted_row_is_a_contradiction(changes: Sequence[tuple[Kind, bytes]]) -> None:
    for notes in (True, False):
        with pytest.raises(Contradiction):
            fold(*changes, notes=notes)


def test_in_overlap_a_known_row_takes_the_time_with_it() -> None:
    assert fold(update(b"a", b"x", b"y"), delete(b"a"), overlap=True) == [Outcome(inserts=[[A, X, Y, time_field(2)]])]
    assert fold(delete(b"a"), insert(b"a", b"x", b"y"), overlap=True) == [Outcome(inserts=[[A, X, Y, NULL]])]


def applied(rows: dict[bytes, Any], stretches: list[Outcome | KeyChange], notes: bool) -> dict[bytes, Any]:
    """Apply stretches as the target does; where deletions are noted, every row must be where it is expected."""

    def is_live(key: bytes) -> bool:
        return key in rows and (not notes or rows[key][-1] is NULL)

    for stretch in stretches:
        if isinstance(stretch, KeyChange):
            [key] = stretch.old_key
            assert is_live(key)
            row = merged(rows.pop(key), stretch.fields)
            assert not (notes and is_live(row[0]))
            rows[row[0]] = row
            continue
        for key, *time in stretch.deletes:
            assert is_live(key)
            rows[key] = [*rows[key][:-1], *time]
        for row in itertools.chain.from_iterable(stretch.updates.values()):
            assert is_live(row[0])
            rows[row[0]] = merged(rows[row[0]], row)
        for row in stretch.inserts:
            assert not (notes and is_live(row[0]))
            rows[row[0]] = list(row)
    return rows


WAYS = {
    "unique keys": (Compaction, RELATION, histories()),
    "keys of several relations": (SharedKeys, RELATION, histories()),
    "keys of whole rows": (SharedKeys, FULL, histories(full=True)),
}


@pytest.mark.parametrize("way", WAYS)
@given(data=st.data(), notes=st.booleans(), borders=st.sets(st.integers(1, 14)))
def test_where_batches_begin_and_end_makes_no_difference(
    way: str, data: st.DataObject, notes: bool, borders: set[int]
) -> None:
    folding, relation, strategy = WAYS[way]
    history = data.draw(strategy)
    fold_so = partial(fold, notes=notes, folding=folding, relation=relation)
    arrivals, reader = Arrivals(deletes=True), row_reader(relation, b"bbb", (0, 1, 2), (0,))
    for kind, message in history[1]:
        arrivals.check(reader, kind, message)  # no row of these takes the place of another
        arrivals.note(reader, kind, message)
    before, changes, after = history
    mark = [NULL] if notes else []

    def target() -> dict[bytes, Any]:
        return {key: [*row, *mark] for key, row in as_fields(before).items()}

    places = [0, *sorted(border for border in borders if border < len(changes)), len(changes)]
    found = target()
    for low, high in itertools.pairwise(places):
        found = applied(found, fold_so(*changes[low:high], first=low + 1), notes)
    one_by_one = target()
    for number, change in enumerate(changes, 1):
        one_by_one = applied(one_by_one, fold_so(change, first=number), notes)
    assert found == one_by_one
    live = {key: row[:3] for key, row in found.items() if not notes or row[-1] is NULL}
    wanted = as_fields(after)
    assert live == wanted if notes else wanted.items() <= live.items()


def whole(kind: Kind, old: tuple[bytes, bytes, bytes], new: tuple[bytes, bytes, bytes] | None = None) -> Any:
    message = b"D" if kind is Kind.DELETE else b"U"
    message += b"\0\0\0\1O" + tuple_data(old)
    return kind, message if new is None else message + b"N" + tuple_data(new)


@pytest.mark.parametrize(
    ("deletes", "changes", "is_another"),
    [
        (False, [insert(b"a", b"x", b"y"), whole(Kind.UPDATE, (b"a", b"y", b"y"), (b"b", b"y", b"y"))], True),
        (False, [insert(b"a", b"x", b"y"), whole(Kind.UPDATE, (b"a", b"x", b"y"), (b"b", b"x", b"y"))], False),
        (False, [insert(b"a", b"x", b"y"), whole(Kind.DELETE, (b"a", b"y", b"y"))], False),
        (True, [insert(b"a", b"x", b"y"), whole(Kind.DELETE, (b"a", b"y", b"y"))], True),
        (True, [insert(b"a", b"x", b"y"), whole(Kind.DELETE, (b"a", b"x", b"y"))], False),
        (
            True,
            [
                insert(b"a", b"x", b"y"),
                whole(Kind.UPDATE, (b"a", b"x", b"y"), (b"a", b"y", b"y")),
                whole(Kind.DELETE, (b"a", b"x", b"y")),
            ],
            True,
        ),
        (
            True,
            [whole(Kind.UPDATE, (b"a", b"x", b"y"), (b"b", b"x", b"y")), whole(Kind.DELETE, (b"b", b"y", b"y"))],
            True,
        ),
    ],
)
def test_a_change_of_a_row_whose_place_was_taken_is_noticed(deletes: bool, changes: Any, is_another: bool) -> None:
    arrivals, reader = Arrivals(deletes=deletes), row_reader(FULL, b"bbb", (0, 1, 2), (0,))
    *before, (kind, message) = changes
    for one, other in before:
        arrivals.check(reader, one, other)
        arrivals.note(reader, one, other)
    if is_another:
        with pytest.raises(Contradiction):
            arrivals.check(reader, kind, message)
    else:
        arrivals.check(reader, kind, message)
