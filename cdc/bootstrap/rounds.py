"""One round of copying: all ranges of all tables that one snapshot can show, by jobs in parallel.

Large tables come first, so that the end of a round is not one job with the largest table. A table whose foreign keys
fire on its target waits for the tables that they point to. A table that the snapshot cannot show any more (hazard 23)
leaves the round, together with those that wait for it; the next round, with a newer snapshot, begins it anew.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cdc.bootstrap.copying import Job, SnapshotTooOld, TargetAccess
from cdc.bootstrap.incremental_copy import copy_lacking
from cdc.bootstrap.incremental_plan import Lacking
from cdc.bootstrap.incremental_ranges import Part
from cdc.bootstrap.plan import Load, TableCopy
from cdc.bootstrap.progress import Progress
from cdc.bootstrap.ranges import split
from cdc.errors import CdcError


@dataclass(slots=True, eq=False)
class Work:
    """A load within a round. ``after`` are those that have to be complete before it begins.

    ``begun_at`` is when its first range began (`time.monotonic`). ``lacking``: the table keeps the rows that it has,
    and gets only those that it lacks (`cdc.bootstrap.incremental`).
    """

    access: TargetAccess
    load: Load
    copies: tuple[TableCopy, ...]
    lacking: Lacking | None = None
    after: list[Work] = field(default_factory=list)
    ranges_left: int = 0
    rows: int = 0
    size: int = 0
    is_complete: bool = False
    has_left: bool = False
    begun_at: float | None = None

    @property
    def total_bytes(self) -> int:
        """How much there is to read."""
        return sum(copy.total_bytes for copy in self.copies)

    def parts(self, copy: TableCopy, range_bytes: int) -> tuple[Part, ...]:
        """The ranges that one of its tables is copied in."""
        if self.lacking is not None:
            return self.lacking.parts(copy, range_bytes)
        return split(copy.pages, copy.total_bytes, range_bytes)


RANGES_OF_A_JOB = 16
"""Into how many ranges the share of a job is cut at least, so that at the end none works alone for long."""

LEAST_RANGE_BYTES = 8 * 1024 * 1024
"""Less is copied in the time that a range's own statements take."""

Finish = Callable[[Job, Work], Awaitable[None]]
"""What makes a copied table complete: its primary key and its state, in one transaction of its target."""

_Item = tuple[Work, TableCopy, Part]


async def copy_round(
    jobs: Sequence[Job],
    works: Sequence[Work],
    *,
    snapshot: str,
    range_bytes: int,
    finish: Finish,
    progress: Progress,
) -> list[Work]:
    """Copy and finish every work; returns those that need a newer snapshot. The first error ends all jobs.

    Ranges have ``range_bytes`` at most, and fewer where there is less to copy: the last ones are to keep all jobs busy.
    """
    share = sum(work.total_bytes for work in works) // max(1, len(jobs))
    queue = _Queue(works, min(range_bytes, max(LEAST_RANGE_BYTES, share // RANGES_OF_A_JOB)), progress)

    async def labour(job: Job) -> None:
        while (item := await queue.next()) is not None:
            work, copy, part = item
            work.begun_at = work.begun_at or time.monotonic()
            try:
                if work.lacking is None:
                    rows, size = await job.copy(work.access, copy, part, snapshot)
                else:
                    rows, size = await copy_lacking(job, work.access, copy, work.lacking, part, snapshot)
            except SnapshotTooOld as reason:
                progress.say(f"target {work.access.name}: {reason}; it is copied again from a newer snapshot")
                await queue.leave(work)
                continue
            work.rows += rows
            work.size += size
            progress.copied(work.access.name, work.load.name, rows, size)
            work.ranges_left -= 1
            if work.ranges_left == 0 and not work.has_left:
                await finish(job, work)
                progress.finish(work.access.name, work.load.name)
                await queue.complete(work)

    await in_parallel(labour(job) for job in jobs)
    return [work for work in works if not work.is_complete]


class _Queue:
    """The ranges that wait for a job, by table."""

    def __init__(self, works: Sequence[Work], range_bytes: int, progress: Progress) -> None:
        self._changed = asyncio.Condition()
        self._waiting: dict[Work, deque[_Item]] = {}
        for work in sorted(works, key=lambda work: -work.total_bytes):
            ranges = deque((work, copy, part) for copy in work.copies for part in work.parts(copy, range_bytes))
            work.ranges_left = len(ranges)
            progress.begin(work.access.name, work.load.name, len(ranges))
            if ranges:
                self._waiting[work] = ranges

    async def next(self) -> _Item | None:
        """A range whose table may be copied now; waits while there are only others; `None` when there are no more.

        Large tables come first. Each job keeps to a table of its own while there are enough of them: those that fill
        the same table wait for each other wherever the server makes it longer. And no more tables are begun than that,
        because a run that is killed keeps those that are complete.
        """
        async with self._changed:
            while True:
                self._drop_hopeless()
                if not self._waiting:
                    return None
                may_begin = [work for work in self._waiting if all(other.is_complete for other in work.after)]
                if may_begin:
                    work = min(may_begin, key=self._jobs_at)
                    item = self._waiting[work].popleft()
                    if not self._waiting[work]:
                        del self._waiting[work]
                    return item
                await self._changed.wait()

    async def complete(self, work: Work) -> None:
        """The table is done: those that wait for it may begin."""
        async with self._changed:
            work.is_complete = True
            self._changed.notify_all()

    async def leave(self, work: Work) -> None:
        """The table is not copied in this round."""
        async with self._changed:
            work.has_left = True
            self._changed.notify_all()

    def _jobs_at(self, work: Work) -> int:
        return work.ranges_left - len(self._waiting[work])

    def _drop_hopeless(self) -> None:
        leaving = True
        while leaving:
            leaving = False
            for work in self._waiting:
                if not work.has_left and any(other.has_left for other in work.after):
                    work.has_left = leaving = True
        self._waiting = {work: ranges for work, ranges in self._waiting.items() if not work.has_left}


def order_by_references(works: Sequence[Work]) -> None:
    """Set ``after`` of each work to the works whose tables its foreign keys point to; a cycle is cut somewhere."""
    by_table = {(work.access.name, work.load.schema, work.load.table): work for work in works}
    state: dict[Work, bool] = {}

    def visit(work: Work) -> None:
        state[work] = False
        for schema, table in sorted({reference for copy in work.copies for reference in copy.references}):
            parent = by_table.get((work.access.name, schema, table))
            if parent is None:
                continue
            if parent not in state:
                visit(parent)
            if state[parent]:
                work.after.append(parent)
        state[work] = True

    for work in works:
        if work not in state:
            visit(work)


async def in_parallel(labours: Iterable[Awaitable[None]]) -> None:
    """Run all to their end; the first error cancels the others and is raised itself, not in a group."""

    async def run(labour: Awaitable[None]) -> None:
        await labour

    try:
        async with asyncio.TaskGroup() as group:
            for labour in labours:
                group.create_task(run(labour))
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person can act on, or else the first."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [errors]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, CdcError)), leaves[0])
