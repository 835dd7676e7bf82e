"""What a target's tables look like now: columns, keys, foreign keys, triggers and our rights on them.

Everything is by name, since an oid means nothing on another server; types are described with the same `DataType` as
the source's (cdc.changes.relation), so that the two compare. The functions read the catalog only, take a plain
connection and let the driver's errors pass: the caller knows what it was doing, and translates (`target_errors`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import asyncpg

from cdc import statements
from cdc.changes.relation import DataType
from cdc.changes.type_rows import TypeKey, TypeRow, described
from cdc.identifiers import quote_literal, quote_qualified


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """One column of a target table.

    ``has_default`` says that an INSERT may leave it out and it is filled nevertheless (a default, an identity).
    ``identity`` is ``pg_attribute.attidentity``: ``a`` (ALWAYS), ``d`` (BY DEFAULT) or empty. ``equates_texts`` says
    that its equality takes values for one whose texts differ (a non-deterministic collation, citext).
    """

    name: str
    type: DataType
    not_null: bool
    has_default: bool
    generated: bool
    identity: str
    equates_texts: bool = False


@dataclass(frozen=True, slots=True)
class UniqueKey:
    """A valid unique index over plain columns and all rows. ``is_immediate`` is false for a DEFERRABLE constraint."""

    name: str
    columns: tuple[str, ...]
    is_primary: bool
    is_immediate: bool


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key.

    ``columns`` are its own, not those that it refers to. ``on_delete`` and ``on_update`` are PostgreSQL's letters: a no
    action, r restrict, c cascade, n set null, d set default.
    """

    name: str
    referenced_schema: str
    referenced_table: str
    on_delete: str
    deferrable: bool
    on_update: str = "a"
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger, or a rule, that somebody created.

    ``enabled`` is ``pg_trigger.tgenabled``, or what a rule has for it: O origin, R replica, A always.
    """

    name: str
    enabled: str
    is_rule: bool = False

    @property
    def kind(self) -> str:
        """``trigger`` or ``rule``."""
        return "rule" if self.is_rule else "trigger"

    def fires(self, *, as_replica: bool) -> bool:
        """Whether it fires in a session with, or without, ``session_replication_role = replica``."""
        return self.enabled in ("RA" if as_replica else "OA")


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A table (or a view, ``relkind`` says it) of a target.

    ``privileges`` are those of SELECT, INSERT, UPDATE, DELETE and TRUNCATE that our role has on the whole table.
    ``row_security`` is true when policies would hide rows from ``role``, which is ours.
    ``foreign_keys`` start here, ``referenced_by`` point here. ``can_defer`` is true when a constraint of any kind that
    concerns it can be deferred. ``lacks_infinity``: an ``interval`` of its server cannot be infinite (older than 17).
    """

    schema: str
    name: str
    relkind: str
    persistence: str
    row_security: bool
    privileges: frozenset[str]
    columns: tuple[TargetColumn, ...]
    unique_keys: tuple[UniqueKey, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    referenced_by: tuple[ForeignKey, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    can_defer: bool = False
    role: str = ""
    lacks_infinity: bool = False

    @property
    def qualified_name(self) -> str:
        """``schema.table``, unquoted."""
        return f"{self.schema}.{self.name}"

    @property
    def sql_name(self) -> str:
        """``"schema"."table"``."""
        return quote_qualified(self.schema, self.name)

    @property
    def rows_name(self) -> str:
        """The table where its rows are read and deleted: without those of tables that inherit from it."""
        return self.sql_name if self.relkind == "p" else f"ONLY {self.sql_name}"

    @property
    def is_writable(self) -> bool:
        """Whether rows can be copied into it: a plain or partitioned table."""
        return self.relkind in ("r", "p")

    def column(self, name: str) -> TargetColumn | None:
        """The column of that name."""
        return next((column for column in self.columns if column.name == name), None)


async def read_tables(
    connection: asyncpg.Connection, names: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], TargetTable]:
    """Read the tables named ``(schema, name)``; those that do not exist are absent from the result."""
    wanted = list(dict.fromkeys(names))
    tables = await connection.fetch(
        statements.load("target", "catalog_tables"), [schema for schema, _ in wanted], [name for _, name in wanted]
    )
    oids = [row["oid"] for row in tables]
    if not oids:
        return {}
    columns = await _read_columns(connection, oids)
    keys = await _read_unique_keys(connection, oids)
    foreign_keys = await connection.fetch(statements.load("target", "catalog_foreign_keys"), oids)
    triggers = await connection.fetch(statements.load("target", "catalog_triggers"), oids)
    found = {}
    for row in tables:
        oid = row["oid"]
        table = TargetTable(
            schema=row["schema"],
            name=row["name"],
            relkind=row["relkind"],
            persistence=row["persistence"],
            row_security=row["row_security"],
            privileges=frozenset(row["privileges"]),
            columns=tuple(columns.get(oid, ())),
            unique_keys=tuple(keys.get(oid, ())),
            foreign_keys=tuple(_foreign_key(key) for key in foreign_keys if key["table_oid"] == oid),
            referenced_by=tuple(_foreign_key(key) for key in foreign_keys if key["referenced_oid"] == oid),
            triggers=tuple(Trigger(t["name"], t["enabled"], t["is_rule"]) for t in triggers if t["table_oid"] == oid),
            role=row["role"],
            can_defer=row["can_defer"],
            lacks_infinity=row["lacks_infinity"],
        )
        found[table.schema, table.name] = table
    return found


async def read_table(connection: asyncpg.Connection, schema: str, name: str) -> TargetTable | None:
    """One table, or `None` where there is none of that name."""
    return (await read_tables(connection, [(schema, name)])).get((schema, name))


async def describe_types(connection: asyncpg.Connection, types: Iterable[TypeKey]) -> dict[TypeKey, DataType]:
    """Describe types of this target by oid and modifier (-1: none); unknown oids are absent from the result."""
    wanted = sorted(set(types))
    oids, modifiers = [oid for oid, _ in wanted], [modifier for _, modifier in wanted]
    rows = await connection.fetch(statements.load("target", "catalog_types"), oids, modifiers)
    return described([TypeRow(*row) for row in rows], wanted)


async def types_by_name(
    connection: asyncpg.Connection, names: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], DataType]:
    """Describe the types named ``(schema, name)``; those that do not exist are absent from the result."""
    wanted = list(dict.fromkeys(names))
    rows = await connection.fetch(
        statements.load("target", "type_oids"), [schema for schema, _ in wanted], [name for _, name in wanted]
    )
    types = await describe_types(connection, [(row["oid"], -1) for row in rows])
    return {(row["schema"], row["name"]): types[row["oid"], -1] for row in rows}


