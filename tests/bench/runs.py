"""Runs that nobody has measured, for the tests of what figures are made into."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.figures import Contestant, Drain, Kind, Latency, Measured, Record
from tests.bench.workloads import WORKLOADS

AMOUNT = 1_000_000


def drain(
    workload: str,
    number: int,
    contestant: Contestant,
    rate: float,
    *,
    added_ms: float = 0.0,
    peak_bytes: int = 100_000_000,
) -> Drain:
    """A turn at so many rows a second."""
    return Drain(
        workload=workload,
        round=number,
        contestant=contestant,
        added_ms=added_ms,
        seconds=AMOUNT / rate,
        seconds_with_start=AMOUNT / rate + 1,
        rate=rate,
        cpu_s={"worker": 1.0, "source": 2.0, "targets": 3.0},
        peak_bytes=peak_bytes if contestant.kind is Kind.CDC else 0,
        load=0.5,
    )


def beside(workload: str, targets: int, *ratios: float) -> list[Drain]:
    """Rounds in which `cdc` was so many times as fast. The rounds differ in speed by themselves."""
    ours, theirs = Contestant(Kind.CDC, targets), Contestant(Kind.SUBSCRIPTION, targets)
    return [
        turn
        for number, ratio in enumerate(ratios, start=1)
        for turn in (
            drain(workload, number, theirs, 1000.0 * number),
            drain(workload, number, ours, 1000.0 * number * ratio),
        )
    ]


def listening(workload: str, *shares: float) -> list[Drain]:
    """Rounds in which the null target had so large a share of pg_recvlogical's rate."""
    ours, theirs = Contestant(Kind.NULL, 0), Contestant(Kind.RECVLOGICAL, 0)
    return [
        turn
        for number, share in enumerate(shares, start=1)
        for turn in (drain(workload, number, theirs, 500.0), drain(workload, number, ours, 500.0 * share))
    ]


def latency(
    kind: Kind, asked_rate: int, p50_ms: float, p99_ms: float, *, number: int = 1, written: float | None = None
) -> Latency:
    """A turn of following."""
    return Latency(
        round=number,
        contestant=Contestant(kind, 1),
        added_ms=0.0,
        asked_rate=asked_rate,
        rate=asked_rate if written is None else written,
        transactions=4000,
        changes=8000,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        max_ms=p99_ms * 2,
        cpu_s={"worker": 1.0, "source": 2.0, "targets": 3.0},
        peak_bytes=100_000_000 if kind is Kind.CDC else 0,
        load=0.5,
    )


def record(drains: Sequence[Drain] = (), latencies: Sequence[Latency] = ()) -> Record:
    """A run with these turns."""
    named = {turn.workload for turn in drains}
    return Record(
        command="make bench",
        began_at="2026-11-22T20:00:00+00:00",
        took_s=60.0,
        versions={"postgresql": "18.6", "python": "3.11.7"},
        machine={"cores": 2},
        loads=(0.5, 1.5),
        options={"rounds": 3},
        links=[],
        workloads=[
            Measured(name, f"the workload {name}", "rows", AMOUNT, AMOUNT) for name in WORKLOADS if name in named
        ],
        drains=drains,
        latencies=latencies,
    )
