"""What serving one request needs on both sides, and the steps before its rows and after them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import structlog

from cdc.bootstrap.copying import Job, TargetAccess
from cdc.bootstrap.courtesy import Copies
from cdc.bootstrap.definitions import BuildTarget, build
from cdc.config import Config, for_asyncpg
from cdc.errors import CdcError
from cdc.identifiers import quote_qualified
from cdc.routing.route import Route
from cdc.routing.router import build_routes
from cdc.service import access
from cdc.service.resync_plan import Layout, look, read_source, route_for, table_to_create
from cdc.source.catalog import SourceTable, ancestors_of, columns_of
from cdc.source.connection import Connection, source_errors
from cdc.source.published import read_published_tables
from cdc.target import resync_request as requests
from cdc.target import table_state
from cdc.target.resync_request import Request
from cdc.target.schema import add_primary_key, create_table
from cdc.target.session import Session, target_errors
from cdc.target.table_state import TableState

if TYPE_CHECKING:
    from cdc.service.delivery import Delivery
    from cdc.service.owned_target import OwnedTarget

_log = structlog.get_logger(__name__)

T = TypeVar("T")


@asynccontextmanager
async def open_session(config: Config, target: str) -> AsyncIterator[Session]:
    """A session of our own on the target, which owns nothing."""
    session = await access.open_session(config, target)
    try:
        yield session
    finally:
        await session.close()


@dataclass(frozen=True, slots=True)
class Errand:
    """One request being served: a session on each side, and the way to the session that owns the target.

    ``key`` is the target's row in ``cdc.target``.
    """

    delivery: Delivery
    config: Config
    target: str
    key: str
    connection: Connection
    session: Session

    async def do(self, work: Callable[[OwnedTarget], Awaitable[T]]) -> T:
        """Do something between two batches, with the target's fence."""
        return await self.delivery.between_batches(work)

    async def look(self, request: Request) -> Layout:
        """The table as it is now on both sides.

        Raises `SetupError` or `TableStopped` for what only a person can mend.
        """
        route = route_for(self.config, self.target, request.source)
        source = await read_source(self.connection, self.config, self.target, route)
        return await look(
            self.connection,
            self.session,
            self.config,
            target=self.target,
            route=route,
            source=source,
            request=request.request,
            state=await self.state(request.table),
            within=request.within,
        )

    async def routes(self) -> tuple[Route, ...]:
        """Those of all tables of the target, by the source's catalog of now."""
        tables = await read_published_tables(self.connection, self.config.source)
        return build_routes(self.target, self.config.targets[self.target], columns_of(tables), ancestors_of(tables))

    async def state(self, table: str) -> TableState | None:
        """What the target records of the table; `None`: it was never loaded."""
        states = await table_state.read(self.session, self.key)
        return next((state for state in states if state.source_name == table), None)

    async def execute(self, owned: OwnedTarget, sql: str) -> None:
        """Run statements of ours in the owner's open transaction."""
        with target_errors("preparing a resync", owned.session.where):
            await owned.session.connection.execute(sql)

    async def estimate_rows(self, source: SourceTable) -> int | None:
        """Rows of the table by the source's statistics; `None` before it was analyzed."""
        with source_errors("read its statistics"):
            cursor = await self.connection.execute(
                "SELECT sum(reltuples)::bigint FROM pg_class WHERE oid = ANY (%(tables)s::oid[]) AND reltuples >= 0",
                {"tables": [one.leaf.oid for one in source.leaves] or [source.relation.oid]},
            )
            row = await cursor.fetchone()
        return None if row is None or row[0] is None else int(row[0])

    async def until_level(self, table: str) -> None:
        """Wait while the table stands behind its target: it has stopped alone, or catches up after that."""

        async def stands_alone(owned: OwnedTarget) -> bool:
            return table in owned.positions.tables

        while await self.do(stands_alone):
            await self.delivery.changed()


async def prepare_table(errand: Errand, route: Route, source: SourceTable) -> None:
    """On a target that follows, create a table that is not there, empty, with its key; durable when it returns.

    It is recorded as one whose load has not finished, so that it counts as ours from its first moment.
    """
    session = errand.session
    if not errand.config.targets[errand.target].follows:
        return
    table = table_to_create(route, source)
    with target_errors(f"creating table {route.target_name}", session.where):
        async with session.connection.transaction():
            if await create_table(session, table):
                await add_primary_key(session, table)
                await table_state.mark_copying(session, errand.key, route, created_by_cdc=True)


async def finish(errand: Errand, request: Request) -> None:
    """Build what the table lacks beside rows, and say that the request is done."""
    session = errand.session
    route = route_for(errand.config, errand.target, request.source)
    state = await errand.state(request.table)
    target = errand.config.targets[errand.target]
    warnings: list[str] = []
    if state is not None and state.created_by_cdc and target.follows:
        dsn = for_asyncpg(target.dsn.get_secret_value())
        # All routes, because a foreign key leads to another table; the state of one, because only that one is built.
        access = TargetAccess(errand.target, dsn, errand.key, 0)
        built = BuildTarget(access, target, await errand.routes(), {route.source_name: state})
        source = errand.config.source
        job = Job(source.dsn.get_secret_value(), f"{source.application_name} resync", Copies())
        try:
            warnings = await build(
                [job], {errand.target: built}, errand.connection, concurrently=True, config=errand.config, say=_log.info
            )
        finally:
            await job.close()
    for warning in warnings:
        _log.warning("resync", target=errand.target, table=request.table, reason=warning)
    try:
        with target_errors("collecting statistics", session.where):
            await session.connection.execute(f"ANALYZE {_sql_name(route)}")
    except CdcError as error:
        _log.warning("no statistics", table=request.table, reason=str(error))
    await requests.end_run(session, request, "done")
    await requests.record(session, request.request, state=requests.DONE, reason="; ".join(warnings) or request.reason)
    _log.info("resync done", target=errand.target, table=request.table, rows=request.row_count)


def _sql_name(route: Route) -> str:
    return quote_qualified(route.target_schema, route.target_table)
