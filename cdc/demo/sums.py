"""Reads an invariant of the source from the targets, again and again, while they are written to.

Every transaction of the source that moves places leaves their sum over two tables as it was. A target that shows
another sum shows half a transaction, or one twice, or one not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import psycopg

SUMS = {
    "internal": 'SELECT (SELECT sum(count) FROM "organization-places") + (SELECT sum(count) FROM "center-places")',
    "datamart": "SELECT (SELECT sum(places) FROM maddo.organization_places)"
    " + (SELECT sum(places) FROM maddo.center_places)",
}
"""One statement per target that has both tables: it sees one moment."""

EXPECTED = 50_000
"""What sql/demo/rows.sql begins with."""

INTERVAL_S = 0.05


class Watch:
    """Reads the sums until `stop`: ``reads`` were made, ``torn`` of them showed another sum."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        self._targets = targets
        self._stop = asyncio.Event()
        self.reads = 0
        self.torn = 0

    def stop(self) -> None:
        """Read no more."""
        self._stop.set()

    async def run(self) -> None:
        """Read until told to stop."""
        async with asyncio.TaskGroup() as tasks:
            for target, sql in SUMS.items():
                tasks.create_task(self._watch(self._targets[target], sql))

    async def _watch(self, dsn: str, sql: str) -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            while not self._stop.is_set():
                row = await (await connection.execute(sql.encode())).fetchone()
                self.reads += 1
                self.torn += row is None or row[0] != EXPECTED
                with suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL_S):
                        await self._stop.wait()
