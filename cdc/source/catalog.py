"""What the source's catalog says: its types and tables, described by name.

The catalog describes the present, the stream describes the past (hazard 15): for the shape of a row that was streamed,
the Relation message has the last word, and this module only puts names to its types. Everything here is read in a few
queries whatever the number of tables. Tables are named ``schema.table``, unquoted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cdc import statements
from cdc.changes.collation import Collation, read_collation
from cdc.changes.column_origin import ColumnOrigin
from cdc.changes.generated_column import GeneratedColumn
from cdc.changes.relation import Column, DataType, Relation, ReplicaIdentity
from cdc.changes.type_rows import TypeKey, TypeRow, described
from cdc.config import SourceConfig
from cdc.errors import SetupError, SourceUnavailable
from cdc.identifiers import quote_qualified
from cdc.source.connection import Connection, source_errors
from cdc.source.partitions import SourceLeaf, read_leaves

_CATALOG_READS = 5
"""Tables and their types are two queries: DDL between them can drop a type, and then both are asked again."""


@dataclass(frozen=True, slots=True)
class SourceTable:
    """One table of the source, as the catalog shows it now.

    ``relation`` holds the columns that pgoutput sends, in its order; ``generated`` those that it leaves out because the
    source computes them. ``primary_key`` are column names in the order of the key. ``identity_index`` is the index that
    identifies rows, when one does; ``candidate_indexes`` those that ``REPLICA IDENTITY USING INDEX`` would accept.
    ``persistence`` is p or u (unlogged: has no WAL, cannot be replicated), ``relkind`` r or p (partitioned: its
    ``leaves`` hold its rows). ``pages`` counts blocks of the main fork (of a partitioned table: those of its largest
    leaf), ``bytes`` includes TOAST. ``hides_rows``: row security applies to this role. ``is_owned``: this role may
    alter it, and so add it to a publication. ``lacks_generated``: its identity is FULL, it has generated columns that
    are not sent, and so the source refuses to publish its updates (PostgreSQL 18). ``row_filter`` is an expression that
    rows must satisfy to be sent (cdc.source.published); `None`: all are. ``collations`` are those of columns that have
    another one than their type, by the column's name. ``ancestors`` are the tables (``schema.table``) that it is a
    partition of, the nearest first. ``numbers`` are those of all columns, by name (`cdc.changes.column_numbers`).
    """

    relation: Relation
    not_null: frozenset[str]
    generated: tuple[GeneratedColumn, ...]
    primary_key: tuple[str, ...]
    primary_key_name: str | None
    identity_index: str | None
    candidate_indexes: tuple[str, ...]
    relkind: str
    persistence: str
    bytes: int
    pages: int
    is_readable: bool
    hides_rows: bool
    owner: str
    is_owned: bool
    lacks_generated: bool = False
    row_filter: str | None = None
    collations: Mapping[str, Collation] = field(default_factory=dict)
    ancestors: tuple[str, ...] = ()
    leaves: tuple[SourceLeaf, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``schema.table``, unquoted."""
        return self.relation.qualified_name

    @property
    def sent_numbers(self) -> dict[str, int]:
        """The numbers of the columns that pgoutput sends, by name."""
        sent = (column.name for column in self.relation.columns)
        return {name: self.numbers[name] for name in sent if name in self.numbers}

    @property
    def rows_name(self) -> str:
        """The table where its rows are read: those of tables that inherit from it are not its own."""
        name = quote_qualified(self.relation.schema, self.relation.name)
        return name if self.relkind == "p" else f"ONLY {name}"

    @property
    def leaf_marks(self) -> list[str] | None:
        """Which leaves it has: of each its oid and the mark of its ATTACH. `None` for a table that has none."""
        if self.relkind != "p":
            return None
        return sorted(f"{one.leaf.oid} {one.leaf.attachment}" for one in self.leaves)

    @property
    def usable_identity(self) -> bool:
        """Whether the source can publish updates and deletes of it without refusing them itself (hazard 1).

        Of a partitioned table that is asked of each leaf that it has.
        """
        if self.leaves:
            return all(leaf.usable_identity for leaf in self.leaves)
        if self.relation.replica_identity is ReplicaIdentity.FULL:
            return not self.lacks_generated
        return self.identity_index is not None

    def with_columns(self, names: Collection[str]) -> SourceTable:
        """The same with only these columns in its ``relation``, generated ones among them."""
        computed = {column.place: column for column in self.generated}
        plain = iter(self.relation.columns)
        everything = [
            Column(computed[place].name, computed[place].type) if place in computed else next(plain)
            for place in range(len(computed) + len(self.relation.columns))
        ]
        sent = tuple(column for column in everything if column.name in names)
        computed_here = tuple(column for column in self.generated if column.name not in names)
        return replace(
            self,
            relation=replace(self.relation, columns=sent),
            not_null=self.not_null | {column.name for column in self.generated if column.not_null},
            generated=computed_here,
            lacks_generated=self.lacks_generated and bool(computed_here),
        )

    def refuse_alike(self) -> None:
        """Raise `SetupError` where a target could not tell a row of one of its leaves from one of another."""
        for leaf in self.leaves:
            if leaf.why_alike is not None:
                raise SetupError(f"{self.name}: {leaf.why_alike}", sql=leaf.full_identity_sql)

    @property
    def passes_identity_on(self) -> bool:
        """Whether a partition that somebody creates tomorrow can publish updates: it gets the table's primary key."""
        return self.relkind == "p" and self.primary_key_name in self.candidate_indexes

    @property
    def is_publishable(self) -> bool:
        """Whether it holds rows, or its partitions do, that reach the WAL, and it is no part of a larger table.

        A leaf is publishable: it can be a table of its own where its root is not wanted.
        """
        if self.relkind == "p":
            return not self.ancestors and all(leaf.is_publishable for leaf in self.leaves)
        return self.persistence == "p"

    @property
    def why_not(self) -> str:
        """Why it is not publishable, as the end of a sentence that begins with its name."""
        if self.relkind == "p" and self.ancestors:
            return f"is a partition of {self.ancestors[-1]} that has partitions itself; name {self.ancestors[-1]}"
        if self.relkind == "p":
            names = ", ".join(leaf.name for leaf in self.leaves if not leaf.is_publishable)
            return f"has partitions whose changes are not in the WAL (unlogged or foreign: {names})"
        return "is unlogged: its changes are not in the WAL"


