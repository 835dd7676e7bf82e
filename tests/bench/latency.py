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
import os
import subprocess
import time
from collections.abc import Sequence

import psycopg

from cdc.errors import SetupError
from tests.bench.contents import digests, require_equal
from tests.bench.drain import Target, looking, wait_for_end
from tests.bench.figures import Contestant, Latency, percentile
from tests.bench.processes import Meter
from tests.bench.servers import Servers, finish_pgbench, start_pgbench
from tests.bench.turns import Distance, Say, Turn, one_round, templates
from tests.bench.workloads import END_TABLE, Workload, create_answers, steady_script, write_end

LOOK_EVERY_S = 0.001

WARM_UP_S = 2.0
"""Transactions of the first seconds are left out: caches fill, connections open."""

PATIENCE_S = 30.0
"""How long the last transactions may take to show."""

WRITERS = 8
"""Each waits for the source's disk at every commit: eight can write 2,000 transactions a second where a flush takes 4
ms."""

STEADY = Workload(
    name="steady",
    title="an insert into answers and an update of assessments",
    unit="transactions",
    amount=0,
    changes=0,
    tables=("answers", "assessments", END_TABLE),
    create=create_answers,
    write=lambda _servers, _dsn: None,
)


def measure(
    servers: Servers,
    contestants: Sequence[Contestant],
    rounds: int,
    seconds: float,
    rate: int,
    away: Distance,
    say: Say,
) -> list[Latency]:
    """Let each contestant follow for ``seconds`` at ``rate`` transactions a second, in every round."""
    distance = f", {away.added_ms:g} ms added to each round trip" if away.added_ms else ""
    say(f"latency: {rate:,} transactions/s for {seconds:g} s, each {STEADY.title}{distance}")
    latencies = []
    with templates(servers, STEADY):
        for number in range(1, rounds + 1):
            with one_round(servers, STEADY, contestants, number, away) as (source_dsn, turns):
                for end, turn in enumerate(turns, start=1):
                    servers.checkpoint()
                    latency = _turn(servers, source_dsn, turn, end, seconds, rate, away)
                    require_equal(digests(source_dsn, STEADY.tables), turn.target_dsns[0])
                    say(
                        f"  round {latency.round}, {latency.contestant}: p50 {latency.p50_ms:.1f} ms, "
                        f"p99 {latency.p99_ms:.1f} ms, max {latency.max_ms:.1f} ms"
                    )
                    latencies.append(latency)
    return latencies


def _turn(
    servers: Servers, source_dsn: str, turn: Turn, end: int, seconds: float, rate: int, away: Distance
) -> Latency:
    load = os.getloadavg()[0]
    with looking(turn) as targets:
        until = write_end(source_dsn, end)
        turn.reader.start(until)
        # What earlier turns of the round have written comes first.
        wait_for_end(turn, targets, end)
        first = _newest(source_dsn) + 1
        meter = Meter(servers, turn.reader.pid, [target.info.backend_pid for target in targets])
        writer = start_pgbench(
            servers.pgbench,
            source_dsn,
            [
                *("-n", "-M", "prepared", "-c", WRITERS, "-f", steady_script()),
                *("-R", rate, "-T", math.ceil(seconds + WARM_UP_S)),
            ],
        )
        try:
            seen = _watch(turn, targets[0], first, source_dsn, writer)
        finally:
            if writer.poll() is None:
                writer.terminate()
                writer.wait()
        finish_pgbench(writer)
        used = meter.read()
        turn.reader.stop()
    committed = _commits(source_dsn, first)
    start = min(committed.values()) + WARM_UP_S
    measured = {answer: at for answer, at in committed.items() if at >= start}
    waits_ms = sorted((seen[answer] - at) * 1000 for answer, at in measured.items())
    return Latency(
        round=turn.round,
        contestant=turn.contestant,
        added_ms=away.added_ms,
        asked_rate=rate,
        rate=len(waits_ms) / (max(measured.values()) - min(measured.values())),
        transactions=len(waits_ms),
        changes=2 * len(committed),
        p50_ms=percentile(waits_ms, 0.50),
        p99_ms=percentile(waits_ms, 0.99),
        max_ms=waits_ms[-1],
        cpu_s=used.cpu_s,
        peak_bytes=used.peak_bytes,
        load=load,
    )


def _watch(turn: Turn, target: Target, first: int, source_dsn: str, writer: subprocess.Popen[str]) -> dict[int, float]:
    """When each answer from ``first`` on was first seen at the target, in seconds of the epoch.

    Ends when the writer has, and all that it wrote was seen. Raises `SetupError` when some never shows.
    """
    seen: dict[int, float] = {}
    # Ids become visible in another order than they were drawn, and the sequence leaves no gaps.
    missing = first
    expected = deadline = math.inf
    target.prepare_threshold = 0
    while len(seen) < expected:
        # clock_timestamp() is read after the statement's snapshot was taken: what it returns was visible by then.
        for answer, at in target.execute(
            "SELECT id, extract(epoch FROM clock_timestamp())::float8 FROM answers WHERE id >= %s",
            (missing,),
        ):
            assert isinstance(answer, int)
            assert isinstance(at, float)
            seen.setdefault(answer, at)
        while missing in seen:
            missing += 1
        if expected == math.inf and writer.poll() is not None:
            turn.reader.check()
            expected = len(_commits(source_dsn, first))
            deadline = time.monotonic() + PATIENCE_S
        if time.monotonic() > deadline:
            raise SetupError(f"{turn.contestant}: {len(seen):,} of {expected:,} answers show {PATIENCE_S:g} s later")
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
