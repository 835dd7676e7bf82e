"""The targets of a bootstrap: opened, taken, and asked what they already hold.

A `Loading` is one target that this run owns: nobody else can write to it without ending the run (the fence). What it
already holds decides what is to be done: a table that is recorded as streaming, or stopped, is left alone; one that is
recorded as copying was begun by a run that ended, and is emptied and begun again; one that is not recorded must be
empty, because rows that we did not copy are not ours (invariant 9).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from cdc.bootstrap.aims import Aim, Found
from cdc.bootstrap.copying import TargetAccess
from cdc.bootstrap.plan import Load, group_routes
from cdc.bootstrap.start import SourceState
from cdc.config import Config, TargetConfig, for_asyncpg
from cdc.errors import ResyncNeeded, SetupError, TargetUnavailable
from cdc.routing.route import Route
from cdc.source.clock import read_clock
from cdc.source.connection import Connection
from cdc.source.slot import lane_slot
from cdc.target import position, table_state
from cdc.target.catalog import read_tables, tables_with_rows
from cdc.target.generation import generation_key
from cdc.target.history import check_history
from cdc.target.migrations import pending
from cdc.target.position import Ownership, TargetState
from cdc.target.session import Session, connect, target_errors
from cdc.target.table_state import TableState


@dataclass(slots=True)
class Loading:
    """One target while this run owns it. ``states`` is by the source table's ``schema.table``.

    ``incremental`` are the tables of the source whose rows stay at the target when they are first loaded.
    Tasks that work side by side take ``turn`` before they use ``session``.
    """

    aim: Aim
    access: TargetAccess
    application_name: str
    session: Session
    ownership: Ownership
    routes: tuple[Route, ...]
    states: Mapping[str, TableState]
    incremental: frozenset[str] = frozenset()
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_being_loaded(self) -> bool:
        """Whether it is not ready yet: one that is and lacks some tables goes on serving its readers."""
        return self.ownership.state == "loading"

    @property
    def config(self) -> TargetConfig:
        """What the configuration says of the target."""
        return self.aim.routes.config

    @property
    def name(self) -> str:
        """The target's name in the configuration."""
        return self.access.name

    def state_of(self, route: Route) -> str | None:
        """What is recorded of the route's table; `None` when it was never begun, or was routed somewhere else."""
        state = self.states.get(route.source_name)
        return state.state if state is not None and state.target_name == route.target_name else None

    @property
    def loads(self) -> tuple[Load, ...]:
        """The tables that this target gets, each with the routes that fill it."""
        return group_routes(self.routes)

    def remaining(self) -> list[Load]:
        """The loads that are not complete."""
        return [load for load in self.loads if any(self.state_of(route) in (None, "copying") for route in load.routes)]

    def was_begun(self, load: Load) -> bool:
        """Whether what the load's table holds was copied by a run of ours."""
        return any(self.state_of(route) is not None for route in load.routes)

    def was_created_by_cdc(self, load: Load) -> bool:
        """Whether the load's table is one that `cdc` created."""
        return any(
            self.states[route.source_name].created_by_cdc for route in load.routes if self.state_of(route) is not None
        )

    def is_incremental(self, load: Load) -> bool:
        """Whether the load's table holds rows that somebody else loaded, and that stay; where there is a table yet."""
        wanted = any(route.source_name in self.incremental for route in load.routes)
        return wanted and not self.was_created_by_cdc(load)

    def keeps_rows(self, load: Load) -> bool:
        """Whether the table keeps the rows that it holds, if it exists: its first load adds those that are missing."""
        return self.is_incremental(load) and not self.was_begun(load)

    async def take_again(self) -> None:
        """Become its owner again, after a lane of this run streamed into it."""
        session = await self.ready()
        self.ownership = await position.take(session, self.aim.key)
        self.access = replace(self.access, fence=self.ownership.fence)
        await self.read_states()

    async def begin_anew(self) -> None:
        """Forget how far a load that was interrupted had come: its slot is gone, so nothing joins it to the stream."""
        session = await self.ready()
        with target_errors("forgetting an interrupted load", session.where):
            async with session.connection.transaction():
                await position.forget_load(session, self.aim.key, self.access.fence)
                for load in self.loads:
                    if self.is_incremental(load):  # its rows stay again, so it is no table that may be emptied
                        for route in load.routes:
                            await table_state.forget(session, self.aim.key, (route.source_schema, route.source_table))
        self.ownership = replace(self.ownership, position=None, history=None)
        await self.read_states()

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


