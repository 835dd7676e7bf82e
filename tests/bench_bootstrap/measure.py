"""Rounds of turns: every way goes once a round, into a fresh database; who begins alternates."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.servers import Servers, drop_database
from tests.bench_bootstrap import contents, cpu
from tests.bench_bootstrap.contents import Contents
from tests.bench_bootstrap.data import TABLES
from tests.bench_bootstrap.ways import Turn, Way

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Time:
    """One turn. ``cpu_s`` are the CPU seconds of the way's own processes and of either server."""

    round: int
    way: str
    seconds: float
    uncounted: dict[str, float]
    cpu_s: dict[str, float]


def measure(servers: Servers, source: str, ways: Sequence[Way], rounds: int, jobs: int, say: Say) -> list[Time]:
    """Let every way go in every round. Raises `contents.Unequal` after a wrong result.

    One turn more comes first and does not count: the target's server makes its WAL files in it, which later turns find.
    """
    wanted = contents.read(servers.source.dsn(source), TABLES)
    times = []
    _turn(servers, source, ways[0], 0, jobs, wanted)
    for number in range(1, rounds + 1):
        for way in ways if number % 2 else reversed(ways):
            time_taken = _turn(servers, source, way, number, jobs, wanted)
            used = ", ".join(f"{role} {seconds:.1f}" for role, seconds in time_taken.cpu_s.items())
            apart = "".join(f"; {what} {seconds:.1f} s" for what, seconds in time_taken.uncounted.items())
            say(f"  round {number}, {way.name}: {time_taken.seconds:.1f} s (CPU s: {used}{apart})")
            times.append(time_taken)
    return times


def _turn(servers: Servers, source: str, way: Way, number: int, jobs: int, wanted: Contents) -> Time:
    name = f"bench_{way.name.replace(' ', '_')}_{number}"
    servers.target.create_database(name)
    servers.checkpoint()
    with tempfile.TemporaryDirectory(prefix="cdc-bench-") as directory:
        turn = Turn(servers, source, name, name, jobs, Path(directory))
        before = cpu.used(servers)
        began = time.monotonic()
        way.go(turn)
        seconds = time.monotonic() - began - sum(turn.uncounted.values())
        cpu_s = {role: used - before[role] - turn.uncounted_cpu[role] for role, used in cpu.used(servers).items()}
    contents.read(turn.target_dsn, TABLES).require_equal(wanted)
    drop_database(servers.target, name)
    return Time(number, way.name, seconds, turn.uncounted, cpu_s)
