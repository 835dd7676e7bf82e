"""Which partitions the tables of one target hold, as one session knows it and as the target records it.

The stream describes the past, the source's catalog the present (hazard 15). A relation that the catalog does not call
a partition any more is one all the same where the target holds it: what comes of it was written while it was one. And
a partition that the target does not hold joins a table silently only if it was created as one; one that was attached
may have brought rows, which have to be read first.
"""

from __future__ import annotations

from collections.abc import Iterable

from cdc.changes.relation import Place, Relation
from cdc.routing.patterns import split
from cdc.target import partition_record
from cdc.target.partition_record import HeldLeaf, HeldLeaves
from cdc.target.session import Session
from cdc.target.table_state import TableState


class HeldPartitions:
    """The record of one generation. ``held`` is by the root's ``schema.table``, and shared with the applier."""

    def __init__(self, session: Session, key: str, held: dict[str, HeldLeaves]) -> None:
        self._session = session
        self._key = key
        self._unwritten: dict[tuple[str, int], HeldLeaf] = {}
        self._uncommitted: set[tuple[str, int]] = set()
        self._met: dict[tuple[str, int], HeldLeaf] = {}
        self.held = held

    @property
    def oids(self) -> frozenset[int]:
        """The oids of all leaves that are held."""
        return frozenset(oid for leaves in self.held.values() for oid in leaves)

    def marks(self, table: str) -> list[str]:
        """Which leaves a table holds: of each its oid and the mark of its ATTACH."""
        return [f"{leaf.oid} {leaf.attachment}" for leaf in self.held.get(table, {}).values()]

    def place_of(self, relation: Relation, states: Iterable[TableState]) -> Place | None:
        """Where a relation belongs that the source's catalog does not call a partition; `None`: nowhere."""
        for state in states:
            leaf = self.held.get(state.source_name, {}).get(relation.oid)
            if leaf is not None and state.source_oid is not None:
                return Place(leaf.described, state.source_oid, state.source_schema, state.source_table)
        return None

    def join(self, relation: Relation) -> bool:
        """A leaf's rows are about to be written into the table of its root: it is held, where it brought none with it.

        `record` writes that down together with the rows. False: it was attached, perhaps with rows that were never
        streamed, which are not here yet.
        """
        leaf, table = relation.leaf, relation.qualified_name
        if leaf is None:
            return True
        known = self.held.get(table, {}).get(leaf.oid)
        if known is not None and known.attachment == leaf.attachment:
            return True
        if not leaf.is_born:
            return False
        found = partition_record.held(leaf, partition_record.NOT_ASKED)
        self._unwritten[table, leaf.oid] = self._met[table, leaf.oid] = found
        self.held.setdefault(table, {})[leaf.oid] = found
        return True

    @property
    def has_news(self) -> bool:
        """Whether there is something to `record`."""
        return bool(self._unwritten)

    async def record(self) -> None:
        """Write down, in the transaction that is open, which leaves have joined."""
        while self._unwritten:
            (table, oid), leaf = next(iter(self._unwritten.items()))
            await partition_record.add(self._session, self._key, split(table), [leaf])
            self._uncommitted.add((table, oid))
            del self._unwritten[table, oid]

    def rolled_back(self) -> set[str]:
        """The transaction that is open was rolled back: the tables of which something is not recorded any more."""
        undone = self._uncommitted.union(self._unwritten)
        self._uncommitted.clear()
        self._unwritten.clear()
        for table, oid in undone:
            self.held.get(table, {}).pop(oid, None)
            self._met.pop((table, oid), None)
        return {table for table, _ in undone}

    def committed(self) -> None:
        """The transaction is durable."""
        self._uncommitted.clear()

    async def write(self, table: str, leaves: Iterable[HeldLeaf]) -> None:
        """Record that a table holds these leaves and no others, in the transaction that is open; then `follow`.

        ``leaves`` were read from the source some time ago. One that the stream has brought since stays.
        """
        await partition_record.write(self._session, self._key, split(table), self._with_met(table, leaves).values())

    def follow(self, table: str, leaves: Iterable[HeldLeaf]) -> None:
        """What was written is durable."""
        self.held[table] = self._with_met(table, leaves)
        # The next time the source has been asked since they came: one that it does not name any more is gone.
        self._met = {key: leaf for key, leaf in self._met.items() if key[0] != table}

    def _with_met(self, table: str, leaves: Iterable[HeldLeaf]) -> HeldLeaves:
        met = {oid: leaf for (of, oid), leaf in self._met.items() if of == table}
        return met | {leaf.oid: leaf for leaf in leaves}
