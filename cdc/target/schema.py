"""Tables for a target whose schema follows the source's: schemas, types, tables, primary keys.

Everything here only adds. What exists is never touched, whoever created it (invariant 9); where it does not fit, an
error says so. A table gets the columns that its route names, their types, collations and NOT NULL, and nothing else: no
defaults, no identity, no foreign keys, because every value comes from the source. Types are `cdc.target.new_types`.

The `NewTable` of a route is computed from the source's catalog by `new_table`, which is pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import asyncpg
import structlog

from cdc import statements
from cdc.changes.collation import Collation
from cdc.changes.generated_column import GeneratedColumn
from cdc.changes.relation import DataType, Relation
from cdc.errors import SetupError
from cdc.identifiers import quote, quote_list, quote_qualified
from cdc.routing.projection import project
from cdc.routing.route import Route
from cdc.target.deletion_column import TIMESTAMPTZ
from cdc.target.new_types import create_schema, create_types
from cdc.target.session import Session, server_error, target_errors
from cdc.target.suspects import NOT_SUPPORTED

VIRTUAL_COLUMNS = 180_000
"""The first version with columns that are computed when they are read."""

_CANNOT_COMPUTE = ("0A", "3F", "42")
"""Classes of SQLSTATE that an expression gives whose function, type, schema or column is missing, or not allowed."""

_LACKS_LOCALE = (NOT_SUPPORTED, "22023", "42704")
"""What CREATE COLLATION says of a provider that the server was built without, and of a locale that its system lacks."""

_log = structlog.get_logger(__name__)

_LOCK = 0x636463_646464  # "cdcddd": one creator at a time, so that two tables of one new enum do not collide.


@dataclass(frozen=True, slots=True)
class NewColumn:
    """A column to create."""

    name: str
    type: DataType
    not_null: bool
    collation: Collation | None = None


@dataclass(frozen=True, slots=True)
class NewTable:
    """A table to create.

    ``primary_key`` are its columns in the order of the source's key; empty for none. ``primary_key_name`` is what the
    source calls it. ``generated`` are columns that it computes itself, as the source's table does.
    """

    schema: str
    name: str
    columns: tuple[NewColumn, ...]
    primary_key: tuple[str, ...]
    primary_key_name: str | None = None
    generated: tuple[GeneratedColumn, ...] = ()

    @property
    def sql_name(self) -> str:
        """``"schema"."table"``."""
        return quote_qualified(self.schema, self.name)

    def as_plain(self) -> NewTable:
        """The same with columns to be written in the place of those that it computes."""
        columns = list(self.columns)
        for column in self.generated:
            columns.insert(column.place, NewColumn(column.name, column.type, column.not_null))
        return replace(self, columns=tuple(columns), generated=())


def new_table(
    route: Route,
    relation: Relation,
    *,
    not_null: Collection[str],
    primary_key: Iterable[str],
    primary_key_name: str | None = None,
    collations: Mapping[str, Collation] | None = None,
    generated: Iterable[GeneratedColumn] = (),
) -> NewTable:
    """The table that a route asks for. ``not_null``, ``primary_key`` and ``collations`` name columns of the source.

    Columns that the route does not name are left out (invariant 7), and so is a primary key that needs one of them. A
    route that takes all columns takes the ``generated`` ones, too: nobody sends their values, so the target computes
    them. The column that notes when a row was deleted comes last.
    """
    projection = project(relation, route)
    sources = [relation.columns[index] for index in projection.indices]
    columns = tuple(
        NewColumn(name, column.type, column.name in not_null, (collations or {}).get(column.name))
        for column, name in zip(sources, projection.target_columns, strict=True)
    )
    if route.deleted_at is not None:
        columns += (NewColumn(route.deleted_at, TIMESTAMPTZ, not_null=False),)
    key = tuple(route.target_column(name) for name in primary_key)
    computed = tuple(generated) if route.columns is None else ()
    names = {column.name for column in columns} | {column.name for column in computed}
    return NewTable(
        schema=route.target_schema,
        name=route.target_table,
        columns=columns,
        primary_key=tuple(name for name in key if name is not None) if names.issuperset(key) else (),
        primary_key_name=primary_key_name,
        generated=computed,
    )


def create_table_sql(table: NewTable, left_out: Collection[Collation] = (), *, has_virtual: bool = False) -> str:
    """CREATE TABLE, without its primary key: building that after the rows are in is much faster.

    Columns have their collations, but those ``left_out``.
    """
    columns = [
        f"{quote(column.name)} {column.type.sql}"
        + (f" COLLATE {column.collation.sql_name}" if column.collation and column.collation not in left_out else "")
        + (" NOT NULL" if column.not_null else "")
        for column in table.columns
    ]
    for computed in table.generated:
        columns.insert(computed.place, computed.definition(has_virtual=has_virtual))
    lines = ",\n".join(f"    {column}" for column in columns)
    return f"CREATE TABLE {table.sql_name} (\n{lines}\n)"


async def create_table(session: Session, table: NewTable) -> bool:
    """Create a table with the schema and the types that it needs, where they are missing; true when it was missing.

    All of it is one transaction: durable, or not there. The primary key comes with `add_primary_key`. Raises
    `SetupError` for a type that only an extension or a person can create, and where the role may not create. A
    collation of ``pg_catalog`` that the target's server lacks is left out: it orders strings, and changes none.
    """
    connection = session.connection
    with target_errors(f"creating table {table.schema}.{table.name}", session.where):
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            if await _exists(connection, table.schema, table.name):
                return False
            await create_schema(connection, table.schema)
            await create_types(session, (column.type for column in table.columns))
            collations = {column.collation for column in table.columns if column.collation is not None}
            lacking = {collation for collation in collations if not await _create_collation(session, table, collation)}
            await _create_computing(session, table, lacking)
    return True


async def _create_computing(session: Session, table: NewTable, left_out: Collection[Collation]) -> None:
    """Create the table with as many of its generated columns as the target can compute; a warning names the others.

    What an expression needs may be missing here: a function, a type, a column that is not routed.
    """
    connection, has_virtual = session.connection, session.server_version >= VIRTUAL_COLUMNS
    try:
        async with connection.transaction():
            await connection.execute(create_table_sql(table, left_out, has_virtual=has_virtual))
            return
    except asyncpg.PostgresError as error:
        if not table.generated or error.sqlstate[:2] not in _CANNOT_COMPUTE:
            raise
    await connection.execute(create_table_sql(replace(table, generated=()), left_out))
    for column in table.generated:
        definition = column.definition(has_virtual=has_virtual)
        try:
            async with connection.transaction():
                await connection.execute(f"ALTER TABLE {table.sql_name} ADD COLUMN {definition}")
        except asyncpg.PostgresError as error:
            if error.sqlstate[:2] not in _CANNOT_COMPUTE:
                raise
            _log.warning(
                "a generated column is left out, because the target cannot compute it",
                table=f"{table.schema}.{table.name}",
                column=column.name,
                sqlstate=error.sqlstate,
            )


async def add_primary_key(session: Session, table: NewTable) -> bool:
    """Add the primary key where the table has none, under the source's name if that is free; true when it was added.

    It needs the strongest lock: `TargetUnavailable` where that is not granted in time, so that nobody queues behind us
    (hazard 16); the caller tries again. NOT NULL is there already.
    """
    if not table.primary_key:
        return False
    with target_errors(f"adding the primary key of {table.schema}.{table.name}", session.where):
        has_one = await session.connection.fetchval(statements.load("target", "has_primary_key"), table.sql_name)
        if has_one or not await _has_columns(session.connection, table):
            return False
        name = await _constraint_name(session.connection, table)
        await session.connection.execute(
            f"ALTER TABLE {table.sql_name} ADD {name}PRIMARY KEY ({quote_list(table.primary_key)})"
        )
    return True


async def _has_columns(connection: asyncpg.Connection, table: NewTable) -> bool:
    """Whether all columns of the key are there: one that the target cannot compute is not."""
    if not {column.name for column in table.generated}.intersection(table.primary_key):
        return True
    found = await connection.fetchval(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = $1::regclass AND attname = ANY ($2) AND NOT attisdropped",
        table.sql_name,
        table.primary_key,
    )
    return bool(found == len(table.primary_key))


async def _constraint_name(connection: asyncpg.Connection, table: NewTable) -> str:
    """``CONSTRAINT name`` as at the source; nothing where something else in the schema has that name."""
    name = table.primary_key_name
    if name is None or await _exists(connection, table.schema, name):
        return ""
    return f"CONSTRAINT {quote(name)} "


async def _exists(connection: asyncpg.Connection, schema: str, table: str) -> bool:
    found = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", quote_qualified(schema, table))
    return bool(found)


async def _create_collation(session: Session, table: NewTable, collation: Collation) -> bool:
    """See that the target has a collation; false where it is one of the server's own that this server lacks.

    Raises `SetupError` where the server has not what it is made of.
    """
    connection = session.connection
    exists = "SELECT pg_catalog.to_regcollation($1) IS NOT NULL"
    if await connection.fetchval(exists, collation.sql_name):
        return True
    if collation.schema == "pg_catalog" and collation.is_deterministic:
        _log.warning("the target's server lacks a collation; columns are created without it", collation=collation.name)
        return False
    await create_schema(connection, collation.schema)
    try:
        await connection.execute(f"CREATE COLLATION {collation.sql_name} ({collation.definition})")
    except asyncpg.PostgresError as error:
        if error.sqlstate not in _LACKS_LOCALE:
            raise
        columns = ", ".join(column.name for column in table.columns if column.collation == collation)
        raise SetupError(
            f"{session.where}: table {table.schema}.{table.name}: the collation {collation.schema}.{collation.name} of "
            f"its column {columns} cannot be created there, because the server lacks what it is made of "
            f"({collation.definition}; SQLSTATE {error.sqlstate}). Leave the column out of the route, create a "
            "collation of that name there, or use another build of the server.",
            server=server_error(error),
        ) from None
    return True
