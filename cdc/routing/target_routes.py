"""What one generation of a target's tables wants of the stream, and where it goes.

A target's tables exist once, under the names that the configuration gives them, except while the target is loaded
again: then a second generation stands beside the first, in schemas of its own, until it is complete and the two are
swapped. Both want the same rows; only the schema of the tables differs. A second generation may also be one of some
tables only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from cdc.changes.relation import Relation
from cdc.config import TargetConfig
from cdc.routing.patterns import matches
from cdc.routing.route import Route
from cdc.routing.router import route_of

BESIDE_PREFIX = "cdc_new_"
"""The schema of tables that are loaded beside those of ``public`` is ``cdc_new_public``."""

_NAME_BYTES = 63


@dataclass(frozen=True, slots=True)
class TargetRoutes:
    """The routes of one generation.

    ``is_beside``: its tables are loaded beside others and stand in schemas of their own. ``only`` names the tables
    (``schema.table`` at the source) that it has; `None` for all.
    """

    config: TargetConfig
    is_beside: bool = False
    only: frozenset[str] | None = None

    def route_of(self, schema: str, table: str) -> Route | None:
        """The route of one table of the source; `None` when this generation does not want it."""
        if self.only is not None and f"{schema}.{table}" not in self.only:
            return None
        route = route_of(self.config, schema, table)
        return route if route is None or not self.is_beside else beside(route)

    def resolve(self, relation: Relation) -> Relation:
        """A leaf of a partitioned table as a part of it, or as a table of its own where only that is wanted."""
        return relation.by_itself() if self.route_of(relation.schema, relation.name) is None else relation

    def leaves_out(self, relation: Relation) -> bool:
        """Whether the configuration excludes a partition by its name, and its root goes here because of a pattern."""
        if relation.leaf is None or relation.qualified_name in self.config.tables:
            return False
        name = relation.leaf.qualified_name
        return any(matches(pattern, name) for pattern in self.config.exclude)

    def wants(self, relation: Relation) -> bool:
        """Whether a relation of the stream goes to this generation."""
        found = self.resolve(relation)
        return self.route_of(found.schema, found.name) is not None

    def places(self, routes: tuple[Route, ...]) -> tuple[Route, ...]:
        """Those of a target's routes that this generation has, each leading to where its table stands."""
        wanted = (route for route in routes if self.only is None or route.source_name in self.only)
        return tuple(beside(route) if self.is_beside else route for route in wanted)


def beside(route: Route) -> Route:
    """The same route into the schema where tables are loaded beside those that it leads to."""
    return replace(route, target_schema=beside_schema(route.target_schema))


def beside_schema(schema: str) -> str:
    """The schema for tables that are loaded beside those of ``schema``: its name with a prefix, cut where too long."""
    name = f"{BESIDE_PREFIX}{schema}"
    if len(name.encode()) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(schema.encode()).hexdigest()[:8]
    kept = name.encode()[: _NAME_BYTES - len(digest) - 1].decode(errors="ignore")
    return f"{kept}_{digest}"
