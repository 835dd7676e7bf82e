"""What a person sees while a bootstrap runs, and what is said at its end.

A bootstrap talks to a `Progress`: bars on a terminal, a log line a minute elsewhere, nothing in tests. Rows and bytes
count only what is committed on the target; a range that has to be read again is counted once. Bytes of a backup that
is downloaded count as they arrive. No row value comes here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

import structlog
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from cdc.lsn import Lsn

LOG_INTERVAL_S = 60.0
"""Between two log lines where there is no terminal: a copy of twelve hours then has 720 of them."""


_STEPS = {
    "wait": "waiting for the transactions that are older than the slot",
    "backup": "waiting for the backup",
    "download": "downloading the backup",
    "restore": "restoring tables from the backup",
    "copy": "copying tables from the live source",
    "catch-up": "streaming what was written meanwhile",
    "index": "building indexes and what else the tables have",
    "swap": "putting the new tables in the place of the old ones",
    "enrichment": "running the enrichment",
}
"""What a person reads when a step begins."""


class Progress(Protocol):
    """What a bootstrap reports, as it happens. ``table`` is ``schema.table`` at the target."""

    def begin(self, target: str, table: str, ranges: int) -> None:
        """The copy of a table begins (again, when it was begun before), in so many ranges."""

    def copied(self, target: str, table: str, rows: int, size: int) -> None:
        """One range is committed on the target: its rows and bytes."""

    def finish(self, target: str, table: str) -> None:
        """The table is complete, with its primary key."""

    def download(self, done: int, total: int | None) -> None:
        """So many bytes of a backup have arrived, of so many where that is known."""

    def rows(self, target: str, table: str, done: int, of: int | None) -> None:
        """A table that is read again by a worker: so many of its rows are in, of so many where that is known."""

    def step(self, kind: str, name: str | None, targets: Sequence[str]) -> None:
        """A step begins, of all or of one thing in it (`name`); its kind is as in ``cdc.bootstrap_step``."""

    def say(self, message: str) -> None:
        """Something that an operator should read, one sentence."""


class Silence:
    """A `Progress` that says nothing."""

    def begin(self, target: str, table: str, ranges: int) -> None:
        """Nothing."""

    def copied(self, target: str, table: str, rows: int, size: int) -> None:
        """Nothing."""

    def finish(self, target: str, table: str) -> None:
        """Nothing."""

    def download(self, done: int, total: int | None) -> None:
        """Nothing."""

    def rows(self, target: str, table: str, done: int, of: int | None) -> None:
        """Nothing."""

    def step(self, kind: str, name: str | None, targets: Sequence[str]) -> None:
        """Nothing."""

    def say(self, message: str) -> None:
        """Nothing."""


@dataclass(slots=True)
class _Count:
    """What has been copied into one target."""

    tables_begun: set[str] = field(default_factory=set)
    tables_done: int = 0
    rows: int = 0
    size: int = 0


class LogLines:
    """A `Progress` for where there is no terminal: what happens rarely at once, the counts once a minute."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("cdc.bootstrap")
        self._counts: dict[str, _Count] = {}
        self._said_at = time.monotonic()

    def begin(self, target: str, table: str, ranges: int) -> None:
        """Count the table."""
        self._counts.setdefault(target, _Count()).tables_begun.add(table)

    def copied(self, target: str, table: str, rows: int, size: int) -> None:
        """Count the range; once a minute, log the counts of every target."""
        count = self._counts.setdefault(target, _Count())
        count.rows += rows
        count.size += size
        if time.monotonic() - self._said_at >= LOG_INTERVAL_S:
            self._said_at = time.monotonic()
            for name, total in self._counts.items():
                self._log.info(
                    "bootstrap copies",
                    target=name,
                    tables_done=total.tables_done,
                    tables_begun=len(total.tables_begun),
                    rows=total.rows,
                    bytes=total.size,
                )

    def finish(self, target: str, table: str) -> None:
        """Count the table as done."""
        self._counts.setdefault(target, _Count()).tables_done += 1

    def download(self, done: int, total: int | None) -> None:
        """Once a minute, and when it is complete, log how far it is."""
        if done == total or time.monotonic() - self._said_at >= LOG_INTERVAL_S:
            self._said_at = time.monotonic()
            self._log.info("backup arrives", bytes=done, of_bytes=total)

    def rows(self, target: str, table: str, done: int, of: int | None) -> None:
        """Once a minute, and when all are in, log how many that are."""
        if done == of or time.monotonic() - self._said_at >= LOG_INTERVAL_S:
            self._said_at = time.monotonic()
            self._log.info("table is read again", target=target, table=table, rows=done, of_rows=of)

    def step(self, kind: str, name: str | None, targets: Sequence[str]) -> None:
        """Log what concerns everything; the rest, for who asks for debug lines."""
        log = self._log.info if name is None else self._log.debug
        log("bootstrap step", step=kind, targets=list(targets), **({} if name is None else {"object": name}))

    def say(self, message: str) -> None:
        """Log the sentence."""
        self._log.info(message)


