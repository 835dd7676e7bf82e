"""The shape of a source table as the stream, or the catalog, describes it.

A `Relation` is immutable: when the source sends another Relation message for the same oid, that is another `Relation`
object. A change always holds the `Relation` that was in force where it stands in the stream, so that a catalog queried
later cannot change its meaning (the design's hazard 15). Relations are compared by identity, never by content: whoever
caches by relation, caches by that object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum


class ReplicaIdentity(StrEnum):
    """How the source identifies the old row of an update or delete: ``pg_class.relreplident``."""

    DEFAULT = "d"
    INDEX = "i"
    FULL = "f"
    NOTHING = "n"


@dataclass(frozen=True, slots=True)
class DataType:
    """A type by name, because its oid means nothing on another server.

    ``sql`` is what DDL calls it, with its modifier and, outside ``pg_catalog``, its schema: ``format_type(oid,
    typmod)`` under an empty search path. ``kind`` is ``pg_type.typtype`` (b, e, c, d, r, m) or ``a`` for an array of
    ``element``; a domain's ``element`` is its base type, a range's its subtype, a multirange's its range. ``labels``
    are an enum's, in order; ``attributes`` a composite's, in order, without those that were dropped. ``has_binary`` is
    false when the type has no send function: its values always arrive as text.

    ``range_options`` is what follows the subtype in CREATE TYPE … AS RANGE; `None` for one that has a function of its
    own which would have to be there first. ``is_row_type``: a composite that is the row type of a table.
    ``lacks_infinity``: the type ``interval`` of a server older than 17.
    """

    oid: int
    schema: str
    name: str
    sql: str
    kind: str = "b"
    element: DataType | None = None
    labels: tuple[str, ...] = ()
    has_binary: bool = True
    attributes: tuple[Attribute, ...] = ()
    range_options: str | None = None
    is_row_type: bool = False
    lacks_infinity: bool = False

    @property
    def is_builtin(self) -> bool:
        """Whether the type has the same oid on every server."""
        return self.schema == "pg_catalog"

    @property
    def parts(self) -> tuple[DataType, ...]:
        """The types that it is made of: an element, a base, a subtype, or those of its attributes."""
        return (*(() if self.element is None else (self.element,)), *(one.type for one in self.attributes))

    @property
    def plain(self) -> DataType:
        """What a domain is made of, or the type itself: a domain has the binary format of its base."""
        found = self
        while found.kind == "d" and found.element is not None:
            found = found.element
        return found

    def holds(self, question: Callable[[DataType], bool]) -> bool:
        """Whether ``question`` is true of the type or of anything that it is made of."""
        return question(self) or any(part.holds(question) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a composite type."""

    name: str
    type: DataType


@dataclass(frozen=True, slots=True)
class Column:
    """One column as pgoutput sends it; ``is_key`` when it is part of the replica identity."""

    name: str
    type: DataType
    is_key: bool = False


@dataclass(frozen=True, slots=True)
class Leaf:
    """A partition that holds rows itself, by its own oid and name.

    ``attachment`` is equal for the same partition of the same table and no other: when it was detached and attached
    again it is another one. ``is_born``: it was created as a partition, so it held no rows before it was one.
    """

    oid: int
    schema: str
    name: str
    attachment: str
    is_born: bool

    @property
    def qualified_name(self) -> str:
        """``schema.table`` of the partition, unquoted."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Place:
    """A leaf, and the partitioned table (its root) that it belongs to."""

    leaf: Leaf
    root_oid: int
    root_schema: str
    root_name: str


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """The shape of one source table at one place of the stream. Columns are in the order in which tuples hold them.

    The rows of a partitioned table come from its leaves. Such a relation has the oid and the name of the root, because
    that is the table that is routed, recorded and shown; ``leaf`` says which of the partitions it is.
    """

    oid: int
    schema: str
    name: str
    replica_identity: ReplicaIdentity
    columns: tuple[Column, ...]
    leaf: Leaf | None = None

    @property
    def qualified_name(self) -> str:
        """``schema.table``, unquoted: the way configuration, metrics and messages name a table."""
        return f"{self.schema}.{self.name}"

    def by_itself(self) -> Relation:
        """The same relation as a table of its own: a leaf under its own oid and name."""
        if self.leaf is None:
            return self
        leaf = self.leaf
        return replace(self, oid=leaf.oid, schema=leaf.schema, name=leaf.name, leaf=None)

    def at(self, place: Place) -> Relation:
        """The same relation as a leaf of that place's root."""
        return replace(self, oid=place.root_oid, schema=place.root_schema, name=place.root_name, leaf=place.leaf)

    @property
    def key(self) -> tuple[int, ...]:
        """Indices of the columns that identify a row; empty when the source identifies none, or by the whole row."""
        if self.replica_identity in (ReplicaIdentity.FULL, ReplicaIdentity.NOTHING):
            return ()
        return tuple(index for index, column in enumerate(self.columns) if column.is_key)
