"""Materialized views of the enrichment, refreshed on schedule while the worker streams.

What is refreshed is what applied files of the enrichment name (``-- refresh:``; recorded in the target), in the order
of the files, all targets side by side. People go on reading a view meanwhile where PostgreSQL can do that (a unique
index on plain columns); otherwise they wait until it is full again. A refresh that fails is logged and counted; the
view keeps its rows, and the next time is the next try. A time that passed while no worker ran is not made up for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, TypeVar

import structlog
from cronsim import CronSim

from cdc import statements
from cdc.bootstrap.tables import try_again
from cdc.config import Config, for_asyncpg
from cdc.errors import CdcError, SetupError
from cdc.identifiers import quote_qualified
from cdc.observe.metrics import Metrics
from cdc.routing.patterns import split
from cdc.target.lasting_session import LastingSession
from cdc.target.session import target_errors

_log = structlog.get_logger(__name__)

T = TypeVar("T")

TRIES = 5
"""Of one view: somebody who holds a lock on it, or a connection that was lost, may be gone in a minute."""

LONGEST_SLEEP_S = 60.0
"""The system's clock can be set, and a machine can sleep: the time is looked at so often."""

Notify = Callable[[Config, Mapping[str, object]], Awaitable[None]]
"""Tells others what happened (`cdc.service.notifications.notify`)."""


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> datetime:
        """The present, with its time zone."""

    async def wait_until(self, at: datetime) -> None:
        """Return when that time has come."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The present, in UTC."""
        return datetime.now(UTC)

    async def wait_until(self, at: datetime) -> None:
        """Return when that time has come."""
        while (left_s := (at - self.now()).total_seconds()) > 0:  # noqa: ASYNC110 - a clock announces nothing
            await asyncio.sleep(min(left_s, LONGEST_SLEEP_S))


def next_time(schedule: str, after: datetime) -> datetime:
    """The first time later than ``after`` at which a cron expression is due, in UTC."""
    return next(CronSim(schedule, after.astimezone(UTC)))


async def refresh_on_schedule(
    config: Config, stop: asyncio.Event, notify: Notify, *, metrics: Metrics, clock: Clock | None = None
) -> None:
    """Refresh at each time of ``config.refresh.schedule`` until ``stop`` is set, which ends one that is under way.

    No error of a database leaves this function.
    """
    async with asyncio.TaskGroup() as group:
        work = group.create_task(_for_ever(config, notify, metrics, clock or SystemClock()))
        await stop.wait()
        work.cancel()


async def _for_ever(config: Config, notify: Notify, metrics: Metrics, clock: Clock) -> None:
    while True:
        await clock.wait_until(next_time(config.refresh.schedule, clock.now()))
        async with asyncio.TaskGroup() as group:
            for target in config.targets:
                group.create_task(refresh_target(config, target, notify, metrics))


async def refresh_target(config: Config, target: str, notify: Notify, metrics: Metrics) -> None:
    """Refresh what there is to refresh in one target, and tell of it where that is anything."""
    log = _log.bind(target=target)
    dsn = for_asyncpg(config.targets[target].dsn.get_secret_value())
    sessions = LastingSession(dsn, f"cdc refresh {config.pipeline}", target)
    failed: list[str] = []
    views: list[str] = []
    try:
        views = await try_again(partial(_views, sessions, config.pipeline), tries=TRIES)
        for view in views:
            begun = time.monotonic()
            try:
                await try_again(partial(_refresh, sessions, view), tries=TRIES)
            except CdcError as error:
                failed.append(view)
                metrics.target(target).refresh_failed(error)
                log.error("refresh failed", view=view, reason=str(error), sql=error.sql)
            else:
                seconds = time.monotonic() - begun
                metrics.target(target).refreshed(view, duration_s=seconds)
                log.info("refreshed", view=view, seconds=round(seconds, 1))
    except CdcError as error:
        metrics.target(target).refresh_failed(error)
        log.error("refresh failed", reason=str(error), sql=error.sql)
        return
    finally:
        await sessions.close()
    if views:
        outcome = "failed" if failed else "done"
        await notify(
            config, {"target": target, "event": "refresh", "outcome": outcome, "views": views, "failed": failed}
        )


async def _views(sessions: LastingSession, pipeline: str) -> list[str]:
    session = await sessions.ready()
    with target_errors("reading what is to be refreshed", session.where):
        rows = await session.connection.fetch(statements.load("target", "refresh_views"), pipeline)
    return [row["name"] for row in rows]


async def _refresh(sessions: LastingSession, view: str) -> None:
    session = await sessions.ready()
    name = quote_qualified(*split(view))
    with target_errors(f"refreshing {view}", session.where):
        row = await session.connection.fetchrow(statements.load("target", "refresh_view"), name)
        if row is None:
            raise SetupError(
                f"{session.where}: the materialized view {view} is not there; a file of the enrichment names it"
            )
        how = "CONCURRENTLY " if row["can_be_read"] else ""
        await session.connection.execute(f"REFRESH MATERIALIZED VIEW {how}{name}")
