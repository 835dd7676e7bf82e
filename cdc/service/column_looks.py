"""What a look at the columns of the source's tables means for one target: tables that stop, and what is noted.

The look is one small query every few seconds, beside that at partitions (`cdc.service.partition_watch`). It finds what
no message of the stream tells: a column that was dropped and added again, and names that were swapped in a table of
which nothing is streamed. A table is compared when its target holds everything from before the look.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from cdc.source.column_numbers import ColumnsSeen, read_column_numbers
from cdc.source.connection import Connection

if TYPE_CHECKING:
    from cdc.service.delivery import Delivery
    from cdc.service.owned_target import OwnedTarget


async def look(
    catalog: Connection, deliveries: Sequence[Delivery], before: ColumnsSeen, leaves: Collection[int]
) -> ColumnsSeen:
    """Ask the source once, and tell the deliveries. ``before`` is the last answer, which stays while nothing changes.

    ``leaves`` are not asked for: a partition's columns are called as those of its root.
    """
    tables = {oid for delivery in deliveries for oid in delivery.interest.table_oids or ()}.difference(leaves)
    seen = await read_column_numbers(catalog, tables)
    if seen.tables == before.tables:
        # As it was then: who holds everything from before that need not wait for anything later.
        seen = before
    for delivery in deliveries:
        delivery.resyncing.columns = seen
    return seen


async def compare(owned: OwnedTarget, seen: ColumnsSeen) -> None:
    """Stop, durably and between two batches, the tables that hold other columns than their names mean now."""
    planning = owned.planning
    if owned.position < seen.lsn:
        return
    for oid, columns in seen.tables.items():
        table = planning.name_of(oid)
        route = None if table is None else planning.route_of(table)
        if table is None or route is None or table in owned.positions.tables:
            continue  # nobody's, or it stands where the look says nothing of it
        moved = await planning.columns.compare(table, columns, route)
        if planning.columns.has_news:
            async with owned.fenced():
                await planning.columns.record()
        if moved is not None:
            owned.stop(table, owned.position, moved, None)
            await owned.save()
