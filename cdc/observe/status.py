"""What `cdc status` shows: a picture of one pipeline at one moment, as data, as JSON and as tables.

`cdc.service.state` takes the picture from the databases alone. A database that cannot be reached is a part of the
picture, not an error. Nothing here holds a row value; the errors are our own sentences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any, Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cdc.lsn import Lsn
from cdc.observe.resync_status import ResyncStatus

UNREACHABLE = "unreachable"
NOT_SET_UP = "not set up"
STREAMING = "streaming"

FULL_WIDTH = 100
"""Columns that show everything, with names of the usual length and numbers of ten digits."""

_BESIDE = "+ loaded beside"
_MIB = 1024**2
# A table's name of this length leaves room for the numbers on a terminal of 80 columns.
_LONG_NAME = 32
# When a slot has less than this left, there may be no time to look for the cause first.
_LITTLE_HEADROOM_BYTES = 1024 * _MIB
# A healthy target is this many seconds behind at most, with the heartbeat interval that is the default.
_NOTICEABLE_LAG_S = 10.0
_COLOURS = {
    STREAMING: "green",
    "new": "cyan",
    "loading": "cyan",
    "copying": "cyan",
    "overlap": "cyan",
    "retrying": "yellow",
    "reserved": "green",
    "extended": "yellow",
}


@dataclass(frozen=True, slots=True)
class TableStatus:
    """One source table on one target.

    ``position`` is the LSN up to which the table holds everything: its own, or the target's. ``reason`` and ``mend``
    (SQL) are given when it is stopped.
    """

    source_name: str
    target_name: str
    state: str
    position: Lsn | None
    lag_bytes: int | None
    inserts: int
    updates: int
    deletes: int
    truncates: int
    reason: str | None = None
    mend: str | None = None
    sqlstate: str | None = None
    stopped_at: datetime | None = None

    @property
    def rows_applied(self) -> int:
        """Row changes that have been applied."""
        return self.inserts + self.updates + self.deletes


@dataclass(frozen=True, slots=True)
class GenerationStatus:
    """Tables that are being loaded beside those of a target, to take their place when they are complete.

    ``tables`` is how many there are, ``loaded`` how many of them stream.
    """

    state: str
    position: Lsn | None
    lag_bytes: int | None
    tables: int
    loaded: int
    consistent_at: Lsn | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """One target.

    ``state`` is the one that the target stores, `UNREACHABLE` or `NOT_SET_UP`. ``lag_s`` is the age, by the source's
    clock alone, of the newest heartbeat that the target holds; ``lag_bytes`` the WAL written after its position. Each
    is `None` where it cannot be known. ``last_error`` is the last one that the worker stored, or why the target cannot
    be reached now. The target is exactly consistent past ``consistent_at``, which is how the source was at
    ``consistent_time`` (by its clock; only where a backup was restored); ``awaits_cut_over`` says that this is yet to
    come. ``beside`` is the generation that is being loaded to take its place. ``slot`` is the one that serves it.
    ``resyncs`` are the tables that are read again and not done yet. ``left_load`` says what to do where the slot of a
    load beside is not in use.
    """

    name: str
    state: str
    position: Lsn | None = None
    lag_s: float | None = None
    lag_bytes: int | None = None
    transactions: int | None = None
    last_error: str | None = None
    last_error_at: datetime | None = None
    tables: tuple[TableStatus, ...] = ()
    consistent_at: Lsn | None = None
    consistent_time: datetime | None = None
    awaits_cut_over: bool = False
    beside: GenerationStatus | None = None
    slot: str | None = None
    resyncs: tuple[ResyncStatus, ...] = ()
    left_load: str | None = None

    @property
    def rows_applied(self) -> int:
        """Row changes that have been applied, over all tables."""
        return sum(table.rows_applied for table in self.tables)

    @property
    def stopped_tables(self) -> tuple[TableStatus, ...]:
        """The tables that cannot go on."""
        return tuple(table for table in self.tables if table.state == "stopped")


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """One slot: ``headroom_bytes`` is the WAL that can still be written before it is lost, `None` without a limit.

    ``loss`` says why nobody can stream from it any more, `None` while somebody can.
    """

    name: str
    active: bool
    wal_status: str | None
    retained_bytes: int | None
    headroom_bytes: int | None
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    loss: str | None = None


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """The source; ``error`` says why it cannot be asked. Times are its own clock's. ``slots``: ours that exist."""

    up: bool
    error: str | None = None
    now: datetime | None = None
    wal_position: Lsn | None = None
    heartbeat_age_s: float | None = None
    slots: tuple[SlotStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """A pipeline at the moment ``at`` (this machine's clock). ``slot`` is the name of the shared slot."""

    pipeline: str
    at: datetime
    slot: str
    source: SourceStatus
    targets: tuple[TargetStatus, ...]

    @property
    def healthy(self) -> bool:
        """Whether the source answers, something reads the slot, and every table of every target streams."""
        return (
            self._shared_slot is not None
            and self._is_read
            and all(target.state == STREAMING and not target.stopped_tables for target in self.targets)
        )

    @property
    def _shared_slot(self) -> SlotStatus | None:
        return next((slot for slot in self.source.slots if slot.name == self.slot), None)

    @property
    def _is_read(self) -> bool:
        """Whether somebody streams from the shared slot, or from one that serves a target alone."""
        serving = {self.slot, *(target.slot for target in self.targets)}
        return any(slot.active for slot in self.source.slots if slot.name in serving)

    def to_dict(self) -> dict[str, Any]:
        """The picture as plain data: LSNs in PostgreSQL's notation, times in ISO 8601."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return {"pipeline": plain.pop("pipeline"), "healthy": self.healthy, **plain}

    def to_json(self) -> str:
        """The picture as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_line(self) -> str:
        """The picture as JSON on one line."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def show(self, console: Console) -> None:
        """Print it, in full where there is no terminal whose width could be too small."""
        console.print(self.render(width=fit(console)))

    def render(
        self, previous: PipelineStatus | None = None, *, all_tables: bool = True, width: int = FULL_WIDTH
    ) -> RenderableType:
        """Tables for a terminal of ``width`` columns; with a ``previous`` picture, rows per second as well.

        Without ``all_tables`` only those tables are listed that are not streaming. Below `FULL_WIDTH` each table lacks
        its least important columns, so that names and numbers keep their width.
        """
        is_narrow = width < FULL_WIDTH
        parts: list[RenderableType] = [self._headline(), self._target_table(previous, is_narrow=is_narrow)]
        parts += [_slot_table(self.source.slots, self.slot, is_narrow=is_narrow)] if self.source.slots else []
        for target in self.targets:
            listed = [table for table in target.tables if all_tables or table.state != STREAMING]
            if listed:
                parts.append(_table_table(target.name, listed, is_narrow=is_narrow))
        parts += self._complaints()
        return Group(*parts)

    def _headline(self) -> Text:
        line = Text.assemble(("pipeline ", "dim"), (self.pipeline, "bold"), "   source ")
        if not self.source.up:
            return line.append("unreachable", style="bold red")
        line.append("up", style="green")
        if self._shared_slot is not None and not self._is_read:
            line.append("   no worker is running (the slot is not in use)", style="bold red")
        line.append(f"   WAL {self.source.wal_position}")
        if self.source.heartbeat_age_s is None:
            return line.append("   no heartbeat yet", style="yellow")
        style = "yellow" if self.source.heartbeat_age_s > _NOTICEABLE_LAG_S else ""
        return line.append(f"   last heartbeat {duration(self.source.heartbeat_age_s)} ago", style=style)

    def _target_table(self, previous: PipelineStatus | None, *, is_narrow: bool) -> Table:
        rate = ("rows/s >",) if previous else ()
        behind = () if is_narrow and previous else ("behind >",)
        transactions = () if is_narrow else ("transactions >",)
        headers = ("state", "position", "lag >", *behind, "rows >", *rate, *transactions, "tables >")
        names = [target.name for target in self.targets] + [_BESIDE for target in self.targets if target.beside]
        table = _table("target", *headers, names=names)
        before = {target.name: target for target in previous.targets} if previous else {}
        elapsed = (self.at - previous.at).total_seconds() if previous else 0.0
        for target in self.targets:
            known = bool(target.tables)
            late = target.lag_s is not None and target.lag_s > _NOTICEABLE_LAG_S
            applied = f"{target.transactions:,}" if target.transactions is not None else "-"
            table.add_row(
                target.name,
                _coloured(target.state),
                _or_dash(target.position),
                Text(duration(target.lag_s), style="yellow" if late else ""),
                *([size(target.lag_bytes)] if behind else []),
                f"{target.rows_applied:,}" if known else "-",
                *([_rate(target, before.get(target.name), elapsed)] if previous else []),
                *([applied] if transactions else []),
                _count(target) if known else "-",
            )
            if target.beside is not None:
                table.add_row(
                    Text(_BESIDE, style="dim"),
                    _coloured(target.beside.state),
                    _or_dash(target.beside.position),
                    "-",
                    *([size(target.beside.lag_bytes)] if behind else []),
                    "-",
                    *(["-"] if previous else []),
                    *(["-"] if transactions else []),
                    f"{target.beside.loaded}/{target.beside.tables}",
                )
        return table

    def _complaints(self) -> list[Text]:
        said: list[Text] = []
        if self.source.error:
            said.append(Text.assemble(("source  ", "bold red"), self.source.error))
        elif self._shared_slot is None:
            loaded = any(target.position is not None for target in self.targets)
            meaning = "the targets can only be loaded again" if loaded else "cdc bootstrap --from live creates it"
            said.append(Text.assemble(("source  ", "bold red"), f"has no slot {self.slot}: {meaning}"))
        for target in self.targets:
            if target.last_error:
                at = f" ({target.last_error_at:%Y-%m-%d %H:%M:%S} UTC)" if target.last_error_at else ""
                label = "last error" if target.state not in (UNREACHABLE, NOT_SET_UP) else target.state
                said.append(
                    Text.assemble((f"{target.name}  ", "bold"), (label, "yellow"), f"{at}: {target.last_error}")
                )
            if target.awaits_cut_over:
                said.append(
                    Text.assemble((f"{target.name}  ", "bold"), "is not exactly consistent yet: a backup is joined")
                )
            if target.beside is not None and target.beside.last_error:
                said.append(
                    Text.assemble((f"{target.name}  ", "bold"), (_BESIDE, "yellow"), f": {target.beside.last_error}")
                )
            if target.left_load:
                said.append(Text.assemble((f"{target.name}  ", "bold"), (_BESIDE, "yellow"), f": {target.left_load}"))
            said += [resync.render(target.name) for resync in target.resyncs]
            for stopped in target.stopped_tables:
                said.append(
                    Text.assemble(
                        (f"{target.name}  ", "bold"), (f"{stopped.source_name} stopped: ", "red"), stopped.reason or ""
                    )
                )
                if stopped.mend:
                    said.append(Text(f"    {stopped.mend}", style="cyan"))
        return said


def size(count: int | None) -> str:
    """Bytes as PostgreSQL's ``pg_size_pretty`` writes them; ``-`` for what is not known."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or abs(amount) >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"


def duration(seconds: float | None) -> str:
    """Seconds for people: ``0.42 s``, ``3 min 05 s``, ``2 h 10 min``; ``-`` for what is not known."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{max(0.0, seconds):.2f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        plain = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        if isinstance(value, TargetStatus | TableStatus):
            plain["rows_applied"] = value.rows_applied
        return plain
    if isinstance(value, Lsn):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value


def fit(console: Console) -> int:
    """The width to show a picture in. What is no terminal has no width of its own, so it gets `FULL_WIDTH` at least."""
    if not console.is_terminal:
        console.width = max(console.width, FULL_WIDTH)
    return console.width


def _table(first: str, *headers: str, names: Sequence[str], is_folded: bool = False) -> Table:
    """A table whose first column holds ``names``; a header that ends in ``>`` is a column of numbers.

    Names keep their width, unless ``is_folded``: then they make room for the other columns.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    width = None if is_folded else max(map(len, names), default=0)
    table.add_column(first, no_wrap=not is_folded, min_width=width, overflow="fold")
    for header in headers:
        justify: Literal["left", "right"] = "right" if header.endswith(">") else "left"
        table.add_column(header.rstrip(" >"), justify=justify, no_wrap=True, overflow="fold")
    return table


def _slot_table(slots: tuple[SlotStatus, ...], shared: str, *, is_narrow: bool) -> Table:
    names = [slot.name + (" (shared)" if slot.name == shared and len(slots) > 1 else "") for slot in slots]
    least = () if is_narrow else ("restart >",)
    table = _table("slot", "active", "WAL status", "retained >", "headroom >", "confirmed >", *least, names=names)
    for name, slot in zip(names, slots, strict=True):
        scarce = slot.headroom_bytes is not None and slot.headroom_bytes < _LITTLE_HEADROOM_BYTES
        headroom = (
            "no limit" if slot.headroom_bytes is None and slot.wal_status != "lost" else size(slot.headroom_bytes)
        )
        table.add_row(
            escape(name),
            Text("yes", style="green") if slot.active else Text("no", style="bold red"),
            _coloured(slot.wal_status or "-"),
            size(slot.retained_bytes),
            Text(headroom, style="bold red" if scarce else ""),
            _or_dash(slot.confirmed_flush_lsn),
            *([] if is_narrow else [_or_dash(slot.restart_lsn)]),
        )
    return table


def _table_table(target: str, tables: list[TableStatus], *, is_narrow: bool) -> Table:
    names = [
        one.source_name + (f" → {one.target_name}" if one.target_name != one.source_name else "") for one in tables
    ]
    least = () if is_narrow else ("position",)
    headers = ("state", *least, "behind >", "inserted >", "updated >", "deleted >")
    table = _table(f"{target}: table", *headers, names=names, is_folded=max(map(len, names)) > _LONG_NAME)
    for name, one in zip(names, tables, strict=True):
        table.add_row(
            escape(name),
            _coloured(one.state),
            *([] if is_narrow else [_or_dash(one.position)]),
            size(one.lag_bytes),
            f"{one.inserts:,}",
            f"{one.updates:,}",
            f"{one.deletes:,}",
        )
    return table


def _coloured(state: str) -> Text:
    return Text(state, style=_COLOURS.get(state, "bold red"))


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _rate(target: TargetStatus, old: TargetStatus | None, elapsed_s: float) -> str:
    if old is None or elapsed_s <= 0 or not target.tables or not old.tables:
        return "-"
    return f"{max(0, target.rows_applied - old.rows_applied) / elapsed_s:,.0f}"


def _count(target: TargetStatus) -> Text:
    streaming = sum(table.state == STREAMING for table in target.tables)
    if streaming == len(target.tables):
        return Text(str(streaming))
    return Text(f"{streaming}/{len(target.tables)}", style="red" if target.stopped_tables else "cyan")
