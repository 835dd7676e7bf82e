"""Takes the picture that `cdc status` shows, from the databases alone: it works while no worker runs.

The source and the targets are asked side by side. One that does not answer is shown as such, with our sentence for why;
the others are shown all the same. Nothing is written anywhere, and no lock is taken that could hold up anybody.

Seconds of lag come from one clock: the source's present time less the time that the source wrote into the newest
heartbeat that the target holds (hazard 21).
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from cdc.config import Config, TargetConfig, for_asyncpg
from cdc.errors import CdcError, SourceUnavailable, TargetUnavailable
from cdc.lsn import Lsn
from cdc.observe.remedies import LOAD_ALL_AGAIN, left_load
from cdc.observe.resync_status import ResyncStatus
from cdc.observe.status import (
    NOT_SET_UP,
    STREAMING,
    UNREACHABLE,
    GenerationStatus,
    PipelineStatus,
    SlotStatus,
    SourceStatus,
    TableStatus,
    TargetStatus,
    fit,
    size,
)
from cdc.source import connection as source_connection
from cdc.source import heartbeat
from cdc.source.clock import read_clock
from cdc.source.slot import Slot, lane_slot, load_slot, read_slots
from cdc.target import migrations, position, resync_request, session, table_state
from cdc.target.generation import generation_key
from cdc.target.position import TargetState
from cdc.target.remedies import load_target_again
from cdc.target.resync_request import Request
from cdc.target.session import Session
from cdc.target.table_state import TableState

ANSWER_TIMEOUT_S = 20.0
"""How long one database may take for its part of the picture, connecting included: longer than a connection's own
time-out, so that its better message is shown; short enough for somebody who waits at a terminal."""

NEEDS_RESYNC = "needs resync"

WATCH_INTERVAL_S = 2.0
"""How often `watch` looks: a person reads no faster, and it costs each database a handful of small queries."""


async def read(config: Config) -> PipelineStatus:
    """One picture of the pipeline. Never raises for a database that cannot be asked: that is a part of the picture."""
    async with Observer(config) as observer:
        return await observer.look()


async def watch(
    config: Config, *, interval_s: float = WATCH_INTERVAL_S, console: Console | None = None, as_json: bool = False
) -> None:
    """Show one picture after the other until cancelled (Ctrl-C): in place on a terminal, one below the other elsewhere.

    Tables that stream are left out, so that the picture fits a screen; ``cdc status`` lists them all. ``as_json``
    prints each picture, whole, as one object on one line.
    """
    screen = console if console is not None else Console()
    previous: PipelineStatus | None = None
    async with Observer(config) as observer:
        live = None if as_json else Live(console=screen, auto_refresh=False, vertical_overflow="visible")
        with live or nullcontext():
            while True:
                seen = await observer.look()
                picture = seen.render(previous, all_tables=False, width=fit(screen))
                if as_json:
                    screen.file.write(f"{seen.to_line()}\n")
                    screen.file.flush()
                elif live is not None and screen.is_terminal:
                    live.update(picture, refresh=True)
                else:
                    screen.print(picture)
                previous = seen
                await asyncio.sleep(interval_s)


class Observer:
    """Takes one picture after the other over the same connections; one that was lost is opened again.

    Use it as an async context manager; `look` is not to be called twice at the same time.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._source = _SourceView(config)
        self._targets = [_TargetView(name, target, config.pipeline) for name, target in config.targets.items()]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._source.close()
        for target in self._targets:
            await target.close()

    async def look(self) -> PipelineStatus:
        """The pipeline as it is now."""
        async with asyncio.TaskGroup() as group:
            source = group.create_task(self._source.look())
            targets = [group.create_task(target.look()) for target in self._targets]
        seen = source.result()
        return PipelineStatus(
            pipeline=self._config.pipeline,
            at=datetime.now(UTC),
            slot=self._config.source.slot,
            source=seen,
            targets=tuple(_target_status(target.result(), seen, self._config.source.slot) for target in targets),
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a target said: its row and its tables, or why it did not."""

    name: str
    row: TargetState | None = None
    tables: tuple[TableState, ...] = ()
    beside: TargetState | None = None
    beside_tables: tuple[TableState, ...] = ()
    resyncs: tuple[Request, ...] = ()
    is_set_up: bool = True
    error: str | None = None


class _SourceView:
    """A connection to the source that is opened when it is needed."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._connection: source_connection.Connection | None = None

    async def look(self) -> SourceStatus:
        for is_last in (self._connection is None, True):
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    return await self._ask()
            except TimeoutError:
                error: CdcError = SourceUnavailable(f"the source does not answer within {ANSWER_TIMEOUT_S:.0f} seconds")
            except CdcError as refusal:
                error = refusal
            await self.close()
            if is_last:
                break
        return SourceStatus(up=False, error=str(error))

    async def _ask(self) -> SourceStatus:
        config = self._config
        if self._connection is None:
            self._connection = await source_connection.connect(
                config.source.dsn.get_secret_value(), application_name=f"cdc {config.pipeline} status"
            )
        connection = self._connection
        beat = await heartbeat.read(connection, config.pipeline)
        slots = await read_slots(connection, config.source.slot)
        now, wal_position = await read_clock(connection)
        return SourceStatus(
            up=True,
            now=now,
            wal_position=wal_position,
            heartbeat_age_s=None if beat is None else max(0.0, (now - beat.at).total_seconds()),
            slots=tuple(_slot_status(slot) for slot in slots),
        )

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


class _TargetView:
    """A session on one target that is opened when it is needed."""

    def __init__(self, name: str, config: TargetConfig, pipeline: str) -> None:
        self._name = name
        self._dsn = for_asyncpg(config.dsn.get_secret_value())
        self._pipeline = pipeline
        self._session: Session | None = None

    async def look(self) -> _Seen:
        for is_last in (self._session is None, True):
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    return await self._ask()
            except TimeoutError:
                error: CdcError = TargetUnavailable(
                    f"target {self._name} does not answer within {ANSWER_TIMEOUT_S:.0f} seconds"
                )
            except CdcError as refusal:
                error = refusal
            await self.close()
            if is_last:
                break
        return _Seen(self._name, error=str(error))

    async def _ask(self) -> _Seen:
        if self._session is None:
            self._session = await session.connect(
                self._dsn, application_name=f"cdc {self._pipeline} status", target=self._name
            )
        if await migrations.pending(self._session):
            return _Seen(self._name, is_set_up=False)
        row = await position.read(self._session, self._pipeline)
        tables = await table_state.read(self._session, self._pipeline)
        key = generation_key(self._pipeline)
        beside = await position.read(self._session, key)
        beside_tables = [] if beside is None else await table_state.read(self._session, key)
        resyncs = await resync_request.read_open(self._session, self._pipeline)
        return _Seen(
            self._name, row, tuple(tables), beside, tuple(beside_tables), tuple(resyncs), is_set_up=row is not None
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def _slot_status(slot: Slot) -> SlotStatus:
    return SlotStatus(
        name=slot.name,
        active=slot.active,
        wal_status="lost" if slot.is_lost else slot.wal_status,
        retained_bytes=slot.retained_bytes,
        headroom_bytes=slot.safe_wal_size,
        restart_lsn=slot.restart_lsn,
        confirmed_flush_lsn=slot.confirmed_flush_lsn,
        loss=slot.loss,
    )


def _target_status(seen: _Seen, source: SourceStatus, shared: str) -> TargetStatus:
    own = lane_slot(shared, seen.name)
    slot = own if any(one.name == own for one in source.slots) else shared
    left = _left_load(seen.name, source, load_slot(shared, seen.name))
    if seen.error is not None:
        return TargetStatus(seen.name, UNREACHABLE, last_error=seen.error, slot=slot, left_load=left)
    row = seen.row
    if row is None or not seen.is_set_up:
        return TargetStatus(seen.name, NOT_SET_UP, last_error="run cdc setup", slot=slot, left_load=left)
    lag_s = None
    if source.now is not None and row.heartbeat_at is not None:
        lag_s = max(0.0, (source.now - row.heartbeat_at).total_seconds())
    state, trouble = row.state, row.last_error
    remedy = LOAD_ALL_AGAIN if slot == shared else load_target_again(seen.name)
    if state != NEEDS_RESYNC and row.position is not None and (lost := _lost(source, slot, remedy)) is not None:
        # No worker has said so yet: it may be down.
        state, trouble = NEEDS_RESYNC, lost
    return TargetStatus(
        name=seen.name,
        state=state,
        position=row.position,
        lag_s=lag_s,
        lag_bytes=_behind(row.position, source),
        transactions=row.transactions,
        last_error=trouble,
        last_error_at=row.last_error_at,
        tables=tuple(_table_status(table, row.position, source) for table in seen.tables),
        consistent_at=row.consistent_at,
        consistent_time=row.consistent_time,
        awaits_cut_over=row.cut_over_heartbeat is not None,
        beside=_generation_status(seen, source),
        slot=slot,
        resyncs=tuple(_resync_status(request) for request in seen.resyncs),
        left_load=left,
    )


def _left_load(target: str, source: SourceStatus, name: str) -> str | None:
    """What to do about the slot of a load beside that is not in use; `None` where there is none."""
    slot = next((slot for slot in source.slots if slot.name == name and not slot.active), None)
    return None if slot is None else left_load(slot.name, target, size(slot.retained_bytes))


def _resync_status(request: Request) -> ResyncStatus:
    return ResyncStatus(
        table=request.table,
        state=request.state,
        way=request.way,
        rows=request.row_count,
        estimated_rows=request.estimated_rows,
        asked_at=request.asked_at,
        says=request.sentence,
    )


def _generation_status(seen: _Seen, source: SourceStatus) -> GenerationStatus | None:
    """What is being loaded beside the target's tables; `None` when nothing is."""
    row = seen.beside
    if row is None:
        return None
    return GenerationStatus(
        state=row.state,
        position=row.position,
        lag_bytes=_behind(row.position, source),
        tables=len(seen.beside_tables),
        loaded=sum(table.state == STREAMING for table in seen.beside_tables),
        consistent_at=row.consistent_at,
        last_error=row.last_error,
    )


def _lost(source: SourceStatus, name: str, remedy: str) -> str | None:
    """Why nothing can be streamed from the slot any more; `None` where it can, or where that is not known."""
    if not source.up:
        return None
    slot = next((slot for slot in source.slots if slot.name == name), None)
    if slot is None:
        return f"the source has no slot {name} any more: {remedy}"
    if slot.loss is not None:
        return f"the slot {name} is lost, {slot.loss}: {remedy}"
    return None


def _table_status(table: TableState, target_position: Lsn | None, source: SourceStatus) -> TableStatus:
    # A table that is still being copied holds nothing yet, wherever its target stands.
    held = table.position or (None if table.state == "copying" else target_position)
    return TableStatus(
        source_name=table.source_name,
        target_name=table.target_name,
        state=table.state,
        position=held,
        lag_bytes=_behind(held, source),
        inserts=table.inserted,
        updates=table.updated,
        deletes=table.deleted,
        truncates=table.truncated,
        reason=table.reason,
        mend=table.mend,
        sqlstate=table.sqlstate,
        stopped_at=table.stopped_at,
    )


def _behind(held: Lsn | None, source: SourceStatus) -> int | None:
    """WAL of the source that was written after ``held``."""
    if held is None or source.wal_position is None:
        return None
    return max(0, int(source.wal_position) - int(held))