async def find_targets(
    config: Config, names: Sequence[str], connection: Connection, source: SourceState, stack: AsyncExitStack
) -> tuple[SourceState, dict[str, Session], dict[str, Found]]:
    """Connect to these targets and read what they say of themselves; the connections are closed with ``stack``.

    Nothing is taken. ``connection`` leads to the source. Returned is also the source, with the end of its WAL as it is
    afterwards: what a worker streams meanwhile must not seem to be ahead of it. Raises `SetupError` when a target is
    not set up.
    """
    sessions: dict[str, Session] = {}
    states: dict[str, tuple[TargetState, TargetState | None]] = {}
    for name in names:
        settings = config.targets[name]
        dsn = for_asyncpg(settings.dsn.get_secret_value())
        session = await connect(dsn, application_name=application_name(config), target=name)
        stack.push_async_callback(session.close)
        sessions[name] = session
        present = None if await pending(session) else await position.read(session, config.pipeline)
        if present is None:
            raise SetupError(f"{session.where} is not set up for pipeline {config.pipeline!r}: run `cdc setup` first")
        states[name] = present, await position.read(session, generation_key(config.pipeline))
    _, wal_position = await read_clock(connection)
    source = replace(source, system=replace(source.system, wal_position=wal_position))
    found = {
        name: Found(config.targets[name], present, beside, _problem(sessions[name].where, name, present, source))
        for name, (present, beside) in states.items()
    }
    return source, sessions, found


def _problem(where: str, target: str, present: TargetState, source: SourceState) -> ResyncNeeded | None:
    """Why a target that was loaded cannot go on from this source and its slot."""
    if present.position is None or present.state == "loading":
        return None
    own = lane_slot(source.shared_slot, target)
    slot = own if own in source.slots else source.shared_slot
    return check_history(where, present.history, present.position, source.for_comparison(slot), target=target)


async def take(config: Config, aim: Aim, session: Session, routes: Sequence[Route]) -> Loading:
    """Become the owner of the generation that this run loads; the row of a second one is made where it is missing.

    ``routes`` are the target's, as the configuration says them.
    """
    if aim.is_beside:
        await position.register(session, aim.key, aim.target, only_tables=aim.routes.only)
    ownership = await position.take(session, aim.key)
    return await _loading(config, aim, session, ownership, routes)


async def look(config: Config, aim: Aim, routes: Sequence[Route]) -> Loading:
    """The same without taking it: for what needs no fence. On a session of its own, which the caller closes."""
    dsn = for_asyncpg(config.targets[aim.target].dsn.get_secret_value())
    session = await connect(dsn, application_name=application_name(config), target=aim.target)
    try:
        state = await position.read(session, aim.key)
        if state is None:
            raise SetupError(f"{session.where} is not set up for pipeline {config.pipeline!r}: run `cdc setup` first")
        ownership = Ownership(
            aim.key,
            state.target,
            state.fence,
            state.state,
            state.position,
            state.history,
            state.cut_over_heartbeat,
            state.consistent_at,
            state.consistent_time,
        )
        return await _loading(config, aim, session, ownership, routes)
    except BaseException:
        await session.close()
        raise


async def _loading(
    config: Config, aim: Aim, session: Session, ownership: Ownership, routes: Sequence[Route]
) -> Loading:
    dsn = for_asyncpg(config.targets[aim.target].dsn.get_secret_value())
    return Loading(
        aim=aim,
        access=TargetAccess(name=aim.target, dsn=dsn, pipeline=aim.key, fence=ownership.fence),
        application_name=application_name(config),
        session=session,
        ownership=ownership,
        routes=aim.routes.places(tuple(routes)),
        states={state.source_name: state for state in await table_state.read(session, aim.key)},
        incremental=_incremental(config, aim),
    )


def _incremental(config: Config, aim: Aim) -> frozenset[str]:
    """The tables whose rows stay; none beside others, where every table is new."""
    modes = {} if aim.is_beside else config.bootstrap.modes
    return frozenset(table for table, mode in modes.items() if mode == "incremental")


def application_name(config: Config) -> str:
    """What the servers call the sessions of a bootstrap."""
    return f"cdc bootstrap {config.pipeline}"


async def settle_history(loading: Loading, source: SourceState, say: Callable[[str], None]) -> None:
    """See that what an interrupted run left can still be joined to the stream; otherwise it begins anew.

    Raises `ResyncNeeded` for a target that was loaded to its end and cannot go on.
    """
    ownership = loading.ownership
    if ownership.position is None:
        return
    history = source.for_comparison(loading.aim.slot)
    where = loading.session.where
    problem = check_history(where, ownership.history, ownership.position, history, target=loading.name)
    # What was read of the old timeline may be rows that the new one has never had: a load is not joined across them.
    is_same_timeline = ownership.history is not None and ownership.history.timeline == source.system.timeline
    if problem is None and (is_same_timeline or not loading.is_being_loaded):
        return
    if problem is not None and not loading.is_being_loaded:
        raise problem
    say(f"{where}: what an interrupted run loaded cannot be joined to the stream any more, and is loaded again")
    await loading.begin_anew()


async def refuse_foreign_rows(loadings: Mapping[str, Loading]) -> None:
    """Raise `SetupError` that names every table that is to be loaded and holds rows that were not copied by us."""
    found: list[str] = []
    sql: list[str] = []
    for loading in loadings.values():
        names = [
            (load.schema, load.table)
            for load in loading.remaining()
            if not loading.was_begun(load) and not loading.keeps_rows(load)
        ]
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
