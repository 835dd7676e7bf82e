"""The tables of a backup: restored into the targets, each with what its route allows, several at a time.

A table is complete when its rows are in and its primary key stands; that is one recorded state, ``overlap``, so a run
that was killed goes on with the tables that remain. Afterwards changes that the rows may hold already are streamed over
them, until the cut-over. `changed` finds the tables that the backup cannot be trusted with; they are copied live.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdc.bootstrap import restoring, tables
from cdc.bootstrap.archive.rows import Archive
from cdc.bootstrap.copying import Job
from cdc.bootstrap.plan import Load
from cdc.bootstrap.restoring import TableRestore
from cdc.bootstrap.rounds import in_parallel
from cdc.bootstrap.run import Run
from cdc.bootstrap.targets import Loading
from cdc.errors import TableStopped
from cdc.source.catalog import SourceTable
from cdc.source.filenodes import Filenode, read_filenodes
from cdc.target import column_record, position
from cdc.target.backup_load import read as read_backup_load
from cdc.target.catalog import read_table, read_tables
from cdc.target.session import target_errors
from cdc.target.table_state import TableState

HEARTBEATS_TO_CUT_OVER = 2
"""How many heartbeats after the last one in the backup the target is exactly consistent. The first of them may have
been committed, and not yet visible, when the backup began; the second began only after the first was visible, so
whatever the backup saw was committed before it (hazard 22)."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One table to restore, ``size`` bytes at the source."""

    loading: Loading
    load: Load
    size: int


async def restore_tables(run: Run, archive: Archive, jobs: Sequence[Job]) -> None:
    """Restore what the routes of all targets allow.

    Tables that cannot be restored are left as they are, and named: they are to be copied live.
    """
    sources = await run.read_sources()
    async with await run.connect() as connection:
        files = await read_filenodes(connection)
    items: list[_Item] = []
    for loading in run.loadings.values():
        if is_restored(loading):
            continue
        for load in loading.remaining():
            reason = _unrestorable(loading, load, sources, files)
            if reason is None:
                items.append(_Item(loading, load, sources[load.routes[0].source_name].bytes))
            else:
                _say_live(run, loading, load, reason)
    waiting = deque(sorted(items, key=lambda item: -item.size))

    async def labour(job: Job) -> None:
        while waiting:
            await _restore(run, job, waiting.popleft(), archive, sources)

    if items and any(entry.has_data and entry.data_offset is None for entry in archive.toc.entries):
        run.progress.say(
            "the archive does not say where in it each table's rows are, because it was written into a pipe: it is "
            "read from its beginning for every table"
        )
    if items:
        async with run.records.step("restore", targets={item.loading.name for item in items}):
            await in_parallel(labour(job) for job in jobs)


async def has_to_restore(run: Run) -> bool:
    """Whether anything of a backup is still to be restored; not where a run was killed right behind the last table."""
    unrestored = [loading for loading in run.loadings.values() if not is_restored(loading)]
    if not unrestored:
        return False
    sources = await run.read_sources()
    async with await run.connect() as connection:
        files = await read_filenodes(connection)
    for loading in unrestored:
        recorded = await read_backup_load(await loading.ready(), loading.aim.key)
        if recorded is None or recorded.heartbeat is None:
            return True
        if any(_unrestorable(loading, load, sources, files) is None for load in loading.remaining()):
            return True
    return False


async def record_cut_overs(run: Run) -> None:
    """Record in each target that holds all of its backup which heartbeat makes it exactly consistent."""
    for loading in run.loadings.values():
        if is_restored(loading):
            continue
        recorded = await read_backup_load(await loading.ready(), loading.aim.key)
        assert recorded is not None  # `backup.expect` made it
        assert recorded.heartbeat is not None  # `backup.obtain` recorded what it found
        await position.record_cut_over(
            await loading.ready(),
            loading.aim.key,
            loading.access.fence,
            recorded.heartbeat + HEARTBEATS_TO_CUT_OVER,
        )
        await loading.take_again()


def is_restored(loading: Loading) -> bool:
    """Whether everything that comes from a backup is in the target; one that is ready gets nothing from a backup."""
    ownership = loading.ownership
    is_joined = ownership.cut_over_heartbeat is not None or ownership.consistent_at is not None
    return is_joined or not loading.is_being_loaded