async def read_tables(connection: Connection, names: Collection[str] | None = None) -> list[SourceTable]:
    """All tables of users, or those of ``names`` that exist, by name. Never those of the schema ``cdc``.

    Sizes are read under a lock that only waits for DDL which is running on that table.
    """
    parameters = {"names": None if names is None else sorted(names)}
    for _ in range(_CATALOG_READS):
        with source_errors("list its tables"):
            cursor = await connection.execute(statements.load("source", "tables"), parameters)
            rows = await cursor.fetchall()
        keys = {(type_oid, typmod) for row in rows for _, type_oid, typmod, *_ in (*row[4], *row[5])}
        types = await describe_types(connection, keys)
        if keys <= types.keys():
            return await _with_leaves(connection, [_source_table(row, types) for row in rows])
    raise SourceUnavailable("the source's types change faster than its catalog can be read")


async def _with_leaves(connection: Connection, tables: list[SourceTable]) -> list[SourceTable]:
    roots = {table.relation.oid for table in tables if table.relkind == "p"}
    if not roots:
        return tables
    leaves = await read_leaves(connection, roots)
    return [_partitioned(table, leaves.get(table.relation.oid, ())) for table in tables]


def _partitioned(table: SourceTable, leaves: tuple[SourceLeaf, ...]) -> SourceTable:
    """A partitioned table with its leaves: it is as large as they are, and its rows are identified as theirs are."""
    if not leaves:
        return table
    keys = {leaf.key for leaf in leaves if leaf.replica_identity is not ReplicaIdentity.FULL}
    if not keys:
        identity, key = ReplicaIdentity.FULL, frozenset(column.name for column in table.relation.columns)
    elif len(keys) == 1 and () not in keys:
        identity, key = ReplicaIdentity.DEFAULT, frozenset(*keys)
    else:
        identity, key = ReplicaIdentity.NOTHING, frozenset[str]()
    columns = tuple(replace(column, is_key=column.name in key) for column in table.relation.columns)
    return replace(
        table,
        relation=replace(table.relation, replica_identity=identity, columns=columns),
        bytes=sum(leaf.bytes for leaf in leaves),
        pages=max(leaf.pages for leaf in leaves),
        leaves=leaves,
    )


