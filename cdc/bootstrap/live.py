"""Rows from the live source: what a target lacks, copied from snapshots, joined to the stream without a gap.

The slot's start is an LSN and, exported with it, a snapshot that shows exactly what was committed before. Every table
is copied from such a snapshot, and recorded with its LSN (``consistent_from``): what was committed afterwards is
applied, and nothing else. So nothing is missing and nothing comes twice, whatever is written meanwhile.

The copy goes in rounds. A round has one snapshot; the first one that of the new slot, each later one that of a
temporary slot. What a round cannot finish (a table that was rewritten after the snapshot, the snapshot's session lost)
is left to the next. A run that was killed left tables that are recorded as complete, and others: the next run begins
with these.

Durable at each moment is what the targets record: their position (written once the slot exists, before the first row),
and the state of each table, which becomes ``streaming`` in the transaction that gives it its primary key.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from cdc.bootstrap import incremental, tables
from cdc.bootstrap.copying import Job, hold_fence
from cdc.bootstrap.courtesy import Copies
from cdc.bootstrap.pace import Pace
from cdc.bootstrap.plan import Load
from cdc.bootstrap.rounds import Work, copy_round, first_error, in_parallel, order_by_references
from cdc.bootstrap.run import LoadLane, Run
from cdc.bootstrap.targets import Loading
from cdc.errors import SourceUnavailable
from cdc.source.snapshot import Snapshot
from cdc.target import backup_load, position
from cdc.target.session import target_errors
from cdc.target.table_state import mark_copying

JOBS = 4
"""Copies at the same time. Two cores are busy with two of them; twice that covers their waits, and takes five
connections of the source at most besides the walsender's."""

ROUNDS_WITHOUT_PROGRESS = 5
"""After so many rounds in a row that finished no table somebody rewrites them faster than they are copied."""


@asynccontextmanager
async def jobs_of(run: Run, count: int, max_rows_per_second: int | None = None) -> AsyncIterator[list[Job]]:
    """As many jobs, whose copies step aside for DDL at the source; their connections are closed with the block."""
    copies = Copies()
    dsn = run.config.source.dsn.get_secret_value()
    pace = None if max_rows_per_second is None else Pace(max_rows_per_second)
    jobs = [Job(dsn, run.application_name, copies, pace) for _ in range(max(1, count))]
    async with AsyncExitStack() as stack:
        for job in jobs:
            stack.push_async_callback(job.close)
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(copies.step_aside(dsn, run.application_name, run.progress.say))
                yield jobs
                watch.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None


async def leave_backup(run: Run, loading: Loading) -> None:
    """A load that was begun from a backup goes on from the live source: what was not joined by then is not used."""
    overlapping = {name for name, state in loading.states.items() if state.is_overlap}
    begun = [load for load in loading.loads if any(route.source_name in overlapping for route in load.routes)]
    if not loading.is_being_loaded or not (begun or loading.ownership.cut_over_heartbeat is not None):
        return
    run.progress.say(
        f"target {loading.name}: its load was begun from a backup; the tables that were restored ({len(begun)}) are "
        f"copied from the live source now"
    )
    await give_up(loading, begun)
    await position.forget_cut_over(await loading.ready(), loading.aim.key, loading.access.fence)
    await backup_load.forget(await loading.ready(), loading.aim.key)
    await loading.take_again()


async def give_up(loading: Loading, loads: Sequence[Load]) -> None:
    """Record that these tables have to be copied once more; what they hold is emptied when that begins."""
    session = await loading.ready()
    with target_errors("recording tables that are copied again", session.where):
        async with session.connection.transaction():
            for load in loads:
                for route in load.routes:
                    await mark_copying(session, loading.aim.key, route)
            await hold_fence(session.connection, loading.access)
    await loading.read_states()


async def load_rows(run: Run, lane: LoadLane, jobs: Sequence[Job], range_bytes: int) -> None:
    """Rounds until every table of the lane's targets is complete: durable, and recorded as streaming.

    Raises `SourceUnavailable` where tables are rewritten faster than they are copied.
    """
    fruitless = 0
    while run.has_work(lane):
        before = run.works_done()
        try:
            async with run.snapshot(lane) as snapshot:
                await _copy(run, lane, jobs, snapshot, range_bytes)
        except SourceUnavailable as error:
            if lane.needs_slot or fruitless >= ROUNDS_WITHOUT_PROGRESS:
                raise
            run.progress.say(f"{error}; what remains is copied from another snapshot")
            await asyncio.sleep(random.uniform(0.5, 1.0) * 2**fruitless)
        for loading in lane.loadings.values():
            await loading.read_states()
        fruitless = 0 if run.works_done() > before else fruitless + 1
        if fruitless > ROUNDS_WITHOUT_PROGRESS and run.has_work(lane):
            raise SourceUnavailable(
                "tables of the source are rewritten or emptied faster than they can be copied; run `cdc bootstrap` "
                "again when that is over: it goes on with the tables that remain"
            )


async def _copy(run: Run, lane: LoadLane, jobs: Sequence[Job], snapshot: Snapshot, range_bytes: int) -> None:
    """One round: everything of what remains that the snapshot can show."""
    sources = await run.read_sources()
    works: list[Work] = []

    async def prepare(loading: Loading) -> None:
        for load in loading.remaining():
            missing = [route.source_name for route in load.routes if route.source_name not in sources]
            if missing:
                raise SourceUnavailable(f"the source has no table {', '.join(missing)} at the moment")
            work = None
            if loading.keeps_rows(load):
                work = await incremental.prepare(loading, load, sources, run.connect)
            works.append(work or await tables.prepare(loading, load, sources))
        await loading.read_states()

    async def finish(job: Job, work: Work) -> None:
        loading = run.loadings[work.access.name]
        if work.lacking is None:
            await tables.complete(loading, job, work, sources, snapshot.consistent_point)
            seconds = time.monotonic() - (work.begun_at or time.monotonic())
            await run.records.runs[loading.name].done("copy", work.load.name, seconds, work.rows, work.size)
        else:
            async with run.records.step("copy", work.load.name, targets=[loading.name]) as step:
                step.rows = await incremental.complete(job, work, sources, snapshot.consistent_point)
                step.size = work.size
        run.copied.setdefault(work.access.name, []).append(work)

    async with run.records.step("copy", targets=lane.loadings):
        await in_parallel(prepare(loading) for loading in lane.loadings.values())
        order_by_references(works)
        await copy_round(
            jobs, works, snapshot=snapshot.name, range_bytes=range_bytes, finish=finish, progress=run.progress
        )


def filled(run: Run, lane: LoadLane) -> dict[str, list[Load]]:
    """By target what was filled in the lane, and may have no statistics: the planner knows nothing of such a table.

    Of a target that is not ready that is all of it: a run that was killed may have come as far as the rows.
    """
    return {
        name: [
            load
            for load in loading.loads
            if loading.ownership.state != "streaming"
            or run.records.was_restored(name, load.name)
            or any(work.load.name == load.name for work in run.copied.get(name, ()))
        ]
        for name, loading in lane.loadings.items()
    }
