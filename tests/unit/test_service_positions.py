"""The rule of positions, by example and against a model that keeps every transaction of every table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.changes.transaction import Part
from cdc.lsn import Lsn
from cdc.service.positions import Positions


def transaction(number: int) -> Part:
    """Transaction ``number`` (1, 2, …): its commit record starts at 10 n and ends at 10 n + 5."""
    return Part(xid=number, commit_lsn=Lsn(10 * number), commit_time_us=0, end_lsn=Lsn(10 * number + 5))


def apply(positions: Positions, *parts: Part) -> None:
    positions.advance(*positions.after(parts))


def test_a_transaction_that_ends_at_the_position_is_held_and_the_next_is_not() -> None:
    positions = Positions(Lsn(15), {})
    assert positions.skips("public.t", transaction(1))
    assert not positions.skips("public.t", transaction(2))


def test_a_table_that_was_loaded_later_skips_what_its_snapshot_holds() -> None:
    positions = Positions(Lsn(5), {"public.late": Lsn(25)})
    assert positions.skips("public.late", transaction(2))
    assert not positions.skips("public.other", transaction(2))
    apply(positions, transaction(1), transaction(2))
    assert positions.tables == {}
    assert not positions.skips("public.late", transaction(3))


def test_a_table_that_stops_holds_the_acknowledgement_where_it_stopped() -> None:
    positions = Positions(Lsn(5), {})
    positions.stop("public.t", transaction(2).commit_lsn)
    assert not positions.skips("public.t", transaction(1))
    assert positions.skips("public.t", transaction(2))
    target, changed = positions.after([transaction(1), transaction(2), transaction(3)])
    assert (target, changed) == (Lsn(35), {"public.t": Lsn(15)})
    positions.advance(target, changed)
    assert positions.acknowledgeable == Lsn(15)


def test_a_mended_table_gets_what_it_missed_and_then_follows_its_target_again() -> None:
    positions = Positions(Lsn(35), {"public.t": Lsn(15)})
    assert not positions.skips_all(transaction(2))
    assert positions.skips("public.other", transaction(2))
    assert not positions.skips("public.t", transaction(2))
    apply(positions, transaction(2))
    assert (positions.target, positions.acknowledgeable) == (Lsn(35), Lsn(25))
    apply(positions, transaction(3))
    assert positions.tables == {}
    assert positions.acknowledgeable == Lsn(35)


def test_an_idle_stream_moves_the_target_but_not_a_stopped_table() -> None:
    positions = Positions(Lsn(15), {})
    positions.stop("public.t", transaction(2).commit_lsn)
    positions.advance(*positions.after([], idle_at=Lsn(100)))
    assert (positions.target, positions.acknowledgeable) == (Lsn(100), Lsn(15))


def test_nothing_is_needed_of_a_transaction_that_every_table_holds() -> None:
    positions = Positions(Lsn(35), {"public.t": Lsn(15), "public.ahead": Lsn(45)})
    assert positions.skips_all(transaction(1))
    assert not positions.skips_all(transaction(3))
    positions.stop("public.t", Lsn(15))
    assert positions.skips_all(transaction(3))


TABLES = ["public.a", "public.b", "public.c"]


@given(
    loaded_at=st.dictionaries(st.sampled_from(TABLES), st.integers(0, 12), max_size=3),
    events=st.lists(
        st.one_of(
            st.tuples(st.just("batch"), st.integers(1, 3)),
            st.tuples(st.just("stop"), st.sampled_from(TABLES)),
            st.tuples(st.just("mend"), st.sampled_from(TABLES)),
            st.tuples(st.just("restart"), st.integers(0, 3)),
        ),
        max_size=30,
    ),
)
def test_each_table_gets_each_transaction_exactly_once_whatever_stops_and_restarts(
    loaded_at: dict[str, int], events: list[tuple[str, int | str]]
) -> None:
    """Whatever happens, a table holds 1..n without a gap or a double, and the slot still has what anybody lacks."""
    own = {name: Lsn(10 * number + 5) for name, number in loaded_at.items()}
    positions = Positions(Lsn(5), own)
    held = {name: list(range(1, loaded_at.get(name, 0) + 1)) for name in TABLES}
    next_in_stream = 1
    confirmed = Lsn(5)
    for kind, argument in events:
        if kind == "batch":
            assert isinstance(argument, int)
            parts = [transaction(number) for number in range(next_in_stream, next_in_stream + argument)]
            next_in_stream += argument
            parts = [part for part in parts if not positions.skips_all(part)]
            for part in parts:
                for name in TABLES:
                    if not positions.skips(name, part):
                        held[name].append(part.xid)
            apply(positions, *parts)
            confirmed = max(confirmed, positions.acknowledgeable)
        elif kind == "stop":
            positions.stop(str(argument), transaction(next_in_stream).commit_lsn)
        elif kind in ("mend", "restart"):
            # A stream that starts anew begins where the slot was confirmed; what is stored is all that is known.
            stopped = {name for name, table in positions.tables.items() if table.stopped_from is not None}
            positions = Positions(positions.target, {name: table.held for name, table in positions.tables.items()})
            for name in stopped - {str(argument)}:
                positions.stop(name, positions.tables[name].held)
            next_in_stream = (confirmed - 5) // 10 + 1
        for name in TABLES:
            assert held[name] == list(range(1, len(held[name]) + 1)), name
            assert 10 * len(held[name]) + 5 >= confirmed, "the slot no longer has what this table lacks"


def several(first: int, last: int) -> Part:
    """The transactions ``first`` to ``last`` as one part; divided it comes to their number of parts."""
    part = transaction(last)
    part.first_lsn, part.transaction_count = transaction(first).commit_lsn, last - first + 1
    return part


def test_transactions_are_told_apart_only_where_some_may_be_held_and_others_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart = [transaction(number) for number in range(2, 10)]
    monkeypatch.setattr("cdc.service.positions.divided", lambda _: apart)
    parts = [several(2, 4), several(5, 9)]
    positions = Positions(Lsn(15), {})
    assert positions.told_apart(parts, by_tracking=False) is parts
    assert positions.told_apart(parts, by_tracking=True) is apart
    assert Positions(Lsn(25), {}).told_apart(parts, by_tracking=False) is apart
    positions.stop("public.t", transaction(7).commit_lsn)
    assert positions.told_apart(parts, by_tracking=False) is apart
