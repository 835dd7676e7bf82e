"""What the figures say: medians, ratios, and whether `--from live` is at least as fast as the fastest of the others.

What is judged is a ratio of two turns of one round, and of these the median: others may use the machine, too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.bench_bootstrap.measure import Time
from tests.bench_bootstrap.ways import LIVE, Way

MAX_RATIO = 1.0
"""Seconds of `cdc bootstrap --from live` over those of the fastest way that is not ours: what issue 3 promises."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run has measured. ``missing`` are ways that could not be gone, each with the reason."""

    machine: dict[str, str | int]
    ways: Sequence[Way]
    times: Sequence[Time]
    missing: dict[str, str]

    def seconds(self, way: str) -> float:
        """The median of the rounds."""
        return median(time.seconds for time in self.times if time.way == way)

    def ratios(self, way: str) -> list[float]:
        """In every round, the seconds of `--from live` over those of this way; below 1 where we are faster."""
        seconds = {(time.round, time.way): time.seconds for time in self.times}
        return [
            seconds[number, LIVE] / taken
            for (number, name), taken in sorted(seconds.items())
            if name == way and (number, LIVE) in seconds
        ]

    def shortcomings(self) -> list[str]:
        """Where the promise is not kept, a sentence each."""
        others = [way for way in self._gone() if not way.name.startswith("cdc ")]
        return [
            f"{LIVE} takes {median(ratios):.2f} of the time of {way.name}, at most {MAX_RATIO:g} is wanted"
            for way in others
            if (ratios := self.ratios(way.name)) and median(ratios) > MAX_RATIO
        ]

    def write(self, path: Path) -> None:
        """Everything as JSON, single turns included."""
        content = {
            "machine": self.machine,
            "thresholds": {"max_ratio": MAX_RATIO},
            "missing": self.missing,
            "ways": {
                way.name: {
                    "title": way.title,
                    "seconds": self.seconds(way.name),
                    "ratios_of_live": self.ratios(way.name),
                    "turns": [dataclasses.asdict(time) for time in self.times if time.way == way.name],
                }
                for way in self._gone()
            },
            "shortcomings": self.shortcomings(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def print(self, console: Console) -> None:
        """The table, and the verdict."""
        console.print(", ".join(f"{name} {value}" for name, value in self.machine.items()))
        table = Table(title="until the target holds all rows and all indexes", title_justify="left")
        for column in ("way", "seconds", "of them", "live / this", "CPU s: own, source, target", "not counted"):
            table.add_column(column, justify="right" if column == "seconds" else "left")
        for way in self.ways:
            if way.name in self.missing:
                table.add_row(way.title, "", self.missing[way.name])
                continue
            turns = [time for time in self.times if time.way == way.name]
            apart = {what for time in turns for what in time.uncounted}
            table.add_row(
                way.title,
                f"{self.seconds(way.name):.1f}",
                ", ".join(f"{time.seconds:.1f}" for time in turns),
                "" if way.name == LIVE else ", ".join(f"{ratio:.2f}" for ratio in self.ratios(way.name)),
                ", ".join(f"{median(time.cpu_s[role] for time in turns):.1f}" for role in ("own", "source", "target")),
                ", ".join(
                    f"{what} {median(time.uncounted.get(what, 0.0) for time in turns):.1f}" for what in sorted(apart)
                ),
            )
        console.print(table)
        for shortcoming in self.shortcomings():
            console.print(f"not good enough: {shortcoming}", style="red", markup=False)

    def _gone(self) -> list[Way]:
        return [way for way in self.ways if way.name not in self.missing]
