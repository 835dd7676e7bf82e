"""`cdc bootstrap --from live`: all targets of a pipeline, from the live source, joined to the stream without a gap.

The slot's start is an LSN and, exported with it, a snapshot that shows exactly what was committed before. Every table
is copied from such a snapshot, and recorded with its LSN (``consistent_from``): the worker applies what was committed
afterwards, and nothing else. So nothing is missing and nothing comes twice, whatever is written meanwhile.

The copy goes in rounds. A round has one snapshot; the first one that of the new slot, each later one that of a
temporary slot. What a round cannot finish (a table that was rewritten after the snapshot, the snapshot's session lost)
is left to the next. A run that was killed left tables that are recorded as complete, and others: the next run begins
with these.

Durable at each moment is what the targets record: their position (written once the slot exists, before the first row),
and the state of each table, which becomes ``streaming`` in the transaction that gives it its primary key. A worker and
a bootstrap exclude each other: this one refuses while the slot is in use, and takes every target (the fence).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack

from cdc.bootstrap import indexes, tables
from cdc.bootstrap.again import Again
from cdc.bootstrap.complete import is_complete
from cdc.bootstrap.copying import Job
from cdc.bootstrap.courtesy import Copies
from cdc.bootstrap.progress import LogLines, Progress, Summary
from cdc.bootstrap.ranges import RANGE_BYTES
from cdc.bootstrap.rounds import Work, copy_round, first_error, in_parallel, order_by_references
from cdc.bootstrap.run import Run, open_run
from cdc.bootstrap.targets import Loading
from cdc.config import Config
from cdc.errors import SourceUnavailable
from cdc.identifiers import quote_qualified
from cdc.source.snapshot import Snapshot

JOBS = 4
"""Copies at the same time. Two cores are busy with two of them; twice that covers their waits, and takes five
connections of the source at most besides the walsender's."""

ROUNDS_WITHOUT_PROGRESS = 5
"""After so many rounds in a row that finished no table somebody rewrites them faster than they are copied."""


async def bootstrap(
    config: Config,
    *,
    jobs: int = JOBS,
    progress: Progress | None = None,
    range_bytes: int = RANGE_BYTES,
    again: Again | None = None,
) -> Summary:
    """Load every target of ``config`` with what its routes name, as far as it is not loaded yet.

    Where nothing is left to load it returns at once, also while a worker runs.

    ``again`` are tables that are emptied and loaded although they are loaded already. ``jobs`` ranges are copied at the
    same time, each of about ``range_bytes``. When it returns every target is ready for `cdc run`: all of its tables
    hold what was committed before their ``consistent_from``, with primary keys and, on targets that follow, the other
    indexes.

    Raises `ConfigurationError` for ``again`` that names what was never loaded; `SetupError` before ``cdc setup``, for
    rows that are not ours, and for tables that cannot be written;
    `SlotInUse` while a worker runs; `ResyncNeeded` when slot and targets do not meet any more; `FenceLost` when another
    worker takes a target; a `TransientError` when a database stayed away for too long: the next run resumes.
    """
    if again is None and await is_complete(config):
        (progress or LogLines()).say("every target holds every table already: there is nothing to load")
        return Summary({})
    async with AsyncExitStack() as stack:
        run = await open_run(config, progress or LogLines(), stack, must_be_empty=True, again=again)
        copies = Copies()
        dsn = config.source.dsn.get_secret_value()
        workers = [Job(dsn, run.application_name, copies) for _ in range(max(1, jobs))]
        for worker in workers:
            stack.push_async_callback(worker.close)
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(copies.step_aside(dsn, run.application_name, run.progress.say))
                await _to_the_end(run, workers, range_bytes)
                watch.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        return run.summary()


async def _to_the_end(run: Run, jobs: Sequence[Job], range_bytes: int) -> None:
    """Rounds until every table is complete; then what tables get afterwards; then the targets are ready."""
    fruitless = 0
    while run.has_work():
        before = run.works_done()
        try:
            async with run.snapshot() as snapshot:
                await _copy(run, jobs, snapshot, range_bytes)
        except SourceUnavailable as error:
            if run.needs_slot or fruitless >= ROUNDS_WITHOUT_PROGRESS:
                raise
            run.progress.say(f"{error}; what remains is copied from another snapshot")
            await asyncio.sleep(random.uniform(0.5, 1.0) * 2**fruitless)
        for loading in run.loadings.values():
            await loading.read_states()
        fruitless = 0 if run.works_done() > before else fruitless + 1
        if fruitless > ROUNDS_WITHOUT_PROGRESS and run.has_work():
            raise SourceUnavailable(
                "tables of the source are rewritten or emptied faster than they can be copied; run `cdc bootstrap` "
                "again when that is over: it goes on with the tables that remain"
            )
    await _finish(run, jobs)


async def _copy(run: Run, jobs: Sequence[Job], snapshot: Snapshot, range_bytes: int) -> None:
    """One round: everything of what remains that the snapshot can show."""
    sources = await run.read_sources()
    works: list[Work] = []

    async def prepare(loading: Loading) -> None:
        for load in loading.remaining():
            missing = [route.source_name for route in load.routes if route.source_name not in sources]
            if missing:
                raise SourceUnavailable(f"the source has no table {', '.join(missing)} at the moment")
            works.append(await tables.prepare(loading, load, sources))
        await loading.read_states()

    async def finish(job: Job, work: Work) -> None:
        loading = run.loadings[work.access.name]
        await tables.complete(loading, job, work, sources, snapshot.consistent_point)
        run.copied.setdefault(work.access.name, []).append(work)

    await in_parallel(prepare(loading) for loading in run.loadings.values())
    order_by_references(works)
    await copy_round(jobs, works, snapshot=snapshot.name, range_bytes=range_bytes, finish=finish, progress=run.progress)


async def _finish(run: Run, jobs: Sequence[Job]) -> None:
    """Indexes and statistics of what was copied, by this run or by one that ended before it came to that."""
    touched = {
        name: loading
        for name, loading in run.loadings.items()
        if name in run.copied or loading.ownership.state != "streaming"
    }
    if touched:
        sources = await run.read_sources()
        async with await run.connect() as connection:
            run.warnings += await indexes.build_indexes(jobs, touched, sources, connection, run.progress.say)
    copied = [
        (work.access, quote_qualified(work.load.schema, work.load.table))
        for works in run.copied.values()
        for work in works
    ]
    await indexes.analyze(jobs, copied)
    await run.set_ready()
