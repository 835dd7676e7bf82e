"""Whether there is anything left to load: looked at without taking a target, so that a worker may be running."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from cdc.bootstrap.start import replicated
from cdc.bootstrap.targets import application_name
from cdc.config import Config, for_asyncpg
from cdc.lsn import Lsn
from cdc.routing.router import build_all_routes
from cdc.source import heartbeat
from cdc.source.catalog import ancestors_of, columns_of
from cdc.source.connection import connect as connect_source
from cdc.source.published import read_published_tables
from cdc.source.slot import lane_slot, read_slots
from cdc.target import migrations, position, table_state
from cdc.target.generation import generation_key
from cdc.target.session import connect as connect_target


async def is_complete(config: Config, targets: Sequence[str]) -> bool:
    """Whether each of these targets holds every table that its routes name, from a bootstrap that came to its end."""
    name = application_name(config)
    async with await connect_source(config.source.dsn.get_secret_value(), application_name=name) as connection:
        slots = {slot.name: slot for slot in await read_slots(connection, config.source.slot)}
        beat = await heartbeat.read(connection, config.pipeline)
        if beat is None:
            return False
        tables = await read_published_tables(connection, config.source)
    routes = build_all_routes(config, columns_of(tables), ancestors_of(tables))
    wanted = {route.source_name for of_target in routes.values() for route in of_target}
    sources = replicated(tables, wanted, lambda _: None)
    for target in targets:
        lane = slots.get(lane_slot(config.source.slot, target)) or slots.get(config.source.slot)
        if lane is None or lane.is_lost or lane.confirmed_flush_lsn is None:
            return False
        needed = {route.source_name for route in routes[target] if route.source_name in sources}
        if not needed <= await _loaded(config, target, name, lane.confirmed_flush_lsn, beat.incarnation):
            return False
    return True


async def _loaded(config: Config, target: str, application: str, confirmed: Lsn, incarnation: UUID) -> set[str]:
    """The tables that a target holds; none before its bootstrap came to its end, or where the slot is ahead of it."""
    dsn = for_asyncpg(config.targets[target].dsn.get_secret_value())
    session = await connect_target(dsn, application_name=application, target=target)
    try:
        if await migrations.pending(session):
            return set()
        state = await position.read(session, config.pipeline)
        beside = await position.read(session, generation_key(config.pipeline))
        if beside is not None and beside.only_tables is None:
            return set()  # all of it is being loaded again
        if state is None or state.position is None or state.history is None:
            return set()
        is_joined = state.position >= confirmed and state.history.incarnation == incarnation
        if not is_joined or state.state in ("loading", "needs resync"):
            return set()
        return {
            table.source_name for table in await table_state.read(session, config.pipeline) if table.state != "copying"
        }
    finally:
        await session.close()
