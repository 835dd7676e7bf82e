"""`cdc setup` and `cdc teardown`: what replication needs of the source and of the targets, made and unmade.

`setup` is idempotent and only ever adds: running it again after the configuration changed brings the publications up to
date. `teardown` removes exactly what `setup` and a bootstrap made, and nothing else (invariant 9): the slots of this
pipeline, its two publications, its heartbeat, its row in each target. What is shared with another pipeline (the schema
``cdc``) goes with the last one. Publications of somebody else and the rows of the targets stay.

The pipeline's heartbeat row at the source is the mark that a setup of ours has been here. It is written before the
publications and removed after everything else, so that either command can be killed at any point and run again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack

from cdc import statements
from cdc.config import Config, for_asyncpg
from cdc.errors import CdcError, ConfigurationError, SetupError, SlotInUse
from cdc.identifiers import quote, quote_qualified
from cdc.routing.patterns import nearest
from cdc.routing.router import build_all_routes
from cdc.source import catalog, heartbeat, publication, slot
from cdc.source.connection import Connection
from cdc.source.connection import connect as connect_source
from cdc.source.published import read_published_tables
from cdc.target import migrations, position, resync_request, table_state
from cdc.target.generation import generation_key
from cdc.target.session import Session, target_errors
from cdc.target.session import connect as connect_target

Say = Callable[[str], None]
"""Told every step that was taken, one sentence each."""

_GIVEN_UP = "it was given up (cdc teardown --load)"

_LOCK_WAIT_S = 10
"""How long to wait for a load that still writes into one of its tables."""


async def setup(config: Config, say: Say) -> None:
    """Create what is missing: heartbeat and publications at the source, the ``cdc`` schema in every target.

    Every target is tried, also when another one failed. Raises `ConfigurationError` before anything is changed when a
    route names what the source does not have; then the error of whatever could not be set up, several in an
    ``ExceptionGroup``.
    """
    async with await connect_source(
        config.source.dsn.get_secret_value(), application_name=f"{config.source.application_name} setup"
    ) as source:
        tables = {table.name: table for table in await read_published_tables(source, config.source)}
        routes = build_all_routes(config, catalog.columns_of(tables.values()), catalog.ancestors_of(tables.values()))
        wanted = {route.source_name for of_target in routes.values() for route in of_target}
        await _set_up_source(config, source, [tables[name] for name in sorted(wanted)], say)
    failures: list[CdcError] = []
    for name, target in config.targets.items():
        try:
            session = await connect_target(
                for_asyncpg(target.dsn.get_secret_value()), application_name=f"cdc setup {config.pipeline}", target=name
            )
            async with AsyncExitStack() as stack:
                stack.push_async_callback(session.close)
                await _set_up_target(config, session, name, say)
        except CdcError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise ExceptionGroup("targets that could not be set up", failures)


async def _set_up_source(config: Config, source: Connection, tables: Sequence[catalog.SourceTable], say: Say) -> None:
    names = config.source.publication_names
    existing = await publication.read(source, names)
    is_first = await heartbeat.read(source, config.pipeline) is None
    if config.source.manage_publications:
        if is_first:
            _refuse_foreign_publications(existing.values(), {table.name for table in tables})
    elif missing := [name for name in names if name not in existing]:
        raise SetupError(
            f"the source has no publication{'s' if len(missing) > 1 else ''} {' and no '.join(missing)}, and "
            f"manage_publications = false leaves that to somebody else: create it there, or correct source.publications"
        )
    await heartbeat.ensure(source, config.pipeline)
    say(f"source: the heartbeat of pipeline {config.pipeline} {'is created' if is_first else 'was there'}")
    if config.source.manage_publications:
        before = await publication.read_published(source, names)
        done = await publication.ensure(source, config.source.publication, tables)
        for statement in done:
            say(f"source: {statement}")
        now = await publication.read_published(source, names)
        for table in tables:
            for name in (table.name, *(leaf.name for leaf in table.leaves)):
                if "update" in now.get(name, ()) and "update" not in before.get(name, now[name]):
                    say(
                        f"source: updates and deletes of {name} are published from now on; those of before are not "
                        f"in the targets: cdc resync {table.name}"
                    )
        if not done:
            say(f"source: the publications {' and '.join(names)} were up to date")


def _refuse_foreign_publications(existing: Collection[publication.Publication], wanted: Collection[str]) -> None:
    """Raise `SetupError` when a publication that no setup of ours made would lose tables."""
    for present in existing:
        others = sorted(f"{schema}.{table}" for schema, table in present.tables)
        others = [name for name in others if name not in wanted]
        if others:
            raise SetupError(
                f"the source already has a publication {present.name}, which `cdc setup` did not create, with tables "
                f"that no target asks for ({', '.join(others[:5])}{', …' if len(others) > 5 else ''}): configure "
                f"another publication name, or follow this one with manage_publications = false"
            )


async def _set_up_target(config: Config, session: Session, name: str, say: Say) -> None:
    applied = await migrations.migrate(session)
    await position.register(session, config.pipeline, name)
    if applied:
        say(f"{name}: cdc's own tables are made or changed: {', '.join(step.name for step in applied)}")
    else:
        say(f"{name}: the schema cdc was up to date")


def teardown_scope(config: Config, target: str | None, *, load_only: bool = False) -> str:
    """What `teardown` or `give_up_load` would remove, for the question that comes first.

    Raises `ConfigurationError` where there is no such target.
    """
    if target is not None and target not in config.targets:
        guess = nearest(target, config.targets)
        raise ConfigurationError(
            f"--target: there is no target {target}{f'; did you mean {guess}?' if guess else ''}; "
            f"the configuration has {', '.join(config.targets)}"
        )
    if load_only:
        return f"what is being loaded beside the tables of target {target}, its slot included, and nothing else"
    if _is_partial(config, target):
        return f"the position of pipeline {config.pipeline} in target {target}, and nothing else"
    return (
        f"the pipeline {config.pipeline}: its slots, publications and heartbeat at the source, and its positions in "
        f"{', '.join(config.targets)}"
    )


def _is_partial(config: Config, target: str | None) -> bool:
    """Whether something of the pipeline is left: without its only target nothing is."""
    return target is not None and len(config.targets) > 1


async def teardown(config: Config, say: Say, *, target: str | None = None) -> None:
    """Remove what `setup` and a bootstrap made. Nothing is removed unless the source and every target can be reached.

    With ``target`` only what is in that one, so that it can be loaded again; the slot and the other targets stay, and
    the others need not be reached. The only target of a pipeline goes together with the pipeline. Raises `SlotInUse`
    while a worker streams, before anything is removed.
    """
    teardown_scope(config, target)
    is_partial = _is_partial(config, target)
    async with AsyncExitStack() as stack:
        source = await connect_source(
            config.source.dsn.get_secret_value(), application_name=f"{config.source.application_name} teardown"
        )
        stack.push_async_callback(source.close)
        sessions: dict[str, Session] = {}
        for name, settings in config.targets.items():
            if is_partial and name != target:
                continue
            sessions[name] = await connect_target(
                for_asyncpg(settings.dsn.get_secret_value()),
                application_name=f"cdc teardown {config.pipeline}",
                target=name,
            )
            stack.push_async_callback(sessions[name].close)
        slots = await _our_slots(config, source)
        is_set_up = await heartbeat.read(source, config.pipeline) is not None
        if is_set_up:
            _refuse_slots_in_use(slots)
            own = _slots_of(config, target) if is_partial and target is not None else None
            await _drop_slots(source, [one for one in slots if own is None or one.name in own], say)
        for name, session in sessions.items():
            await _tear_down_target(config, session, name, say)
        if is_partial:
            say(f"to load {target} again: empty its tables, run `cdc setup` and `cdc bootstrap --from live`")
        elif is_set_up:
            await _name_other_slots(config, source, say)
            await _tear_down_source(config, source, say)
        else:
            say(f"source: nothing of pipeline {config.pipeline} was there")


async def give_up_load(config: Config, say: Say, target: str) -> None:
    """Remove what is being loaded beside a target's tables, and all that remembers it; durable when it returns.

    That is its slot, its tables, its row in the target, and the open requests of `cdc resync` that it was for. The
    present tables go on as they are, and the worker may run. It can be run again. Raises `SlotInUse` while that load
    streams, before anything is removed; one that runs and does not stream yet fails with its next step.
    """
    teardown_scope(config, target)
    name = f"{config.source.application_name} teardown"
    async with AsyncExitStack() as stack:
        source = await connect_source(config.source.dsn.get_secret_value(), application_name=name)
        stack.push_async_callback(source.close)
        dsn = for_asyncpg(config.targets[target].dsn.get_secret_value())
        session = await connect_target(dsn, application_name=f"cdc teardown {config.pipeline}", target=target)
        stack.push_async_callback(session.close)
        is_set_up = not await migrations.pending(session)
        beside = await position.read(session, generation_key(config.pipeline)) if is_set_up else None
        present = await position.read(session, config.pipeline) if is_set_up else None
        asked = await resync_request.read_open(session, config.pipeline) if is_set_up else []
        asked = [request for request in asked if request.state == resync_request.SHADOW and not request.is_swapped]
        own = {slot.load_slot(config.source.slot, target)}
        if beside is not None and present is not None and present.state == "needs resync":
            # What was to take the place of tables that nothing can be streamed to was loaded with the lane's slot.
            own.add(slot.lane_slot(config.source.slot, target))
        slots = [found for found in await _our_slots(config, source) if found.name in own]
        if beside is None and not slots and not asked:
            say(f"{target}: nothing is being loaded beside its tables")
            return
        for found in slots:
            if found.active:
                raise SlotInUse(
                    f"the slot {found.name} is in use by the process {found.active_pid} of the source: end that `cdc "
                    "bootstrap` or `cdc resync` first; nothing was removed"
                )
        # The slot first: where there is one and no row in the target, a load counts as swapped in.
        await _drop_slots(source, slots, say)
        if is_set_up:
            with target_errors("giving up a load", session.where):
                async with session.connection.transaction():
                    await session.connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_WAIT_S}s'")
                    for request in asked:
                        await resync_request.fail(session, request, _GIVEN_UP, None)
                    await _drop_beside(config, session, target, say)
                    await position.forget_beside(session, config.pipeline)
            for request in asked:
                say(f"{target}: the request to read {request.table} again is ended")
        say(f"{target}: what was being loaded beside its tables is given up; these go on as they are")


async def _our_slots(config: Config, source: Connection) -> list[slot.Slot]:
    """The shared slot, those of the configured targets' lanes and of their loads, as far as they exist."""
    ours = {config.source.slot}.union(*(_slots_of(config, name) for name in config.targets))
    slots = await slot.read_slots(source, config.source.slot)
    database = source.info.dbname
    return [
        found for found in slots if found.name in ours and found.plugin == slot.PLUGIN and found.database == database
    ]


