"""The targets of a bootstrap: opened, taken, and asked what they already hold.

A `Loading` is one target that this run owns: nobody else can write to it without ending the run (the fence). What it
already holds decides what is to be done: a table that is recorded as streaming, or stopped, is left alone; one that is
recorded as copying was begun by a run that ended, and is emptied and begun again; one that is not recorded must be
empty, because rows that we did not copy are not ours (invariant 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from cdc.bootstrap.copying import TargetAccess
from cdc.bootstrap.plan import Load, group_routes
from cdc.config import Config, TargetConfig, for_asyncpg
from cdc.errors import SetupError, TargetUnavailable
from cdc.routing.route import Route
from cdc.target import position, table_state
from cdc.target.catalog import read_tables, tables_with_rows
from cdc.target.history import SourceHistory, check_history
from cdc.target.migrations import pending
from cdc.target.position import Ownership
from cdc.target.session import Session, connect, target_errors
from cdc.target.table_state import TableState


@dataclass(slots=True)
class Loading:
    """One target while this run owns it. ``states`` is by the source table's ``schema.table``."""

    config: TargetConfig
    access: TargetAccess
    application_name: str
    session: Session
    ownership: Ownership
    routes: tuple[Route, ...]
    states: Mapping[str, TableState]

    @property
    def name(self) -> str:
        """The target's name in the configuration."""
        return self.access.name

    def state_of(self, route: Route) -> str | None:
        """What is recorded of the route's table; `None` when it was never begun, or was routed somewhere else."""
        state = self.states.get(route.source_name)
        return state.state if state is not None and state.target_name == route.target_name else None

    def remaining(self) -> list[Load]:
        """The loads that are not complete."""
        return [
            load
            for load in group_routes(self.routes)
            if any(self.state_of(route) in (None, "copying") for route in load.routes)
        ]

    def was_begun(self, load: Load) -> bool:
        """Whether what the load's table holds was copied by a run of ours."""
        return any(self.state_of(route) is not None for route in load.routes)

    def was_created_by_cdc(self, load: Load) -> bool:
        """Whether the load's table is one that `cdc` created."""
        return any(
            self.states[route.source_name].created_by_cdc for route in load.routes if self.state_of(route) is not None
        )

    async def read_states(self) -> None:
        """Read again what is recorded of the tables."""
        states = await table_state.read(await self.ready(), self.access.pipeline)
        self.states = {state.source_name: state for state in states}

    async def ready(self) -> Session:
        """The session; another one where it was lost, as sessions are that wait for hours (hazard 20).

        The target stays ours meanwhile: it is the fence that says so. Raises `TargetUnavailable`.
        """
        try:
            with target_errors("using the session", self.session.where):
                await self.session.connection.execute("SELECT 1")
        except TargetUnavailable:
            await self.session.close()
            self.session = await connect(self.access.dsn, application_name=self.application_name, target=self.name)
        return self.session

    async def close(self) -> None:
        """Close the session."""
        await self.session.close()


async def open_targets(
    config: Config, routes: Mapping[str, tuple[Route, ...]], stack: AsyncExitStack
) -> dict[str, Loading]:
    """Connect to every target and take it; the connections are closed with ``stack``.

    Raises `SetupError` when a target is not set up, before any is taken.
    """
    async with AsyncExitStack() as opening:
        sessions: dict[str, Session] = {}
        for name, target in config.targets.items():
            session = await connect(
                for_asyncpg(target.dsn.get_secret_value()), application_name=application_name(config), target=name
            )
            opening.push_async_callback(session.close)
            sessions[name] = session
            if await pending(session) or await position.read(session, config.pipeline) is None:
                raise SetupError(
                    f"{session.where} is not set up for pipeline {config.pipeline!r}: run `cdc setup` first"
                )
        loadings = {name: await _take(config, name, session, routes[name]) for name, session in sessions.items()}
        opening.pop_all()
    for loading in loadings.values():
        stack.push_async_callback(loading.close)
    return loadings


async def _take(config: Config, name: str, session: Session, routes: tuple[Route, ...]) -> Loading:
    ownership = await position.take(session, config.pipeline)
    dsn = for_asyncpg(config.targets[name].dsn.get_secret_value())
    return Loading(
        config=config.targets[name],
        access=TargetAccess(name=name, dsn=dsn, pipeline=config.pipeline, fence=ownership.fence),
        application_name=application_name(config),
        session=session,
        ownership=ownership,
        routes=routes,
        states={state.source_name: state for state in await table_state.read(session, config.pipeline)},
    )


def application_name(config: Config) -> str:
    """What the servers call the sessions of a bootstrap."""
    return f"cdc bootstrap {config.pipeline}"


def refuse_other_histories(loadings: Mapping[str, Loading], source: SourceHistory) -> None:
    """Raise `ResyncNeeded` when a target that was loaded before cannot go on from this source and slot."""
    for loading in loadings.values():
        ownership = loading.ownership
        if ownership.position is None:
            continue
        where = loading.session.where
        problem = check_history(where, ownership.history, ownership.position, source, target=loading.name)
        if problem is not None:
            raise problem


async def refuse_foreign_rows(loadings: Mapping[str, Loading]) -> None:
    """Raise `SetupError` that names every table that is to be loaded and holds rows that were not copied by us."""
    found: list[str] = []
    sql: list[str] = []
    for loading in loadings.values():
        names = [(load.schema, load.table) for load in loading.remaining() if not loading.was_begun(load)]
        with target_errors("reading the catalog", loading.session.where):
            tables = await read_tables(loading.session.connection, names)
        for table in tables.values():
            if "SELECT" not in table.privileges:
                raise SetupError(
                    f"{loading.session.where}: the role may not read {table.qualified_name}, so that nobody knows "
                    f"whether it is empty",
                    sql=f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {table.sql_name} TO CURRENT_USER;",
                )
        with target_errors("looking for rows", loading.session.where):
            filled = await tables_with_rows(loading.session.connection, tables)
        for key in sorted(filled):
            found.append(f"{tables[key].qualified_name} of target {loading.name}")
            sql.append(f"TRUNCATE {tables[key].sql_name};  -- target {loading.name}")
    if found:
        raise SetupError(
            f"these tables hold rows that cdc did not copy: {', '.join(found)}. Empty them, or, if they already hold "
            f"everything that the source has, run `cdc bootstrap --from none`",
            sql="\n".join(sql),
        )
