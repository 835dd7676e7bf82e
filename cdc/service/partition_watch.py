"""Which partitions the source's tables have, looked at every few seconds: ATTACH and DETACH send nothing.

One small query asks for a mark of each partitioned table that a target of the lane has loaded; what the marks stand
for is read only where one has changed. Two look at it. The reader of the stream puts relations where they belong from
then on (`PartitionWatch.place_again`). And each target compares what it holds (`cdc.service.resyncing`), after that: so
nothing that is read again misses a change which the reader put elsewhere.

Beside that, the columns of the tables are looked at (`cdc.service.column_looks`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cdc.changes.accumulator import UnknownTypes
from cdc.changes.packed_accumulator import AnyAccumulator
from cdc.errors import CdcError
from cdc.service import column_looks
from cdc.source.catalog import describe_types
from cdc.source.column_numbers import NOTHING_SEEN
from cdc.source.connection import Connection
from cdc.source.partitions import SourceLeaf, find_places, read_leaves, read_marks

if TYPE_CHECKING:
    from cdc.service.delivery import Delivery

Leaves = Mapping[int, tuple[SourceLeaf, ...]]
"""The leaves of partitioned tables, by the root's oid."""


class PartitionWatch:
    """The partitions of the tables that one lane streams. Its interval is in seconds."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._marks: dict[int, str] = {}
        self._leaves: Leaves = {}
        self._is_stale = False
        self._columns = NOTHING_SEEN

    async def watch(self, catalog: Connection, deliveries: Sequence[Delivery]) -> None:
        """Look until cancelled. Raises what the source says."""
        while True:
            await self.look(catalog, deliveries)
            leaves = {one.leaf.oid for of in self._leaves.values() for one in of}
            self._columns = await column_looks.look(catalog, deliveries, self._columns, leaves)
            await asyncio.sleep(self._interval_s)

    async def look(self, catalog: Connection, deliveries: Sequence[Delivery]) -> None:
        """Ask the source once, and tell the deliveries."""
        tables = {oid for delivery in deliveries for oid in delivery.interest.table_oids or ()}
        marks = await read_marks(catalog, tables)
        if marks != self._marks:
            self._leaves = await read_leaves(catalog, marks, is_measured=False) if marks else {}
            # A root without leaves is one all the same.
            self._leaves = {root: self._leaves.get(root, ()) for root in marks}
            self._marks = marks
            self._is_stale = True
        for delivery in deliveries:
            delivery.resyncing.partitions = self._leaves

    async def learn(self, catalog: Connection, accumulator: AnyAccumulator, unknown: UnknownTypes) -> Sequence[bytes]:
        """Tell the accumulator what it asked for; returns the messages to be fed to it."""
        descriptions = accumulator.descriptions
        descriptions.learn(await describe_types(catalog, unknown.keys), unknown.keys)
        descriptions.place(await find_places(catalog, unknown.relations), unknown.relations)
        return unknown.remaining

    async def place_again(self, catalog: Connection, accumulator: AnyAccumulator) -> None:
        """Where partitions have changed since the last time: say anew where the known relations belong."""
        if self._is_stale:
            self._is_stale = False
            try:
                known = accumulator.descriptions.placed
                accumulator.descriptions.place(await find_places(catalog, known), known)
            except CdcError:
                self._is_stale = True
                raise
