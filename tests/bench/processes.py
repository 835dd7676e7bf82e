"""What processes of this machine use: CPU seconds and memory, of our worker and of the two servers.

CPU seconds are those of ``/proc``. A process counts with its children, living or ended; a server is its postmaster with
every process that it ever had, so that backends which ended are not lost. What the measurement itself makes a server
do (sessions that look whether the last row is visible) is taken off again. Clock ticks make each figure exact to 0.01 s
per process.

Memory is what the kernel remembers as the most that was resident (``VmHWM``), of the worker and its living children:
a short peak is not missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # psutil brings no types

from tests.bench.figures import Role
from tests.bench.servers import Servers

_PROC = Path("/proc")


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process, of its living descendants, and of those that have ended.

    0 when it is gone; one that has ended still counts until somebody has waited for it.
    """
    try:
        process = psutil.Process(pid)
        while True:
            ended = _of_ended_children(process)
            family = (process, *process.children(recursive=True))
            total = sum(_own(member) for member in family)
            # When a child has ended meanwhile, it was counted in neither place, or in both.
            if _of_ended_children(process) == ended:
                return total
    except psutil.NoSuchProcess:
        return 0.0


def _own(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system) + float(times.children_user + times.children_system)


def _of_ended_children(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.children_user + times.children_system)


def peak_bytes(pid: int, proc: Path = _PROC) -> int:
    """The most memory that a process and its living children have each had resident, summed up; 0 when it is gone.

    Without ``/proc``, what is resident now.
    """
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    return sum(_peak(process, proc) for process in (pid, *(child.pid for child in children)))


def _peak(pid: int, proc: Path) -> int:
    with suppress(OSError):
        for line in (proc / str(pid) / "status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with suppress(psutil.NoSuchProcess):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


@dataclass(frozen=True, slots=True)
class Used:
    """CPU seconds per role, and the worker's peak of memory (0 where there is no process of a worker)."""

    cpu_s: dict[Role, float]
    peak_bytes: int


class Meter:
    """What each role has used since the meter was made. ``lookers`` are backends of the targets that only look."""

    def __init__(self, servers: Servers, worker: int | None, lookers: Sequence[int]) -> None:
        self._servers, self._worker, self._lookers = servers, worker, tuple(lookers)
        self._before = self._now()

    def read(self) -> Used:
        """Read it while everybody still lives."""
        after = self._now()
        cpu_s = {role: max(0.0, after[role] - self._before[role]) for role in after}
        return Used(cpu_s, 0 if self._worker is None else peak_bytes(self._worker))

    def _now(self) -> dict[Role, float]:
        source, target = self._servers.source.pid, self._servers.target.pid
        assert source is not None
        assert target is not None
        return {
            "worker": 0.0 if self._worker is None else cpu_seconds(self._worker),
            "source": cpu_seconds(source),
            "targets": cpu_seconds(target) - sum(map(cpu_seconds, self._lookers)),
        }
