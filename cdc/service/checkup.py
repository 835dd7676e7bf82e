"""`cdc check`: everything that would stop or endanger replication, finding by finding, with what mends it.

The source and each target judge themselves (`cdc.source.check`, `cdc.target.check`); here they are told what is routed,
and what only both together can tell is added: whether the configuration names what exists, and whether a target's
position and the slot still belong to one history (invariant 5). Nothing is changed anywhere. A database that cannot be
reached is a finding like any other, and the rest is checked all the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from rich.text import Text

from cdc.bootstrap.extensions import require_extensions
from cdc.changes.column_origin import ColumnOrigin
from cdc.config import Config, TargetConfig, for_asyncpg
from cdc.errors import CdcError, ConfigurationError, SetupError
from cdc.observe.finding import Finding, Severity
from cdc.routing.route import Route
from cdc.routing.router import build_routes, unknown_modes
from cdc.routing.target_routes import TargetRoutes
from cdc.service.access import open_session
from cdc.service.sequences import used_by
from cdc.source import check as source_check
from cdc.source import heartbeat
from cdc.source.catalog import SourceTable, ancestors_of, columns_of, read_origins
from cdc.source.connection import connect as connect_source
from cdc.source.published import read_published_tables
from cdc.source.replication import ReplicationConnection
from cdc.source.sequences import SequenceUse, read_sequences
from cdc.source.slot import LANE_SEPARATOR, Slot, read_slots
from cdc.target import check as target_check
from cdc.target import migrations, position
from cdc.target.definitions import lacking_relations
from cdc.target.history import SourceHistory, check_history
from cdc.target.position import TargetState
from cdc.target.session import connect as connect_target

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "cyan", Severity.OK: "green"}
_INDENT = " " * 10


@dataclass(frozen=True, slots=True)
class _Source:
    """What the source has: tables by name, how their columns came to be by the table's oid, and slots like ours."""

    tables: Mapping[str, SourceTable]
    origins: Mapping[int, Mapping[str, ColumnOrigin]]
    slots: Sequence[Slot]
    sequences: Sequence[SequenceUse]


async def check(config: Config) -> list[Finding]:
    """All findings: of the configuration, the source, every target, and of what they are to each other."""
    source = await _look_at_source(config)
    routes: dict[str, tuple[Route, ...]] = {}
    findings: list[Finding] = []
    for name, target in config.targets.items():
        wrong, routes[name] = _route(name, target, source)
        findings += wrong
    if source:
        modes = unknown_modes(config, source.tables)
        findings += [Finding(Severity.ERROR, "source", "configuration", problem) for problem in modes]
    skipped, routes = _without_unreplicable(config, routes, source)
    routed = {route.source_name for of_target in routes.values() for route in of_target}
    async with asyncio.TaskGroup() as group:
        at_source = group.create_task(source_check.check(config.source, pipeline=config.pipeline, routed=routed))
        at_targets = [
            group.create_task(
                target_check.check(
                    name,
                    for_asyncpg(target.dsn.get_secret_value()),
                    config.pipeline,
                    follows=target.follows,
                    tables=[(route, source.tables[route.source_name].relation) for route in routes[name]]
                    if source
                    else [],
                    origins=source.origins if source else None,
                    generated={table.relation.oid: table.generated for table in source.tables.values()}
                    if source
                    else None,
                )
            )
            for name, target in config.targets.items()
        ]
    findings += at_source.result() + skipped
    if source:
        findings += _unknown_lanes(config, source)
        findings += _unreadable_sequences(config, source)
    for task in at_targets:
        findings += task.result()
    findings += await _missing_extensions(config, routes)
    if source:
        compared = await _histories(config, source)
        # A target that has stored the same refusal has said it already, as of the time when it was stored.
        said = {(finding.where, finding.subject) for finding in compared}
        findings = [one for one in findings if not (one.stops and (one.where, one.subject) in said)] + compared
    return findings


