"""What the tests of `cdc resync` share: a worker's lane in the test's own process, and what `cdc resync` says.

So a test can act between the read of a chunk and its watermark.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cdc.bootstrap.progress import Silence
from cdc.changes.spool import SpoolSpace
from cdc.config import Config
from cdc.observe.metrics import Metrics
from cdc.service import loading, provision, resync
from cdc.service.delivery import Delivery
from cdc.service.heartbeats import Heartbeats
from cdc.service.lane import Lane
from cdc.target.resync_request import Request
from tests.database import Database, unique_name

DEADLINE_S = 60.0


@dataclass
class Following:
    """Keeps what ``cdc resync`` says."""

    said: list[str] = field(default_factory=list)

    def say(self, message: str) -> None:
        self.said.append(message)

    def rows(self, target: str, table: str, done: int, of: int | None) -> None:
        """Nobody looks."""


class Replicated:
    """A source, and one target that follows it, or is ``owned``; set up and loaded by `load`."""

    def __init__(self, source: Database, target: Database, **settings: Any) -> None:
        self.source = source
        self.target = target
        slot = unique_name("slot").replace("-", "_")
        self.settings: dict[str, Any] = {
            "source": {"dsn": source.dsn, "slot": slot, "publication": slot},
            "targets": {"warehouse": {"dsn": target.dsn, **(settings or {"include": ["public.*"]})}},
            "worker": {"metrics_address": "127.0.0.1:0", "heartbeat_interval_s": 0.1},
        }

    @property
    def config(self) -> Config:
        return Config.model_validate(self.settings)

    async def load(self) -> None:
        """``cdc setup`` and ``cdc bootstrap --from live``."""
        await provision.setup(self.config, lambda _: None)
        await loading.bootstrap(self.config, jobs=2, progress=Silence())

    @asynccontextmanager
    async def worker(
        self, before_mark: Callable[[Request], Awaitable[None]] | None = None, **tuning: object
    ) -> AsyncIterator[Delivery]:
        """A lane that streams; ``before_mark`` is called when a chunk is staged and not yet marked."""
        metrics, heartbeats, stop = Metrics("cdc"), Heartbeats(), asyncio.Event()
        delivery = Delivery("warehouse", self.config, metrics=metrics.target("warehouse"), heartbeats=heartbeats)
        if before_mark is not None:
            delivery.resyncing.before_mark = before_mark
        for name, value in tuning.items():
            setattr(delivery.resyncing, name, value)
        lane = Lane(
            self.config, [delivery], spool=SpoolSpace(0), heartbeats=heartbeats, metrics=metrics.lane(), stop=stop
        )
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(lane.run())
            try:
                yield delivery
            finally:
                stop.set()
                await asyncio.wait([running], timeout=DEADLINE_S)

    async def resync(self, table: str, **options: Any) -> tuple[list[resync.Outcome], list[str]]:
        """``cdc resync``: what came of it, and what it said."""
        following = Following()
        async with asyncio.timeout(DEADLINE_S):
            outcomes = await resync.resync(self.config, table, follower=following, **options)
        return outcomes, following.said

    def rows(self, database: Database, table: str) -> list[tuple[Any, ...]]:
        return sorted(database.fetch(f"SELECT t::text FROM {table} AS t"))

    async def assert_equal(self, table: str) -> None:
        """Once the target has caught up, the table is the same on both sides."""
        await self.caught_up()
        assert self.rows(self.target, table) == self.rows(self.source, table)

    async def caught_up(self) -> None:
        """Wait until the target holds what the source has committed by now."""
        goal = self.source.current_lsn()
        async with asyncio.timeout(DEADLINE_S):
            while self.target.fetchval("SELECT position < %s::text::pg_lsn FROM cdc.target", str(goal)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def state(self, table: str) -> str:
        """What the target records of a table."""
        return str(self.target.fetchval("SELECT state FROM cdc.target_table WHERE source_table = %s", table))
