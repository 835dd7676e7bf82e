"""A small run from end to end: every reader has its turn, and nothing of it is left."""

from __future__ import annotations

import pytest

from tests.bench.__main__ import command, parse
from tests.bench.figures import Contestant, Kind
from tests.bench.run import Plan, measure
from tests.bench.verdict import judge


@pytest.mark.timeout(400)  # cdc is started four times; it took 140 s where everything else took ten times as long, too
def test_every_reader_has_its_turn_and_is_measured() -> None:
    said: list[str] = []
    plan = Plan(rounds=1, size=0.1, only=("bulk",), targets=(1,), added_ms=(0.0,))
    record = measure(plan, "make bench", said.append)
    assert [drain.contestant.kind for drain in record.drains] == [
        *(Kind.RECVLOGICAL, Kind.NULL, Kind.SUBSCRIPTION, Kind.CDC, Kind.TEXT)
    ]
    assert said[0] == "bulk: 50 transactions of 1,000 inserts into answers"
    for drain in record.drains:
        assert 0 < drain.seconds <= drain.seconds_with_start
        assert drain.rate == pytest.approx(50_000 / drain.seconds)
        # Who has a process of its own, and who writes (an idle server uses 0.01 s now and then).
        assert (drain.cpu_s["worker"] > 0) is (drain.contestant.kind in (Kind.CDC, Kind.NULL, Kind.RECVLOGICAL))
        assert (drain.cpu_s["targets"] > 0.05) is drain.contestant.kind.writes
        assert (drain.peak_bytes > 20_000_000) is (drain.contestant.kind in (Kind.CDC, Kind.NULL))
    assert [line.about for line in judge(record)] == [*("bulk, 1 target", "bulk, null target", "memory of the worker")]


def test_a_plan_says_who_has_a_turn() -> None:
    plan = Plan(readers=[Kind.CDC, Kind.SUBSCRIPTION], targets=(1, 3))
    assert plan.contestants(0.0) == [
        Contestant(kind, targets) for targets in (1, 3) for kind in (Kind.SUBSCRIPTION, Kind.CDC)
    ]
    assert plan.contestants(10.0) == [Contestant(Kind.SUBSCRIPTION, 1), Contestant(Kind.CDC, 1)]
    assert Plan(readers=[Kind.NULL, Kind.RECVLOGICAL]).contestants(0.0) == [
        *(Contestant(Kind.RECVLOGICAL, 0), Contestant(Kind.NULL, 0))
    ]


def test_the_command_that_is_published_holds_what_was_measured_and_no_path() -> None:
    assert command(parse([])) == "make bench"
    assert command(parse(["--quick", "--output", "/somewhere/else.json", "--publish"])) == "make bench ARGS=--quick"
    asked = parse(["--only", "bulk", "--readers", "null target", "--added-ms", "0", "--rounds", "5"])
    assert (
        command(asked) == "make bench ARGS='--rounds 5 --only bulk --readers '\"'\"'null target'\"'\"' --added-ms 0.0'"
    )
