"""How long loads took: what `cdc report` shows, as plain data, JSON and tables.

A `RunReport` is one run of a bootstrap or a resync, with its steps as the target recorded them
(``cdc.bootstrap_step``). A `Phase` sums them up for an operator (how long did the backup, the restore, the enrichment
take), an `ObjectKind` for whoever tunes the load (how long did indexes take, and which were the slowest). Steps run in
parallel: *elapsed* is from the first beginning to the last end, *summed* adds what each took. A step that was
interrupted has no duration and is counted apart; nothing is shown of it but that it was there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdc.observe.status import duration, fit, size

SLOWEST = 3
"""How many objects of a kind are named: as many as the old tool did."""

PHASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("wait", ("wait",)),
    ("backup", ("backup",)),
    ("download", ("download",)),
    ("restore", ("restore", "table", "primary key")),
    ("copy", ("copy",)),
    ("catch-up", ("catch-up",)),
    ("indexes", ("unique index", "index")),
    ("constraints", ("check", "foreign key")),
    ("comments, views, sequences", ("comment", "view", "sequence")),
    ("swap", ("swap",)),
    ("enrichment", ("enrichment",)),
)
"""What an operator asks for, and the kinds of step that belong to each; any other kind is a phase by itself."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step, by the target's clock. ``finished_at`` is `None` when it was interrupted, or runs."""

    kind: str
    object: str | None
    started_at: datetime
    finished_at: datetime | None
    rows: int | None = None
    size_bytes: int | None = None

    @property
    def seconds(self) -> float | None:
        """How long it took, where it came to its end."""
        return None if self.finished_at is None else (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True, slots=True)
class Summary:
    """Several steps: ``elapsed_s`` from the first beginning to the last end, ``summed_s`` over all that are done.

    ``rows`` and ``size_bytes`` are `None` where no step moves any. The rates are per second of ``elapsed_s``.
    """

    name: str
    count: int
    unfinished: int
    elapsed_s: float | None
    summed_s: float
    rows: int | None
    size_bytes: int | None

    @property
    def rows_per_s(self) -> float | None:
        """Rows a second."""
        return _rate(self.rows, self.elapsed_s)

    @property
    def bytes_per_s(self) -> float | None:
        """Bytes a second."""
        return _rate(self.size_bytes, self.elapsed_s)


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run into one target. Times are by the target's clock; ``outcome`` `None`: it has no end."""

    run: int
    origin: str
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    steps: tuple[StepReport, ...]

    @property
    def seconds(self) -> float | None:
        """From its beginning to its end; for a run without an end to the last thing that it recorded."""
        ends = [end for step in self.steps for end in (step.started_at, step.finished_at) if end is not None]
        last = self.finished_at or max(ends, default=None)
        return None if last is None else (last - self.started_at).total_seconds()

    @property
    def phases(self) -> tuple[Summary, ...]:
        """What took how long, in the order of a load; only what there was."""
        known = {kind for _, kinds in PHASES for kind in kinds}
        others = tuple((kind, (kind,)) for kind in sorted({step.kind for step in self.steps} - known))
        found = ((name, [step for step in self.steps if step.kind in kinds]) for name, kinds in PHASES + others)
        return tuple(_summary(name, steps) for name, steps in found if steps)

    @property
    def kinds(self) -> tuple[tuple[Summary, tuple[StepReport, ...]], ...]:
        """Per kind of object its sum and its slowest, the kind that took longest first."""
        found = []
        for kind in dict.fromkeys(step.kind for step in self.steps if step.object is not None):
            steps = [step for step in self.steps if step.kind == kind and step.object is not None]
            done = [step for step in steps if step.seconds is not None]
            slowest = sorted(done, key=lambda step: (-(step.seconds or 0.0), step.object or ""))[:SLOWEST]
            found.append((_summary(kind, steps), tuple(slowest)))
        return tuple(sorted(found, key=lambda pair: -pair[0].summed_s))


