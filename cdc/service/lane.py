"""One replication connection on one slot, feeding the targets that share it.

A lane lives from stream to stream. One stream::

    START_REPLICATION (the slot is ours now, or somebody else's: wait)
        ├─ receive     frames ─▶ accumulator ─▶ whole transactions ─▶ every delivery's queue
        ├─ report      the minimum of what is durable everywhere ─▶ flush LSN of the slot, on a timer of its own
        ├─ heartbeats  written at the source
        ├─ watch       the slot, for the metrics
        └─ deliveries  one per target

Order matters at the start: the slot is taken first, and only who holds the slot takes targets; so when deploys overlap,
the worker that waits for the slot cannot fence the one that still applies (hazard 5). What the slot has confirmed is
read after it is ours, when nobody else can move it, and compared with every target's position before anything is
applied or acknowledged.

A stream ends when the worker stops, when the connection is lost, when another worker took a target, or when a delivery
asks for it (a target or a table has come back and needs what the slot still has). However it ends, each delivery
finishes or rolls back its batch first, and what is durable is confirmed if the source still listens.

A lane keeps its slot only while it can do something for one of its targets. When all of them wait for a bootstrap, the
stream ends, so that the bootstrap gets the slot; from then on the lane looks at the targets before it takes the slot
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import structlog

from cdc.changes.spool import SpoolSpace, SpoolUnusable
from cdc.config import Config
from cdc.errors import (
    CdcError,
    FenceLost,
    ResyncNeeded,
    SetupError,
    SlotInUse,
    SourceUnavailable,
    TargetLoading,
)
from cdc.lsn import Lsn
from cdc.observe.metrics import LaneMetrics
from cdc.observe.remedies import LOAD_ALL_AGAIN
from cdc.service.acknowledgement import Acknowledgement
from cdc.service.delivery import Delivery
from cdc.service.heartbeats import Heartbeats, write_heartbeats
from cdc.service.histories import read_history, read_system
from cdc.service.partition_watch import PartitionWatch
from cdc.service.receiving import receive
from cdc.service.retry import Backoff, until_done
from cdc.service.stream_options import StreamOptions
from cdc.source.clock import read_clock
from cdc.source.connection import Connection, connect
from cdc.source.replication import BinaryRefused, ReplicationConnection
from cdc.source.slot import Slot, read_slot, read_slots
from cdc.target.history import SourceHistory

_log = structlog.get_logger(__name__)

SLOT_WATCH_S = 5.0
"""How often the slot is looked at for the metrics; Prometheus scrapes about as often."""

REPORT_GAP_S = 0.1
"""Least time between two status updates: the source gains nothing from more, and each costs it a wake-up."""

GRACE_S = 10.0
"""How long deliveries may take to finish their batch when a stream ends. Scalingo kills 30 s after SIGTERM, and the
slot must be free within 20: ten for the batch, the rest for closing connections."""


class StreamEnded(Exception):
    """The stream is to be started anew; no error. Holds the reason as a sentence."""


Assign = Callable[[Sequence[Slot]], Awaitable[Sequence[Delivery]]]
"""Which deliveries take part in the next stream, by the slots of the pipeline that the source has at this moment."""

Watch = Callable[[Sequence[Slot]], None]
"""Is told the pipeline's slots, every `SLOT_WATCH_S` seconds of a stream."""


