"""``incremental``: a table whose rows stay at the target, while those that it lacks are copied live.

The rows of the tool that filled the table before are not ours (invariant 9). So the table is not recorded as
``copying``, which would let a later run empty it: nothing is recorded, and nothing of it is changed, until `complete`
puts in what was collected (`cdc.bootstrap.incremental_plan`) and records it as streaming, in one transaction. From then
on it is as strict as any other table. What stayed is not compared: a row that the source changed or deleted before the
load stays as it was until it changes, or until `cdc resync` mends it.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import asyncpg

from cdc.bootstrap import tables
from cdc.bootstrap.copying import Job, hold_fence
from cdc.bootstrap.incremental_plan import Lacking, needs_primary_key, plan_lacking, several_routes
from cdc.bootstrap.incremental_ranges import key_ranges
from cdc.bootstrap.plan import Load
from cdc.bootstrap.rounds import Work
from cdc.bootstrap.targets import Loading
from cdc.errors import CdcError, SetupError, TableStopped, TargetUnavailable
from cdc.identifiers import quote
from cdc.lsn import Lsn
from cdc.source.catalog import SourceTable
from cdc.source.connection import Connection, source_errors
from cdc.target.catalog import TargetTable, read_table
from cdc.target.row_counts import row_count
from cdc.target.schema import add_primary_key
from cdc.target.session import server_error, target_errors
from cdc.target.table_plan import plan_table
from cdc.target.table_state import mark_streaming

_REFUSED_BY_ROWS = ("23505", "23502")
"""What adding a primary key meets in rows that are there: a key twice, a key that is NULL."""


async def unfit(loading: Loading, sources: Mapping[str, SourceTable]) -> list[TableStopped]:
    """What would keep the missing rows out of the tables that keep theirs; nothing is changed."""
    problems = []
    for load in loading.remaining():
        if not loading.keeps_rows(load):
            continue
        table = await _read(loading, load)
        try:
            if table is not None or not loading.config.follows:
                _plan(loading, load, table, sources)
        except TableStopped as problem:
            problems.append(problem)
    return problems


async def prepare(
    loading: Loading, load: Load, sources: Mapping[str, SourceTable], connect: Callable[[], Awaitable[Connection]]
) -> Work | None:
    """Make ready to collect what the table lacks; `None` where there is no table yet, and so nothing that could stay.

    ``connect`` opens a session on the source. Raises `SetupError` where nothing tells which rows are missing.
    """
    try:
        async with await connect() as connection:
            return await _prepare(loading, load, sources, connection)
    except TableStopped as problem:
        raise SetupError(str(problem), sql=problem.sql, server=problem.server) from None


async def complete(job: Job, work: Work, sources: Mapping[str, SourceTable], consistent_from: Lsn) -> int:
    """Put what was collected into the table, and record it as streaming; returns how many rows that were.

    Raises `SetupError` where a row that stayed keeps one out that is missing.
    """
    (route,) = work.load.routes
    lacking = work.lacking
    assert lacking is not None  # it was prepared here

    async def attempt() -> int:
        session = await job.session(work.access)
        connection = session.connection
        with target_errors(f"completing table {work.load.name}", session.where):
            async with connection.transaction():
                count = await _insert(connection, work, lacking)
                await mark_streaming(
                    session,
                    work.access.pipeline,
                    route,
                    consistent_from=consistent_from,
                    source_oid=sources[route.source_name].relation.oid,
                )
                await tables.record_source(session, work.access.pipeline, route, sources[route.source_name])
                await hold_fence(connection, work.access)
                return count

    return await tables.try_again(attempt)


async def _prepare(
    loading: Loading, load: Load, sources: Mapping[str, SourceTable], connection: Connection
) -> Work | None:
    table = await _read(loading, load)
    if table is None and loading.config.follows:
        return None
    work, needs_key = _plan(loading, load, table, sources)

    async def create() -> Work:
        session = await loading.ready()
        with target_errors(f"preparing table {load.name}", session.where):
            async with session.connection.transaction():
                made = work
                if needs_key:
                    await _add_key(loading, load, sources)
                    made, _ = _plan(loading, load, await _read(loading, load), sources)
                assert made.lacking is not None  # there is a key now, or was one
                await session.connection.execute(made.lacking.create_sql())
                await hold_fence(session.connection, loading.access)
        return made

    made = await tables.try_again(create)
    assert made.lacking is not None
    source = sources[load.routes[0].source_name]
    made.lacking = await _with_ranges(made.lacking, source, connection)
    return made


async def _read(loading: Loading, load: Load) -> TargetTable | None:
    session = await loading.ready()
    with target_errors("reading the catalog", session.where):
        return await read_table(session.connection, load.schema, load.table)


def _plan(
    loading: Loading, load: Load, table: TargetTable | None, sources: Mapping[str, SourceTable]
) -> tuple[Work, bool]:
    """The work; and whether the table has to get its primary key first, before anything is known of what it lacks."""
    if len(load.routes) > 1:
        raise several_routes(load.name, load.routes, loading.name)
    work = tables.plan(loading, load, table, sources)
    assert table is not None  # the plan refuses a table that does not exist
    (route,), (copy,) = load.routes, work.copies
    source = sources[route.source_name]
    follows = loading.config.follows
    shape = plan_table(
        source.relation,
        route,
        table,
        target=loading.name,
        follows=follows,
        triggers_disabled=loading.session.triggers_disabled,
    ).shape
    if needs_primary_key(shape, table, tables.new_table_of(load, sources) if follows else None):
        return work, True
    work.lacking = plan_lacking(
        source, copy, shape, table, pipeline=loading.access.pipeline, target=loading.name, follows=follows
    )
    return work, False


async def _add_key(loading: Loading, load: Load, sources: Mapping[str, SourceTable]) -> None:
    try:
        await add_primary_key(loading.session, tables.new_table_of(load, sources))
    except CdcError as error:
        if error.server is None or error.server.sqlstate not in _REFUSED_BY_ROWS:
            raise
        raise SetupError(
            f'target {loading.name}: table {load.name}: "incremental" needs the primary key of the source\'s table '
            f"there, and the rows that it holds do not allow it ({error.server}): some have the same key, or none. "
            f"Delete those, or empty the table and take it out of bootstrap.modes (BACKUP_MODE)",
            server=error.server,
        ) from None


async def _with_ranges(lacking: Lacking, source: SourceTable, connection: Connection) -> Lacking:
    """The same with the ranges to compare: cut by what the source's keys are now, which they need not be exactly."""
    if lacking.source_key is None:
        return lacking
    key = quote(lacking.source_key)
    with source_errors(f"look at the keys of {source.name}"):
        query = f"SELECT pg_catalog.min({key})::int8, pg_catalog.max({key})::int8 FROM {source.rows_name}"
        row = await (await connection.execute(query.encode())).fetchone()
    lowest, highest = row or (None, None)
    return replace(lacking, ranges=key_ranges(lowest, highest, source.pages))


async def _insert(connection: asyncpg.Connection, work: Work, lacking: Lacking) -> int:
    """Move what was collected into the table. Nothing where that is done: a COMMIT had got no answer."""
    if not await connection.fetchval("SELECT pg_catalog.to_regclass($1) IS NOT NULL", lacking.staging):
        return 0
    try:
        await connection.execute(f"LOCK TABLE {lacking.staging}")  # waits for whoever had no answer
    except asyncpg.UndefinedTableError:
        raise TargetUnavailable(f"target {work.access.name}: table {work.load.name} was completed just now") from None
    try:
        tag = await connection.execute(lacking.insert_sql())
    except asyncpg.IntegrityConstraintViolationError as error:
        raise SetupError(
            f"target {work.access.name}: table {work.load.name} keeps its rows (incremental), and one of them keeps "
            f"out a row that is missing ({server_error(error)}). Drop that constraint there, load, and mend the table "
            f"with `cdc resync {shlex.quote(work.load.routes[0].source_name)} --target {work.access.name}`; or empty "
            f"it and take it out of bootstrap.modes (BACKUP_MODE)",
            server=server_error(error),
        ) from None
    await connection.execute(lacking.drop_sql())
    return row_count(tag)
