"""Which columns of a relation go where, for one route: pure arithmetic on names.

`project` promises that nothing unasked leaves (invariant 7): a column that the route does not name has no index in the
result, so whoever writes by projection cannot write it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdc.changes.relation import Relation
from cdc.routing.route import Route


@dataclass(frozen=True, slots=True)
class Projection:
    """The columns that travel: place ``n`` of a target row is column ``indices[n]`` of the relation.

    ``missing`` are columns that the route lists and the relation does not have (any more).
    """

    indices: tuple[int, ...]
    target_columns: tuple[str, ...]
    missing: tuple[str, ...] = ()

    def place_of(self, index: int) -> int | None:
        """Where in a target row the relation's column ``index`` stands; `None` when it does not travel."""
        return self.indices.index(index) if index in self.indices else None

    def in_order_of(self, target_columns: Sequence[str]) -> Projection:
        """The same columns, sorted as ``target_columns`` are (those it does not name last).

        Relations that are routed to one target table then give rows of one shape, whatever order each has them in.
        """
        rank = {name: place for place, name in enumerate(target_columns)}
        pairs = sorted(
            zip(self.indices, self.target_columns, strict=True), key=lambda pair: rank.get(pair[1], len(rank))
        )
        return Projection(tuple(index for index, _ in pairs), tuple(name for _, name in pairs), self.missing)


def project(relation: Relation, route: Route) -> Projection:
    """Project a relation onto a route, in the relation's column order."""
    pairs = [
        (index, target)
        for index, column in enumerate(relation.columns)
        if (target := route.target_column(column.name)) is not None
    ]
    names = {column.name for column in relation.columns}
    missing = tuple(source for source, _ in route.columns or () if source not in names)
    return Projection(tuple(index for index, _ in pairs), tuple(target for _, target in pairs), missing)
