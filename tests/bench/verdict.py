"""Whether the figures are good enough: what issue 5 promises for two cores that source, target and worker share.

Every line is judged by the median of the rounds' ratios, or of the rounds' figures where the promise is a figure;
memory by the most that any turn has taken. What was not measured is not judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from tests.bench.figures import Contestant, Kind, Record

MIN_OF_CEILING = 0.85
"""The null target's rate over that of ``pg_recvlogical``, in every workload."""

MIN_RATIOS: dict[int, dict[str, float]] = {
    1: {"bulk": 1.25, "pgbench": 1.25, "hot": 1.6},
    3: {"bulk": 2.0, "pgbench": 1.8, "hot": 2.5},
}
"""By number of targets and workload: `cdc`'s rate over that of as many (binary) subscriptions, until visible."""

MIN_RATIO_OF_OTHERS: dict[int, float] = {1: 0.9, 3: 1.2}
"""The same, for every other workload."""

MAX_P50_MS: dict[int, float] = {200: 3.0}
MAX_P99_MS: dict[int, float] = {200: 10.0, 2000: 25.0}
"""By transactions a second: milliseconds from commit to visibility, with one target."""

MIN_WRITTEN = 0.9
"""How much of the transactions a second must really have been written, for a latency at that rate to mean anything."""

FAR_MS = 10.0
MIN_FAR_RATE = 50_000.0
"""Rows/s of bulk with `FAR_MS` added to every round trip to the target."""

MAX_WORKER_BYTES = 200_000_000
"""In every workload, with one target or three."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One promise: what it is about, what is wanted, what was found, and whether that is enough."""

    about: str
    wanted: str
    found: str
    is_kept: bool

    def __str__(self) -> str:
        return f"{self.about}: {self.found}, wanted is {self.wanted}"


def min_ratio(workload: str, targets: int) -> float | None:
    """What is promised of a workload with so many targets; ``None`` where nothing is."""
    return MIN_RATIOS.get(targets, {}).get(workload, MIN_RATIO_OF_OTHERS.get(targets))


def judge(record: Record) -> list[Judgement]:
    """Every promise that the record has figures for."""
    return [*_throughput(record), *_ceiling(record), *_latency(record), *_distance(record), *_memory(record)]


def _throughput(record: Record) -> Iterator[Judgement]:
    for targets in MIN_RATIOS:
        for workload in record.workloads:
            ratios = record.ratios(workload.name, Contestant(Kind.CDC, targets), Contestant(Kind.SUBSCRIPTION, targets))
            wanted = min_ratio(workload.name, targets)
            if ratios and wanted is not None:
                others = "the subscription" if targets == 1 else f"{targets} subscriptions"
                about = f"{workload.name}, {targets} target{'s' if targets > 1 else ''}"
                found = median(ratios)
                yield Judgement(
                    about, f"at least {wanted:g} times {others}", f"{found:.2f} times {others}", found >= wanted
                )


def _ceiling(record: Record) -> Iterator[Judgement]:
    for workload in record.workloads:
        ratios = record.ratios(workload.name, Contestant(Kind.NULL, 0), Contestant(Kind.RECVLOGICAL, 0))
        if ratios:
            found = median(ratios)
            yield Judgement(
                f"{workload.name}, null target",
                f"at least {MIN_OF_CEILING:.0%} of pg_recvlogical",
                f"{found:.0%} of pg_recvlogical",
                found >= MIN_OF_CEILING,
            )


def _latency(record: Record) -> Iterator[Judgement]:
    for rate in sorted({*MAX_P50_MS, *MAX_P99_MS}):
        turns = record.followed(Contestant(Kind.CDC, 1), rate)
        if not turns:
            continue
        written = median(turn.rate for turn in turns)
        if written < MIN_WRITTEN * rate:
            yield Judgement(
                f"latency at {rate:,}/s",
                f"that at least {MIN_WRITTEN:.0%} of {rate:,} transactions/s are written",
                f"{written:,.0f} transactions/s were written",
                False,
            )
        for name, limits, found in (
            ("p50", MAX_P50_MS, median(turn.p50_ms for turn in turns)),
            ("p99", MAX_P99_MS, median(turn.p99_ms for turn in turns)),
        ):
            if rate in limits:
                yield Judgement(
                    f"latency at {rate:,}/s, {name}",
                    f"under {limits[rate]:g} ms",
                    f"{found:.1f} ms",
                    found < limits[rate],
                )


def _distance(record: Record) -> Iterator[Judgement]:
    turns = record.drained("bulk", Contestant(Kind.CDC, 1), FAR_MS)
    if turns:
        found = median(turn.rate for turn in turns)
        yield Judgement(
            f"bulk, {FAR_MS:g} ms added to each round trip",
            f"at least {MIN_FAR_RATE:,.0f} rows/s",
            f"{found:,.0f} rows/s",
            found >= MIN_FAR_RATE,
        )


def _memory(record: Record) -> Iterator[Judgement]:
    turns = [(drain.peak_bytes, drain.workload) for drain in record.drains if drain.contestant.kind is Kind.CDC]
    turns += [(latency.peak_bytes, "latency") for latency in record.latencies if latency.contestant.kind is Kind.CDC]
    if turns:
        found, workload = max(turns)
        yield Judgement(
            "memory of the worker",
            f"under {MAX_WORKER_BYTES / 1e6:.0f} MB on every workload",
            f"{found / 1e6:.0f} MB on {workload}",
            found < MAX_WORKER_BYTES,
        )
