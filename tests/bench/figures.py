"""What was measured: every single turn, and what follows from them by medians and ratios.

A `Record` is one run. It is written as JSON and read back, so that tables, verdict and chart can be made again from the
file. Absolute figures mean little on a machine that others use: what is judged are mostly ratios of two turns of the
same round, and of these the median.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Literal, TypeAlias

from pydantic import TypeAdapter

Role: TypeAlias = Literal["worker", "source", "targets"]
"""Whose CPU seconds: of `cdc` (or of pg_recvlogical), of the source's server, of the targets' server."""

ROLES: tuple[Role, ...] = ("worker", "source", "targets")


class Kind(StrEnum):
    """Who reads the stream."""

    RECVLOGICAL = "pg_recvlogical"
    NULL = "null target"
    SUBSCRIPTION = "subscription"
    TEXT = "subscription, text"
    CDC = "cdc"

    @property
    def writes(self) -> bool:
        """Whether it has targets."""
        return self not in (Kind.RECVLOGICAL, Kind.NULL)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A reader with so many targets (none for those that throw away what they read)."""

    kind: Kind
    targets: int

    def __str__(self) -> str:
        if not self.kind.writes:
            return self.kind.value
        return f"{self.kind.value}, {self.targets} target{'s' if self.targets > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Drain:
    """One turn: a backlog from the first byte of the stream until its last row is visible on every target.

    ``rate`` is in the workload's unit; ``added_ms`` is what was added to each round trip; ``peak_bytes`` is the
    worker's, 0 for a subscription; ``load`` is the machine's load average when the turn began.
    """

    workload: str
    round: int
    contestant: Contestant
    added_ms: float
    seconds: float
    seconds_with_start: float
    rate: float
    cpu_s: dict[Role, float]
    peak_bytes: int
    load: float


@dataclass(frozen=True, slots=True)
class Latency:
    """One turn of following a steady load; ``asked_rate`` and ``rate`` are transactions/s, wanted and written."""

    round: int
    contestant: Contestant
    added_ms: float
    asked_rate: int
    rate: float
    transactions: int
    changes: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_s: dict[Role, float]
    peak_bytes: int
    load: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What a workload's figures mean."""

    name: str
    title: str
    unit: str
    amount: int
    changes: int


@dataclass(frozen=True, slots=True)
class Link:
    """What a slow link really added to a round trip, in milliseconds."""

    added_ms: float
    direct_round_trip_ms: float
    round_trip_ms: float


@dataclass(frozen=True, slots=True)
class Record:
    """One run. ``loads`` are the machine's load averages when it began and when it ended."""

    command: str
    began_at: str
    took_s: float
    versions: dict[str, str]
    machine: dict[str, str | int | float]
    loads: tuple[float, float]
    options: dict[str, object]
    links: Sequence[Link]
    workloads: Sequence[Measured]
    drains: Sequence[Drain]
    latencies: Sequence[Latency]

    def drained(self, workload: str, contestant: Contestant, added_ms: float = 0.0) -> list[Drain]:
        """All turns of one contestant in one workload."""
        return [
            drain
            for drain in self.drains
            if (drain.workload, drain.contestant, drain.added_ms) == (workload, contestant, added_ms)
        ]

    def followed(self, contestant: Contestant, rate: int, added_ms: float = 0.0) -> list[Latency]:
        """All turns of one contestant at one rate."""
        return [
            latency
            for latency in self.latencies
            if (latency.contestant, latency.asked_rate, latency.added_ms) == (contestant, rate, added_ms)
        ]

    def ratios(self, workload: str, ours: Contestant, theirs: Contestant, added_ms: float = 0.0) -> list[float]:
        """Our rate over theirs, for each round in which both had a turn."""
        their_rates = {drain.round: drain.rate for drain in self.drained(workload, theirs, added_ms)}
        return [
            drain.rate / their_rates[drain.round]
            for drain in self.drained(workload, ours, added_ms)
            if drain.round in their_rates
        ]

    def contestants(self, workload: str, added_ms: float = 0.0) -> list[Contestant]:
        """Who had a turn, in the order of the first round."""
        found = (drain for drain in self.drains if (drain.workload, drain.added_ms) == (workload, added_ms))
        return list(dict.fromkeys(drain.contestant for drain in sorted(found, key=lambda drain: drain.round)))

    def write(self, path: Path, verdict: object) -> None:
        """As JSON, with what was judged beside it (which `read` does not need)."""
        content = {"verdict": verdict, **_ADAPTER.dump_python(self, mode="json")}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Record:
        """What `write` wrote. Raises ``ValueError`` for another file, ``OSError`` where there is none."""
        return _ADAPTER.validate_json(path.read_bytes())


_ADAPTER = TypeAdapter(Record)


def middle(turns: Iterable[Drain], of: Callable[[Drain], float]) -> float | None:
    """The median of one figure over the rounds; ``None`` without a turn."""
    values = [of(turn) for turn in turns]
    return median(values) if values else None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of the ordered values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
