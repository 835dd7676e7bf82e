"""One run: what is asked for, and the order in which it is measured."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # psutil brings no types

from tests.bench import drain, latency
from tests.bench.figures import Contestant, Drain, Kind, Latency, Link, Measured, Record
from tests.bench.servers import Servers, servers
from tests.bench.turns import Say, distance
from tests.bench.workloads import WORKLOADS

LATENCY = "latency"

FAR = ("bulk", "pgbench")
"""What is measured with a slow link, too, beside latency: a few large transactions, and many small ones."""

LONG = ("big", "backlog")
"""What takes minutes in every turn has a third of the rounds."""

FAR_RATE = 200
"""Transactions a second of the latency that is measured with a slow link."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    ``only`` are workloads, and ``latency``; ``size`` is a share of the backlogs; ``targets`` are numbers of targets;
    ``added_ms`` are milliseconds added to each round trip, 0 for none; ``seconds`` is how long a latency is measured in
    a turn, ``rates`` are the transactions a second of it.
    """

    rounds: int = 3
    size: float = 1.0
    seconds: float = 20.0
    only: Sequence[str] = (*WORKLOADS, LATENCY)
    readers: Sequence[Kind] = tuple(Kind)
    targets: Sequence[int] = (1, 3)
    added_ms: Sequence[float] = (0.0, 2.0, 10.0)
    rates: Sequence[int] = (200, 2000)

    def rounds_of(self, workload: str) -> int:
        """How many rounds a workload has."""
        return max(1, self.rounds // 3) if workload in LONG else self.rounds

    def contestants(self, added_ms: float) -> list[Contestant]:
        """Who has a turn in every round, in the order of the first. From afar: ours and PostgreSQL's, one target."""
        if added_ms:
            return [Contestant(kind, 1) for kind in (Kind.SUBSCRIPTION, Kind.CDC) if kind in self.readers]
        idle = [Contestant(kind, 0) for kind in (Kind.RECVLOGICAL, Kind.NULL) if kind in self.readers]
        return idle + [
            Contestant(kind, targets)
            for targets in self.targets
            for kind in (Kind.SUBSCRIPTION, Kind.CDC, Kind.TEXT)
            if kind in self.readers
        ]


def measure(plan: Plan, command: str, say: Say) -> Record:
    """Start two servers, and measure all that the plan asks for.

    Raises `SetupError` when something cannot be measured, `Unequal` when a target is not what the source is.
    """
    began_at, started, load = datetime.now(UTC), time.monotonic(), os.getloadavg()[0]
    links: list[Link] = []
    drains: list[Drain] = []
    latencies: list[Latency] = []
    workloads = [make(plan.size) for name, make in WORKLOADS.items() if name in plan.only]
    with servers() as running:
        for added_ms in plan.added_ms:
            contestants = plan.contestants(added_ms)
            with distance(running, added_ms) as (away, link):
                if link is not None:
                    links.append(link)
                for workload in workloads:
                    if not added_ms or workload.name in FAR:
                        rounds = plan.rounds_of(workload.name)
                        drains += drain.measure(running, workload, contestants, rounds, away, say)
                followers = [who for who in contestants if who.targets == 1 and who.kind is not Kind.TEXT]
                if LATENCY in plan.only and followers:
                    for rate in (FAR_RATE,) if added_ms else plan.rates:
                        latencies += latency.measure(running, followers, plan.rounds, plan.seconds, rate, away, say)
        return Record(
            command=command,
            began_at=began_at.isoformat(timespec="seconds"),
            took_s=round(time.monotonic() - started),
            versions=_versions(running),
            machine=_machine(),
            loads=(load, os.getloadavg()[0]),
            options=dataclasses.asdict(plan),
            links=links,
            workloads=[Measured(w.name, w.title, w.unit, w.amount, w.changes) for w in workloads],
            drains=drains,
            latencies=latencies,
        )


def _versions(running: Servers) -> dict[str, str]:
    found = {"postgresql": str(running.machine()["postgresql"]), "python": platform.python_version()}
    for package in ("cdc", "asyncpg", "psycopg", "uvloop"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    # Which state of cdc this is; outside of a checkout there is nobody to ask.
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    found["commit"] = asked.stdout.strip() or "unknown"
    return found


def _machine() -> dict[str, str | int | float]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
    return {
        "cores": cores,
        "processor": _processor(),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "uncompiled": os.environ.get("CDC_UNCOMPILED", ""),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
