"""What the source's tables have besides rows: indexes, checks, foreign keys, comments, sequences; and its views.

Read from the live catalog, for any number of tables in a handful of queries. Everything is described by name, so that
it can be made on a target, where the same columns may stand in a table of another schema: an index is the text behind
``USING``, a foreign key its lists of columns. Nothing here says what a target gets; `cdc.bootstrap.definitions` does.

Definitions describe the present (hazard 15). The texts are PostgreSQL's own (``pg_get_indexdef``,
``pg_get_constraintdef``, ``pg_get_viewdef``: its manual, "System Catalog Information Functions"), with every name
outside ``pg_catalog`` qualified, because the session's search path holds nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cdc import statements
from cdc.source.connection import Connection, source_errors
from cdc.source.sequences import SequenceUse, read_sequences

RelationName = tuple[str, str]
"""Schema and name of a table, a view or a sequence."""


@dataclass(frozen=True, slots=True)
class SourceIndex:
    """One index that is no primary key.

    ``method`` is what stands behind ``USING``: access method, keys, INCLUDE, predicate; `None` where PostgreSQL's text
    is not as expected. ``constraint_kind`` is that of the constraint that it serves, if any; ``constraint_definition``
    is that constraint's text. ``reads`` are all columns that it needs, ``extensions`` those whose objects it uses.
    ``is_partial``: it has a predicate.
    """

    name: str
    method: str | None
    is_unique: bool
    is_valid: bool
    constraint_kind: Literal["none", "unique", "exclusion"]
    constraint_definition: str | None
    is_deferrable: bool
    is_deferred: bool
    size_bytes: int
    reads: frozenset[str]
    extensions: frozenset[str]
    is_partial: bool


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """One CHECK; ``definition`` is its text without NOT VALID. ``is_valid``: every row of the source satisfies it."""

    name: str
    definition: str
    is_valid: bool
    reads: frozenset[str]
    extensions: frozenset[str]


@dataclass(frozen=True, slots=True)
class SourceForeignKey:
    """One foreign key, without what it does on DELETE and UPDATE. ``has_period``: its last column is a PERIOD."""

    name: str
    columns: tuple[str, ...]
    parent: RelationName
    parent_columns: tuple[str, ...]
    is_match_full: bool
    has_period: bool
    is_valid: bool


@dataclass(frozen=True, slots=True)
class SourceComment:
    """A comment on a relation (``table``), or on the column, index or constraint ``name`` of it."""

    kind: Literal["table", "column", "index", "constraint"]
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class SourceView:
    """A view or a materialized view. ``reads`` are the relations that its query names, views and tables."""

    oid: int
    schema: str
    name: str
    is_materialized: bool
    query: str
    options: tuple[str, ...]
    reads: frozenset[RelationName]

    @property
    def qualified_name(self) -> str:
        """``schema.name``, unquoted."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class TableDefinitions:
    """What one table has besides rows, each kind by name. ``column_extensions``: column to extensions of its type."""

    indexes: tuple[SourceIndex, ...]
    checks: tuple[SourceCheck, ...]
    foreign_keys: tuple[SourceForeignKey, ...]
    comments: tuple[SourceComment, ...]
    sequences: tuple[SequenceUse, ...]
    column_extensions: tuple[tuple[str, str], ...]


async def read_definitions(connection: Connection, table_oids: Collection[int]) -> dict[int, TableDefinitions]:
    """What these tables have, by their oids. A table that is gone has nothing."""
    indexes = await _by_table(connection, "definition_indexes", table_oids)
    constraints = await _by_table(connection, "definition_constraints", table_oids)
    comments = await read_comments(connection, table_oids)
    sequences: dict[int, list[SequenceUse]] = {}
    for use in await read_sequences(connection, table_oids):
        sequences.setdefault(use.table_oid, []).append(use)
    extensions = await _by_table(connection, "definition_extensions", table_oids)
    return {
        oid: TableDefinitions(
            tuple(_index(row) for row in indexes.get(oid, ())),
            tuple(_check(row) for row in constraints.get(oid, ()) if row[1] == "c"),
            tuple(_foreign_key(row) for row in constraints.get(oid, ()) if row[1] == "f"),
            comments.get(oid, ()),
            tuple(sequences.get(oid, ())),
            tuple(extensions.get(oid, ())),
        )
        for oid in table_oids
    }


async def read_comments(connection: Connection, oids: Collection[int]) -> dict[int, tuple[SourceComment, ...]]:
    """The comments on relations and on what belongs to them, by the oid of the relation."""
    found = await _by_table(connection, "definition_comments", oids)
    return {oid: tuple(SourceComment(*row) for row in rows) for oid, rows in found.items()}


async def read_views(connection: Connection) -> list[SourceView]:
    """All views of users, each behind those that it reads; otherwise by name. Those of extensions are left out."""
    with source_errors("list its views"):
        cursor = await connection.execute(statements.load("source", "definition_views"))
        rows = await cursor.fetchall()
    views = {
        (view.schema, view.name): view
        for view in (
            SourceView(oid, schema, name, is_materialized, query, tuple(options), frozenset(map(_name, reads)))
            for oid, schema, name, is_materialized, query, options, reads in rows
        )
    }
    ordered: dict[RelationName, SourceView] = {}

    def visit(name: RelationName) -> None:
        view = views.pop(name, None)
        if view is None:
            return
        for read in sorted(view.reads):
            visit(read)
        ordered[name] = view

    for name in sorted(views):
        visit(name)
    return list(ordered.values())


async def read_extension_schemas(connection: Connection) -> dict[str, str]:
    """The extensions of the source, and the schema of each."""
    with source_errors("list its extensions"):
        cursor = await connection.execute(
            "SELECT e.extname::text, n.nspname::text"
            "  FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace"
        )
        return dict(await cursor.fetchall())


async def _by_table(
    connection: Connection, statement: str, table_oids: Collection[int]
) -> dict[int, list[tuple[Any, ...]]]:
    """The rows of a statement by their first column, which is left out."""
    with source_errors("describe its tables"):
        cursor = await connection.execute(statements.load("source", statement), {"tables": sorted(table_oids)})
        found: dict[int, list[tuple[Any, ...]]] = {}
        for oid, *row in await cursor.fetchall():
            found.setdefault(oid, []).append(tuple(row))
    return found


def _name(pair: Sequence[str]) -> RelationName:
    schema, name = pair
    return schema, name


def _index(row: tuple[Any, ...]) -> SourceIndex:
    (
        name,
        method,
        is_unique,
        is_valid,
        kind,
        definition,
        is_deferrable,
        is_deferred,
        size,
        reads,
        extensions,
        partial,
    ) = row
    return SourceIndex(
        name=name,
        method=method,
        is_unique=is_unique,
        is_valid=is_valid,
        constraint_kind=kind,
        constraint_definition=definition,
        is_deferrable=is_deferrable,
        is_deferred=is_deferred,
        size_bytes=size,
        reads=frozenset(reads),
        extensions=frozenset(extensions),
        is_partial=partial,
    )


def _check(row: tuple[Any, ...]) -> SourceCheck:
    name, _, is_valid, definition, columns, *_, extensions = row
    return SourceCheck(name, definition.removesuffix(" NOT VALID"), is_valid, frozenset(columns), frozenset(extensions))


def _foreign_key(row: tuple[Any, ...]) -> SourceForeignKey:
    name, _, is_valid, _, columns, schema, table, parent_columns, is_match_full, has_period, _ = row
    return SourceForeignKey(
        name, tuple(columns), (schema, table), tuple(parent_columns), is_match_full, has_period, is_valid
    )