class ProgressBars:
    """A `Progress` for a terminal: a bar for each target, and one for each table that takes long. A context manager.

    A table takes long when it has more than one range; a hundred bars of tables that are done at once would hide them.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._bars = Bars(
            TextColumn("{task.fields[target]:<12}"),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amount]:>30}"),
            TimeElapsedColumn(),
            console=console or Console(stderr=True),
        )
        self._targets: dict[str, TaskID] = {}
        self._tables: dict[tuple[str, str], TaskID] = {}
        self._ranges: dict[tuple[str, str], int] = {}
        self._counts: dict[TaskID, _Count] = {}
        self._download: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, target: str, table: str, ranges: int) -> None:
        """Show the target's bar, one table longer; a table that begins anew starts from nothing."""
        if target not in self._targets:
            self._targets[target] = self._bar(target, "tables", 0)
        count = self._counts[self._targets[target]]
        count.tables_begun.add(table)
        self._bars.update(self._targets[target], total=len(count.tables_begun))
        self._remove(target, table)
        self._ranges[target, table] = ranges

    def copied(self, target: str, table: str, rows: int, size: int) -> None:
        """Move the table's bar by one range."""
        if self._ranges[target, table] > 1 and (target, table) not in self._tables:
            self._tables[target, table] = self._bar(target, table, self._ranges[target, table])
        for bar, steps in ((self._tables.get((target, table)), 1), (self._targets[target], 0)):
            if bar is not None:
                count = self._counts[bar]
                count.rows += rows
                count.size += size
                self._bars.update(bar, advance=steps, amount=f"{count.rows:,} rows {human_bytes(count.size):>10}")

    def finish(self, target: str, table: str) -> None:
        """Take the table's bar away, and move the target's."""
        self._remove(target, table)
        self._bars.update(self._targets[target], advance=1)

    def download(self, done: int, total: int | None) -> None:
        """Move the download's bar; it only says how much where the whole is not known."""
        if self._download is None:
            self._download = self._bars.add_task("download", total=total, target="backup", amount="")
        amount = human_bytes(done) + (f" of {human_bytes(total)}" if total is not None else "")
        self._bars.update(self._download, completed=done, total=total, amount=amount)

    def rows(self, target: str, table: str, done: int, of: int | None) -> None:
        """Move the table's bar; it only says how many where the whole is not known."""
        if (target, table) not in self._tables:
            self._tables[target, table] = self._bars.add_task(table, total=of, target=target, amount="")
        amount = f"{done:,} rows" + (f" of about {of:,}" if of is not None else "")
        self._bars.update(self._tables[target, table], completed=done, total=of, amount=amount)

    def step(self, kind: str, name: str | None, targets: Sequence[str]) -> None:
        """Print what concerns everything above the bars."""
        if name is None and kind in _STEPS:
            self.say(f"{', '.join(targets)}: {_STEPS[kind]}")

    def say(self, message: str) -> None:
        """Print the sentence above the bars."""
        self._bars.console.print(message, markup=False, highlight=False)

    def _bar(self, target: str, description: str, total: int) -> TaskID:
        bar = self._bars.add_task(description, total=total, target=target, amount="")
        self._counts[bar] = _Count()
        return bar

    def _remove(self, target: str, table: str) -> None:
        bar = self._tables.pop((target, table), None)
        if bar is not None:
            self._bars.remove_task(bar)


@dataclass(frozen=True, slots=True)
class TargetSummary:
    """What a bootstrap did for one target, which equals its part of the source past ``consistent_lsn``.

    ``consistent_time`` is when the source was as it is there, in UTC by its own clock, where that is known. ``tables``,
    ``rows`` and ``size`` (bytes) count what this run copied; of the ``of_tables`` that are
    complete a run that resumed did not copy the rest again. ``kept`` are tables whose rows from before stayed, which
    nobody has compared.
    """

    target: str
    tables: int
    rows: int
    size: int
    seconds: float
    consistent_lsn: Lsn
    consistent_time: datetime | None = None
    of_tables: int = 0
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        when = "" if self.consistent_time is None else f" ({self.consistent_time:%Y-%m-%d %H:%M:%S} UTC)"
        tables = _count(self.tables, "table")
        if self.tables < self.of_tables:
            tables = f"{self.tables} of {_count(self.of_tables, 'table')} (the others were there)"
        kept = ""
        if self.kept:
            names = ", ".join(self.kept)
            command = f"cdc resync {self.kept[0]} --target {self.target}"
            kept = f" Except rows that {names} had before: `{command}` compares them."
        return (
            f"{self.target}: {tables}, {_count(self.rows, 'row')}, {human_bytes(self.size)} "
            f"copied in {self.seconds:.1f} s; consistent from {self.consistent_lsn}{when} on.{kept}"
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """What a bootstrap did: a sentence per target, and what the operator should look at, SQL included."""

    targets: Mapping[str, TargetSummary]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        # The last line says from where on each target is consistent.
        return "\n".join([*(f"warning: {warning}" for warning in self.warnings), *map(str, self.targets.values())])


def human_bytes(size: float) -> str:
    """A size as people read it: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
