"""How long a transaction takes from its commit at the source until somebody can see it at the target.

Commits are the source's own record (``pg_xact_commit_timestamp``). Visibility is looked for: one session asks the
target every millisecond which answers are new, and notes the time by the same machine's clock. The target's record of
its commits would not do: a subscription sets the source's time there, and no record says when a commit became visible.
So every figure holds up to a millisecond of waiting for the next look, and the source's flush to its disk; the same
for both readers.

The transactions come at random moments, at a steady rate on average (``pgbench --rate``), on several connections.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from cdc.errors import SetupError
from tests.bench.contents import require_equal
from tests.bench.drain import Say, Turn, prepared, wait_for_end
from tests.bench.processes import Meter, Role
from tests.bench.servers import Servers, finish_pgbench, start_pgbench
from tests.bench.workloads import END_TABLE, WRITERS, Workload, create_answers, write_end

LOOK_EVERY_S = 0.001

WARM_UP_S = 2.0
"""Transactions of the first seconds are left out: caches fill, connections open."""

PATIENCE_S = 30.0
"""How long the last transactions may take to show."""

_SCRIPT = Path(__file__).parent / "steady.sql"

STEADY = Workload(
    name="steady",
    title="an insert into answers and an update of assessments",
    unit="transactions",
    amount=0,
    tables=("answers", "assessments", END_TABLE),
    create=create_answers,
    write=lambda _servers, _dsn: None,
)


@dataclass(frozen=True, slots=True)
class Latency:
    """One reader's turn, in milliseconds; ``rate`` is that of the transactions that were measured."""

    round: int
    reader: str
    transactions: int
    rate: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_s: dict[Role, float]
    peak_bytes: int


def measure(servers: Servers, rounds: int, seconds: float, rate: int, say: Say) -> list[Latency]:
    """Let each reader follow for ``seconds`` at ``rate`` transactions a second, in every round."""
    say(f"latency: {rate} transactions/s for {seconds:g} s, each {STEADY.title}")
    latencies = []
    with prepared(servers, STEADY, rounds) as (source_dsn, turns):
        for number, turn in enumerate(turns, start=1):
            servers.checkpoint()
            turn.reader.start()
            write_end(source_dsn, number)
            wait_for_end(turn, number)
            latency = _follow(servers, source_dsn, turn, seconds, rate)
            turn.reader.stop()
            require_equal(source_dsn, turn.target_dsn, STEADY.tables)
            say(
                f"  round {latency.round}, {latency.reader}: p50 {latency.p50_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms, "
                f"max {latency.max_ms:.1f} ms"
            )
            latencies.append(latency)
    return latencies


def _follow(servers: Servers, source_dsn: str, turn: Turn, seconds: float, rate: int) -> Latency:
    first = _newest(source_dsn) + 1
    processes = turn.reader.processes()
    meter = Meter.start(processes, processes["reader"][0])
    writer = start_pgbench(
        servers.pgbench,
        source_dsn,
        [
            *("-n", "-M", "prepared", "-c", WRITERS, "-f", _SCRIPT),
            *("-R", rate, "-T", math.ceil(seconds + WARM_UP_S)),
        ],
    )
    try:
        seen = _watch(turn, first, source_dsn, writer)
    finally:
        if writer.poll() is None:
            writer.terminate()
            writer.wait()
    finish_pgbench(writer)
    cpu_s = meter.read(turn.reader.processes())
    committed = _commits(source_dsn, first)
    start = min(committed.values()) + WARM_UP_S
    measured = {answer: at for answer, at in committed.items() if at >= start}
    waits_ms = sorted((seen[answer] - at) * 1000 for answer, at in measured.items())
    return Latency(
        round=turn.round,
        reader=turn.reader.kind,
        transactions=len(waits_ms),
        rate=len(waits_ms) / (max(measured.values()) - min(measured.values())),
        p50_ms=percentile(waits_ms, 0.50),
        p99_ms=percentile(waits_ms, 0.99),
        max_ms=waits_ms[-1],
        cpu_s=cpu_s,
        peak_bytes=meter.peak_bytes,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of the ordered values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _watch(turn: Turn, first: int, source_dsn: str, writer: subprocess.Popen[str]) -> dict[int, float]:
    """When each answer from ``first`` on was first seen at the target, in seconds of the epoch.

    Ends when the writer has, and all that it wrote was seen. Raises `SetupError` when some never shows.
    """
    seen: dict[int, float] = {}
    # Ids become visible in another order than they were drawn, and the sequence leaves no gaps.
    missing = first
    expected = deadline = math.inf
    with psycopg.connect(turn.target_dsn, autocommit=True) as target:
        target.prepare_threshold = 0
        while len(seen) < expected:
            # clock_timestamp() is read after the statement's snapshot was taken: what it returns was visible by then.
            for answer, at in target.execute(
                "SELECT id, extract(epoch FROM clock_timestamp())::float8 FROM answers WHERE id >= %s",
                (missing,),
            ):
                seen.setdefault(answer, at)
            while missing in seen:
                missing += 1
            if expected == math.inf and writer.poll() is not None:
                turn.reader.check()
                expected = len(_commits(source_dsn, first))
                deadline = time.monotonic() + PATIENCE_S
            if time.monotonic() > deadline:
                raise SetupError(
                    f"the {turn.reader.kind} shows {len(seen):,} of {expected:,} answers {PATIENCE_S:g} s later"
                )
            time.sleep(LOOK_EVERY_S)
    return seen


def _newest(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT coalesce(max(id), 0) FROM answers").fetchone()
    assert row is not None
    return int(row[0])


def _commits(dsn: str, first: int) -> dict[int, float]:
    """When each answer from ``first`` on was committed at the source, in seconds of the epoch."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT id, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM answers WHERE id >= %s",
            (first,),
        ).fetchall()
    return {int(answer): float(at) for answer, at in rows}
