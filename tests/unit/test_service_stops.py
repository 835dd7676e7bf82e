"""Tables that have stopped: when they are looked at again."""

from __future__ import annotations

import time

import pytest

from cdc.changes.relation import Relation, ReplicaIdentity
from cdc.errors import TableStopped
from cdc.lsn import Lsn
from cdc.service.stops import LOOK_AGAIN_S, RETRY_WAIT_S, Stops

SHAPE = Relation(1, "public", "t", ReplicaIdentity.DEFAULT, ())
ERROR = TableStopped("it does not fit")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_shape_that_does_not_fit_is_looked_at_every_few_seconds(clock: list[float]) -> None:
    stops = Stops()
    stops.add("public.t", Lsn(1), ERROR, SHAPE)
    assert stops.due() == []
    assert stops.next_due_in_s() == LOOK_AGAIN_S
    clock[0] += LOOK_AGAIN_S
    (stop,) = stops.due()
    stops.look_later(stop)
    assert stops.due() == []


def test_a_rejected_row_is_tried_again_with_growing_waits(clock: list[float]) -> None:
    stops = Stops()
    waits = []
    for _ in range(10):
        stops.add("public.t", Lsn(1), ERROR, None)
        waits.append(stops.next_due_in_s())
        stops.remove("public.t")
    first, longest = RETRY_WAIT_S
    assert waits == [min(longest, first * 2**number) for number in range(10)]


def test_a_table_that_has_caught_up_is_tried_soon_when_it_stops_again(clock: list[float]) -> None:
    stops = Stops()
    for _ in range(5):
        stops.add("public.t", Lsn(1), ERROR, None)
    stops.remove("public.t")
    stops.went_on(["public.t"])
    stops.add("public.t", Lsn(2), ERROR, None)
    assert stops.next_due_in_s() == RETRY_WAIT_S[0]


def test_nothing_is_due_when_nothing_is_stopped() -> None:
    assert Stops().next_due_in_s() is None
    assert Stops().due() == []
