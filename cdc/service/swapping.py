"""How a second generation takes the place of the first, at the end of its load.

The swap itself is one transaction of the target (`cdc.target.swap`). Here is what surrounds it: the lane of the second
generation has to reach the position at which the first is held, and to stop there. Why nothing is lost then: while the
first generation's row is locked its position P cannot move, and the shared slot is acknowledged no further than P,
because the target is attached to it. The second generation's position is at least P when it takes the row. So the
worker, which finds its fence gone and takes the target again, goes on from a position that the shared slot still has.

A target that was not attached (its slot was lost, or nobody shares one) has nobody to hold a position for. Its new
tables go on being streamed over the slot that they were loaded with, first by this run, then by the worker.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from cdc.bootstrap import tables
from cdc.bootstrap.aims import Aim
from cdc.bootstrap.run import LoadLane, Run, Scope
from cdc.bootstrap.start import free_slot
from cdc.bootstrap.targets import Loading, application_name, look, take
from cdc.config import Config, for_asyncpg
from cdc.lsn import Lsn
from cdc.routing.router import route_of
from cdc.routing.target_routes import TargetRoutes
from cdc.service.load_stream import LoadStream
from cdc.source.catalog import SourceTable
from cdc.source.connection import connect
from cdc.source.definitions import TableDefinitions, read_definitions
from cdc.source.published import read_published_tables
from cdc.source.slot import drop_slot, load_slot, read_slots
from cdc.target import missing_indexes, position, table_state
from cdc.target.dependents import obstacles, refusal
from cdc.target.generation import generation_key
from cdc.target.migrations import pending
from cdc.target.resync_request import read_open
from cdc.target.session import Session
from cdc.target.session import connect as connect_target
from cdc.target.swap import TableSwap, swap
from cdc.target.table_state import TableState


async def refuse_obstacles(run: Run, loading: Loading) -> None:
    """Raise `SetupError` for whatever would stop the swap at the end of the load, with the SQL that clears the way."""
    session = await loading.ready()
    swaps = []
    sources, definitions = await _read_source(run)
    for one in await _swaps(run.config, loading, session):
        source = sources.get(one.route.source_name)
        if source is not None:
            found = definitions[source.relation.oid]
            constraints = {check.name for check in found.checks} | _foreign_keys(run, found)
            shape = tables.new_table_of_route(one.route, source)
            swaps.append(replace(one, shape=shape, constraints=frozenset(constraints)))
    in_the_way = await obstacles(session, swaps)
    if in_the_way:
        raise refusal(session.where, in_the_way)


async def _read_source(run: Run) -> tuple[dict[str, SourceTable], dict[int, TableDefinitions]]:
    async with await run.connect() as connection:
        sources = {table.name: table for table in await read_published_tables(connection, run.config.source)}
        return sources, await read_definitions(connection, [table.relation.oid for table in sources.values()])


def _foreign_keys(run: Run, found: TableDefinitions) -> set[str]:
    """The names of the foreign keys that the new table gets."""
    return {key.name for key in found.foreign_keys} if run.config.bootstrap.foreign_keys else set()


async def _expecting_foreign_keys(run: Run, swaps: Sequence[TableSwap]) -> list[TableSwap]:
    """The swaps of some tables: their foreign keys lead out of the generation, and are made after the swap."""
    sources, definitions = await _read_source(run)
    keys = {name: _foreign_keys(run, definitions[source.relation.oid]) for name, source in sources.items()}
    return [replace(one, constraints=frozenset(keys.get(one.route.source_name, ()))) for one in swaps]


async def swap_in(run: Run, lane: LoadLane, stream: LoadStream, name: str) -> None:
    """Put the second generation of a target in the place of the first. Durable when it returns.

    The lane is stopped then. A target that the shared lane serves is left to the worker; others stay in this lane.
    """
    loading = lane.loadings[name]
    config = run.config
    session = await loading.ready()
    swaps = await _swaps(config, loading, session)
    if loading.aim.routes.only is not None:
        swaps = await _expecting_foreign_keys(run, swaps)
    for index in await missing_indexes.missing_indexes(session, swaps):
        run.progress.say(f"target {name}: index {index.name} is not the source's, and is built on the new table, too")
        async with run.records.step("index", index.name, targets=[name]):
            await missing_indexes.build_missing(session, index)

    async def caught_up(held: Lsn) -> Lsn:
        await stream.start()
        await stream.until_position(name, held)
        await stream.stop()
        reached = loading.ownership.position
        assert reached is not None  # it has been streaming
        return reached

    is_attached = lane.slot == load_slot(config.source.slot, name)

    async def go_on() -> None:
        await stream.start()

    # The swap's transaction is open while the lane ends and the run takes the generation: on another session.
    swapping = await connect_target(loading.access.dsn, application_name=run.application_name, target=name)
    try:
        async with run.records.step("swap", targets=[name]):
            await swap(
                swapping,
                pipeline=config.pipeline,
                swaps=swaps,
                whole=loading.aim.routes.only is None,
                caught_up=caught_up,
                go_on=go_on,
                say=run.progress.say,
                state="streaming" if is_attached else "loading",
            )
    finally:
        await swapping.close()
    await stream.stop()
    run.swapped.append(name)
    if is_attached:
        del lane.loadings[name]
        async with await run.connect() as connection:
            await free_slot(connection, lane.slot)
            await drop_slot(connection, lane.slot)
    else:
        aim = replace(present_aim(config, name), slot=lane.slot)
        present = await take(config, aim, await loading.ready(), run.routes[name])
        # The same object, because it is what closes the session when the run is over.
        loading.aim, loading.access, loading.ownership = present.aim, present.access, present.ownership
        loading.routes, loading.states = present.routes, present.states


async def present_of(run: Run, name: str) -> Loading:
    """A target whose tables have been swapped, as its readers see it; nothing is taken.

    Where some tables were, it knows the state of these alone, so that nothing is built on others.
    """
    loading = await look(run.config, present_aim(run.config, name), run.routes[name])
    loading.states = only(run.scope, name, loading.states)
    return loading


def only(scope: Scope, target: str, states: Mapping[str, TableState]) -> Mapping[str, TableState]:
    """The states of the tables that a run is to load."""
    wanted = None if scope.only is None else scope.only[target]
    return {table: state for table, state in states.items() if wanted is None or table in wanted}


def present_aim(config: Config, name: str) -> Aim:
    """The generation that the readers of a target see, which the shared lane serves."""
    return Aim(name, config.pipeline, TargetRoutes(config.targets[name]), config.source.slot)


async def swapped_before(config: Config, scope: Scope) -> list[str]:
    """The targets whose new tables were put in place by a run that was killed right afterwards.

    A load of some tables answers the requests for them in its swap's transaction. Of any other the slot is still there,
    and its generation is not: that ended with the swap's transaction.
    """
    name = application_name(config)
    async with await connect(config.source.dsn.get_secret_value(), application_name=name) as connection:
        slots = {slot.name for slot in await read_slots(connection, config.source.slot)}
    found = []
    for target in scope.names(config):
        wanted = None if scope.only is None else scope.only[target]
        if wanted is None and load_slot(config.source.slot, target) not in slots:
            continue
        async with _session(config, target) as session:
            requests = [] if await pending(session) else await read_open(session, config.pipeline)
            swapped = {request.table for request in requests if request.is_swapped}
            is_done = not swapped if wanted is None else wanted <= swapped
            if is_done and await position.read(session, generation_key(config.pipeline)) is None:
                found.append(target)
    return found


async def tidy(config: Config, targets: Sequence[str]) -> None:
    """Drop the slots of loads whose swap is done, which a run that was killed right afterwards left behind."""
    dsn = config.source.dsn.get_secret_value()
    async with await connect(dsn, application_name=application_name(config)) as connection:
        slots = {slot.name: slot for slot in await read_slots(connection, config.source.slot)}
        for target in targets:
            slot = slots.get(load_slot(config.source.slot, target))
            if slot is not None and not slot.active and not await _is_beside(config, target):
                await drop_slot(connection, slot.name)


async def forget_unbegun(config: Config, target: str) -> None:
    """Forget a load of some tables that was refused before it began, so that it is not in the way of another one."""
    dsn = config.source.dsn.get_secret_value()
    async with await connect(dsn, application_name=application_name(config)) as connection:
        slots = {slot.name for slot in await read_slots(connection, config.source.slot)}
    if load_slot(config.source.slot, target) not in slots:
        async with _session(config, target) as session:
            await position.forget_unbegun(session, generation_key(config.pipeline))


async def _is_beside(config: Config, target: str) -> bool:
    """Whether anything is being loaded beside the target's tables."""
    async with _session(config, target) as session:
        return await position.read(session, generation_key(config.pipeline)) is not None


@asynccontextmanager
async def _session(config: Config, target: str) -> AsyncIterator[Session]:
    dsn = for_asyncpg(config.targets[target].dsn.get_secret_value())
    session = await connect_target(dsn, application_name=application_name(config), target=target)
    try:
        yield session
    finally:
        await session.close()


async def _swaps(config: Config, loading: Loading, session: Session) -> list[TableSwap]:
    """The tables of a second generation, each with what stands in its place now."""
    present = {state.source_name: state for state in await table_state.read(session, config.pipeline)}
    swaps = []
    for route in loading.routes:
        there = route_of(loading.config, route.source_schema, route.source_table)
        assert there is not None  # the routes were made from the same configuration
        state = present.get(route.source_name)
        swaps.append(TableSwap(there, created_by_cdc=state is not None and state.created_by_cdc))
    return swaps