def _slots_of(config: Config, target: str) -> set[str]:
    """The slots that one target has to itself."""
    shared = config.source.slot
    return {slot.lane_slot(shared, target), slot.load_slot(shared, target)}


def _refuse_slots_in_use(slots: Sequence[slot.Slot]) -> None:
    for found in slots:
        if found.active:
            raise SlotInUse(
                f"the slot {found.name} is in use by the process {found.active_pid} of the source: stop the worker "
                f"(`cdc run`) first; nothing was removed"
            )


async def _drop_slots(source: Connection, slots: Sequence[slot.Slot], say: Say) -> None:
    for found in slots:
        if await slot.drop_slot(source, found.name):
            say(f"source: the slot {found.name} is dropped")


async def _name_other_slots(config: Config, source: Connection, say: Say) -> None:
    """Those that look like ours and stay."""
    for other in await slot.read_slots(source, config.source.slot):
        say(
            f"source: the slot {other.name} stays: it belongs to no target of this configuration "
            f"(SELECT pg_drop_replication_slot('{other.name}') drops it)"
        )


async def _tear_down_target(config: Config, session: Session, name: str, say: Say) -> None:
    if len(await migrations.pending(session)) == len(migrations.known()):
        say(f"{name}: nothing of pipeline {config.pipeline} was there")
        return
    tables = sorted({quote_qualified(t.target_schema, t.target_table) for t in await _tables(config, session)})
    await _drop_beside(config, session, name, say)
    if await position.forget(session, config.pipeline):
        await migrations.remove(session)
        say(f"{name}: the schema cdc is removed; the tables and their rows stay")
    else:
        say(f"{name}: the position is removed; the schema cdc stays, another pipeline uses it")
    if tables:
        say(f"{name}: before it can be loaded again: TRUNCATE {', '.join(tables)};")


