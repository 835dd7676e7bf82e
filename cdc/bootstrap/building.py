"""What is built on targets after the rows: in which order, what at the same time, and what happens if it fails.

Each thing is a `Work`; each job does one at a time. Works of a lower rank come first among those that concern the same
table (a foreign key after the unique index that it points to, comments last); what concerns different tables goes on
side by side, large things first. Two works that concern one table run at the same time only if both merely keep
writers out: two statements that need more would stand in each other's way until one of them gives up.

A work that fails stops nothing: the rows are complete without it, and the operator gets its SQL. Only a target that has
been lost, to another owner or altogether, ends it all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from cdc.bootstrap.copying import Job, TargetAccess
from cdc.bootstrap.rounds import in_parallel
from cdc.bootstrap.tables import try_again
from cdc.config import TargetConfig
from cdc.errors import CdcError, FenceLost, TargetUnavailable
from cdc.routing.route import Route
from cdc.target.run_record import RunRecord
from cdc.target.session import Session
from cdc.target.table_state import TableState

Place = tuple[str, str, str]
"""Target, schema, table."""

INDEXES, ATTACHMENTS, CHECKS, FOREIGN_KEYS, STATISTICS, COMMENTS, VIEWS, VIEW_COMMENTS, SEQUENCES = range(9)
"""The ranks of works."""


@dataclass(frozen=True, slots=True)
class BuildTarget:
    """A target, or the generation of it that ``routes`` lead to.

    ``states`` is by the source table's ``schema.table``.
    """

    access: TargetAccess
    config: TargetConfig
    routes: tuple[Route, ...]
    states: Mapping[str, TableState]
    record: RunRecord | None = None

    def created(self) -> list[Route]:
        """The routes to tables that `cdc` created here and whose rows are complete."""
        if not self.config.follows:
            return []
        found = [(route, self.states.get(route.source_name)) for route in self.routes]
        return [
            route
            for route, state in found
            if state is not None and state.created_by_cdc and state.state in ("streaming", "stopped")
        ]


def is_beside(route: Route) -> bool:
    """Whether the route leads to a second generation: a target that follows has the source's names otherwise."""
    return route.target_schema != route.source_schema


Question = Callable[[Session], Awaitable[bool]]
"""Asked on a session of the job's; asked again on another one when that was lost."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One thing to build.

    ``kind`` is what the record of the run calls it, ``name`` the thing, for people. ``is_there`` says whether there is
    nothing to do; ``act`` does it, and leaves what is there; ``sql`` is for a person. ``is_shared``: it only keeps
    writers out of its ``places``. ``is_recorded``, ``is_said``: the record of the run, the operator hears of it.
    """

    target: BuildTarget
    kind: str
    name: str
    sql: str
    rank: int
    size: int
    places: frozenset[Place]
    is_there: Question
    act: Question
    is_shared: bool = False
    is_recorded: bool = True
    is_said: bool = True


async def build_all(jobs: Sequence[Job], works: Sequence[Work], say: Callable[[str], None]) -> list[str]:
    """Build what is missing; returns a warning, SQL included, for each work that failed.

    ``works`` are sorted: by rank, and what comes first in the same rank is preferred. Raises `FenceLost`, and
    `TargetUnavailable` where a target stayed away.
    """
    queue = _Queue(works)
    warnings: list[str] = []

    async def labour(job: Job) -> None:
        while (work := await queue.next()) is not None:
            try:
                if await _do(job, work) and work.is_said:
                    say(f"target {work.target.access.name}: {work.kind} {work.name} is built")
            except CdcError as error:
                if _ends_all(error):
                    raise
                warnings.append(
                    f"target {work.target.access.name}: {work.kind} {work.name} could not be built, and is left out "
                    f"({error}) {work.sql};"
                )
            await queue.done(work)

    await in_parallel(labour(job) for job in jobs)
    return warnings


async def _do(job: Job, work: Work) -> bool:
    async def is_there() -> bool:
        return await work.is_there(await job.session(work.target.access))

    async def act() -> bool:
        return await work.act(await job.session(work.target.access))

    if await try_again(is_there):
        return False
    async with AsyncExitStack() as stack:
        if work.target.record is not None and work.is_recorded:
            await stack.enter_async_context(work.target.record.step(work.kind, work.name))
        return await try_again(act)


def _ends_all(error: CdcError) -> bool:
    """Whether the target is lost. A lock that is never granted, or a full disk, only costs the one thing."""
    if isinstance(error, FenceLost):
        return True
    return isinstance(error, TargetUnavailable) and (error.server is None or error.server.sqlstate[:3] in _LOST)


_LOST = {"080", "57P", "533"}
"""Classes of SQLSTATE that say that the server, or the connection, is gone."""


class _Queue:
    """The works that wait for a job."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._changed = asyncio.Condition()
        self._waiting = list(works)
        self._running: list[Work] = []

    async def next(self) -> Work | None:
        """The first work that may be done now; waits while there are only others; `None` when there are no more."""
        async with self._changed:
            while self._waiting:
                for place, work in enumerate(self._waiting):
                    if self._may_run(work, self._waiting[:place]):
                        self._waiting.remove(work)
                        self._running.append(work)
                        return work
                await self._changed.wait()
            return None

    async def done(self, work: Work) -> None:
        """The work is done, or has failed: those that wait for it may begin."""
        async with self._changed:
            self._running.remove(work)
            self._changed.notify_all()

    def _may_run(self, work: Work, before: Sequence[Work]) -> bool:
        """Whether nothing that concerns the same places runs, or waits in front of it (``before``)."""
        return not any(
            other.places & work.places and not (other.is_shared and work.is_shared)
            for other in (*self._running, *before)
        )
