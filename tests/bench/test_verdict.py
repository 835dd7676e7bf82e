"""The verdict of ``make bench`` can be bad."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.drain import Drain
from tests.bench.latency import Latency, percentile
from tests.bench.verdict import MAX_P99_MS, MIN_RATIO, Drained, Report
from tests.bench.workloads import bulk

WORKLOAD = bulk(0.1)


def drained(*ratios: float) -> Drained:
    drains = []
    for number, ratio in enumerate(ratios, start=1):
        for reader, rate in (("subscription", 1000.0), ("cdc", 1000.0 * ratio)):
            seconds = WORKLOAD.amount / rate
            drains.append(Drain(number, reader, seconds, seconds + 1, rate, {"reader": 1.0}, 1 << 20))
    return Drained(WORKLOAD, drains)


def latency(reader: str, p99_ms: float) -> Latency:
    return Latency(1, reader, 4000, 200.0, 1.0, p99_ms, p99_ms, {"reader": 1.0}, 1 << 20)


def report(result: Drained, p99_ms: float) -> Report:
    return Report({"cores": 2}, [result], [latency("subscription", 2.0), latency("cdc", p99_ms)], 200)


def test_a_run_that_keeps_its_promises_has_no_shortcomings() -> None:
    assert report(drained(MIN_RATIO, 0.5, 0.9), MAX_P99_MS).shortcomings() == []


def test_the_median_of_the_rounds_ratios_is_judged() -> None:
    assert report(drained(0.69, 0.69, 2.0), 1.0).shortcomings() == [
        "bulk: 0.69 of the subscription's rate, at least 0.7 is wanted"
    ]


def test_a_late_percentile_is_a_shortcoming() -> None:
    assert report(drained(1.0), 50.1).shortcomings() == ["latency: p99 is 50.1 ms, at most 50 ms is wanted"]


def test_every_turn_and_the_shortcomings_are_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench.json"
    report(drained(0.5, 0.6), 1.0).write(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["workloads"]["bulk"]["ratios"] == [0.5, 0.6]
    assert len(content["workloads"]["bulk"]["turns"]) == 4
    assert len(content["shortcomings"]) == 1


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
