"""One target of a lane: takes transactions from its queue and makes them durable in the target, exactly once.

The life of a `Delivery` inside one stream of its lane::

    connect ─▶ take the target (fence) ─▶ compare histories ─▶ ┌▶ wait for transactions ─▶ apply, advance, commit ─┐
       ▲                                                       └───────────────────────────────────────────────────┘
       └── a transient error: the same batch again, after the position was read anew (a COMMIT may be in doubt)

What it promises: a batch leaves its memory only when the commit that holds it is durable; `acknowledgeable` never
passes what this target, or one of its stopped tables, still needs. A target that fails keeps nobody waiting for ever:
the lane goes on without it (`set_aside`), and is asked to start its stream anew when the target is back.

A bootstrap that streams has a `Delivery` of its own with ``loads=True``, for the generation that it loads; the target
stays marked as being loaded until the bootstrap says otherwise. All others leave a target alone that is being loaded:
they wait until it is not, and hold the acknowledgement meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TypeVar

import structlog

from cdc.changes.transaction import Part, divided
from cdc.config import Config
from cdc.errors import (
    BatchRejected,
    CdcError,
    FenceLost,
    ProtocolError,
    ResyncNeeded,
    TableStopped,
    TargetLoading,
    TerminalError,
    TransientError,
)
from cdc.lsn import Lsn
from cdc.observe.metrics import TargetMetrics
from cdc.routing.target_routes import TargetRoutes
from cdc.service import access
from cdc.service.health import Health
from cdc.service.heartbeats import Heartbeats
from cdc.service.interest import Interest
from cdc.service.owned_target import OwnedTarget
from cdc.service.positions import TransactionsNeeded
from cdc.service.queue import PartQueue
from cdc.service.requests import Requests
from cdc.service.resyncing import Resyncing
from cdc.service.retry import Backoff, until_done
from cdc.service.stops import Stop, Stops
from cdc.service.taking import take
from cdc.target.history import SourceHistory

_log = structlog.get_logger(__name__)

IDLE_ADVANCE_S = 3.0
"""How often at most a position is stored that moves only because the source wrote WAL that does not concern us. Until
then the slot keeps that WAL; oftener would cost every idle target a commit for nothing (invariant 3)."""


T = TypeVar("T")


class _PartsLost(TransientError):
    """Parts of a large transaction are gone from memory: only the slot still has them."""


class Delivery:
    """Everything between the lane and one target. `run` is one stream's worth of it; the object outlives streams."""

    def __init__(
        self,
        name: str,
        config: Config,
        *,
        key: str | None = None,
        routes: TargetRoutes | None = None,
        loads: bool = False,
        metrics: TargetMetrics,
        heartbeats: Heartbeats,
    ) -> None:
        """``name`` is the target's in the configuration.

        ``key`` is the row of ``cdc.target`` that says where the generation stands, ``routes`` where its tables are:
        left out, those of the tables that the target's readers see. ``loads`` is said by the bootstrap that loads it.
        """
        self.name = name
        self.metrics = metrics
        self.health = Health(name, metrics)
        self.is_aside = False
        self.consistent_at: Lsn | None = None
        self.consistent_time: datetime | None = None
        self._config = config
        self._key = key if key is not None else config.pipeline
        self._generation = routes if routes is not None else TargetRoutes(config.targets[name])
        self._loads = loads
        self._heartbeats = heartbeats
        self._stops = Stops()
        self._backoff = Backoff()
        self._closing = asyncio.Event()
        self._batch: list[Part] = []
        self._has_lost_parts = False
        self._position: Lsn | None = None
        self._acknowledgeable: Lsn | None = None
        self.interest = Interest(self._generation)
        self._restart_pause_s: Callable[[], float] = lambda: 0.0
        self._on_durable: Callable[[], None] = lambda: None
        self._requests = Requests()
        self.resyncing = Resyncing(self, config, self._key, is_idle=loads)
        self._new_queue()

    # --- the lane's side

    @property
    def position(self) -> Lsn | None:
        """Up to where the target holds everything; `None` before it was read."""
        return self._position

    @property
    def acknowledgeable(self) -> Lsn | None:
        """Up to where this target needs nothing from the slot any more; `None` while that is not known.

        What is not known holds the acknowledgement: a target that cannot be read may need anything.
        """
        return self._acknowledgeable

    @property
    def holds_acknowledgement(self) -> bool:
        """Whether the slot has to wait for this target. One that can only be loaded again needs nothing from it."""
        is_empty = self.health.state == "loading" and self.health.needs_nothing
        return self.health.state != "needs resync" and not is_empty

    async def can_be_served(self) -> bool:
        """Whether the stream would be of use, seen without taking the target: not before it has been loaded."""
        waits = None if self._loads else await access.waits_for_load(self._config, self.name, self._key)
        if waits == "loading":
            self.health.state = waits
        return waits is None

    @property
    def is_inside_large_transaction(self) -> bool:
        """Whether parts of a transaction are applied that would have to be read again if the stream ended."""
        return self._has_lost_parts and self.health.is_taken

    def begin(self) -> None:
        """Another stream of the lane starts: nothing is waiting yet, and nothing about the target is known."""
        self._new_queue()
        self.interest.forget()
        self.health.begin()
        self._closing.clear()
        self._batch = []
        self._has_lost_parts = self.is_aside = False
        self._position = self._acknowledgeable = None

    def offer(self, part: Part) -> None:
        """Queue a part if this target wants anything of it; otherwise only note that it went by."""
        if self.is_aside or self.health.state == "needs resync":
            return
        if part.is_first and part.is_last and not self.interest.concerns(part):
            assert part.end_lsn is not None
            self.queue.note(part.end_lsn)
        else:
            self.queue.put(part)

    def set_aside(self, reason: str) -> None:
        """Let the lane go on without this target: what waits is forgotten here, and kept by the slot."""
        self.is_aside = True
        self.queue.clear()
        self.queue.wake()
        _log.warning("target set aside; the others go on, the slot keeps its WAL", target=self.name, reason=reason)

    def close(self) -> None:
        """Finish what is being applied, then return from `run`."""
        self._closing.set()
        self.queue.close()

    def _new_queue(self) -> None:
        self.queue = PartQueue(self._config.worker.max_queue_bytes)

    # --- the side of whoever owns the delivery

    @property
    def stops(self) -> Mapping[str, Stop]:
        """The tables (``schema.table`` at the source) that have stopped alone, with the reason and what mends it."""
        return dict(self._stops.current)

    async def changed(self) -> None:
        """Wait until the target's state or position moves: then look again at what you wait for."""
        await self.health.changed()

    async def between_batches(self, work: Callable[[OwnedTarget], Awaitable[T]]) -> T:
        """Let ``work`` use the target's session and fence between two batches; returns what it returns.

        It waits until the target is taken. An error of ``work`` is raised here. Where trying again cannot help, and the
        session is as it was, that is all; otherwise the target is taken anew: what the session holds is not known then.
        """
        result = self._requests.put(work)
        self.queue.wake()
        return await result

    async def give_up(self, tables: Sequence[str]) -> None:
        """Leave tables (``schema.table`` at the source) out of the stream from now on; durable when it returns.

        For tables that a backup's rows and the stream cannot make whole: they are recorded as ``copying``, which a copy
        of the live table ends, and hold the acknowledgement no longer. A lane that begins its next stream after the
        copy takes them from their snapshot on; what is copied while a lane runs has to wait for that (the slot must not
        have moved past the snapshot, so end the lane before you take one).
        """
        await self.between_batches(lambda owned: owned.give_up(tables))

    def release(self, table: str) -> None:
        """Let a table go on that was held while it was read again: the stream starts anew for it."""
        self._stops.release(table)
        self.queue.wake()

    # --- the target's side

    async def run(
        self,
        history: Callable[[], SourceHistory],
        restart: Callable[[str], None],
        restart_pause_s: Callable[[], float],
        on_durable: Callable[[], None],
    ) -> None:
        """Apply until closed.

        Raises `FenceLost`, because only who holds the slot may take the target again, and `ProtocolError`, because
        damaged bytes have to be read again from the slot.

        ``history`` says what the source is now, ``restart`` asks the lane to start its stream anew, ``restart_pause_s``
        says for how long not to ask for the sake of one table, ``on_durable`` tells that `acknowledgeable` has moved.
        """
        self._on_durable = on_durable
        self._restart_pause_s = restart_pause_s

        async def serve() -> None:
            try:
                await self._serve(history(), restart)
            except (FenceLost, ProtocolError) as error:
                if isinstance(error, FenceLost):
                    for table in self._stops.forget_unrecorded():
                        self.metrics.table_resumed(table)
                self.health.failed(error)
                for_the_lane.append(error)
            except ResyncNeeded as error:
                self.health.failed(error)
                self.queue.clear()
                on_durable()

        for_the_lane: list[CdcError] = []
        async with asyncio.TaskGroup() as tasks:
            resyncing = tasks.create_task(self.resyncing.run())
            await until_done(serve, backoff=self._backoff, on_failure=self._failed, stop=self._closing)
            resyncing.cancel()
        if for_the_lane:
            raise for_the_lane[0]

    def _failed(self, error: CdcError, wait_s: float) -> None:
        self.health.failed(error, wait_s)
        if isinstance(error, TargetLoading):
            if not self.is_aside:
                self.set_aside(str(error))
            self._on_durable()

    async def compare(self, history: SourceHistory) -> bool:
        """Say in the target that it needs a resync, if it does: the slot is one that nobody can stream from.

        Returns whether it may ever have been loaded.
        """
        refusal, was_loaded = await access.compare(self._config, self.name, self._key, history)
        if refusal is not None:
            self.health.failed(refusal)
        return was_loaded

    async def _serve(self, history: SourceHistory, restart: Callable[[str], None]) -> None:
        """One session: take the target, then apply until closed, aside and done, or failed."""
        session = await access.open_session(self._config, self.name)
        try:
            owned = await take(
                session,
                self._key,
                self._generation,
                history,
                loads=self._loads,
                stops=self._stops,
                metrics=self.metrics,
                heartbeats=self._heartbeats,
            )
            await self.resyncing.attach(owned)
            owned.planning.ask_source(access.SourceCatalog(self._config.source))
            self.interest.loaded(owned.planning.oids)
            self._batch = self.queue.without(owned.told_apart(self._batch), owned.positions.skips_all)
            self._moved(owned)
            lacking = owned.positions.lacking(self.queue.gone)
            if self._has_lost_parts or lacking:
                what = f"what {', '.join(lacking)} did not get" if lacking else "the rest of a large transaction"
                restart(f"target {self.name} is back, and needs {what}")
                return
            try:
                await self._apply_until_closed(owned, restart)
            except CdcError as error:
                if not isinstance(error, FenceLost):
                    await self._record(owned, error)
                raise
            finally:
                if owned.tracking is not None:
                    owned.tracking.lose("the target was taken anew")
        finally:
            await session.close()

    async def _record(self, owned: OwnedTarget, error: CdcError) -> None:
        """Say in the target what went wrong, where that is possible: ``cdc status`` reads it there."""
        state = "stopped" if isinstance(error, TerminalError) else "streaming"
        with suppress(CdcError):
            await owned.record_state("loading" if self._loads else state, str(error))

    async def _apply_until_closed(self, owned: OwnedTarget, restart: Callable[[str], None]) -> None:
        self.health.taken()
        idle_since = time.monotonic()
        while True:
            if self._requests:
                await self._requests.answer(owned)
                self._moved(owned)
            self._take_batch(owned)
            self.metrics.queue(self.queue.size, is_full=self.queue.full)
            if self._batch:
                await self._apply(owned)
                self._moved(owned)
                if self._batch or (len(self.queue) and self._stops.next_due_in_s() != 0):
                    continue
            self.metrics.state(self.health.state)
            if self.is_aside:
                await owned.save()
                restart(f"target {self.name} is back")
                return
            if self._closing.is_set():
                await owned.save()
                return
            idle_at = self.queue.idle_at
            if idle_at is not None and idle_at > owned.position and time.monotonic() - idle_since >= IDLE_ADVANCE_S:
                await owned.advance_to(idle_at)
                idle_since = time.monotonic()
                self._moved(owned)
            resumed = await owned.look_at_stops(self._restart_pause_s())
            if resumed:
                restart(f"tried again at target {self.name}: {', '.join(resumed)}")
                return
            if not self._requests:
                await self.queue.wait_for_news(self._patience_s(owned, idle_since))

    def _patience_s(self, owned: OwnedTarget, idle_since: float) -> float | None:
        """How long nothing has to be done unless something arrives."""
        waits = [self._stops.next_due_in_s()]
        if self.queue.received > owned.position:
            waits.append(max(0.0, idle_since + IDLE_ADVANCE_S - time.monotonic()))
        known = [wait for wait in waits if wait is not None]
        return min(known) if known else None

    def _take_batch(self, owned: OwnedTarget) -> None:
        """Fill the batch from the queue, unless one waits to be tried again. What the target holds is left out."""
        while not self._batch and len(self.queue) and not self._closing.is_set():
            taken = owned.told_apart(self.queue.take(self._config.worker.max_batch_bytes))
            self._batch = self.queue.without(taken, owned.positions.skips_all)
        ends = next((index for index, part in enumerate(self._batch, 1) if owned.ends_batch(part)), None)
        if ends is not None:
            self.queue.put_back(self._batch[ends:])
            self._batch = self._batch[:ends]

    async def _apply(self, owned: OwnedTarget) -> None:
        """Make the batch durable. Tables that cannot take it are stopped alone, where that is allowed."""
        batch = self._batch  # of a large transaction the first part: all have its commit LSN
        try:
            if batch[-1].is_last and batch[0].is_first:
                await owned.apply(batch)
            else:
                self._has_lost_parts = True
                await owned.apply_large(self._stretches())
                self._has_lost_parts = False
            self._batch = []
            self.queue.forget(batch[-1])
            self._backoff.progressed()
        except (TableStopped, BatchRejected, TransactionsNeeded) as error:
            if isinstance(error, CdcError) and all(part.transaction_count == 1 for part in batch):
                await self._reject(owned, error)
            self._batch = divided(self._batch)  # which transaction it was, is known where each comes by itself

    async def _reject(self, owned: OwnedTarget, error: TableStopped | BatchRejected) -> None:
        async with owned.fenced():
            pass  # who has swapped other tables into the place of these has taken the target: it refused nothing
        if isinstance(error, TableStopped) or self._generation.config.on_error == "quarantine_table":
            table, commit_lsn = error.source_table, error.commit_lsn
            assert table is not None  # the applier names both
            assert commit_lsn is not None
            limit = owned.positions.stopped_from(table)
            if limit is None or commit_lsn < limit:
                await owned.stop_for(table, Lsn(commit_lsn), error)
            elif not self._has_lost_parts:
                raise error  # it was to take nothing of this: never again without a wait
            if self._has_lost_parts:
                await owned.save()
                raise _PartsLost(f"target {self.name}: a large transaction is read again without {table}")
            return
        before = [part for part in self._batch if part.commit_lsn < error.commit_lsn]
        if not before or self._has_lost_parts:
            raise error
        self.queue.put_back(self._batch[len(before) :])
        self._batch = before

    async def _stretches(self) -> AsyncIterator[Sequence[Part]]:
        """The parts of one large transaction, as they arrive."""
        parts, self._batch = self._batch, []
        while True:
            yield parts
            if parts[-1].is_last:
                return
            parts = []
            while not parts:
                if self.is_aside or self._closing.is_set():
                    raise _PartsLost(f"target {self.name}: a large transaction was interrupted; it is read again")
                await self.queue.wait_for_news()
                parts = self.queue.take(self._config.worker.max_batch_bytes)

    def _moved(self, owned: OwnedTarget) -> None:
        self._position = owned.position
        self._acknowledgeable = owned.positions.acknowledgeable
        self.consistent_at, self.consistent_time = owned.consistent_at, owned.consistent_time
        self._on_durable()
        self.health.tell()
