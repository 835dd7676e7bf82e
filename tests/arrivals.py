"""The three ways by which values reach a target, side by side and without a worker: stream, live copy, backup.

::

    async with arrivals(source, make_target, binaries, directory, target_ddl="…") as ways:
        await ways.create("public.t", …)         # as a following target gets its tables
        source.execute("INSERT …")
        await ways.deliver()                     # the stream: what has been committed since the last time
        await ways.copy_live("public.t", …)      # a live copy, into another target
        await ways.restore("public.t", …)        # a backup, into a third
        ways.assert_equal("public.t", …)         # every value on every target is the source's, as text
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cdc.bootstrap.copying import Job, TargetAccess
from cdc.bootstrap.courtesy import Copies
from cdc.bootstrap.plan import plan_copy
from cdc.bootstrap.ranges import PageRange
from cdc.bootstrap.restoring import TableRestore, plan_restore, restore
from cdc.identifiers import quote, quote_qualified
from cdc.routing.patterns import split
from cdc.routing.route import Route
from cdc.source.catalog import SourceTable, read_tables
from cdc.source.connection import connect as connect_source
from cdc.target import migrations, position, schema
from cdc.target.catalog import read_table
from cdc.target.session import Session, connect
from tests.archives import opened
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.replica import Replica, open_replica


@dataclass
class Arrivals:
    """``restored`` and ``refused`` are tables, the latter with why a backup's text could not serve them."""

    source: Database
    replica: Replica
    live: Database
    backup: Database
    binaries: Path
    directory: Path
    sessions: dict[str, Session]
    access: dict[str, TargetAccess]
    job: Job
    refused: dict[str, str] = field(default_factory=dict)
    _dumps: int = 0

    @property
    def targets(self) -> dict[str, Database]:
        """The three targets by the way that leads there."""
        return {"stream": self.replica.target, "live": self.live, "backup": self.backup}

    async def create(self, *tables: str) -> None:
        """Create tables (``schema.table``) and their types on every target, as a following one gets them."""
        for found in await self._read(tables):
            for session in self.sessions.values():
                new = schema.new_table(
                    _route(found.name),
                    found.relation,
                    not_null=found.not_null,
                    primary_key=found.primary_key,
                    primary_key_name=found.primary_key_name,
                    collations=found.collations,
                )
                await schema.create_table(session, new)
                await schema.add_primary_key(session, new)

    async def deliver(self) -> None:
        """Stream what the source has committed since the last time."""
        await self.replica.deliver(compare=False)

    async def copy_live(self, *tables: str) -> None:
        """Copy tables from the live source."""
        connection = self.source.connection()
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        row = connection.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        try:
            await self._copy_live(row[0], tables)
        finally:
            connection.execute("ROLLBACK")

    async def _copy_live(self, snapshot: str, tables: tuple[str, ...]) -> None:
        for found in await self._read(tables):
            session = self.sessions["live"]
            there = await read_table(session.connection, *split(found.name))
            copy = plan_copy(
                _route(found.name),
                found,
                there,
                target="live",
                follows=True,
                triggers_disabled=session.triggers_disabled,
            )
            await self.job.copy(self.access["live"], copy, PageRange(0, None), snapshot)

    async def restore(self, *tables: str) -> None:
        """Dump the source, and restore tables; those that a backup cannot serve are noted in ``refused``."""
        self._dumps += 1
        archive = opened(self.binaries, self.source, self.directory / f"{self._dumps}.pgsql")
        for found in await self._read(tables):
            session = self.sessions["backup"]
            there = await read_table(session.connection, *split(found.name))
            planned = plan_restore(
                _route(found.name),
                found,
                archive.toc,
                there,
                (),
                target="backup",
                follows=True,
                triggers_disabled=session.triggers_disabled,
            )
            if isinstance(planned, TableRestore):
                await restore(self.job, self.access["backup"], archive, planned)
            else:
                self.refused[found.name] = planned

    def assert_equal(self, *tables: str, ways: Collection[str] = ("stream", "live", "backup")) -> None:
        """Every value of these tables is the same text, or the same NULL, on all sides."""
        for table in tables:
            name = quote_qualified(*split(table))
            shown = self.source.fetch(
                "SELECT attname, atttypid = 'xml'::regtype FROM pg_attribute WHERE attrelid = %s::regclass"
                " AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                name,
            )
            columns = [column for column, _ in shown]
            # A cast of xml shows what is stored, with an encoding that no output function shows.
            wanted = ", ".join(
                f"CASE WHEN {quote(column)} IS NOT NULL THEN format('%s', {quote(column)}) END"
                if is_xml
                else f"{quote(column)}::text"
                for column, is_xml in shown
            )
            expected = sorted(self.source.fetch(f"SELECT {wanted} FROM {name}"), key=repr)
            for way in ways:
                if way == "backup" and table in self.refused:
                    continue
                database = self.targets[way]
                found = sorted(database.fetch(f"SELECT {wanted} FROM {name}"), key=repr)
                assert len(found) == len(expected), (way, table)
                for ours, theirs in zip(expected, found, strict=True):
                    for column, mine, there in zip(columns, ours, theirs, strict=True):
                        assert there == mine, (way, table, column)

    async def _read(self, tables: tuple[str, ...]) -> list[SourceTable]:
        async with await connect_source(self.source.dsn, application_name="tests") as connection:
            found = await read_tables(connection, tables)
        assert len(found) == len(tables), tables
        return found


def _route(table: str) -> Route:
    return Route(*split(table), *split(table))


@asynccontextmanager
async def arrivals(
    source: Database, make_target: MakeDatabase, binaries: Path, directory: Path, *, target_ddl: str = ""
) -> AsyncIterator[Arrivals]:
    """Three targets of ``source``, on which ``target_ddl`` has been run."""
    live, backup = make_target("live"), make_target("backup")
    for database in (live, backup):
        database.execute(target_ddl)
    replica = await open_replica(source, make_target("stream"), "", target_ddl)
    sessions = {"stream": replica.session}
    access = {}
    job = Job(source.dsn, "tests", Copies())
    try:
        for name, database in (("live", live), ("backup", backup)):
            session = sessions[name] = await connect(database.dsn, application_name="tests", target=name)
            await migrations.migrate(session)
            await position.register(session, "cdc", name)
            fence = (await position.take(session, "cdc")).fence
            access[name] = TargetAccess(name=name, dsn=database.dsn, pipeline="cdc", fence=fence)
        yield Arrivals(source, replica, live, backup, binaries, directory, sessions, access, job)
    finally:
        await job.close()
        for session in sessions.values():
            await session.close()
