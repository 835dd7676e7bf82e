"""Tables for a target whose schema follows the source's: schemas, types, tables, primary keys.

Everything here only adds. What exists is never touched, whoever created it (invariant 9); where it does not fit, an
error says so. A table gets the columns that its route names, their types and NOT NULL, and nothing else: no defaults,
no identity, no foreign keys, because every value comes from the source. A domain is created over its base type without
its checks, which the source has made already.

The `NewTable` of a route is computed from the source's catalog by `new_table`, which is pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import asyncpg
import structlog

from cdc import statements
from cdc.changes.generated_column import GeneratedColumn
from cdc.changes.relation import DataType, Relation
from cdc.errors import SetupError
from cdc.identifiers import quote, quote_list, quote_literal, quote_qualified
from cdc.routing.projection import project
from cdc.routing.route import Route
from cdc.target.catalog import types_by_name
from cdc.target.session import Session, target_errors

VIRTUAL_COLUMNS = 180_000
"""The first version with columns that are computed when they are read."""

_CANNOT_COMPUTE = ("0A", "3F", "42")
"""Classes of SQLSTATE that an expression gives whose function, type, schema or column is missing, or not allowed."""

_log = structlog.get_logger(__name__)

_LOCK = 0x636463_646464  # "cdcddd": one creator at a time, so that two tables of one new enum do not collide.


@dataclass(frozen=True, slots=True)
class NewColumn:
    """A column to create."""

    name: str
    type: DataType
    not_null: bool


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
    generated: Iterable[GeneratedColumn] = (),
) -> NewTable:
    """The table that a route asks for. ``not_null`` and ``primary_key`` name columns of the source.

    Columns that the route does not name are left out (invariant 7), and so is a primary key that needs one of them. A
    route that takes all columns takes the ``generated`` ones, too: nobody sends their values, so the target computes
    them.
    """
    projection = project(relation, route)
    columns = tuple(
        NewColumn(name, relation.columns[index].type, relation.columns[index].name in not_null)
        for index, name in zip(projection.indices, projection.target_columns, strict=True)
    )
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


def create_table_sql(table: NewTable, *, has_virtual: bool = False) -> str:
    """CREATE TABLE, without its primary key: building that after the rows are in is much faster."""
    columns = [
        f"{quote(column.name)} {column.type.sql}{' NOT NULL' if column.not_null else ''}" for column in table.columns
    ]
    for computed in table.generated:
        columns.insert(computed.place, computed.definition(has_virtual=has_virtual))
    lines = ",\n".join(f"    {column}" for column in columns)
    return f"CREATE TABLE {table.sql_name} (\n{lines}\n)"


def create_type_sql(data_type: DataType) -> str | None:
    """CREATE TYPE for an enum, CREATE DOMAIN for a domain; `None` for what cannot be made from its description."""
    name = quote_qualified(data_type.schema, data_type.name)
    if data_type.kind == "e":
        labels = ", ".join(quote_literal(label) for label in data_type.labels)
        return f"CREATE TYPE {name} AS ENUM ({labels})"
    if data_type.kind == "d" and data_type.element is not None:
        return f"CREATE DOMAIN {name} AS {data_type.element.sql}"
    return None


async def create_table(session: Session, table: NewTable) -> bool:
    """Create a table with the schema and the types that it needs, where they are missing; true when it was missing.

    All of it is one transaction: durable, or not there. The primary key comes with `add_primary_key`. Raises
    `SetupError` for a type that only an extension or a person can create, and where the role may not create.
    """
    connection = session.connection
    with target_errors(f"creating table {table.schema}.{table.name}", session.where):
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            if await _exists(connection, table.schema, table.name):
                return False
            await create_schema(connection, table.schema)
            for data_type in _parts_first(column.type for column in table.columns):
                await _create_type(session, data_type)
            await _create_computing(session, table)
    return True


async def _create_computing(session: Session, table: NewTable) -> None:
    """Create the table with as many of its generated columns as the target can compute; a warning names the others.

    What an expression needs may be missing here: a function, a type, a column that is not routed.
    """
    connection, has_virtual = session.connection, session.server_version >= VIRTUAL_COLUMNS
    try:
        async with connection.transaction():
            await connection.execute(create_table_sql(table, has_virtual=has_virtual))
            return
    except asyncpg.PostgresError as error:
        if not table.generated or error.sqlstate[:2] not in _CANNOT_COMPUTE:
            raise
    await connection.execute(create_table_sql(replace(table, generated=())))
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


async def create_schema(connection: asyncpg.Connection, schema: str) -> None:
    """Create a schema where it is missing, in whatever transaction the connection is.

    CREATE SCHEMA IF NOT EXISTS asks for the right to create schemas even where the schema exists, so look first.
    """
    if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", quote(schema)):
        await connection.execute(f"CREATE SCHEMA {quote(schema)}")


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


def missing_labels(source: DataType, target: DataType) -> tuple[str, ...]:
    """Labels that an enum (or the enum inside an array or a domain) has at the source and not at the target."""
    if source.kind == "e" and target.kind == "e":
        return tuple(label for label in source.labels if label not in target.labels)
    if source.element is not None and target.element is not None:
        return missing_labels(source.element, target.element)
    return ()


def add_labels_sql(source: DataType, target: DataType) -> str:
    """ALTER TYPE … ADD VALUE for every missing label, each at its place; to be run outside a transaction block."""
    while source.kind != "e" and source.element is not None and target.element is not None:
        source, target = source.element, target.element
    name = quote_qualified(target.schema, target.name)
    added = []
    known = list(target.labels)
    for place, label in enumerate(source.labels):
        if label in known:
            continue
        behind = source.labels[place - 1] if place else None
        if behind is not None:
            at = f" AFTER {quote_literal(behind)}"
        else:
            at = f" BEFORE {quote_literal(known[0])}" if known else ""
        known.append(label)
        added.append(f"ALTER TYPE {name} ADD VALUE {quote_literal(label)}{at};")
    return "\n".join(added)


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


async def _create_type(session: Session, data_type: DataType) -> None:
    """Create a type that is missing; one that exists must know the source's labels."""
    connection = session.connection
    key = (data_type.schema, data_type.name)
    there = (await types_by_name(connection, [key])).get(key)
    if there is not None:
        lacking = missing_labels(data_type, there)
        if lacking:
            raise SetupError(
                f"{session.where}: enum {data_type.sql} exists there but lacks {len(lacking)} of the source's labels.",
                sql=add_labels_sql(data_type, there),
            )
        return
    sql = create_type_sql(data_type)
    if sql is None:
        raise await _missing_type(session, data_type)
    await create_schema(connection, data_type.schema)
    await connection.execute(sql)


