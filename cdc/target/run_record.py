"""How long each step of a bootstrap took, kept in the target: ``cdc.bootstrap_run`` and ``cdc.bootstrap_step``.

Times are the target's clock, so that steps of several runs, from several machines, can be compared. A run or a step
without an end was interrupted, or is under way. What is recorded here is for people (`cdc report`): what is done and
what remains is never decided by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from cdc.target.session import Session, target_errors

Ready = Callable[[], Awaitable[Session]]
"""Gives a session on the target that nobody else uses and that is in no transaction; another where it was lost."""


@dataclass(slots=True)
class Step:
    """One step while it runs. Whoever does it sets what it moved."""

    rows: int | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The record of one run in one target. Several tasks may have steps at the same time."""

    run: int
    ready: Ready
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @asynccontextmanager
    async def step(self, kind: str, name: str | None = None) -> AsyncIterator[Step]:
        """Record what happens inside the block: its beginning when it begins, its end only when it succeeds."""
        async with self._turn:
            session = await self.ready()
            with target_errors("recording a step", session.where):
                number = await session.connection.fetchval(
                    "INSERT INTO cdc.bootstrap_step (run, kind, object) VALUES ($1, $2, $3) RETURNING step",
                    self.run,
                    kind,
                    name,
                )
        step = Step()
        yield step
        async with self._turn:
            session = await self.ready()
            with target_errors("recording a step", session.where):
                await session.connection.execute(
                    "UPDATE cdc.bootstrap_step SET finished_at = pg_catalog.clock_timestamp(), row_count = $2,"
                    " size_bytes = $3 WHERE step = $1",
                    number,
                    step.rows,
                    step.size,
                )

    async def done(self, kind: str, name: str, seconds: float, rows: int, size: int) -> None:
        """Record a step that has come to its end by now and took so many seconds: one that is done in pieces."""
        async with self._turn:
            session = await self.ready()
            with target_errors("recording a step", session.where):
                await session.connection.execute(
                    "INSERT INTO cdc.bootstrap_step (run, kind, object, started_at, finished_at, row_count, size_bytes)"
                    " SELECT $1, $2, $3, c.now - pg_catalog.make_interval(secs => $4), c.now, $5, $6"
                    " FROM pg_catalog.clock_timestamp() AS c (now)",
                    self.run,
                    kind,
                    name,
                    seconds,
                    rows,
                    size,
                )

    async def end(self, outcome: str) -> None:
        """The run is over: ``done``, or what ended it, in a sentence."""
        async with self._turn:
            session = await self.ready()
            with target_errors("recording the end of the run", session.where):
                await session.connection.execute(
                    "UPDATE cdc.bootstrap_run SET finished_at = pg_catalog.clock_timestamp(), outcome = $2"
                    " WHERE run = $1",
                    self.run,
                    outcome,
                )


async def begin_run(ready: Ready, pipeline: str, target: str, origin: str) -> RunRecord:
    """Record that a run begins. ``origin`` is ``backup``, ``live``, ``none`` or ``resync``."""
    session = await ready()
    with target_errors("recording the run", session.where):
        run = await session.connection.fetchval(
            "INSERT INTO cdc.bootstrap_run (pipeline, target, origin) VALUES ($1, $2, $3) RETURNING run",
            pipeline,
            target,
            origin,
        )
    return RunRecord(int(run), ready)
