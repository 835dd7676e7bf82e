"""How fast a backlog is drained: the changes are there before anybody reads, until the last one is visible everywhere.

The clock starts when the reader's walsender streams (with several subscriptions: the last of them), for all alike:
starting an interpreter, importing, connecting and logging in are not replication. `Drain.seconds_with_start` counts
them, too. What comes after that (opening the targets, reading their catalogs) counts for `cdc`, although it is start-up
as well. It stops when every target shows the last row; for a reader without targets, when it has met the first message
behind the backlog.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import psycopg

from cdc.errors import SetupError
from tests.bench.contents import digests, require_equal
from tests.bench.figures import Contestant, Drain
from tests.bench.processes import Meter
from tests.bench.servers import Servers
from tests.bench.turns import Distance, Say, Turn, one_round, templates
from tests.bench.workloads import Workload, sees_end, write_end

DRAIN_TIMEOUT_S = 1800.0
"""A reader that is a hundred times slower than expected has failed."""

POLL_S = 0.005
"""How often a target is asked for the end row: one in a hundred of the shortest drain, and no load."""

_END = 1

Target = psycopg.Connection[tuple[object, ...]]


def measure(
    servers: Servers, workload: Workload, contestants: Sequence[Contestant], rounds: int, away: Distance, say: Say
) -> list[Drain]:
    """Write the backlog anew in every round, and let everybody drain it. Raises `Unequal` after a wrong result."""
    distance = f", {away.added_ms:g} ms added to each round trip" if away.added_ms else ""
    say(f"{workload.name}: {workload.title}{distance}")
    drains = []
    with templates(servers, workload):
        for number in range(1, rounds + 1):
            with one_round(servers, workload, contestants, number, away) as (source_dsn, turns):
                workload.write(servers, source_dsn)
                until = write_end(source_dsn, _END)
                expected = digests(source_dsn, workload.tables)
                for turn in turns:
                    drain = _drain(servers, workload, turn, until, away)
                    for target_dsn in turn.target_dsns:
                        require_equal(expected, target_dsn)
                    say(
                        f"  round {drain.round}, {drain.contestant}: {drain.seconds:.2f} s, "
                        f"{drain.rate:,.0f} {workload.unit}/s"
                    )
                    drains.append(drain)
    return drains


def _drain(servers: Servers, workload: Workload, turn: Turn, until: str, away: Distance) -> Drain:
    servers.checkpoint()
    load = os.getloadavg()[0]
    with looking(turn) as targets:
        asked_at = time.monotonic()
        turn.reader.start(until)
        started_at = time.monotonic()
        meter = Meter(servers, turn.reader.pid, [target.info.backend_pid for target in targets])
        wait_for_end(turn, targets, _END)
        ended_at = time.monotonic()
        used = meter.read()
    turn.reader.stop()
    seconds = ended_at - started_at
    return Drain(
        workload=workload.name,
        round=turn.round,
        contestant=turn.contestant,
        added_ms=away.added_ms,
        seconds=seconds,
        seconds_with_start=ended_at - asked_at,
        rate=workload.amount / seconds,
        cpu_s=used.cpu_s,
        peak_bytes=used.peak_bytes,
        load=load,
    )


@contextmanager
def looking(turn: Turn) -> Iterator[list[Target]]:
    """A session in every target, from which it is seen what is visible."""
    with ExitStack() as sessions:
        yield [sessions.enter_context(psycopg.connect(dsn, autocommit=True)) for dsn in turn.target_dsns]


def wait_for_end(turn: Turn, targets: Sequence[Target], number: int) -> None:
    """Wait until an end row is visible at every target, or a reader without targets is at its end.

    Raises `SetupError` when the reader fails or never gets there.
    """
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    waiting = list(targets)
    while waiting or not (targets or turn.reader.has_read_all()):
        waiting = [target for target in waiting if not sees_end(target, number)]
        turn.reader.check()
        if time.monotonic() > deadline:
            raise SetupError(f"{turn.contestant} has not drained its backlog after {DRAIN_TIMEOUT_S:g} s")
        if waiting or not targets:
            time.sleep(POLL_S)
