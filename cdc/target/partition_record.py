"""Which leaves of a partitioned table of the source a target's table holds: ``cdc.target_table.partitions``.

The stream says whose a change is by the leaf's oid, and the source's catalog says only what is a leaf now. What was a
leaf when its rows came is therefore remembered, in the row of the table, so that it goes wherever that goes (a swap,
a teardown). A leaf is in the record if and only if what it held when it joined the table is here, or will be when the
request to read the table again that is open is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cdc.changes.relation import Leaf
from cdc.routing.route import Route
from cdc.target.session import Session, target_errors
from cdc.target.table_state import TableName


@dataclass(frozen=True, slots=True)
class HeldLeaf:
    """One leaf whose rows are here. ``bound`` is a condition for exactly these, in the source's names, or `None`.

    It may hold constants of the DDL: it does not belong into a message.
    """

    oid: int
    schema: str
    name: str
    attachment: str
    bound: str | None

    @property
    def qualified_name(self) -> str:
        """``schema.table`` of the partition, unquoted."""
        return f"{self.schema}.{self.name}"

    @property
    def described(self) -> Leaf:
        """The leaf, as the stream's relations carry it."""
        return Leaf(self.oid, self.schema, self.name, self.attachment, is_born=True)


NOT_ASKED = ""
"""The bound of a leaf that was met in the stream, before the source was asked for it."""

HeldLeaves = dict[int, HeldLeaf]
"""The leaves of one table, by oid."""


class DescribedLeaf(Protocol):
    """A leaf as the source's catalog describes it (`cdc.source.partitions.SourceLeaf`)."""

    @property
    def leaf(self) -> Leaf:
        """Which it is."""

    @property
    def bound(self) -> str | None:
        """The condition for its rows."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The columns that it is about."""


def held_all(leaves: Iterable[DescribedLeaf], route: Route) -> list[HeldLeaf]:
    """What is recorded of leaves: no bound that speaks of a column which does not go there (invariant 7)."""
    return [
        held(one.leaf, one.bound if all(route.target_column(name) is not None for name in one.parts) else None)
        for one in leaves
    ]


def held(leaf: Leaf, bound: str | None) -> HeldLeaf:
    """What is recorded of a leaf."""
    return HeldLeaf(leaf.oid, leaf.schema, leaf.name, leaf.attachment, bound)


async def read(session: Session, pipeline: str) -> dict[str, HeldLeaves]:
    """The leaves of every partitioned table that has been loaded, by ``schema.table`` at the source."""
    with target_errors("reading the partitions of the tables", session.where):
        rows = await session.connection.fetch(
            "SELECT source_schema || '.' || source_table, partitions::text FROM cdc.target_table"
            " WHERE pipeline = $1 AND partitions IS NOT NULL",
            pipeline,
        )
    return {name: {int(oid): HeldLeaf(int(oid), *of) for oid, of in json.loads(text).items()} for name, text in rows}


async def write(session: Session, pipeline: str, source: TableName, leaves: Iterable[HeldLeaf]) -> None:
    """Record that the table holds exactly these leaves, in the transaction that is open."""
    await _update(session, "$4::text::jsonb", pipeline, source, leaves)


async def add(session: Session, pipeline: str, source: TableName, leaves: Iterable[HeldLeaf]) -> None:
    """Record that the table holds these leaves, too."""
    await _update(session, "coalesce(partitions, '{}') || $4::text::jsonb", pipeline, source, leaves)


async def _update(
    session: Session, expression: str, pipeline: str, source: TableName, leaves: Iterable[HeldLeaf]
) -> None:
    with target_errors(f"recording the partitions of {'.'.join(source)}", session.where):
        await session.connection.execute(
            f"UPDATE cdc.target_table SET partitions = {expression}"
            " WHERE pipeline = $1 AND source_schema = $2 AND source_table = $3",
            pipeline,
            *source,
            json.dumps({leaf.oid: [leaf.schema, leaf.name, leaf.attachment, leaf.bound] for leaf in leaves}),
        )


Held = Mapping[str, HeldLeaves]
"""The leaves of all tables, by ``schema.table`` of the root at the source."""
