"""What tables get once their rows are there: indexes, constraints, comments; and the target its views and sequences.

All of it comes from the source's live catalog, whatever the rows came from, and goes to targets that follow: to tables
that `cdc` created, and only where every column that a thing needs is routed. A target gets it

- *unique indexes* (not before the target is exactly consistent: history replays through them only by luck), *other
  indexes*, *checks*: as at the source. What the source has NOT VALID is left out: its own rows need not satisfy it.
- *foreign keys*, with ``bootstrap.foreign_keys``: checked at COMMIT, and never acting on rows, because what the source
  did to them is in the stream. One whose parent this target does not have, or without its key, is refused.
- *comments*: where there is none yet.
- *views*, where the target takes all columns: those that its patterns take and whose relations are there. Materialized
  ones are only named: when to refresh them is a decision (`cdc.bootstrap.enrichment`).
- *sequences* of its columns, at the source's position at this moment, so that the database can serve as a rescue copy.
  No column draws on them: replication writes every value.

Every target, owned ones too, gets *statistics* of what was filled.

A generation that is loaded beside another gets what belongs to its tables; views, sequences, and foreign keys that lead
out of it (two generations never stand at the same position) come when `build` is called again after the swap. It can be
called at any time: only what is missing is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from cdc.bootstrap.building import STATISTICS, BuildTarget, Work, build_all
from cdc.bootstrap.copying import Job
from cdc.bootstrap.plan import Load
from cdc.bootstrap.table_definitions import TableWorks
from cdc.bootstrap.views import takes_views, view_works
from cdc.config import Config
from cdc.identifiers import quote_qualified
from cdc.source.catalog import read_tables
from cdc.source.connection import Connection
from cdc.source.definitions import read_comments, read_definitions, read_views
from cdc.target.session import Session, target_errors

__all__ = ["BuildTarget", "analyze", "build"]

Filled = Mapping[str, Sequence[Load]]
"""By target, tables whose rows are new."""


async def build(
    jobs: Sequence[Job],
    targets: Mapping[str, BuildTarget],
    connection: Connection,
    *,
    concurrently: bool,
    config: Config,
    say: Callable[[str], None],
    filled: Filled = MappingProxyType({}),
) -> list[str]:
    """Build what is missing, one thing at a time on each job; durable when it returns.

    ``connection`` leads to the source. ``filled`` are tables of which statistics are collected, too. ``concurrently``:
    changes are streamed into the tables meanwhile, and must not have to wait; the targets' fences are then not asked,
    because whoever streams takes them anew after each lost connection. Returns a warning, SQL included, for whatever
    was left out. Raises `FenceLost`, `SourceUnavailable`, and `TargetUnavailable` where a target stayed away for long:
    the next call goes on.
    """
    wanted = {route.source_name for target in targets.values() for route in target.created()}
    sources = {table.name: table for table in await read_tables(connection, wanted)}
    found = await read_definitions(connection, [table.relation.oid for table in sources.values()])
    views = await read_views(connection) if any(takes_views(target) for target in targets.values()) else []
    comments = await read_comments(connection, [view.oid for view in views])
    warnings: list[str] = []
    works: list[Work] = []
    for target in targets.values():
        for route in target.created():
            source = sources.get(route.source_name)
            if source is not None:
                table = TableWorks(target, route, source, found[source.relation.oid], concurrently, config)
                works += table.works(warnings.append)
        if takes_views(target):
            works += view_works(target, views, comments, warnings.append)
    works += _statistics(targets, filled)
    works.sort(key=lambda work: (work.rank, work.kind != "unique index", -work.size))
    return warnings + await build_all(jobs, works, say)


async def analyze(jobs: Sequence[Job], targets: Mapping[str, BuildTarget], filled: Filled) -> list[str]:
    """Collect statistics of tables that were filled; returns a warning for each where that failed."""
    return await build_all(jobs, _statistics(targets, filled), lambda _: None)


def _statistics(targets: Mapping[str, BuildTarget], filled: Filled) -> list[Work]:
    return [_statistics_of(target, load) for name, target in targets.items() for load in filled.get(name, ())]


def _statistics_of(target: BuildTarget, load: Load) -> Work:
    table = quote_qualified(load.schema, load.table)

    async def is_there(_: Session) -> bool:
        return False

    async def collect(session: Session) -> bool:
        # The server leaves a table out, with a warning of its own, that our role may not analyze.
        with target_errors(f"collecting statistics of {load.name}", session.where):
            await session.connection.execute(f"ANALYZE {table}")
        return True

    return Work(
        target,
        "statistics",
        f"of {load.name}",
        f"ANALYZE {table}",
        STATISTICS,
        0,
        frozenset([(target.access.name, load.schema, load.table)]),
        is_there,
        collect,
        is_recorded=False,
        is_said=False,
    )
