"""One table of a target, before and after its rows are copied.

`prepare` leaves it empty and recorded as ``copying``, in one transaction: from then on whatever it holds is ours, and a
later run may empty it. `complete` gives it its primary key and records it as ``streaming``, in one transaction: a table
is never half of that. Both hold the fence, so that a run which has lost its target cannot do either. Both can be tried
again: what is there already is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import asyncpg
import tenacity

from cdc.bootstrap.copying import TRIES, Job, hold_fence
from cdc.bootstrap.plan import Load, plan_copy
from cdc.bootstrap.rounds import Work
from cdc.bootstrap.targets import Loading
from cdc.errors import SetupError, TableStopped, TargetUnavailable
from cdc.lsn import Lsn
from cdc.routing.route import Route
from cdc.source.catalog import SourceTable
from cdc.target import column_record, partition_record
from cdc.target.catalog import TargetTable, read_table, read_tables
from cdc.target.schema import NewTable, add_primary_key, create_table, new_table
from cdc.target.session import Session, target_errors
from cdc.target.table_state import mark_copying, mark_overlap, mark_streaming

T = TypeVar("T")


async def try_again(work: Callable[[], Awaitable[T]], *, tries: int = TRIES) -> T:
    """Do ``work``, again after a jittered wait while the target cannot, ``tries`` times at most."""
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(TargetUnavailable),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
        stop=tenacity.stop_after_attempt(tries),
        reraise=True,
    )
    return await retrying(work)


async def unwritable(
    loading: Loading, sources: Mapping[str, SourceTable], *, may_be_created: bool
) -> list[TableStopped]:
    """What would keep rows out of the tables that remain; nothing is changed.

    ``may_be_created``: a table that a following target lacks is no problem, nor one that a run of ours began; those
    that keep their rows are looked at elsewhere (`cdc.bootstrap.incremental`).
    """
    loads = [load for load in loading.remaining() if not (may_be_created and loading.keeps_rows(load))]
    with target_errors("reading the catalog", loading.session.where):
        found = await read_tables(loading.session.connection, [(load.schema, load.table) for load in loads])
    problems = []
    for load in loads:
        table = found.get((load.schema, load.table))
        if may_be_created and loading.config.follows and (table is None or loading.was_created_by_cdc(load)):
            continue
        try:
            plan(loading, load, table, sources)
        except TableStopped as problem:
            problems.append(problem)
    return problems


async def prepare(loading: Loading, load: Load, sources: Mapping[str, SourceTable]) -> Work:
    """Make the load's table ready for its rows: there, empty, and recorded as being copied.

    Raises `SetupError` where it cannot be created or written.
    """
    access = loading.access

    async def attempt() -> None:
        session = await loading.ready()
        with target_errors(f"preparing table {load.name}", session.where):
            async with session.connection.transaction():
                if loading.was_begun(load) or loading.aim.is_beside:
                    await _begin_anew(loading, session.connection, load, sources)
                created = loading.config.follows and await create_table(session, new_table_of(load, sources))
                for route in load.routes:
                    await mark_copying(session, access.pipeline, route, created_by_cdc=created)
                await hold_fence(session.connection, access)

    await try_again(attempt)
    session = await loading.ready()
    with target_errors("reading the catalog", session.where):
        table = await read_table(session.connection, load.schema, load.table)
    try:
        return plan(loading, load, table, sources)
    except TableStopped as problem:
        raise SetupError(str(problem), sql=problem.sql, server=problem.server) from None


async def complete(
    loading: Loading, job: Job, work: Work, sources: Mapping[str, SourceTable], consistent_from: Lsn
) -> None:
    """Build the primary key of a table that `cdc` created, and record the table as streaming."""

    async def attempt() -> None:
        session = await job.session(work.access)
        with target_errors(f"completing table {work.load.name}", session.where):
            async with session.connection.transaction():
                if loading.was_created_by_cdc(work.load):
                    await add_primary_key(session, new_table_of(work.load, sources))
                for route in work.load.routes:
                    await mark_streaming(
                        session,
                        work.access.pipeline,
                        route,
                        consistent_from=consistent_from,
                        source_oid=sources[route.source_name].relation.oid,
                    )
                    await record_source(session, work.access.pipeline, route, sources[route.source_name])
                await hold_fence(session.connection, work.access)

    await try_again(attempt)


async def complete_restored(loading: Loading, job: Job, load: Load, sources: Mapping[str, SourceTable]) -> None:
    """Build the primary key of a restored table that `cdc` created, and let the stream go over it (overlap mode)."""

    async def attempt() -> None:
        session = await job.session(loading.access)
        with target_errors(f"completing table {load.name}", session.where):
            async with session.connection.transaction():
                if loading.was_created_by_cdc(load):
                    await add_primary_key(session, new_table_of(load, sources))
                for route in load.routes:
                    await mark_overlap(session, loading.access.pipeline, route)
                    await record_source(session, loading.access.pipeline, route, sources[route.source_name])
                await hold_fence(session.connection, loading.access)

    await try_again(attempt)


async def record_source(session: Session, key: str, route: Route, source: SourceTable) -> None:
    """Record from which columns a table was loaded, and which leaves of a partitioned one it holds.

    In the transaction that is open.
    """
    await column_record.write_loaded(session, key, route, source.sent_numbers)
    if source.relkind == "p":
        name = route.source_schema, route.source_table
        await partition_record.write(session, key, name, partition_record.held_all(source.leaves, route))


def new_table_of(load: Load, sources: Mapping[str, SourceTable]) -> NewTable:
    """The table that a following target gets: it has the source's name, so one route leads to it."""
    (route,) = load.routes
    return new_table_of_route(route, sources[route.source_name])


def new_table_of_route(route: Route, source: SourceTable) -> NewTable:
    """The table that a route of a following target asks for."""
    return new_table(
        route,
        source.relation,
        not_null=source.not_null,
        primary_key=source.primary_key,
        primary_key_name=source.primary_key_name,
        collations=source.collations,
        generated=source.generated,
    )


def plan(loading: Loading, load: Load, table: TargetTable | None, sources: Mapping[str, SourceTable]) -> Work:
    """How a load's rows get into its table. Raises `TableStopped` where they cannot, with the SQL that mends it."""
    copies = tuple(
        plan_copy(
            route,
            sources[route.source_name],
            table,
            target=loading.name,
            follows=loading.config.follows,
            triggers_disabled=loading.session.triggers_disabled,
        )
        for route in load.routes
    )
    return Work(loading.access, load, copies)


async def _begin_anew(
    loading: Loading, connection: asyncpg.Connection, load: Load, sources: Mapping[str, SourceTable]
) -> None:
    """Remove what was copied before; and the table, where `cdc` created it for a shape that the source has left."""
    table = await read_table(connection, load.schema, load.table)
    if table is None:
        return
    if loading.aim.is_beside and not loading.was_created_by_cdc(load):
        # Left behind in a schema of ours, by a load that somebody has forgotten (`cdc teardown`).
        await connection.execute(f"DROP TABLE {table.sql_name}")
        return
    try:
        plan(loading, load, table, sources)
    except TableStopped:
        if loading.was_created_by_cdc(load):
            await connection.execute(f"DROP TABLE {table.sql_name}")
            return
    try:
        async with connection.transaction():
            await connection.execute(f"TRUNCATE {table.rows_name}")
    except asyncpg.FeatureNotSupportedError:
        # A table that foreign keys point to cannot be truncated, only deleted from.
        await connection.execute(f"DELETE FROM {table.rows_name}")
