"""Types that a following target lacks: created under the source's names, from their descriptions.

A type comes behind those that it is made of. What exists is never changed (invariant 9): where it is not what the
source's values need, an error says so, with the statement that mends it. A domain is created over its base type without
its checks, which the source has made already. A type of an extension, a range with a function of its own and the row
type of a table cannot be created from a description.
"""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg

from cdc.changes.relation import DataType
from cdc.changes.translation import ObjectOids, Unlike, translation
from cdc.errors import SetupError
from cdc.identifiers import quote, quote_literal, quote_qualified
from cdc.target.catalog import types_by_name
from cdc.target.session import Session


async def create_types(session: Session, types: Iterable[DataType]) -> None:
    """Create what is missing of these types and of those that they are made of, with their schemas.

    In whatever transaction the session is. Raises `SetupError` for a type that exists and does not fit, and for one
    that only an extension or a person can create.
    """
    for data_type in _parts_first(types):
        await _create_type(session, data_type)


def create_type_sql(data_type: DataType) -> str | None:
    """The statement that creates a type; `None` for what cannot be made from its description."""
    name = quote_qualified(data_type.schema, data_type.name)
    match data_type.kind:
        case "e":
            labels = ", ".join(quote_literal(label) for label in data_type.labels)
            return f"CREATE TYPE {name} AS ENUM ({labels})"
        case "d" if data_type.element is not None:
            return f"CREATE DOMAIN {name} AS {data_type.element.sql}"
        case "c" if not data_type.is_row_type:
            attributes = ", ".join(f"{quote(one.name)} {one.type.sql}" for one in data_type.attributes)
            return f"CREATE TYPE {name} AS ({attributes})"
        case "r" if data_type.element is not None and data_type.range_options is not None:
            return f"CREATE TYPE {name} AS RANGE (subtype = {data_type.element.sql}, {data_type.range_options})"
    return None


async def create_schema(connection: asyncpg.Connection, schema: str) -> None:
    """Create a schema where it is missing, in whatever transaction the connection is.

    CREATE SCHEMA IF NOT EXISTS asks for the right to create schemas even where the schema exists, so look first.
    """
    if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", quote(schema)):
        await connection.execute(f"CREATE SCHEMA {quote(schema)}")


def missing_labels(source: DataType, target: DataType) -> tuple[str, ...]:
    """Labels that an enum, or an enum that the type is made of, has at the source and not at the target."""
    return tuple(
        label for ours, theirs in _enums(source, target) for label in ours.labels if label not in theirs.labels
    )


def add_labels_sql(source: DataType, target: DataType) -> str:
    """ALTER TYPE … ADD VALUE for every missing label, each at its place; to be run outside a transaction block."""
    return "\n".join(statement for ours, theirs in _enums(source, target) for statement in _added(ours, theirs))


def _enums(source: DataType, target: DataType) -> dict[tuple[DataType, DataType], None]:
    """The enums of which two types are made, each pair once."""
    if source.kind == "e" and target.kind == "e":
        return {(source, target): None}
    there = {one.name: one.type for one in target.attributes}
    pairs = [(one.type, there[one.name]) for one in source.attributes if one.name in there]
    if source.element is not None and target.element is not None:
        pairs.append((source.element, target.element))
    return {pair: None for ours, theirs in pairs for pair in _enums(ours, theirs)}


def _added(source: DataType, target: DataType) -> list[str]:
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
    return added


async def _create_type(session: Session, data_type: DataType) -> None:
    """Create a type that is missing; one that exists must take the source's values."""
    connection = session.connection
    key = (data_type.schema, data_type.name)
    there = (await types_by_name(connection, [key])).get(key)
    if there is not None:
        _verify(session, data_type, there)
        return
    sql = create_type_sql(data_type)
    if sql is None:
        raise await _missing_type(session, data_type)
    await create_schema(connection, data_type.schema)
    await connection.execute(sql)


def _verify(session: Session, data_type: DataType, there: DataType) -> None:
    try:
        translation(data_type, there, ObjectOids())
    except Unlike as unlike:
        raise SetupError(
            f"{session.where}: type {data_type.sql} exists there and is another than at the source: {unlike}.",
            sql=unlike.sql,
        ) from None
    lacking = missing_labels(data_type, there)
    if lacking:
        raise SetupError(
            f"{session.where}: enum {data_type.sql} exists there but lacks {len(lacking)} of the source's labels.",
            sql=add_labels_sql(data_type, there),
        )


async def _missing_type(session: Session, data_type: DataType) -> SetupError:
    """A type that cdc cannot create: mostly an extension's, which often has the type's name."""
    if data_type.is_row_type:
        return SetupError(
            f"{session.where}: type {data_type.sql} is missing; at the source it is the row type of a table. Create "
            "that table there, or a composite type of the same name and attributes; or leave the column out."
        )
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
        for part in data_type.parts:
            visit(part)
        if data_type.kind != "a" and not data_type.is_builtin:
            found.setdefault((data_type.schema, data_type.name), data_type)

    for data_type in types:
        visit(data_type)
    return list(found.values())