async def _missing_type(session: Session, data_type: DataType) -> SetupError:
    """A type that cdc cannot create: mostly an extension's, which often has the type's name."""
    if data_type.kind != "b":
        return SetupError(
            f"{session.where}: type {data_type.sql} is missing and cdc cannot create it; create it there."
        )
    extension = await session.connection.fetchval(
        "SELECT name::text FROM pg_available_extensions WHERE name = $1", data_type.name
    )
    message = (
        f"{session.where}: type {data_type.sql} is missing; create the extension that provides it, as at the source."
    )
    if extension is None:
        return SetupError(message)
    return SetupError(
        message,
        sql=f"CREATE SCHEMA IF NOT EXISTS {quote(data_type.schema)};\n"
        f"CREATE EXTENSION {quote(extension)} SCHEMA {quote(data_type.schema)};",
    )


def _parts_first(types: Iterable[DataType]) -> list[DataType]:
    """The types that may have to be created, each once, behind those they are made of. Arrays come by themselves."""
    found: dict[tuple[str, str], DataType] = {}

    def visit(data_type: DataType) -> None:
        if data_type.element is not None:
            visit(data_type.element)
        if data_type.kind != "a" and not data_type.is_builtin:
            found.setdefault((data_type.schema, data_type.name), data_type)

    for data_type in types:
        visit(data_type)
    return list(found.values())