async def _look_at_source(config: Config) -> _Source | None:
    """`None` when it cannot be reached: `cdc.source.check` says why."""
    try:
        async with await connect_source(
            config.source.dsn.get_secret_value(), application_name=config.source.application_name
        ) as connection:
            tables = {table.name: table for table in await read_published_tables(connection, config.source)}
            origins = await read_origins(connection, [table.relation.oid for table in tables.values()], config.source)
            asked = any(target.sequences == "sync" for target in config.targets.values())
            sequences = await read_sequences(connection) if asked else []
            return _Source(tables, origins, await read_slots(connection, config.source.slot), sequences)
    except CdcError:
        return None


def _route(name: str, target: TargetConfig, source: _Source | None) -> tuple[list[Finding], tuple[Route, ...]]:
    """The routes of one target, or what is wrong with them."""
    if source is None:
        return [], ()
    tables = source.tables.values()
    try:
        return [], build_routes(name, target, columns_of(tables), ancestors_of(tables))
    except ConfigurationError as error:
        return [Finding(Severity.ERROR, name, "configuration", line) for line in str(error).splitlines()], ()


def _without_unreplicable(
    config: Config, routes: Mapping[str, tuple[Route, ...]], source: _Source | None
) -> tuple[list[Finding], dict[str, tuple[Route, ...]]]:
    """Leave out what a pattern takes and nobody can replicate, and say so once.

    A table of that kind that is named exactly stays: it was asked for, and the source's check calls it an error.
    """
    if source is None:
        return [], dict(routes)
    named = {table for target in config.targets.values() for table in target.tables}
    taken = {route.source_name for of_target in routes.values() for route in of_target}
    left_out = {name for name in taken - named if not source.tables[name].is_publishable}
    findings = []
    for name in sorted(left_out):
        message = f"taken by a pattern, and {source.tables[name].why_not}; it is not replicated"
        findings.append(Finding(Severity.INFO, "source", f"table {name}", message))
    return findings, {
        target: tuple(route for route in of_target if route.source_name not in left_out)
        for target, of_target in routes.items()
    }


def _unknown_lanes(config: Config, source: _Source) -> Iterator[Finding]:
    """Slots with our prefix that no target of the configuration explains: they keep WAL for nobody (hazard 2)."""
    known = {config.source.slot} | {f"{config.source.slot}{LANE_SEPARATOR}{name}" for name in config.targets}
    for slot in source.slots:
        if slot.name not in known:
            message = "named like a lane of this pipeline, but no target explains it: it keeps WAL for nobody"
            mend = f"SELECT pg_drop_replication_slot('{slot.name}');"
            yield Finding(Severity.WARNING, "source", f"slot {slot.name}", message, mend)


def _unreadable_sequences(config: Config, source: _Source) -> Iterator[Finding]:
    """Sequences that are to follow, and whose position the source does not let us read."""
    asked = [TargetRoutes(target) for target in config.targets.values() if target.sequences == "sync"]
    unreadable = {
        use.sequence.sql_name
        for routes in asked
        for use in used_by(routes, source.sequences)
        if use.sequence.last_value is None
    }
    for name in sorted(unreadable):
        message = 'it may not be read, so that it does not follow at the targets that ask for it (sequences = "sync")'
        mend = f"GRANT SELECT ON SEQUENCE {name} TO …; -- the role that cdc connects as; and USAGE on its schema"
        yield Finding(Severity.WARNING, "source", f"sequence {name}", message, mend)


async def _missing_extensions(config: Config, routes: Mapping[str, tuple[Route, ...]]) -> list[Finding]:
    """What a bootstrap would refuse: extensions that following targets lack. One that has all its tables needs none."""
    findings: list[Finding] = []
    for name, target in config.targets.items():
        if not target.follows or not routes[name]:
            continue
        with suppress(CdcError):  # the checks of the source and of the target have said why
            session = await open_session(config, name)
            try:
                wanted = [(route.target_schema, route.target_table) for route in routes[name]]
                if not await lacking_relations(session, wanted):
                    continue
                dsn, application = config.source.dsn.get_secret_value(), config.source.application_name
                async with await connect_source(dsn, application_name=application) as connection:
                    left_out = await require_extensions(config, connection, {name: (session, routes[name])})
                findings += [Finding(Severity.WARNING, name, "extensions", warning) for warning in left_out]
            except SetupError as refused:
                findings.append(Finding(Severity.ERROR, name, "extensions", str(refused), refused.sql))
            finally:
                await session.close()
    return findings


