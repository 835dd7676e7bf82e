"""What processes of this machine use: CPU seconds and memory, of our worker and of the servers' backends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import psutil  # type: ignore[import-untyped]  # psutil brings no types

Role = str
"""What a process does in a measurement: "reader", "walsender", "target backends"."""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far; 0 when it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


@dataclass(slots=True)
class Meter:
    """CPU seconds per role from the meter's start on, and the most memory that one process was seen to hold.

    A process that starts later counts whole.
    """

    watched: int
    before: dict[int, float] = field(default_factory=dict)
    peak_bytes: int = 0

    @classmethod
    def start(cls, processes: Mapping[Role, Iterable[int]], watched: int) -> Meter:
        """Begin to count; ``watched`` is the process whose memory is sampled."""
        meter = cls(watched, {pid: cpu_seconds(pid) for pids in processes.values() for pid in pids})
        meter.sample()
        return meter

    def sample(self) -> None:
        """Look at the memory."""
        self.peak_bytes = max(self.peak_bytes, resident_bytes(self.watched))

    def read(self, processes: Mapping[Role, Iterable[int]]) -> dict[Role, float]:
        """CPU seconds that each role has used since the start."""
        self.sample()
        return {
            role: sum(cpu_seconds(pid) - self.before.get(pid, 0.0) for pid in pids) for role, pids in processes.items()
        }