async def tables_with_rows(
    connection: asyncpg.Connection, names: Iterable[tuple[str, str]]
) -> frozenset[tuple[str, str]]:
    """Which of these existing tables hold at least one row. Needs SELECT on them."""
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return frozenset()
    names_of = [quote_qualified(schema, name) for schema, name in wanted]
    query = "\nUNION ALL ".join(
        f"SELECT {number} WHERE EXISTS (SELECT FROM ONLY {name}) OR EXISTS ("
        f"SELECT FROM pg_catalog.pg_class cdc_is JOIN {name} cdc_of ON cdc_is.relkind = 'p' "
        f"WHERE cdc_is.oid = {quote_literal(name)}::pg_catalog.regclass)"
        for number, name in enumerate(names_of)
    )
    return frozenset(wanted[row[0]] for row in await connection.fetch(query))


async def _read_columns(connection: asyncpg.Connection, oids: list[int]) -> dict[int, list[TargetColumn]]:
    rows = await connection.fetch(statements.load("target", "catalog_columns"), oids)
    types = await describe_types(connection, {(row["type_oid"], row["typmod"]) for row in rows})
    columns: dict[int, list[TargetColumn]] = {}
    for row in rows:
        columns.setdefault(row["table_oid"], []).append(
            TargetColumn(
                name=row["name"],
                type=types[row["type_oid"], row["typmod"]],
                not_null=row["not_null"],
                has_default=row["has_default"],
                generated=row["generated"],
                identity=row["identity"],
                equates_texts=row["equates_texts"],
            )
        )
    return columns


async def _read_unique_keys(connection: asyncpg.Connection, oids: list[int]) -> dict[int, list[UniqueKey]]:
    keys: dict[int, list[UniqueKey]] = {}
    for row in await connection.fetch(statements.load("target", "catalog_unique_keys"), oids):
        keys.setdefault(row["table_oid"], []).append(
            UniqueKey(
                name=row["name"],
                columns=tuple(row["columns"]),
                is_primary=row["is_primary"],
                is_immediate=row["is_immediate"],
            )
        )
    return keys


def _foreign_key(row: asyncpg.Record) -> ForeignKey:
    return ForeignKey(
        name=row["name"],
        referenced_schema=row["referenced_schema"],
        referenced_table=row["referenced_table"],
        on_delete=row["on_delete"],
        deferrable=row["deferrable"],
        on_update=row["on_update"],
        columns=tuple(row["columns"]),
    )
