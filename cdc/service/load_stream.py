"""The lane of a bootstrap: it streams into the generations that are being loaded, while the bootstrap goes on.

It is the worker's own lane (`cdc.service.lane`) with deliveries that may take targets which are being loaded. While it
runs, the deliveries own the targets; when it has stopped, the bootstrap does again. It can be started and stopped as
often as needed: whatever is durable is in the targets, and the slot has the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from cdc.bootstrap.rounds import first_error
from cdc.bootstrap.run import LoadLane, Run
from cdc.changes.spool import SpoolSpace
from cdc.errors import ResyncNeeded, SetupError, TerminalError
from cdc.lsn import Lsn
from cdc.observe.metrics import Metrics
from cdc.routing.target_routes import TargetRoutes
from cdc.service.delivery import Delivery
from cdc.service.heartbeats import Heartbeats
from cdc.service.lane import Lane
from cdc.source.clock import read_clock


class LoadStream:
    """The lane of one slot of a run. A context manager; leaving it stops the lane."""

    def __init__(self, run: Run, lane: LoadLane) -> None:
        self._run = run
        self._lane = lane
        self._metrics = Metrics(run.config.pipeline)
        self._group = asyncio.TaskGroup()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._running: Lane | None = None
        self.deliveries: dict[str, Delivery] = {}

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        try:
            await self._group.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None

    async def start(self) -> None:
        """Let the lane run, unless it does. One that was ending when somebody lost patience is waited for first."""
        if self._task is not None and not self._stop.is_set():
            return
        await self.stop()
        self._stop = asyncio.Event()
        heartbeats = Heartbeats()
        config = self._run.config
        self.deliveries = {
            name: Delivery(
                name,
                config,
                key=loading.aim.key,
                routes=_patient(loading.aim.routes) if loading.is_being_loaded else loading.aim.routes,
                loads=loading.is_being_loaded,
                metrics=self._metrics.target(name),
                heartbeats=heartbeats,
            )
            for name, loading in self._lane.loadings.items()
        }
        self._running = lane = Lane(
            config,
            list(self.deliveries.values()),
            slot=self._lane.slot,
            spool=SpoolSpace(config.worker.max_spool_bytes, config.worker.spool_directory),
            heartbeats=heartbeats,
            metrics=self._metrics.lane(),
            stop=self._stop,
        )
        self._task = self._group.create_task(lane.run())

    async def stop(self) -> None:
        """End the lane in good order; the targets are the run's again, and their positions are read."""
        if self._task is None:
            return
        self._stop.set()
        await asyncio.wait([self._task])
        self._task = None
        for loading in self._lane.loadings.values():
            await loading.take_again()

    async def until_cut_over(self) -> None:
        """Wait until every target is exactly consistent (or was before)."""
        waiting = {
            name for name, loading in self._lane.loadings.items() if loading.ownership.cut_over_heartbeat is not None
        }
        await self._until(lambda delivery: delivery.name not in waiting or delivery.consistent_at is not None)

    async def until_caught_up(self) -> None:
        """Wait until every target holds what the source has committed by now."""
        async with await self._run.connect() as connection:
            _, wal_position = await read_clock(connection)
        await self._until(lambda delivery: delivery.position is not None and delivery.position >= wal_position)

    async def until_position(self, target: str, position: Lsn) -> None:
        """Wait until one target holds everything up to a position."""
        await self._until(
            lambda delivery: (
                delivery.name != target or (delivery.position is not None and delivery.position >= position)
            )
        )

    async def _until(self, condition: Callable[[Delivery], bool]) -> None:
        """Wait for each delivery. Raises what only a person, or another load, can mend."""
        for delivery in self.deliveries.values():
            while not condition(delivery):
                if self._running is not None and isinstance(self._running.error, TerminalError):
                    raise self._running.error
                if delivery.health.state == "needs resync":
                    raise ResyncNeeded(delivery.health.trouble or f"target {delivery.name} needs a resync")
                if delivery.health.state == "stopped":
                    raise SetupError(delivery.health.trouble or f"target {delivery.name} stopped")
                await delivery.changed()


def _patient(routes: TargetRoutes) -> TargetRoutes:
    """Routes of a target that sets a refused table aside, whatever its policy: the bootstrap copies that one live."""
    settings = routes.config.model_copy(update={"on_error": "quarantine_table"})
    return TargetRoutes(settings, routes.is_beside, routes.only)