async def changed(run: Run, loading: Loading) -> list[tuple[Load, str]]:
    """The restored tables that have to be copied live after all, each with the reason.

    Those whose oid or file is another than before the backup (hazard 23), those whose shape the target's table does not
    have any more, and those that stopped while their history was streamed over them.
    """
    sources = await run.read_sources()
    async with await run.connect() as connection:
        files = await read_filenodes(connection)
    names = [(load.schema, load.table) for load in loading.loads]
    session = await loading.ready()
    with target_errors("reading the catalog", session.where):
        there = await read_tables(session.connection, names)
    found: list[tuple[Load, str]] = []
    for load in loading.loads:
        if loading.is_incremental(load):
            continue  # copied live; if it has stopped since, it is for somebody to say that its rows may go
        states = [loading.states[route.source_name] for route in load.routes if route.source_name in loading.states]
        # What stopped in the overlap is recorded as copying since the cut-over, and still with its reason.
        stopped = next((state.reason for state in states if state.state in ("stopped", "copying")), None)
        if stopped is not None:
            found.append((load, f"the stream could not be laid over its backup, which this run mends: {stopped}"))
            continue
        if any(state.consistent_from is not None or state.state == "copying" for state in states):
            continue  # copied live, or about to be
        moves = [_moved(state, files.get(state.source_name)) for state in states]
        reason = next((move for move in moves if move is not None), None)
        if reason is None and await _is_renamed(loading, load, sources):
            reason = "names of its columns mean others at the source than when it was restored"
        if reason is None:
            try:
                tables.plan(loading, load, there.get((load.schema, load.table)), sources)
            except TableStopped as problem:
                reason = str(problem)
        if reason is not None:
            found.append((load, reason))
    return found


async def _is_renamed(loading: Loading, load: Load, sources: Mapping[str, SourceTable]) -> bool:
    """Whether the source's columns were given each other's names since they were restored."""
    session = await loading.ready()
    for route in load.routes:
        there = await column_record.read_columns(session, route)
        name = route.source_schema, route.source_table
        record = await column_record.read(session, loading.aim.key, name)
        if record is not None and there is not None and route.source_name in sources:
            now = column_record.pairs(route, sources[route.source_name].sent_numbers, there)
            if not record.agrees(now):
                return True
    return False


def _moved(state: TableState, now: Filenode | None) -> str | None:
    """Why a backup may not hold the rows that the table had when the backup was asked for."""
    if now is None or state.source_oid not in (None, now.oid):
        return "the source's table is not the one that was backed up"
    if state.source_attributes not in (None, now.attributes):
        return "the source added a column to it since the backup was asked for"
    if state.source_filenode not in (None, now.filenode):
        return "the source truncated or rewrote it since the backup was asked for, which a backup may miss"
    return None


def _unrestorable(
    loading: Loading, load: Load, sources: Mapping[str, SourceTable], files: Mapping[str, Filenode]
) -> str | None:
    """Why a table cannot be restored, as far as the source's catalog tells."""
    if loading.keeps_rows(load):
        return "its rows stay there, and only missing ones are copied (incremental)"
    if len(load.routes) != 1:
        return "several tables of the source go into it"
    (route,) = load.routes
    if route.source_name not in sources:
        return "the source has it no more"
    if sources[route.source_name].row_filter is not None:
        return "its publication sends only some of its rows (a row filter)"
    if sources[route.source_name].relkind == "p":
        return "it is partitioned, and a backup does not say which of its partitions were attached when"
    state = loading.states.get(route.source_name)
    if state is None:
        return "it joined the configuration after the backup was asked for"
    return _moved(state, files.get(route.source_name))


def _say_live(run: Run, loading: Loading, load: Load, reason: str) -> None:
    run.progress.say(f"target {loading.name}: {load.name} is copied from the live source: {reason}")


async def _restore(run: Run, job: Job, item: _Item, archive: Archive, sources: Mapping[str, SourceTable]) -> None:
    loading, load = item.loading, item.load
    async with loading.turn:
        await tables.prepare(loading, load, sources)
        await loading.read_states()
    planned = await _plan(loading, job, load, sources, archive)
    if isinstance(planned, str):
        _say_live(run, loading, load, planned)
        return
    run.progress.begin(loading.name, load.name, 1)
    async with run.records.step("table", load.name, targets=[loading.name]) as step:
        rows, size = await restoring.restore(job, loading.access, archive, planned)
        step.rows, step.size = rows, size
    run.progress.copied(loading.name, load.name, rows, size)
    async with run.records.step("primary key", load.name, targets=[loading.name]):
        await tables.complete_restored(loading, job, load, sources)
    run.records.restored(loading.name, load.name, rows, size)
    run.progress.finish(loading.name, load.name)


async def _plan(
    loading: Loading, job: Job, load: Load, sources: Mapping[str, SourceTable], archive: Archive
) -> TableRestore | str:
    """How the rows of a table, which is there and empty, come out of the archive; or why they cannot."""
    (route,) = load.routes
    session = await job.session(loading.access)
    name = (load.schema, load.table)
    with target_errors("reading the catalog", session.where):
        table = await read_table(session.connection, *name)
        uniques = await restoring.read_uniques(session.connection, [name])
    assert table is not None  # it was prepared
    return restoring.plan_restore(
        route,
        sources[route.source_name],
        archive.toc,
        table,
        uniques.get(name, ()),
        target=loading.name,
        follows=loading.config.follows,
        triggers_disabled=loading.session.triggers_disabled,
    )
