"""How fast a backlog is drained: the changes are there before anybody reads, until the last one is visible.

The clock starts when the reader's walsender streams, for both alike: starting an interpreter, importing, connecting and
logging in are not replication. `Drain.seconds_with_start` counts them, too. What comes after that (opening the target,
reading its catalog) counts for `cdc`, although it is start-up as well.

One backlog is written and drained by both readers in every round, each time into a fresh copy of the database, so both
read the same WAL; who begins alternates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from cdc.errors import SetupError
from tests.bench.contents import require_equal
from tests.bench.processes import Meter, Role
from tests.bench.readers import READERS, Reader
from tests.bench.servers import Servers, clone_database, drop_database
from tests.bench.workloads import Workload, sees_end, write_end

DRAIN_TIMEOUT_S = 900.0
"""A reader that is a hundred times slower than expected has failed."""

POLL_S = 0.005
"""How often a target is asked for the end row: one in a hundred of the shortest drain, and no load."""

_END = 1


@dataclass(frozen=True, slots=True)
class Drain:
    """One reader's turn. ``cpu_s`` is per role, ``peak_bytes`` the reader's resident memory."""

    round: int
    reader: str
    seconds: float
    seconds_with_start: float
    rate: float
    cpu_s: dict[Role, float]
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Turn:
    """A reader with its slot and its target database, waiting."""

    round: int
    reader: Reader
    target_dsn: str


Say = Callable[[str], None]


def measure(servers: Servers, workload: Workload, rounds: int, say: Say) -> list[Drain]:
    """Write one backlog, and let both readers drain it in every round. Raises `Unequal` after a wrong result."""
    say(f"{workload.name}: {workload.title}")
    with prepared(servers, workload, rounds) as (source_dsn, turns):
        workload.write(servers, source_dsn)
        write_end(source_dsn, _END)
        drains = []
        for turn in turns:
            drain = _drain(servers, workload, turn)
            require_equal(source_dsn, turn.target_dsn, workload.tables)
            say(f"  round {drain.round}, {drain.reader}: {drain.seconds:.2f} s, {drain.rate:,.0f} {workload.unit}/s")
            drains.append(drain)
        return drains


@contextmanager
def prepared(servers: Servers, workload: Workload, rounds: int) -> Iterator[tuple[str, list[Turn]]]:
    """A source database, and for every turn a target database and a slot; all gone afterwards."""
    templates = {
        cluster.port: workload.create_template(servers, cluster) for cluster in (servers.source, servers.target)
    }
    source = f"{workload.name}_source"
    source_dsn = clone_database(servers.source, templates[servers.source.port], source)
    turns: list[Turn] = []
    try:
        for number in range(1, rounds + 1):
            for make in READERS if number % 2 else reversed(READERS):
                name = f"{workload.name}_{make.kind}_{number}"
                target_dsn = clone_database(servers.target, templates[servers.target.port], name)
                reader = make(servers, source=source, target=name, name=name, tables=workload.tables)
                turns.append(Turn(number, reader, target_dsn))
                reader.prepare()
        yield source_dsn, turns
    except BaseException:
        # The servers go now, with all that is in them. What cannot be removed must not hide what went wrong.
        for turn in turns:
            turn.reader.abandon()
        raise
    for turn in turns:
        turn.reader.remove()
        drop_database(servers.target, turn.target_dsn.rpartition("/")[2])
    drop_database(servers.source, source)


def _drain(servers: Servers, workload: Workload, turn: Turn) -> Drain:
    reader = turn.reader
    servers.checkpoint()
    asked_at = time.monotonic()
    reader.start()
    started_at = time.monotonic()
    processes = reader.processes()
    meter = Meter.start(processes, processes["reader"][0])
    wait_for_end(turn, _END, meter)
    ended_at = time.monotonic()
    cpu_s = meter.read(reader.processes())
    reader.stop()
    seconds = ended_at - started_at
    return Drain(
        round=turn.round,
        reader=reader.kind,
        seconds=seconds,
        seconds_with_start=ended_at - asked_at,
        rate=workload.amount / seconds,
        cpu_s=cpu_s,
        peak_bytes=meter.peak_bytes,
    )


def wait_for_end(turn: Turn, number: int, meter: Meter | None = None) -> None:
    """Wait until an end row is visible at the target. Raises `SetupError` when the reader fails or never gets there."""
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    with psycopg.connect(turn.target_dsn, autocommit=True) as target:
        while not sees_end(target, number):
            turn.reader.check()
            if time.monotonic() > deadline:
                raise SetupError(f"the {turn.reader.kind} has not drained its backlog after {DRAIN_TIMEOUT_S:g} s")
            if meter is not None:
                meter.sample()
            time.sleep(POLL_S)
