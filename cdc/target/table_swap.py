"""Which table takes the place of which, and what the catalog says of the two.

A `TableSwap` names a table that readers know (the *present* one) and the one that was loaded beside it (the *new* one,
`cdc.routing.target_routes.beside`). Everything here only reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from cdc import statements
from cdc.identifiers import quote_qualified
from cdc.routing.route import Route
from cdc.routing.target_routes import BESIDE_PREFIX, beside, beside_schema
from cdc.target.schema import NewTable

Name = tuple[str, str]
"""Schema and name of a relation."""

OLD_PREFIX = "cdc_old_"
"""Where a table stands for the moment between being replaced and being dropped; no longer than `BESIDE_PREFIX`."""


RIGHTS = "the role that cdc connects as may not replace it"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing that stops a swap. ``table`` is the replaced table, ``what`` a phrase that names thing and reason.

    ``remove`` is the SQL that takes it out of the way, ``restore`` what makes it again after the swap.
    """

    table: str
    what: str
    remove: str | None = None
    restore: str | None = None


@dataclass(frozen=True, slots=True)
class TableSwap:
    """A table that is replaced.

    ``route`` is the present generation's: it leads to where readers find the table. ``created_by_cdc`` is what
    ``cdc.target_table`` says of the present table, false where there is none yet.

    ``shape`` and ``constraints`` stand for the new table as long as it does not exist: its columns and primary key, and
    the names of the checks and foreign keys that it will get. What is not given is not compared.
    """

    route: Route
    created_by_cdc: bool
    shape: NewTable | None = None
    constraints: frozenset[str] | None = None

    @property
    def present(self) -> Name:
        """Schema and name of the table that readers know."""
        return self.route.target_schema, self.route.target_table

    @property
    def new(self) -> Name:
        """Schema and name of the table that takes its place."""
        route = beside(self.route)
        return route.target_schema, route.target_table

    @property
    def old_schema(self) -> str:
        """Where the present table stands until it is dropped."""
        return OLD_PREFIX + beside_schema(self.route.target_schema).removeprefix(BESIDE_PREFIX)

    @property
    def name(self) -> str:
        """``schema.table``, unquoted."""
        return self.route.target_name


@dataclass(frozen=True, slots=True)
class Column:
    """A column, and what somebody may have set on it. ``is_filled``: by an identity or a generation expression."""

    name: str
    is_filled: bool
    default: str | None
    statistics: int | None
    options: tuple[str, ...]
    storage: str | None
    compression: str | None
    comment: str | None


@dataclass(frozen=True, slots=True)
class Relation:
    """What has a table's name in the catalog; ``relkind`` tells whether it is one."""

    schema: str
    name: str
    oid: int
    relkind: str
    owner: str
    is_ours: bool
    may_give: bool
    may_create: bool
    replica_identity: str
    identity_index: str | None
    row_security: bool
    force_row_security: bool
    options: tuple[str, ...]
    comment: str | None
    columns: tuple[Column, ...]

    @property
    def sql_name(self) -> str:
        """``"schema"."table"``."""
        return quote_qualified(self.schema, self.name)


@dataclass(frozen=True, slots=True)
class Pair:
    """A `TableSwap` and what the catalog has of either side, each `None` where nothing has that name."""

    swap: TableSwap
    present: Relation | None
    new: Relation | None


async def read_pairs(connection: asyncpg.Connection, server_version: int, swaps: Sequence[TableSwap]) -> list[Pair]:
    """Look both sides of all swaps up, in the order given."""
    found = await read_relations(
        connection, server_version, [name for swap in swaps for name in (swap.present, swap.new)]
    )
    return [Pair(swap, found.get(swap.present), found.get(swap.new)) for swap in swaps]


async def read_relations(
    connection: asyncpg.Connection, server_version: int, names: Sequence[Name]
) -> dict[Name, Relation]:
    """Look relations up by name; those that do not exist are absent from the result."""
    rows = await connection.fetch(
        statements.load("target", "swap_tables"),
        [schema for schema, _ in names],
        [name for _, name in names],
        "SET" if server_version >= 160_000 else "MEMBER",
    )
    columns: dict[int, list[Column]] = {}
    for row in await connection.fetch(statements.load("target", "swap_columns"), [row["oid"] for row in rows]):
        columns.setdefault(row["table_oid"], []).append(
            Column(
                name=row["name"],
                is_filled=row["is_filled"],
                default=row["default_value"],
                statistics=row["statistics"],
                options=tuple(row["options"]),
                storage=row["storage"],
                compression=row["compression"],
                comment=row["comment"],
            )
        )
    return {
        (row["schema"], row["name"]): Relation(
            **{**row, "options": tuple(row["options"]), "columns": tuple(columns.get(row["oid"], ()))}
        )
        for row in rows
    }
