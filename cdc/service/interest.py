"""Which transactions of the stream concern one target at all: the others only move its position."""

from __future__ import annotations

from cdc.changes.relation import Relation
from cdc.changes.transaction import Part
from cdc.routing.target_routes import TargetRoutes


class Interest:
    """What one target wants of the stream; asked for every transaction, so its answers are remembered."""

    def __init__(self, routes: TargetRoutes) -> None:
        self._routes = routes
        self._known: dict[Relation, bool] = {}
        self.table_oids: frozenset[int] | None = None
        """The source's oids of the tables that are loaded; `None` before the target was taken."""

    def loaded(self, table_oids: frozenset[int]) -> None:
        """These are the tables that are loaded, by the source's oids."""
        self.table_oids = table_oids
        self._known.clear()

    def forget(self) -> None:
        """Another stream begins: its relations are other objects."""
        self._known.clear()

    def concerns(self, part: Part) -> bool:
        """Whether the target wants anything of it."""
        return bool(part.marks) or any(self._wants(relation) for relation in part.relations)

    def _wants(self, relation: Relation) -> bool:
        wanted = self._known.get(relation)
        if wanted is None:
            wanted = self._routes.wants(relation)
            # A table that was loaded and has another name now is of interest; before the target is taken, any may be.
            wanted |= self.table_oids is None or not self.table_oids.isdisjoint(
                (relation.oid, relation.by_itself().oid)
            )
            self._known[relation] = wanted
        return wanted
