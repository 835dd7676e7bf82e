"""Partitioned tables: which leaves they have, and which relation of the stream is a leaf of which.

PostgreSQL publishes a partitioned table leaf by leaf, each under its own name, and sends nothing when a partition is
attached or detached. What is asked here is the catalog of now; the stream describes the past (hazard 15), so whoever
uses it remembers what it was when rows were streamed (`cdc.target.partition_record`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cdc import statements
from cdc.changes.relation import Leaf, Place, ReplicaIdentity
from cdc.identifiers import quote_qualified
from cdc.source.connection import Connection, source_errors


@dataclass(frozen=True, slots=True)
class SourceLeaf:
    """One leaf of a partitioned table.

    ``bound`` is a condition that its rows fulfil and no others of the root, in the names of the source's columns;
    `None` where only the source can tell. It may hold constants of the DDL: it does not belong into a message. ``key``
    are the columns of the index that identifies rows, by name; none where no index does. ``key_is_global``: no row of
    another leaf can have the same, because all ``parts`` are in it, the columns that decide of which leaf a row is.
    ``lacks_generated`` is as of `cdc.source.catalog.SourceTable`.
    """

    leaf: Leaf
    bound: str | None
    relkind: str
    persistence: str
    replica_identity: ReplicaIdentity
    bytes: int
    pages: int
    key: tuple[str, ...]
    key_is_global: bool
    parts: tuple[str, ...] = ()
    lacks_generated: bool = False

    @property
    def name(self) -> str:
        """``schema.table``, unquoted."""
        return self.leaf.qualified_name

    @property
    def usable_identity(self) -> bool:
        """Whether the source can publish updates and deletes of it without refusing them itself (hazard 1)."""
        if self.replica_identity is ReplicaIdentity.FULL:
            return not self.lacks_generated
        return bool(self.key)

    @property
    def why_alike(self) -> str | None:
        """Why its rows may not be told from those of other leaves, as a sentence about its root; `None`: they are."""
        if not self.usable_identity or self.replica_identity is ReplicaIdentity.FULL or self.key_is_global:
            return None
        return (
            f"the key of its partition {self.name} ({', '.join(self.key)}) lacks columns that the table is "
            "partitioned by, so rows of two partitions may have the same, and a target cannot tell them apart"
        )

    @property
    def full_identity_sql(self) -> str:
        """The statement that makes all of its columns tell its rows."""
        return f"ALTER TABLE {quote_qualified(self.leaf.schema, self.leaf.name)} REPLICA IDENTITY FULL;"

    @property
    def is_publishable(self) -> bool:
        """Whether its rows reach the WAL: it is neither unlogged nor a foreign table."""
        return self.relkind == "r" and self.persistence == "p"


async def read_leaves(
    connection: Connection, roots: Collection[int], *, is_measured: bool = True
) -> dict[int, tuple[SourceLeaf, ...]]:
    """The leaves of partitioned tables (oids), by the root's oid and then by name; of one that has none, nothing.

    Sizes and bounds are read under locks that only wait for DDL which is running on the leaf; not ``is_measured``, they
    are left out.
    """
    with source_errors("list the partitions of its tables"):
        parameters = {"roots": sorted(roots), "is_measured": is_measured}
        cursor = await connection.execute(statements.load("source", "leaves"), parameters)
        rows = await cursor.fetchall()
    leaves: dict[int, tuple[SourceLeaf, ...]] = {}
    for root, parts, oid, schema, name, attachment, is_born, bound, *rest in rows:
        relkind, persistence, identity, size, pages, key, lacks_generated = rest
        leaf = SourceLeaf(
            leaf=Leaf(oid, schema, name, attachment, is_born),
            bound=bound,
            relkind=relkind,
            persistence=persistence,
            replica_identity=ReplicaIdentity(identity),
            bytes=size,
            pages=pages,
            key=tuple(key),
            key_is_global=set(parts) <= set(key),
            lacks_generated=lacks_generated,
            parts=tuple(parts),
        )
        leaves[root] = (*leaves.get(root, ()), leaf)
    return leaves


async def find_places(connection: Connection, relations: Collection[int]) -> dict[int, Place]:
    """Those of the relations (oids) that are leaves now, and of which root."""
    if not relations:
        return {}
    with source_errors("ask which relations are partitions"):
        cursor = await connection.execute(
            statements.load("source", "partition_ancestors"), {"relations": sorted(relations)}
        )
        rows = await cursor.fetchall()
    return {
        oid: Place(Leaf(oid, schema, name, attachment, is_born), root_oid, root_schema, root_name)
        for oid, schema, name, attachment, is_born, root_oid, root_schema, root_name in rows
    }


async def read_marks(connection: Connection, tables: Collection[int]) -> dict[int, str]:
    """Of those of the tables (oids) that are partitioned: a text that differs whenever their leaves differ."""
    if not tables:
        return {}
    with source_errors("ask which partitions its tables have"):
        cursor = await connection.execute(statements.load("source", "partition_marks"), {"roots": sorted(tables)})
        rows = await cursor.fetchall()
    return dict(rows)