def columns_of(tables: Iterable[SourceTable]) -> dict[str, list[str]]:
    """The columns of tables, by ``schema.table``: what routes are made of."""
    return {table.name: [column.name for column in table.relation.columns] for table in tables}


def ancestors_of(tables: Iterable[SourceTable]) -> dict[str, tuple[str, ...]]:
    """The partitions among tables, each with the tables that it is a partition of, the nearest first."""
    return {table.name: table.ancestors for table in tables if table.ancestors}


def _source_table(row: tuple[Any, ...], types: dict[TypeKey, DataType]) -> SourceTable:
    oid, schema, name, identity, attributes, generated, primary_key, primary_key_name, index, candidates, *rest = row[
        :-2
    ]
    columns = tuple(
        Column(column, types[type_oid, typmod], is_key) for column, type_oid, typmod, _, is_key, _ in attributes
    )
    table = SourceTable(
        Relation(oid, schema, name, ReplicaIdentity(identity), columns),
        frozenset(column for column, _, _, is_not_null, *_ in attributes if is_not_null),
        tuple(
            GeneratedColumn(column, types[type_oid, typmod], is_not_null, kind == "v", place, expression)
            for column, type_oid, typmod, is_not_null, kind, place, expression in generated
        ),
        tuple(primary_key),
        primary_key_name,
        index,
        tuple(candidates),
        *rest,
    )
    collations = {column: read_collation(*of) for column, *_, of in attributes if of is not None}
    return replace(table, collations=collations, numbers=row[-2], ancestors=tuple(row[-1]))


Origins = dict[str, ColumnOrigin]
"""How the columns of one table came to be, by their names."""


async def read_origins(connection: Connection, table_oids: Collection[int], source: SourceConfig) -> dict[int, Origins]:
    """How the columns of these tables came to be, by the table's oid. A table that is gone is not in the answer."""
    theirs = [] if source.manage_publications else list(source.publication_names)
    parameters = {"tables": sorted(table_oids), "publications": theirs}
    with source_errors("describe the columns of its tables"):
        cursor = await connection.execute(statements.load("source", "column_origins"), parameters)
        rows = await cursor.fetchall()
    origins: dict[int, Origins] = {}
    for oid, name, *origin in rows:
        origins.setdefault(oid, {})[name] = ColumnOrigin(*origin)
    return origins


async def describe_types(connection: Connection, types: Iterable[TypeKey]) -> dict[TypeKey, DataType]:
    """Describe types by oid and modifier, in one query. A type that was dropped since is not in the answer."""
    wanted = sorted(set(types))
    if not wanted:
        return {}
    parameters = {"oids": [oid for oid, _ in wanted], "typmods": [typmod for _, typmod in wanted]}
    with source_errors("describe its types"):
        cursor = await connection.execute(statements.load("source", "types"), parameters)
        return described([TypeRow(*row) for row in await cursor.fetchall()], wanted)


async def read_object_names(connection: Connection, objects: Collection[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """The names that objects have now, by kind (a reg* type) and oid; one that is gone is its number."""
    wanted = sorted(objects)
    parameters = {"kinds": [kind for kind, _ in wanted], "oids": [oid for _, oid in wanted]}
    with source_errors("name its objects"):
        cursor = await connection.execute(statements.load("source", "object_names"), parameters)
        return {(kind, oid): name for kind, oid, name in await cursor.fetchall()}


async def with_types_of_now(connection: Connection, relation: Relation) -> Relation:
    """The relation with its types as they are now: no Relation message tells of ALTER TYPE … ADD ATTRIBUTE.

    Only composite types, which have no modifier, and what is made of them are looked at. One that is gone stays.
    """
    old = {column.type for column in relation.columns if column.type.holds(lambda one: one.kind == "c")}
    new = await describe_types(connection, [(one.oid, -1) for one in old])
    types = {one: new.get((one.oid, -1), one) for one in old}
    columns = tuple(
        Column(column.name, types.get(column.type, column.type), column.is_key) for column in relation.columns
    )
    return replace(relation, columns=columns)