@dataclass(frozen=True, slots=True)
class TargetReport:
    """The newest runs of one target, the last one first. ``error``: why it could not be asked."""

    name: str
    runs: tuple[RunReport, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The runs of every target that was asked for."""

    pipeline: str
    targets: tuple[TargetReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: seconds as numbers, times in ISO 8601; every step is in it."""
        return {
            "pipeline": self.pipeline,
            "targets": [
                {"name": target.name, "error": target.error, "runs": [_run(run) for run in target.runs]}
                for target in self.targets
            ],
        }

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def show(self, console: Console) -> None:
        """Print it, in full where there is no terminal whose width could be too small."""
        fit(console)
        console.print(self.render())

    def render(self) -> RenderableType:
        """Tables, one group for each run."""
        parts: list[RenderableType] = []
        for target in self.targets:
            if target.error is not None:
                parts.append(Text.assemble((f"{target.name}  ", "bold"), (target.error, "red")))
            elif not target.runs:
                parts.append(Text.assemble((f"{target.name}  ", "bold"), "no bootstrap or resync is recorded here"))
            for run in target.runs:
                parts += _render_run(target.name, run)
        return Group(*parts)


def _summary(name: str, steps: Sequence[StepReport]) -> Summary:
    """Sum steps up. One that spans others, which name their objects, counts only for the time from first to last."""
    counted = [step for step in steps if step.object is not None] or steps
    ends = [step.finished_at for step in steps if step.finished_at is not None]
    first = min(step.started_at for step in steps)
    elapsed: timedelta | None = max(ends) - first if ends else None
    return Summary(
        name=name,
        count=len(counted),
        unfinished=sum(step.finished_at is None for step in counted),
        elapsed_s=None if elapsed is None else elapsed.total_seconds(),
        summed_s=sum(step.seconds or 0.0 for step in counted),
        rows=_sum(counted, lambda step: step.rows),
        size_bytes=_sum(counted, lambda step: step.size_bytes),
    )


def _sum(steps: Sequence[StepReport], value: Callable[[StepReport], int | None]) -> int | None:
    known = [amount for step in steps if (amount := value(step)) is not None]
    return sum(known) if known else None


def _rate(amount: int | None, seconds: float | None) -> float | None:
    return amount / seconds if amount is not None and seconds else None


def _run(run: RunReport) -> dict[str, Any]:
    return {
        "run": run.run,
        "origin": run.origin,
        "started_at": run.started_at.isoformat(),
        "finished_at": None if run.finished_at is None else run.finished_at.isoformat(),
        "outcome": run.outcome,
        "seconds": run.seconds,
        "phases": [_plain(phase) for phase in run.phases],
        "kinds": [{**_plain(kind), "slowest": [_step(step) for step in slowest]} for kind, slowest in run.kinds],
        "steps": [
            {
                **_step(step),
                "kind": step.kind,
                "started_at": step.started_at.isoformat(),
                "finished_at": None if step.finished_at is None else step.finished_at.isoformat(),
            }
            for step in run.steps
        ],
    }


def _plain(summary: Summary) -> dict[str, Any]:
    return {
        "name": summary.name,
        "count": summary.count,
        "unfinished": summary.unfinished,
        "elapsed_s": summary.elapsed_s,
        "summed_s": summary.summed_s,
        "rows": summary.rows,
        "size_bytes": summary.size_bytes,
        "rows_per_s": summary.rows_per_s,
        "bytes_per_s": summary.bytes_per_s,
    }


def _step(step: StepReport) -> dict[str, Any]:
    return {"object": step.object, "seconds": step.seconds, "rows": step.rows, "size_bytes": step.size_bytes}


def _render_run(target: str, run: RunReport) -> list[RenderableType]:
    title = Text.assemble(
        (target, "bold"),
        f"   run {run.run} from {run.origin}, {run.started_at:%Y-%m-%d %H:%M:%S} UTC, {duration(run.seconds)}   ",
    )
    if run.finished_at is None:
        title.append("unfinished: it runs, or was killed", style="bold red")
    else:
        title.append(run.outcome or "", style="green" if run.outcome == "done" else "bold red")
    parts: list[RenderableType] = [title]
    if run.phases:
        parts.append(_phase_table(run.phases))
    if run.kinds:
        parts.append(_kind_table(run.kinds))
    return parts


def _phase_table(phases: Sequence[Summary]) -> Table:
    table = _table("phase", "elapsed", "summed", "steps", "rows", "rows/s", "bytes", "bytes/s")
    for phase in phases:
        rate, flow = phase.rows_per_s, phase.bytes_per_s
        table.add_row(
            phase.name,
            duration(phase.elapsed_s),
            duration(phase.summed_s),
            _count(phase),
            "-" if phase.rows is None else f"{phase.rows:,}",
            "-" if rate is None else f"{rate:,.0f}",
            size(phase.size_bytes),
            "-" if flow is None else f"{size(int(flow))}/s",
        )
    return table


def _kind_table(kinds: Sequence[tuple[Summary, tuple[StepReport, ...]]]) -> Table:
    table = _table("objects", "summed", "count", "took")
    table.add_column("the slowest", overflow="fold")
    for kind, slowest in kinds:
        first: list[RenderableType] = [kind.name, duration(kind.summed_s), _count(kind)]
        for step in slowest:
            table.add_row(*first, duration(step.seconds), Text(step.object or ""))
            first = ["", "", ""]
        if not slowest:
            table.add_row(*first, "-", "")
    return table


def _table(first: str, *numbers: str) -> Table:
    """A table whose first column holds names, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True)
    for header in numbers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _count(summary: Summary) -> Text:
    if not summary.unfinished:
        return Text(f"{summary.count:,}")
    return Text(f"{summary.count - summary.unfinished:,}/{summary.count:,}", style="yellow")
