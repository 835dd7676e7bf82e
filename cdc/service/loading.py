"""`cdc bootstrap`: from targets that hold nothing, or the wrong thing, to targets that the worker streams to.

The phases, for every target of a run; each sees for itself what is done already, so a run that was killed goes on::

    slot ─▶ rows ──────────────────────────────────▶ definitions ─▶ (caught up ─▶ swap) ─▶ ready ─▶ enrichment
              live: copied from snapshots                └ while changes are streamed over them, where the run streams
              backup: restored ─▶ overlap ─▶ cut-over ─▶ what the backup cannot be trusted with, copied live

A run streams by itself from a backup's restore on, and where it loads a second generation beside the first. Until a
target is ready its row says ``loading``, and a worker leaves it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from cdc.bootstrap import definitions, live
from cdc.bootstrap.complete import is_complete
from cdc.bootstrap.copying import Job
from cdc.bootstrap.courtesy import Copies
from cdc.bootstrap.enrichment import enrich, enrich_all
from cdc.bootstrap.extensions import require_extensions
from cdc.bootstrap.live import JOBS
from cdc.bootstrap.plan import Load
from cdc.bootstrap.progress import LogLines, Progress, Summary
from cdc.bootstrap.ranges import RANGE_BYTES
from cdc.bootstrap.run import LoadLane, Run, Scope, open_run
from cdc.bootstrap.targets import Loading, application_name, look
from cdc.config import Config
from cdc.errors import CdcError, TerminalError
from cdc.routing.router import build_all_routes
from cdc.service import provision, swapping
from cdc.service.load_stream import LoadStream
from cdc.service.resync import Rebuild
from cdc.service.resync_rows import CountedRows
from cdc.source.catalog import ancestors_of, columns_of
from cdc.source.connection import connect
from cdc.source.published import read_published_tables
from cdc.target import backup_load

if TYPE_CHECKING:
    from cdc.bootstrap.backup import BackupChoice


async def bootstrap(
    config: Config,
    *,
    scope: Scope = Scope(),
    from_backup: BackupChoice | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    range_bytes: int = RANGE_BYTES,
    max_rows_per_second: int | None = None,
) -> Summary:
    """Load what ``scope`` asks for, as far as it is not loaded yet: from a backup where one is chosen, else live.

    Where nothing is left to load it returns at once, also while a worker runs. ``jobs`` ranges or tables are copied at
    the same time (as configured unless given), ranges of about ``range_bytes``; rows of the live source no faster than
    ``max_rows_per_second``, all jobs together. When it returns every target of the run is ready for `cdc run`: all of
    its tables are exactly consistent past their recorded LSN, durable, and joined to the stream.

    Raises `SetupError` before ``cdc setup``, for tables with rows that are not ours, for tables that cannot be written,
    and for a backup that cannot serve; `SlotInUse` while a worker needs the slot; `ResyncNeeded` when slot and targets
    do not meet any more; `FenceLost` when another worker takes a target; a `TransientError` when a database stayed away
    for too long: the next run resumes.
    """
    progress = progress or LogLines()
    scope.names(config)  # a mistyped target is refused before anything is set up
    if from_backup is not None:
        await provision.setup(config, progress.say)
    finished = Summary({})
    if (scope.anew or scope.only) and (done := await swapping.swapped_before(config, scope)):
        progress.say(f"the new tables of {', '.join(done)} are in place already: what comes after that is finished")
        finished = await _finish(config, done, progress, scope)
        scope = replace(scope, targets=tuple(name for name in scope.names(config) if name not in done))
        if not scope.targets:
            return finished
    if not (scope.again or scope.anew or scope.only) and await is_complete(config, scope.names(config)):
        progress.say("every target holds every table already: there is nothing to load (`--anew` loads beside them)")
        return await _finish(config, scope.names(config), progress, scope)
    if from_backup is not None:
        from cdc.bootstrap import backup

        await backup.look_ahead(config, from_backup)
    origin = "resync" if scope.only else "live" if from_backup is None else "backup"
    async with AsyncExitStack() as stack:
        run = await open_run(config, progress, stack, origin=origin, scope=scope, must_be_empty=True)
        run.warnings += finished.warnings
        count = jobs or (JOBS if from_backup is None else config.bootstrap.restore_jobs)
        try:
            async with live.jobs_of(run, count, max_rows_per_second) as workers:
                load = _Load(run, workers, range_bytes)
                await load.look_ahead()
                if from_backup is None:
                    await load.from_live()
                else:
                    await load.from_backup(from_backup)
        except CdcError as error:
            await run.records.abandon(str(error))
            if not scope.only:
                await _notify(run, "failed")
            raise
        await run.records.end("done")
        if not scope.only:
            await _notify(run, "done")
        return run.summary()


def rebuild_with(config: Config, progress: Progress, *, max_rows_per_second: int | None = None) -> Rebuild:
    """How `cdc resync` builds a table of a target beside the others and swaps it in (`cdc.service.resync`)."""

    async def rebuild(target: str, table: str, count: Callable[[int], None]) -> None:
        scope = Scope(targets=(target,), only={target: frozenset((table,))})
        counted = CountedRows(progress, count)
        try:
            summary = await bootstrap(config, scope=scope, progress=counted, max_rows_per_second=max_rows_per_second)
        except TerminalError:
            await swapping.forget_unbegun(config, target)
            raise
        for warning in summary.warnings:
            progress.say(f"warning: {warning}")

    return rebuild


async def _finish(config: Config, names: Sequence[str], progress: Progress, scope: Scope) -> Summary:
    """What a run left undone that was killed when its targets were ready: it needs neither a slot nor the fences."""
    await swapping.tidy(config, names)
    application = application_name(config)
    dsn = config.source.dsn.get_secret_value()
    async with AsyncExitStack() as stack, await connect(dsn, application_name=application) as connection:
        tables = await read_published_tables(connection, config.source)
        routes = build_all_routes(config, columns_of(tables), ancestors_of(tables))
        targets = {}
        for name in names:
            loading = await look(config, swapping.present_aim(config, name), routes[name])
            stack.push_async_callback(loading.close)
            states = swapping.only(scope, name, loading.states)
            targets[name] = definitions.BuildTarget(loading.access, loading.config, loading.routes, states)
        job = Job(dsn, application, Copies())
        stack.push_async_callback(job.close)
        warnings = await definitions.build(
            [job], targets, connection, concurrently=True, config=config, say=progress.say
        )
    if not scope.only:
        warnings += await enrich_all(config, names, progress.say)
    return Summary({}, tuple(warnings))


class _Load:
    """The phases of one run."""

    def __init__(self, run: Run, jobs: Sequence[Job], range_bytes: int) -> None:
        self._run = run
        self._jobs = jobs
        self._range_bytes = range_bytes

    async def look_ahead(self) -> None:
        """Refuse now what would stop the run hours later."""
        run = self._run
        async with await run.connect() as connection:
            run.warnings += await require_extensions(
                run.config,
                connection,
                {name: (await loading.ready(), loading.routes) for name, loading in run.loadings.items()},
            )
        for loading in run.loadings.values():
            if loading.aim.is_beside:
                await swapping.refuse_obstacles(run, loading)

    async def from_live(self) -> None:
        run = self._run
        for lane in run.lanes:
            for loading in lane.loadings.values():
                await live.leave_backup(run, loading)
            await live.load_rows(run, lane, self._jobs, self._range_bytes)
            if any(loading.aim.is_beside for loading in lane.loadings.values()):
                await self._analyze(lane)
                await self._stream_to_the_end(lane)
                continue
            touched = self._touched(lane)
            await self._build(touched, concurrently=False, filled=live.filled(run, lane))
            await run.set_ready(lane.loadings.values())
            await self._enrich(touched)

    async def from_backup(self, choice: BackupChoice) -> None:
        # What talks to the provider takes a third of a second to import, and most commands do not need it.
        from cdc.bootstrap import backup, backup_tables

        run = self._run
        expected = await backup.expect(run)
        if await backup_tables.has_to_restore(run):
            archive = await backup.obtain(run, choice, expected)
            await backup_tables.restore_tables(run, archive, self._jobs)
        await backup_tables.record_cut_overs(run)
        await backup.remove_archives(run, choice)
        for lane in run.lanes:
            # Tables that cannot come from a backup, before anything is streamed: their snapshot is behind nobody.
            await live.load_rows(run, lane, self._jobs, self._range_bytes)
            if any(loading.ownership.cut_over_heartbeat is not None for loading in lane.loadings.values()):
                async with LoadStream(run, lane) as stream, run.records.step("catch-up", targets=lane.loadings):
                    await stream.start()
                    await stream.until_cut_over()
                    await stream.stop()
            await self._copy_what_changed(lane)
            await self._analyze(lane)
            await self._stream_to_the_end(lane)

    async def _copy_what_changed(self, lane: LoadLane) -> None:
        """Tables that the backup cannot be trusted with, and those that stopped in the overlap, are copied live."""
        from cdc.bootstrap import backup_tables

        run = self._run
        for loading in lane.loadings.values():
            if not loading.is_being_loaded:
                continue  # what it holds is right, whatever became of the backup that it was loaded from once
            changed = await backup_tables.changed(run, loading)
            for load, reason in changed:
                run.progress.say(f"target {loading.name}: {load.name} is copied from the live source: {reason}")
                run.records.discarded(loading.name, load.name)
            await live.give_up(loading, [load for load, _ in changed])
        await live.load_rows(run, lane, self._jobs, self._range_bytes)

    async def _stream_to_the_end(self, lane: LoadLane) -> None:
        """Definitions while the lane streams; then each second generation takes its place, and all are ready."""
        run = self._run
        await run.set_consistent(lane.loadings.values())
        await run.record_consistent(lane)
        async with LoadStream(run, lane) as stream:
            await stream.start()
            await self._build(self._touched(lane), concurrently=True)
            async with run.records.step("catch-up", targets=lane.loadings):
                await stream.until_caught_up()
            for name, loading in list(lane.loadings.items()):
                if loading.aim.is_beside:
                    await swapping.swap_in(run, lane, stream, name)
            if lane.loadings:
                await stream.start()
            await self._after_swaps()
            await self._enrich([loading for name, loading in lane.loadings.items() if name not in run.swapped])
            await stream.stop()
        for loading in lane.loadings.values():
            await backup_load.forget(await loading.ready(), loading.aim.key)
        await run.set_ready(lane.loadings.values())

    async def _after_swaps(self) -> None:
        """What stands by the tables' own names only: views and sequences, and the enrichment."""
        for name in self._run.swapped:
            present = await swapping.present_of(self._run, name)
            try:
                await self._build([present], concurrently=True)
                await self._enrich([present])
            finally:
                await present.close()

    def _touched(self, lane: LoadLane) -> list[Loading]:
        """The targets in which this run, or one that ended before it came to that, has copied anything."""
        return [
            loading
            for name, loading in lane.loadings.items()
            if name in self._run.copied or loading.ownership.state != "streaming"
        ]

    async def _analyze(self, lane: LoadLane) -> None:
        """Before changes are streamed over what was filled: their plans go by it."""
        run = self._run
        targets = {name: self._build_target(loading) for name, loading in lane.loadings.items()}
        run.warnings += await definitions.analyze(self._jobs, targets, live.filled(run, lane))

    def _build_target(self, loading: Loading) -> definitions.BuildTarget:
        record = self._run.records.runs[loading.name]
        return definitions.BuildTarget(loading.access, loading.config, loading.routes, loading.states, record)

    async def _build(
        self, loadings: Sequence[Loading], *, concurrently: bool, filled: Mapping[str, Sequence[Load]] | None = None
    ) -> None:
        run = self._run
        if not loadings:
            return
        targets = {loading.name: self._build_target(loading) for loading in loadings}
        async with await run.connect() as connection:
            run.warnings += await definitions.build(
                self._jobs,
                targets,
                connection,
                concurrently=concurrently,
                config=run.config,
                say=run.progress.say,
                filled=filled or {},
            )

    async def _enrich(self, loadings: Sequence[Loading]) -> None:
        run = self._run
        if run.scope.only:
            return  # what the table was enriched with has been carried over
        for loading in loadings:
            run.warnings += await enrich(
                run.config,
                loading.name,
                loading.aim.key,
                application_name=run.application_name,
                record=run.records.runs[loading.name],
                say=run.progress.say,
            )


async def _notify(run: Run, outcome: str) -> None:
    if not run.config.notifications:
        return
    from cdc.service.notifications import notify

    for name in run.routes:
        await notify(run.config, {"target": name, "event": "bootstrap", "outcome": outcome})
