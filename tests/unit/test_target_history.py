"""Does a position belong to what the source is now? Every way in which it does not (invariant 5)."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from cdc.errors import ResyncNeeded
from cdc.lsn import Lsn
from cdc.target.history import History, SourceHistory, check_history

POSITION = Lsn(1000)
STORED = History("700", 3, "cdc", UUID(int=1))
SOURCE = SourceHistory(
    system_identifier="700",
    timeline=3,
    switch_points=[(1, Lsn(100)), (2, Lsn(500))],
    wal_position=Lsn(2000),
    slot="cdc",
    confirmed_lsn=Lsn(900),
    slot_loss=None,
    incarnation=UUID(int=1),
)


def test_the_same_history_goes_on() -> None:
    assert check_history("target x", STORED, POSITION, SOURCE) is None


def test_a_slot_that_confirmed_exactly_the_position_goes_on() -> None:
    assert check_history("target x", STORED, POSITION, replace(SOURCE, confirmed_lsn=POSITION)) is None


def test_a_target_that_was_never_loaded_is_told_to_bootstrap() -> None:
    refusal = check_history("target x", None, None, SOURCE)
    assert "target x has never been loaded" in str(refusal)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (replace(SOURCE, system_identifier="701"), "system identifier 700"),
        (replace(SOURCE, timeline=2, switch_points=[(1, Lsn(100))]), "not in the history"),
        (replace(SOURCE, timeline=4, switch_points=[(3, Lsn(999))]), "has lost"),
        (replace(SOURCE, wal_position=Lsn(999)), "beyond the end of the source's WAL"),
        (replace(SOURCE, incarnation=UUID(int=2)), "heartbeat row is not the one"),
        (replace(SOURCE, incarnation=None), "no longer has the heartbeat row"),
        (replace(SOURCE, slot="other"), "follows slot 'cdc'"),
        (replace(SOURCE, confirmed_lsn=None), "does not exist"),
        (replace(SOURCE, slot_loss="WAL was removed"), "is lost, and with it what the target lacks: WAL was"),
        (replace(SOURCE, confirmed_lsn=Lsn(1001)), "ahead of the target's position 0/3E8"),
    ],
)
def test_invariant_05_another_history_stops_the_target_and_says_why(source: SourceHistory, says: str) -> None:
    refusal = check_history("target x", STORED, POSITION, source)
    assert isinstance(refusal, ResyncNeeded)
    assert says in str(refusal)
    assert "cdc bootstrap" in str(refusal)


def test_invariant_05_a_new_timeline_goes_on_up_to_the_switch_point() -> None:
    moved = replace(SOURCE, timeline=4, switch_points=[(3, POSITION)])
    assert check_history("target x", STORED, POSITION, moved) is None