class Lane:
    """One slot and the deliveries that share it. `run` is its whole life.

    ``slot`` is the name of the slot; left out, the one that the targets share. ``name`` is what `/readyz` calls it.
    ``assign``, where it is given, says before each stream which deliveries it has. A lane that ``ends_with_slot`` is
    over when its slot does not exist any more (``is_gone``): its target is served elsewhere.
    """

    def __init__(
        self,
        config: Config,
        deliveries: Sequence[Delivery] = (),
        *,
        slot: str | None = None,
        name: str = "source",
        assign: Assign | None = None,
        watch: Watch | None = None,
        ends_with_slot: bool = False,
        spool: SpoolSpace,
        heartbeats: Heartbeats,
        metrics: LaneMetrics,
        stop: asyncio.Event,
    ) -> None:
        self._config = config
        self._source = config.source
        self._slot = slot if slot is not None else config.source.slot
        self._deliveries = deliveries
        self._assign = assign
        self._on_watch = watch
        self._ends_with_slot = ends_with_slot
        self._heartbeats = heartbeats
        self._metrics = metrics
        self._stop = stop
        self._options = StreamOptions(spool, metrics)
        self._backoff = Backoff()
        self._unserved = Backoff()
        self._ended = asyncio.Event()
        self._why: BaseException | None = None
        self._progress = asyncio.Event()
        self._nudge = asyncio.Event()
        self._is_wanted = True
        self._kept_for: set[str] = set()
        self._began = 0.0
        self._acknowledgement = Acknowledgement()
        self.name = name
        self.streams = 0
        self.sender_pid: int | None = None
        self.is_streaming = False
        self.is_gone = False
        self.error: CdcError | None = None
        self.trouble: str | None = "starting"

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """Those of this stream, or of the last one."""
        return self._deliveries

    @property
    def confirmed(self) -> Lsn:
        """What the slot has been told to be durable everywhere."""
        return self._acknowledgement.confirmed

    async def run(self) -> None:
        """Stream until ``stop`` is set; whatever happens meanwhile is logged, counted and tried again."""
        async with asyncio.TaskGroup() as tasks:
            streams = tasks.create_task(self._stream_until_stopped())
            stopping = tasks.create_task(self._stop_waiting(streams))
            await asyncio.wait([streams])
            stopping.cancel()

    async def _stream_until_stopped(self) -> None:
        while not self._stop.is_set() and not self.is_gone:
            await until_done(self._stream_once, backoff=self._backoff, on_failure=self._failed, stop=self._stop)

    async def _stop_waiting(self, streams: asyncio.Task[None]) -> None:
        """A stream ends in good order by itself; waiting for a source that does not answer ends at once."""
        await self._stop.wait()
        if not self.is_streaming:
            streams.cancel()

    def restart(self, reason: str) -> None:
        """End this stream in good order and begin another: somebody needs what the slot still has."""
        self._end(StreamEnded(reason))
        self._nudge.set()

    def restart_pause_s(self) -> float:
        """For how long not to start the stream anew for the sake of one stopped table.

        While what was read before is read again, and while a large transaction is under way, the others come first; and
        reading again shall never take more than a third of the time.
        """
        positions = [delivery.position for delivery in self._deliveries if delivery.position is not None]
        is_behind = bool(positions) and self._acknowledgement.received < max(positions)
        if is_behind or any(delivery.is_inside_large_transaction for delivery in self._deliveries):
            return 2 * (time.monotonic() - self._began)
        return 0.0

    def wake(self) -> None:
        """A delivery has made something durable, or can do nothing more."""
        self._progress.set()
        if not self._has_work():
            self._is_wanted = False
            self._end(None)

    # --- a slot that nobody needs, and one that is kept for somebody

    def keep(self, target: str) -> None:
        """Stream even if nobody is served here: a target of another lane is about to join."""
        if target not in self._kept_for:
            self._kept_for.add(target)
            self._nudge.set()

    def let_go(self, target: str) -> None:
        """It joins no more, or it has."""
        if target in self._kept_for:
            self._kept_for.remove(target)
            if self.is_streaming:
                self.wake()

    def hold(self) -> Lsn:
        """Leave the slot's acknowledgement where it is from now on, until `release`; returns where it is at most."""
        return self._acknowledgement.hold()

    def release(self) -> None:
        """The acknowledgement may go on."""
        self._acknowledgement.release()
        self._progress.set()

    def _has_work(self) -> bool:
        return bool(self._kept_for) or any(delivery.health.is_served for delivery in self._deliveries)

    def _idle_reason(self) -> str:
        waiting = ", ".join(delivery.name for delivery in self._deliveries)
        return f"the slot {self._slot} is left alone: " + (
            f"only `cdc bootstrap` can do something for {waiting}" if waiting else "every target has a lane of its own"
        )

    async def _pause(self) -> None:
        """Leave the slot to others for a while. It is not taken again only to find out whether it is of use now."""
        reason = self._idle_reason()
        if self.trouble != reason:
            _log.info("no stream", reason=reason)
        self.trouble = reason
        # A bootstrap that runs may be over at any moment; one that nobody has begun may take days.
        is_soon = any(delivery.health.state == "loading" for delivery in self._deliveries)
        wait_s = self._unserved.wait_s(TargetLoading(reason) if is_soon else SourceUnavailable(reason))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._nudge.wait()
        self._nudge.clear()

    async def _choose(self, catalog: Connection) -> bool:
        """Find out who takes part in the next stream; false when that is nobody."""
        if self._assign is not None:
            self._deliveries = await self._assign(await read_slots(catalog, self._source.slot))
        is_wanted = bool(self._deliveries)
        if not self._is_wanted and is_wanted:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(delivery.can_be_served()) for delivery in self._deliveries]
            is_wanted = any(task.result() for task in asked)
        self._is_wanted = is_wanted or bool(self._kept_for)
        return self._is_wanted

    def _failed(self, error: CdcError, wait_s: float) -> None:
        is_news = self.trouble != str(error)
        self.error, self.trouble = error, str(error)
        for delivery in self._deliveries:
            delivery.health.tell()  # who waits for a target has to know that nothing comes
        self._metrics.error(error)
        self._metrics.retried()
        # A slot that another worker holds is asked for every second: it is said once. And a bootstrap that swaps tables
        # takes their target away for a moment; whoever takes it again and again is another matter.
        is_usual = isinstance(error, SlotInUse) or (isinstance(error, FenceLost) and is_news)
        level = (_log.info if is_news else _log.debug) if is_usual else _log.warning
        level("no stream", reason=str(error), sql=error.sql, again_in_s=round(wait_s, 1))

    def _end(self, why: BaseException | None) -> None:
        if not self._ended.is_set():
            self._why = why
            self._ended.set()

    async def _stream_once(self) -> None:
        """One stream, from taking the slot to releasing it. Returns when another one is to follow at once."""
        self._ended.clear()
        self._why = None
        if not self._is_wanted:
            await self._pause()
        name = self._source.application_name
        dsn = self._source.dsn.get_secret_value()
        try:
            async with await connect(dsn, application_name=f"{name} catalog") as catalog:
                if not await self._choose(catalog):
                    return
                async with await ReplicationConnection.open(dsn, name) as stream:
                    await self._serve(stream, catalog)
        finally:
            self.is_streaming, self.sender_pid = False, None
            self._metrics.up(False)
        self._conclude(self._why)

    def _conclude(self, why: BaseException | None) -> None:
        """What the end of a stream means for the next one."""
        match why:
            case None:
                pass
            case StreamEnded():
                _log.info("stream starts anew", reason=str(why))
            case BinaryRefused() | SpoolUnusable():
                self._options.change(why)
            case _:
                raise why

    async def _serve(self, stream: ReplicationConnection, catalog: Connection) -> None:
        system, switches = await read_system(stream)
        if self._source.failover and await stream.give_failover(self._slot):
            _log.info("standbys keep the slot from now on", slot=self._slot)
        try:
            await self._options.start(stream, self._slot, self._source.publication_names)
        except ResyncNeeded:
            slot = await read_slot(catalog, self._slot)
            if slot is None and self._ends_with_slot:
                self.is_gone = True
                return
            history = await read_history(self._config, catalog, system, switches, slot, self._slot)
            if await self._compare(history):
                raise
            raise SetupError(
                "nothing is set up yet: no target has ever been loaded. Run `cdc setup`, then `cdc bootstrap --from "
                "live`"
            ) from None
        slot = await read_slot(catalog, self._slot)
        if slot is None or slot.confirmed_flush_lsn is None:
            raise ResyncNeeded(
                f"the source has no slot {self._slot} any more: bootstrap the targets again ({LOAD_ALL_AGAIN})"
            )
        self._acknowledgement.begin(slot.confirmed_flush_lsn)
        for delivery in self._deliveries:
            delivery.begin()
        history = await read_history(self._config, catalog, system, switches, slot, self._slot)

        def history_now() -> SourceHistory:
            # A target that comes back in the middle of a stream stands further than the source's WAL at its start.
            return replace(history, wal_position=max(history.wal_position, self._acknowledgement.received))

        now, _ = await read_clock(catalog)
        self._heartbeats.synchronise(now)
        self._metrics.up(True)
        if self._began:
            self._metrics.reconnected()
        self.is_streaming, self.error, self.trouble = True, None, None
        self.streams += 1
        self.sender_pid = slot.active_pid
        self._began = time.monotonic()
        _log.info("streaming", slot=slot.name, confirmed_flush_lsn=str(slot.confirmed_flush_lsn))

        partitions = PartitionWatch(self._config.worker.partition_interval_s)
        async with asyncio.TaskGroup() as tasks:
            receiving = tasks.create_task(
                self._guard(
                    receive(
                        stream,
                        catalog,
                        self._deliveries,
                        acknowledgement=self._acknowledgement,
                        answer=self._progress.set,
                        partitions=partitions,
                        spool=self._options.spool,
                        metrics=self._metrics,
                        settings=self._config.worker,
                    )
                )
            )
            helpers = [
                tasks.create_task(self._guard(self._report(stream))),
                tasks.create_task(self._guard(self._watch(catalog))),
                tasks.create_task(self._guard(partitions.watch(catalog, self._deliveries))),
                tasks.create_task(
                    write_heartbeats(
                        self._source.dsn.get_secret_value(),
                        pipeline=self._config.pipeline,
                        application_name=f"{self._source.application_name} heartbeat",
                        interval_s=self._config.worker.heartbeat_interval_s,
                        heartbeats=self._heartbeats,
                        metrics=self._metrics,
                    )
                ),
            ]
            deliveries = [
                tasks.create_task(self._guard(delivery.run(history_now, self.restart, self.restart_pause_s, self.wake)))
                for delivery in self._deliveries
            ]
            helpers.append(tasks.create_task(self._end_on_stop()))
            await self._ended.wait()
            receiving.cancel()
            for delivery in self._deliveries:
                delivery.close()
            if deliveries:
                _, unfinished = await asyncio.wait(deliveries, timeout=GRACE_S)
                for task in unfinished:
                    task.cancel()
                await asyncio.wait(deliveries)
            await self._report_once(stream)
            for task in helpers:
                task.cancel()

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """An error of one task ends the stream in good order instead of cancelling its siblings in mid-batch."""
        try:
            await work
        except CdcError as error:
            self._end(error)

    async def _end_on_stop(self) -> None:
        await self._stop.wait()
        self._end(None)

    async def _compare(self, history: SourceHistory) -> bool:
        """A slot that is gone or lost: every target that needs it says so itself, for ``cdc status``.

        Returns whether any target may ever have been loaded: if none was, nothing is lost.
        """
        async with asyncio.TaskGroup() as tasks:
            compared = [tasks.create_task(delivery.compare(history)) for delivery in self._deliveries]
        return not compared or any(task.result() for task in compared)

    # --- reporting

    async def _report(self, stream: ReplicationConnection) -> None:
        """Tell the source what is durable, soon after it moves, and on a timer of its own whatever is being applied.

        Hazard 4: ``wal_sender_timeout`` ends a connection that is silent.
        """
        while True:
            await self._report_once(stream)
            await asyncio.sleep(REPORT_GAP_S)
            self._progress.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.worker.status_interval_s):
                    await self._progress.wait()

    async def _report_once(self, stream: ReplicationConnection) -> None:
        if self._acknowledgement.advance(self._deliveries):
            # Only what got somewhere makes the waits begin anew: a stream that ends as soon as it starts did not.
            self._backoff.progressed()
            self._unserved.progressed()
        confirmed = self._acknowledgement.confirmed
        await stream.send_status(self._acknowledgement.received, confirmed, confirmed)

    async def _watch(self, catalog: Connection) -> None:
        """Show the lag in bytes, and tell who wants to know what slots there are."""
        while True:
            now, wal_position = await read_clock(catalog)
            self._heartbeats.synchronise(now)
            self._metrics.source_position(wal_position)
            await self._options.look(catalog, self._acknowledgement.confirmed)
            if self._on_watch is not None:
                self._on_watch(await read_slots(catalog, self._source.slot))
            for delivery in self._deliveries:
                if delivery.position is not None:
                    delivery.metrics.lag_bytes(wal_position - delivery.position)
            await asyncio.sleep(SLOT_WATCH_S)