async def _histories(config: Config, source: _Source) -> list[Finding]:
    """Targets whose position cannot be gone on from.

    Positions are read between the slot and the end of the WAL: a worker that moves both meanwhile makes no difference.
    """
    states = {name: await _state(name, target, config.pipeline) for name, target in config.targets.items()}
    loaded = {name: state for name, state in states.items() if state is not None and state.position is not None}
    if not loaded:
        return []
    try:
        now = await _history(config, source)
    except CdcError:
        return []  # cdc.source.check has said why
    findings = []
    for name, state in loaded.items():
        problem = check_history(f"target {name}", state.history, state.position, now, target=name)
        if problem is not None:
            findings.append(Finding(Severity.ERROR, name, "position", str(problem), problem.sql))
    return findings


async def _state(name: str, target: TargetConfig, pipeline: str) -> TargetState | None:
    try:
        session = await connect_target(
            for_asyncpg(target.dsn.get_secret_value()), application_name=f"cdc check {pipeline}", target=name
        )
    except CdcError:
        return None
    try:
        return None if await migrations.pending(session) else await position.read(session, pipeline)
    except CdcError:
        return None
    finally:
        await session.close()


async def _history(config: Config, source: _Source) -> SourceHistory:
    dsn, name = config.source.dsn.get_secret_value(), config.source.application_name
    async with await connect_source(dsn, application_name=name) as connection:
        beat = await heartbeat.read(connection, config.pipeline)
    async with await ReplicationConnection.open(dsn, name) as walsender:
        system = await walsender.identify_system()
        switch_points = await walsender.timeline_history(system.timeline)
    slot = next((slot for slot in source.slots if slot.name == config.source.slot), None)
    return SourceHistory(
        system_identifier=system.system_identifier,
        timeline=system.timeline,
        switch_points=switch_points,
        wal_position=system.wal_position,
        slot=config.source.slot,
        confirmed_lsn=slot.confirmed_flush_lsn if slot else None,
        slot_loss=None if slot is None else slot.loss,
        incarnation=beat.incarnation if beat else None,
    )


def render(findings: Sequence[Finding]) -> Iterator[Text]:
    """The findings for a person, line by line: by database, the worst first, what mends it ready to be copied."""
    for where in dict.fromkeys(finding.where for finding in findings):
        yield Text(where, style="bold")
        order = list(Severity)
        for finding in sorted(
            (one for one in findings if one.where == where), key=lambda one: order.index(one.severity)
        ):
            style = _STYLES[finding.severity]
            yield Text.assemble("  ", (f"{finding.severity.value:<8}", style), f"{finding.subject}: {finding.message}")
            for line in (finding.mend or "").splitlines():
                yield Text(_INDENT + line, style="dim")
    errors = sum(finding.stops for finding in findings)
    warnings = sum(finding.severity is Severity.WARNING for finding in findings)
    verdict = "replication can run" if not errors else "replication cannot run until the errors are mended"
    counted = f"{_count(errors, 'error')}, {_count(warnings, 'warning')}"
    yield Text(f"{counted}: {verdict}", style="bold red" if errors else "bold green")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def to_json(findings: Sequence[Finding]) -> str:
    """``{"can_run": …, "findings": [{severity, where, subject, message, mend}, …]}``."""
    can_run = not any(finding.stops for finding in findings)
    return json.dumps({"can_run": can_run, "findings": [asdict(finding) for finding in findings]}, indent=2)
