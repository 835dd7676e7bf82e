"""What the demo concludes, as data, as JSON and as words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from cdc.demo.comparison import Compared
from cdc.demo.latency import Latency


@dataclass(frozen=True, slots=True)
class TargetVerdict:
    """One target: what was compared, and how far it was behind meanwhile."""

    compared: Compared
    latency: Latency

    def to_dict(self) -> dict[str, Any]:
        """Plain data; seconds are rounded to what a clock can tell."""
        return {
            "tables": self.compared.tables,
            "rows": self.compared.rows,
            "lag_p50_s": _rounded(self.latency.p50_s),
            "lag_p99_s": _rounded(self.latency.p99_s),
            "undisturbed_lag_p99_s": _rounded(self.latency.undisturbed_p99_s),
            "mismatches": list(self.compared.mismatches),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of the demo.

    ``seconds`` the worker ran under load, ``killed`` times it was killed, ``recovered_s`` from the SIGKILL until every
    target held what had been committed by then; ``reads`` of an invariant were made, ``torn_reads`` saw it broken.
    ``problems`` are sentences about what else went wrong.
    """

    targets: Mapping[str, TargetVerdict]
    seconds: float
    killed: int
    recovered_s: float | None
    transactions: int
    reads: int
    torn_reads: int
    problems: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether every table of every target is what the source has."""
        return bool(self.targets) and not any(target.compared.mismatches for target in self.targets.values())

    @property
    def is_success(self) -> bool:
        """Whether all went as it should."""
        return self.equal and not self.torn_reads and not self.problems

    def to_json(self) -> str:
        """The verdict as indented JSON."""
        plain = {
            "equal": self.equal,
            "targets": {name: target.to_dict() for name, target in self.targets.items()},
            "seconds": _rounded(self.seconds),
            "killed": self.killed,
            "recovered_s": _rounded(self.recovered_s),
            "transactions": self.transactions,
            "reads": self.reads,
            "torn_reads": self.torn_reads,
            "problems": list(self.problems),
        }
        return json.dumps(plain, indent=2, ensure_ascii=False)

    def table(self) -> Table:
        """A line per target."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        table.add_column("target")
        for heading in ("tables", "rows", "lag p50", "lag p99", "undisturbed p99"):
            table.add_column(heading, justify="right")
        table.add_column("verdict")
        for name, target in self.targets.items():
            latency, wrong = target.latency, target.compared.mismatches
            table.add_row(
                name,
                str(target.compared.tables),
                f"{target.compared.rows:,}",
                _in_words(latency.p50_s),
                _in_words(latency.p99_s),
                _in_words(latency.undisturbed_p99_s),
                f"[bold red]{len(wrong)} mismatches[/bold red]" if wrong else "[green]equal[/green]",
            )
        return table

    def sentences(self) -> list[str]:
        """What else there is to say, complaints last."""
        said = [
            f"{self.transactions:,} transactions were committed at the source. A sum that every transaction keeps was "
            f"read {self.reads:,} times from the targets meanwhile; {self.torn_reads or 'no'} "
            f"read{'' if self.torn_reads == 1 else 's'} saw half a transaction."
        ]
        if self.recovered_s is not None:
            said.append(
                f"The worker was killed with SIGKILL; {self.recovered_s:.1f} s later every target held "
                f"everything again."
            )
        for name, target in self.targets.items():
            said += [f"{name}: {mismatch}" for mismatch in target.compared.mismatches]
        return [*said, *self.problems]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _in_words(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
