"""What a table gets once its rows are there: the source's other indexes, and statistics for the planner.

Only tables that `cdc` created on a target whose schema follows get indexes, and only those whose every column is
routed. The snapshots were exact, so unique indexes hold at once. An index that cannot be built (a function that the
target lacks, a full disk) stops nothing: the rows are complete without it, and the operator gets its SQL.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cdc.bootstrap.copying import Job, TargetAccess, hold_fence
from cdc.bootstrap.rounds import in_parallel
from cdc.bootstrap.tables import try_again
from cdc.bootstrap.targets import Loading
from cdc.errors import CdcError, FenceLost
from cdc.identifiers import quote, quote_qualified
from cdc.routing.route import Route
from cdc.source.catalog import SourceIndex, SourceTable, read_indexes
from cdc.source.connection import Connection
from cdc.target.schema import create_index
from cdc.target.session import target_errors


@dataclass(frozen=True, slots=True)
class _Build:
    """One index to build."""

    access: TargetAccess
    route: Route
    index: SourceIndex

    @property
    def sql(self) -> str:
        """The statement, for an operator."""
        if self.index.constraint_definition is None:
            return f"{self.index.definition};"
        table = quote_qualified(self.route.target_schema, self.route.target_table)
        return f"ALTER TABLE {table} ADD CONSTRAINT {quote(self.index.name)} {self.index.constraint_definition};"


def indexes_for(route: Route, indexes: Sequence[SourceIndex]) -> list[SourceIndex]:
    """Those of a source table's indexes that a target with this route can have, the primary key excepted."""
    return [
        index
        for index in indexes
        if index.is_valid
        and not index.is_primary
        and all(route.target_column(name) is not None for name in index.reads)
    ]


async def build_indexes(
    jobs: Sequence[Job],
    loadings: Mapping[str, Loading],
    sources: Mapping[str, SourceTable],
    connection: Connection,
    say: Callable[[str], None],
) -> list[str]:
    """Build what is missing, one at a time on each job; returns a warning, SQL included, for each that failed."""
    found: dict[str, list[SourceIndex]] = {}
    builds: deque[_Build] = deque()
    for loading in loadings.values():
        for route in loading.routes:
            state = loading.states.get(route.source_name)
            if state is None or not (loading.config.follows and state.created_by_cdc):
                continue
            if route.source_name not in found:
                oid = sources[route.source_name].relation.oid
                found[route.source_name] = await read_indexes(connection, oid)
            for index in indexes_for(route, found[route.source_name]):
                builds.append(_Build(loading.access, route, index))
    warnings: list[str] = []

    async def labour(job: Job) -> None:
        while builds:
            build = builds.popleft()
            try:
                if await _build(job, build):
                    say(f"target {build.access.name}: index {build.index.name} of {build.route.target_name} is built")
            except FenceLost:
                raise
            except CdcError as error:
                warnings.append(
                    f"target {build.access.name}: an index of {build.route.target_name} could not be built, and is "
                    f"left out ({error}) {build.sql}"
                )

    await in_parallel(labour(job) for job in jobs)
    return warnings


async def analyze(jobs: Sequence[Job], tables: Sequence[tuple[TargetAccess, str]]) -> None:
    """Collect statistics of tables, each a target and a quoted name; the server leaves out what our role may not."""
    waiting = deque(tables)

    async def labour(job: Job) -> None:
        while waiting:
            access, name = waiting.popleft()

            async def attempt(access: TargetAccess = access, name: str = name) -> None:
                session = await job.session(access)
                with target_errors(f"collecting statistics of {name}", session.where):
                    await session.connection.execute(f"ANALYZE {name}")

            await try_again(attempt)

    await in_parallel(labour(job) for job in jobs)


async def _build(job: Job, build: _Build) -> bool:
    async def attempt() -> bool:
        session = await job.session(build.access)
        index, route = build.index, build.route
        with target_errors(f"building index {index.name}", session.where):
            async with session.connection.transaction():
                built = await create_index(
                    session,
                    route.target_schema,
                    route.target_table,
                    index.name,
                    index.definition,
                    index.constraint_definition,
                )
                await hold_fence(session.connection, build.access)
        return built

    return await try_again(attempt)