async def _drop_beside(config: Config, session: Session, name: str, say: Say) -> None:
    """Tables that are being loaded beside others: `cdc` made them, and nobody reads them."""
    if await migrations.pending(session):
        return
    states = await table_state.read(session, generation_key(config.pipeline))
    beside = [state for state in states if state.created_by_cdc]
    with target_errors("dropping what was loaded beside", session.where):
        async with session.connection.transaction():
            tables = [quote_qualified(state.target_schema, state.target_table) for state in beside]
            if tables:
                # In one statement, because foreign keys may lead from one to another.
                await session.connection.execute(f"DROP TABLE IF EXISTS {', '.join(tables)}")
            for table in tables:
                say(f"{name}: {table}, which was being loaded beside, is dropped")
            for schema in sorted({state.target_schema for state in beside}):
                if await session.connection.fetchval(statements.load("target", "schema_holds_nothing"), quote(schema)):
                    await session.connection.execute(f"DROP SCHEMA {quote(schema)}")


async def _tables(config: Config, session: Session) -> list[table_state.TableState]:
    """The tables that were loaded; none where the schema is older than they are."""
    return [] if await migrations.pending(session) else await table_state.read(session, config.pipeline)


async def _tear_down_source(config: Config, source: Connection, say: Say) -> None:
    if config.source.manage_publications:
        existing = await publication.read(source, config.source.publication_names)
        if foreign := [name for name, found in existing.items() if found.all_tables or found.schemas]:
            for name in foreign:
                say(f"source: the publication {quote(name)} stays: `cdc setup` makes none of this kind")
        else:
            for name in await publication.drop(source, config.source.publication):
                say(f"source: the publication {name} is dropped")
    await heartbeat.drop(source, config.pipeline)
    say(f"source: the heartbeat of pipeline {config.pipeline} is removed")
