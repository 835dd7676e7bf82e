"""The ``cdc`` schema of a target: numbered files under ``sql/target/``, each applied once, in order.

`migrate` is idempotent, safe to run from several places at once, and one transaction: a target has all of the
migrations or stays as it was. Whoever adds a migration only adds a file; what has been released never changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import asyncpg

from cdc import statements
from cdc.errors import SetupError
from cdc.target.session import Session, target_errors

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)")

_LOCK = 0x636463_6D6967  # "cdcmig": any number nobody else locks; advisory locks are per database.

_MIGRATION_TABLE = """
CREATE TABLE cdc.migration (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE cdc.migration IS 'The migrations of the cdc schema that this database has';
COMMENT ON COLUMN cdc.migration.version IS 'Number of the file under sql/target/';
COMMENT ON COLUMN cdc.migration.name IS 'Name of that file, without number and ending';
COMMENT ON COLUMN cdc.migration.applied_at IS 'When it was applied, by this server''s clock';
"""

_CREATED = re.compile(r"^CREATE (?:UNLOGGED )?TABLE (cdc\.\w+)", re.MULTILINE)
"""What the migrations say when they create a table; they are ours, and written like this."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file: ``version``, its ``name``, and its ``sql`` of several statements."""

    version: int
    name: str
    sql: str


def known() -> tuple[Migration, ...]:
    """The migrations of this version of cdc, in order."""
    files = sorted((statements.directory() / "target").glob("[0-9]*_*.sql"))
    found = []
    for path in files:
        match = _FILE.fullmatch(path.stem)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], statements.load("target", path.stem)))
    return tuple(found)


async def migrate(session: Session, migrations: tuple[Migration, ...] | None = None) -> tuple[Migration, ...]:
    """Bring the ``cdc`` schema up to date and return what had to be applied; durable when it returns.

    ``migrations`` are those of this version unless given. Raises `SetupError` when the role may not create the schema,
    or when the schema is of a newer version of cdc.
    """
    wanted = known() if migrations is None else migrations
    connection = session.connection
    with target_errors("migrating the cdc schema", session.where):
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            applied = await _prepare(session)
            _refuse_newer(session, applied, wanted)
            missing = tuple(migration for migration in wanted if migration.version not in applied)
            for migration in missing:
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO cdc.migration (version, name) VALUES ($1, $2)", migration.version, migration.name
                )
    return missing


async def pending(session: Session) -> tuple[Migration, ...]:
    """The migrations that this target lacks; empty when it is up to date. Raises `SetupError` for a newer schema."""
    with target_errors("reading the cdc schema", session.where):
        state = await session.connection.fetchrow(statements.load("target", "is_migrated"))
        applied: set[int] = set()
        if state is not None and state["has_migrations"]:
            if not state["is_readable"]:
                raise SetupError(
                    f"{session.where}: the cdc schema belongs to another role; connect as its owner.",
                    sql="GRANT USAGE ON SCHEMA cdc TO …; GRANT ALL ON ALL TABLES IN SCHEMA cdc TO …;",
                )
            applied = await _applied(session.connection)
    _refuse_newer(session, applied, known())
    return tuple(migration for migration in known() if migration.version not in applied)


async def remove(session: Session) -> None:
    """Drop what the migrations created; the schema too, when nobody else keeps anything in it."""
    connection = session.connection
    with target_errors("removing the cdc schema", session.where):
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            await connection.execute(
                "DROP FUNCTION IF EXISTS"
                " cdc.advance(text, bigint, pg_lsn, pg_lsn, bigint, timestamptz, bigint, timestamptz),"
                " cdc.table_version(regclass)"
            )
            leftovers = [row["name"] for row in await connection.fetch(statements.load("target", "resync_leftovers"))]
            for table in (*leftovers, *_tables()):
                await connection.execute(f"DROP TABLE IF EXISTS {table}")
            if await connection.fetchval(statements.load("target", "schema_is_empty")):
                await connection.execute("DROP SCHEMA cdc")


def _tables() -> list[str]:
    """The tables that the migrations create, dependents first."""
    created = [table for migration in known() for table in _CREATED.findall(migration.sql)]
    return [*reversed(created), "cdc.migration"]


async def _prepare(session: Session) -> set[int]:
    """Create the schema and the list of migrations where they are missing; return the versions that are there.

    CREATE SCHEMA IF NOT EXISTS asks for the right to create schemas even where the schema exists, so look first.
    """
    state = await session.connection.fetchrow(statements.load("target", "is_migrated"))
    if state is None or not state["has_schema"]:
        await session.connection.execute("CREATE SCHEMA cdc")
        await session.connection.execute("COMMENT ON SCHEMA cdc IS 'Bookkeeping of the replicator cdc'")
    if state is None or not state["has_migrations"]:
        await session.connection.execute(_MIGRATION_TABLE)
    return await _applied(session.connection)


async def _applied(connection: asyncpg.Connection) -> set[int]:
    return {row["version"] for row in await connection.fetch("SELECT version FROM cdc.migration")}


def _refuse_newer(session: Session, applied: set[int], wanted: tuple[Migration, ...]) -> None:
    newest = max((migration.version for migration in wanted), default=0)
    if applied and max(applied) > newest:
        raise SetupError(
            f"{session.where}: its cdc schema has migration {max(applied)}, this version of cdc knows {newest} only; "
            "use the newer version of cdc that made it."
        )
