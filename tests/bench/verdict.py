"""What the figures say: medians, ratios, and whether they are good enough.

Absolute figures mean little on a machine that others use, so what is judged is the ratio to the subscription in the
same round, and the median of the rounds' ratios.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.bench.drain import Drain
from tests.bench.latency import Latency
from tests.bench.workloads import Workload

MIN_RATIO = 0.7
"""Of the subscription's rate, uncompiled and with one target: what issue 2 promises. The compiled core raises it."""

MAX_P99_MS = 50.0
"""From the source's commit to visibility at 200 transactions/s, the median of the rounds' p99: the same promise."""

_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Drained:
    """All turns of one workload."""

    workload: Workload
    drains: Sequence[Drain]

    @property
    def ratios(self) -> list[float]:
        """In every round, `cdc`'s rate over the subscription's."""
        rates = {(drain.round, drain.reader): drain.rate for drain in self.drains}
        rounds = sorted({drain.round for drain in self.drains})
        return [rates[number, "cdc"] / rates[number, "subscription"] for number in rounds]

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return median(self.ratios)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run has measured. What was not asked for is empty."""

    machine: dict[str, str | int]
    drained: Sequence[Drained]
    latencies: Sequence[Latency]
    rate: int

    def p99_ms(self, reader: str) -> float:
        """The median of the rounds."""
        return median(latency.p99_ms for latency in self.latencies if latency.reader == reader)

    def shortcomings(self) -> list[str]:
        """Where a threshold is missed, a sentence each."""
        found = [
            f"{drained.workload.name}: {drained.ratio:.2f} of the subscription's rate, at least {MIN_RATIO} is wanted"
            for drained in self.drained
            if drained.ratio < MIN_RATIO
        ]
        if self.latencies and self.p99_ms("cdc") > MAX_P99_MS:
            found.append(f"latency: p99 is {self.p99_ms('cdc'):.1f} ms, at most {MAX_P99_MS:g} ms is wanted")
        return found

    def write(self, path: Path) -> None:
        """Everything as JSON, single turns included."""
        content = {
            "machine": self.machine,
            "thresholds": {"min_ratio": MIN_RATIO, "max_p99_ms": MAX_P99_MS},
            "workloads": {
                drained.workload.name: {
                    "title": drained.workload.title,
                    "unit": drained.workload.unit,
                    "amount": drained.workload.amount,
                    "ratio": drained.ratio,
                    "ratios": drained.ratios,
                    "turns": [dataclasses.asdict(drain) for drain in drained.drains],
                }
                for drained in self.drained
            },
            "latency": {
                "rate": self.rate,
                "p99_ms": {reader: self.p99_ms(reader) for reader in sorted({x.reader for x in self.latencies})},
                "turns": [dataclasses.asdict(latency) for latency in self.latencies],
            },
            "shortcomings": self.shortcomings(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def print(self, console: Console) -> None:
        """The tables, and the verdict."""
        console.print(", ".join(f"{name} {value}" for name, value in self.machine.items()))
        for drained in self.drained:
            console.print(_drain_table(drained))
        if self.latencies:
            console.print(self._latency_table())
        for shortcoming in self.shortcomings():
            console.print(f"not good enough: {shortcoming}", style="red")

    def _latency_table(self) -> Table:
        table = _table(
            f"latency from commit to visibility at {self.rate} transactions/s",
            ("round", "reader", "p50 ms", "p99 ms", "max ms", "transactions/s", "CPU s", "peak MiB"),
        )
        for latency in self.latencies:
            table.add_row(
                str(latency.round),
                latency.reader,
                *(f"{value:.1f}" for value in (latency.p50_ms, latency.p99_ms, latency.max_ms)),
                f"{latency.rate:.0f}",
                _cpu(latency.cpu_s),
                f"{latency.peak_bytes / _MIB:.0f}",
            )
        table.add_section()
        for reader in ("subscription", "cdc"):
            turns = [latency for latency in self.latencies if latency.reader == reader]
            middle = (median(turn.p50_ms for turn in turns), self.p99_ms(reader), median(turn.max_ms for turn in turns))
            table.add_row("median", reader, *(f"{value:.1f}" for value in middle))
        return table


def _drain_table(drained: Drained) -> Table:
    unit = drained.workload.unit
    table = _table(
        drained.workload.title,
        ("round", "reader", "seconds", "with start", f"{unit}/s", "ratio", "CPU s", "peak MiB"),
    )
    for drain in drained.drains:
        table.add_row(
            str(drain.round),
            drain.reader,
            f"{drain.seconds:.2f}",
            f"{drain.seconds_with_start:.2f}",
            f"{drain.rate:,.0f}",
            f"{drained.ratios[drain.round - 1]:.2f}" if drain.reader == "cdc" else "",
            _cpu(drain.cpu_s),
            f"{drain.peak_bytes / _MIB:.0f}",
        )
    table.add_section()
    for reader in ("subscription", "cdc"):
        turns = [drain for drain in drained.drains if drain.reader == reader]
        table.add_row(
            "median",
            reader,
            f"{median(turn.seconds for turn in turns):.2f}",
            f"{median(turn.seconds_with_start for turn in turns):.2f}",
            f"{median(turn.rate for turn in turns):,.0f}",
            f"{drained.ratio:.2f}" if reader == "cdc" else "",
        )
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("reader", "CPU s") else "right")
    return table


def _cpu(cpu_s: dict[str, float]) -> str:
    return ", ".join(f"{role} {seconds:.2f}" for role, seconds in cpu_s.items())
