"""The verdict of ``make bench`` can be bad, about each thing that it judges."""

from __future__ import annotations

import pytest

from tests.bench import runs
from tests.bench.figures import Contestant, Kind, Record
from tests.bench.verdict import judge

CDC = Contestant(Kind.CDC, 1)


def missed(record: Record) -> list[str]:
    return [str(line) for line in judge(record) if not line.is_kept]


@pytest.mark.parametrize(
    ("workload", "targets", "wanted"),
    [
        ("bulk", 1, 1.25),
        ("pgbench", 1, 1.25),
        ("hot", 1, 1.6),
        ("deletes", 1, 0.9),
        ("backlog", 1, 0.9),
        ("bulk", 3, 2.0),
        ("pgbench", 3, 1.8),
        ("hot", 3, 2.5),
        ("big", 3, 1.2),
    ],
)
def test_a_ratio_is_kept_from_its_promise_on(workload: str, targets: int, wanted: float) -> None:
    assert missed(runs.record(runs.beside(workload, targets, wanted + 0.001))) == []
    others = "the subscription" if targets == 1 else "3 subscriptions"
    about = f"{workload}, {targets} target{'s' if targets > 1 else ''}"
    assert missed(runs.record(runs.beside(workload, targets, wanted - 0.01))) == [
        f"{about}: {wanted - 0.01:.2f} times {others}, wanted is at least {wanted:g} times {others}"
    ]


def test_the_median_of_the_rounds_ratios_is_judged_not_the_ratio_of_medians() -> None:
    assert missed(runs.record(runs.beside("bulk", 1, 1.0, 9.0, 1.3))) == []
    assert missed(runs.record(runs.beside("bulk", 1, 1.2, 1.2, 9.0))) != []


def test_the_subscription_in_text_is_not_what_is_judged_against() -> None:
    text = runs.drain("bulk", 1, Contestant(Kind.TEXT, 1), 1.0)
    assert missed(runs.record([*runs.beside("bulk", 1, 1.0), text])) != []


def test_the_null_target_is_judged_in_every_workload() -> None:
    drains = [*runs.listening("bulk", 0.9, 0.9, 0.1), *runs.listening("hot", 0.9, 0.84, 0.84)]
    assert missed(runs.record(drains)) == [
        "hot, null target: 84% of pg_recvlogical, wanted is at least 85% of pg_recvlogical"
    ]


def test_late_percentiles_are_missed_each_at_its_rate() -> None:
    good = [runs.latency(Kind.CDC, 200, 2.9, 9.9), runs.latency(Kind.CDC, 2000, 12.0, 24.9)]
    assert missed(runs.record(latencies=good)) == []
    late = [runs.latency(Kind.CDC, 200, 3.0, 10.0), runs.latency(Kind.CDC, 2000, 12.0, 25.0)]
    assert missed(runs.record(latencies=late)) == [
        "latency at 200/s, p50: 3.0 ms, wanted is under 3 ms",
        "latency at 200/s, p99: 10.0 ms, wanted is under 10 ms",
        "latency at 2,000/s, p99: 25.0 ms, wanted is under 25 ms",
    ]


def test_the_subscriptions_latency_is_not_judged() -> None:
    assert judge(runs.record(latencies=[runs.latency(Kind.SUBSCRIPTION, 200, 90.0, 90.0)])) == []


def test_a_latency_under_a_load_that_was_not_written_is_no_success() -> None:
    slow = runs.latency(Kind.CDC, 2000, 1.0, 2.0, written=1500.0)
    assert missed(runs.record(latencies=[slow])) == [
        "latency at 2,000/s: 1,500 transactions/s were written, wanted is that at least 90% of 2,000 transactions/s "
        "are written"
    ]


def test_bulk_from_afar_is_judged_by_its_rate() -> None:
    near = [runs.drain("bulk", 1, CDC, 60_000.0, added_ms=2.0)]
    assert missed(runs.record([*near, runs.drain("bulk", 1, CDC, 50_000.0, added_ms=10.0)])) == []
    assert missed(runs.record([*near, runs.drain("bulk", 1, CDC, 49_000.0, added_ms=10.0)])) == [
        "bulk, 10 ms added to each round trip: 49,000 rows/s, wanted is at least 50,000 rows/s"
    ]


def test_the_turn_that_took_the_most_memory_is_judged() -> None:
    drains = [runs.drain("big", number, CDC, 1.0, peak_bytes=peak) for number, peak in enumerate((1, 200_000_000, 2))]
    assert missed(runs.record(drains)) == [
        "memory of the worker: 200 MB on big, wanted is under 200 MB on every workload"
    ]


def test_what_was_not_measured_is_not_judged() -> None:
    assert judge(runs.record()) == []
