"""What the stream has said of its relations so far: the half of an accumulator that rows do not touch.

The names of types and the places of partitions are not in the stream. When a relation is new or uses a type that has
not been met, `Descriptions.describe` stops with `NeedTypes`; the caller asks the source's catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from cdc.changes.relation import Column, DataType, Place, Relation, ReplicaIdentity
from cdc.changes.type_rows import TypeKey
from cdc.errors import ProtocolError
from cdc.pgoutput.messages import RelationMessage, Type


class NeedTypes(Exception):
    """Types and relations have to be looked up first. Control flow."""

    def __init__(self, keys: frozenset[TypeKey], relations: frozenset[int]) -> None:
        super().__init__()
        self.keys = keys
        self.relations = relations


class Descriptions:
    """The relations and types of one stream. ``relations`` are by the oid that the stream names them by.

    With ``with_roots`` every relation is asked about, whether it is a partition. ``changed`` is called with the oid and
    the relation whenever that is another object from now on.
    """

    def __init__(self, *, with_roots: bool, changed: Callable[[int, Relation], None]) -> None:
        self._with_roots = with_roots
        self._changed = changed
        self._places: dict[int, Place | None] = {}
        self._descriptions: dict[int, bytes] = {}
        self._types: dict[TypeKey, DataType] = {}
        self._type_names: dict[int, tuple[str, str]] = {}
        self.relations: dict[int, Relation] = {}

    def learn(self, types: dict[TypeKey, DataType], asked: frozenset[TypeKey]) -> None:
        """Take what the catalog said about ``asked``.

        A type that the catalog no longer knows has been dropped since the change was made; the stream's own Type
        message then has its name (hazard 15: the message describes the past).
        """
        self._types.update(types)
        for oid, modifier in asked - types.keys():
            schema, name = self._type_names.get(oid, ("pg_catalog", f"unknown type {oid}"))
            self._types[oid, modifier] = DataType(oid=oid, schema=schema, name=name, sql=f'"{schema}"."{name}"')

    @property
    def placed(self) -> frozenset[int]:
        """The oids of all relations that were asked about."""
        return frozenset(self._places)

    def place(self, places: Mapping[int, Place], asked: Collection[int]) -> None:
        """Take what the catalog says of the relations ``asked``; those without a place are no partitions now.

        May be said again when that has changed: what comes from now on belongs there.
        """
        for oid in asked:
            known, found = self._places.get(oid), places.get(oid)
            self._places[oid] = found
            if found != known and oid in self.relations:
                relation = self.relations[oid]
                self._set(oid, relation.by_itself() if found is None else relation.at(found))

    def name_type(self, message: Type) -> None:
        """Remember the name of a type that is not built in."""
        self._type_names[message.oid] = (message.schema, message.name)

    def describe(self, message: RelationMessage, raw: bytes) -> bool:
        """Take in a Relation message, whose bytes are ``raw``; whether it says anything new.

        The source repeats a description after any invalidation (an ANALYZE is enough). The same description keeps the
        same object, so that whatever is cached by relation stays. Raises `NeedTypes`, with nothing taken in.
        """
        if self._descriptions.get(message.oid) == raw:
            return False
        keys = frozenset((column.type_oid, column.typmod) for column in message.columns)
        missing = keys - self._types.keys()
        is_new = self._with_roots and message.oid not in self._places
        if missing or is_new:
            raise NeedTypes(missing, frozenset({message.oid} if is_new else ()))
        try:
            identity = ReplicaIdentity(message.replica_identity)
        except ValueError:
            raise ProtocolError(f"relation {message.oid} has a replica identity that is not known") from None
        columns = tuple(
            Column(column.name, self._types[column.type_oid, column.typmod], bool(column.flags & 1))
            for column in message.columns
        )
        relation = Relation(message.oid, message.schema, message.name, identity, columns)
        place = self._places.get(message.oid)
        self._descriptions[message.oid] = raw
        self._set(message.oid, relation if place is None else relation.at(place))
        return True

    def _set(self, oid: int, relation: Relation) -> None:
        self.relations[oid] = relation
        self._changed(oid, relation)
