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
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import structlog

from cdc.changes.accumulator import Accumulator, UnknownTypes
from cdc.config import Config
from cdc.errors import CdcError, ResyncNeeded, SetupError, SlotInUse, SourceUnavailable
from cdc.lsn import INVALID_LSN, Lsn
from cdc.observe.metrics import LaneMetrics
from cdc.observe.remedies import LOAD_ALL_AGAIN
from cdc.pgoutput.framing import Keepalive, split_frames
from cdc.service.delivery import Delivery
from cdc.service.heartbeats import Heartbeats, write_heartbeats
from cdc.service.retry import Backoff, until_done
from cdc.source.catalog import describe_types
from cdc.source.clock import read_clock
from cdc.source.connection import Connection, connect
from cdc.source.heartbeat import read as read_heartbeat
from cdc.source.replication import BinaryRefused, ReplicationConnection, System
from cdc.source.slot import Slot, read_slot
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


class Lane:
    """One slot and the deliveries that share it. `run` is its whole life."""

    def __init__(
        self,
        config: Config,
        deliveries: Sequence[Delivery],
        *,
        heartbeats: Heartbeats,
        metrics: LaneMetrics,
        stop: asyncio.Event,
    ) -> None:
        self._config = config
        self._source = config.source
        self._deliveries = deliveries
        self._heartbeats = heartbeats
        self._metrics = metrics
        self._stop = stop
        self._binary = True
        self._backoff = Backoff()
        self._ended = asyncio.Event()
        self._why: BaseException | None = None
        self._progress = asyncio.Event()
        self._began = 0.0
        self._received = INVALID_LSN
        self._confirmed = INVALID_LSN
        self.name = "source"
        self.is_streaming = False
        self.trouble: str | None = "starting"

    async def run(self) -> None:
        """Stream until ``stop`` is set; whatever happens meanwhile is logged, counted and tried again."""
        async with asyncio.TaskGroup() as tasks:
            streams = tasks.create_task(self._stream_until_stopped())
            stopping = tasks.create_task(self._stop_waiting(streams))
            await asyncio.wait([streams])
            stopping.cancel()

    async def _stream_until_stopped(self) -> None:
        while not self._stop.is_set():
            await until_done(self._stream_once, backoff=self._backoff, on_failure=self._failed, stop=self._stop)

    async def _stop_waiting(self, streams: asyncio.Task[None]) -> None:
        """A stream ends in good order by itself; waiting for a source that does not answer ends at once."""
        await self._stop.wait()
        if not self.is_streaming:
            streams.cancel()

    def restart(self, reason: str) -> None:
        """End this stream in good order and begin another: somebody needs what the slot still has."""
        self._end(StreamEnded(reason))

    def restart_pause_s(self) -> float:
        """For how long not to start the stream anew for the sake of one stopped table.

        While what was read before is read again, and while a large transaction is under way, the others come first; and
        reading again shall never take more than a third of the time.
        """
        positions = [delivery.position for delivery in self._deliveries if delivery.position is not None]
        is_behind = bool(positions) and self._received < max(positions)
        if is_behind or any(delivery.is_inside_large_transaction for delivery in self._deliveries):
            return 2 * (time.monotonic() - self._began)
        return 0.0

    def wake(self) -> None:
        """A delivery has made something durable."""
        self._progress.set()

    def _failed(self, error: CdcError, wait_s: float) -> None:
        is_news = self.trouble != str(error)
        self.trouble = str(error)
        self._metrics.error(error)
        self._metrics.retried()
        # A slot that another worker holds is asked for every second: it is said once.
        level = (_log.info if is_news else _log.debug) if isinstance(error, SlotInUse) else _log.warning
        level("no stream", reason=str(error), sql=error.sql, again_in_s=round(wait_s, 1))

    def _end(self, why: BaseException | None) -> None:
        if not self._ended.is_set():
            self._why = why
            self._ended.set()

    async def _stream_once(self) -> None:
        """One stream, from taking the slot to releasing it. Returns when another one is to follow at once."""
        self._ended.clear()
        self._why = None
        name = self._source.application_name
        dsn = self._source.dsn.get_secret_value()
        try:
            async with (
                await ReplicationConnection.open(dsn, name) as stream,
                await connect(dsn, application_name=f"{name} catalog") as catalog,
            ):
                await self._serve(stream, catalog)
        finally:
            self.is_streaming = False
            self._metrics.up(False)
        self._conclude(self._why)

    def _conclude(self, why: BaseException | None) -> None:
        """What the end of a stream means for the next one."""
        match why:
            case None:
                pass
            case StreamEnded():
                _log.info("stream starts anew", reason=str(why))
            case BinaryRefused():
                # Hazard 25: a type without a send function inside an array ends a binary stream for ever.
                self._binary = False
                _log.warning("stream starts anew with text values", reason=str(why))
            case _:
                raise why

    async def _serve(self, stream: ReplicationConnection, catalog: Connection) -> None:
        system = await stream.identify_system()
        switches = await stream.timeline_history(system.timeline)
        try:
            await stream.start(self._source.slot, self._source.publication_names, binary=self._binary)
        except ResyncNeeded:
            if await self._compare(catalog, system, switches):
                raise
            raise SetupError(
                "nothing is set up yet: no target has ever been loaded. Run `cdc setup`, then `cdc bootstrap --from "
                "live`"
            ) from None
        slot = await read_slot(catalog, self._source.slot)
        if slot is None or slot.confirmed_flush_lsn is None:
            raise ResyncNeeded(
                f"the source has no slot {self._source.slot} any more: bootstrap the targets again ({LOAD_ALL_AGAIN})"
            )
        self._confirmed = self._received = slot.confirmed_flush_lsn
        for delivery in self._deliveries:
            delivery.begin()
        history = await self._history(catalog, system, switches, slot)

        def history_now() -> SourceHistory:
            # A target that comes back in the middle of a stream stands further than the source's WAL at its start.
            return replace(history, wal_position=max(history.wal_position, self._received))

        now, _ = await read_clock(catalog)
        self._heartbeats.synchronise(now)
        self._metrics.up(True)
        if self._began:
            self._metrics.reconnected()
        self.is_streaming, self.trouble = True, None
        self._began = time.monotonic()
        _log.info("streaming", slot=slot.name, confirmed_flush_lsn=str(slot.confirmed_flush_lsn))

        async with asyncio.TaskGroup() as tasks:
            receiving = tasks.create_task(self._guard(self._receive(stream, catalog)))
            helpers = [
                tasks.create_task(self._guard(self._report(stream))),
                tasks.create_task(self._guard(self._watch(catalog))),
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
            with contextlib.suppress(SourceUnavailable):
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

    async def _compare(self, catalog: Connection, system: System, switches: Sequence[tuple[int, Lsn]]) -> bool:
        """A slot that is gone or lost: every target that needs it says so itself, for ``cdc status``.

        Returns whether any target may ever have been loaded: if none was, nothing is lost.
        """
        history = await self._history(catalog, system, switches, await read_slot(catalog, self._source.slot))
        async with asyncio.TaskGroup() as tasks:
            compared = [tasks.create_task(delivery.compare(history)) for delivery in self._deliveries]
        return any(task.result() for task in compared)

    async def _history(
        self, catalog: Connection, system: System, switches: Sequence[tuple[int, Lsn]], slot: Slot | None
    ) -> SourceHistory:
        heartbeat = await read_heartbeat(catalog, self._config.pipeline)
        # Read now that the slot is ours: until then the former worker may have gone further than IDENTIFY_SYSTEM said.
        _, wal_position = await read_clock(catalog)
        return SourceHistory(
            system_identifier=system.system_identifier,
            timeline=system.timeline,
            switch_points=switches,
            wal_position=wal_position,
            slot=self._source.slot,
            confirmed_lsn=slot.confirmed_flush_lsn if slot else None,
            slot_is_lost=slot is not None and slot.is_lost,
            incarnation=heartbeat.incarnation if heartbeat else None,
        )

    # --- receiving

    async def _receive(self, stream: ReplicationConnection, catalog: Connection) -> None:
        """Frames in, whole transactions out, for ever."""
        accumulator = Accumulator(part_bytes=self._config.worker.max_batch_bytes)
        while True:
            messages, keepalives = split_frames(await stream.receive())
            self._metrics.received(messages=len(messages), size_bytes=sum(map(len, messages)))
            while messages:
                try:
                    accumulator.feed(messages)
                    break
                except UnknownTypes as unknown:
                    accumulator.learn(await describe_types(catalog, unknown.keys), unknown.keys)
                    messages = list(unknown.remaining)
            for part in accumulator.take():
                self._received = max(self._received, part.end_lsn or part.commit_lsn)
                for delivery in self._deliveries:
                    delivery.offer(part)
                await self._wait_for_room()
            if keepalives:
                self._keepalives(keepalives, accumulator)

    def _keepalives(self, keepalives: Sequence[Keepalive], accumulator: Accumulator) -> None:
        """With no transaction open, everything committed before a keepalive's LSN has been received (hazard 3)."""
        for keepalive in keepalives:
            if keepalive.reply_requested:
                self._progress.set()
            if not accumulator.in_transaction:
                self._received = max(self._received, keepalive.end_lsn)
        if not accumulator.in_transaction:
            for delivery in self._deliveries:
                delivery.queue.note(self._received)

    async def _wait_for_room(self) -> None:
        """Back-pressure: pause while a queue is full; go on without a target that has stalled for too long."""
        for delivery in self._deliveries:
            if not delivery.queue.full:
                continue
            # A target that is stopped waits for a person: the others do not wait with it.
            patience_s = 0.0 if delivery.state == "stopped" else self._config.worker.detach_after_s
            try:
                async with asyncio.timeout(patience_s):
                    await delivery.queue.wait_for_room()
            except TimeoutError:
                delivery.set_aside(f"its queue has been full for {patience_s:g} s")

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
        durable = self._durable()
        if durable > self._confirmed:
            self._confirmed = durable
            # Only what got somewhere makes the waits begin anew: a stream that ends as soon as it starts did not.
            self._backoff.progressed()
        await stream.send_status(self._received, self._confirmed, self._confirmed)

    def _durable(self) -> Lsn:
        """The minimum over the targets of what is durable there (invariant 3). A target that was not read holds all."""
        known = [delivery.acknowledgeable for delivery in self._deliveries if delivery.holds_acknowledgement]
        if not known:
            return INVALID_LSN
        return min(INVALID_LSN if lsn is None else lsn for lsn in known)

    async def _watch(self, catalog: Connection) -> None:
        """Show the slot and the lag in bytes."""
        while True:
            now, wal_position = await read_clock(catalog)
            self._heartbeats.synchronise(now)
            self._metrics.source_position(wal_position)
            slot = await read_slot(catalog, self._source.slot)
            if slot is None:
                self._metrics.slot_gone(self._source.slot)
            else:
                self._metrics.slot(
                    slot.name,
                    active=slot.active,
                    retained_bytes=slot.retained_bytes,
                    safe_wal_size=slot.safe_wal_size,
                    wal_status=slot.wal_status,
                    confirmed_flush_lsn=slot.confirmed_flush_lsn,
                )
            for delivery in self._deliveries:
                if delivery.position is not None:
                    delivery.metrics.lag_bytes(wal_position - delivery.position)
            await asyncio.sleep(SLOT_WATCH_S)
