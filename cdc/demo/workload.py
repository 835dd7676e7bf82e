"""The live load of the demo: writers that go on at a steady pace until they are told to stop.

The pace is fixed, some 120 transactions a second, so that what is shown is how far behind the targets are at that pace,
not how much a machine can take. A writer that the machine keeps from its pace does not catch up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from random import Random

import psycopg

from cdc.demo.transactions import MIX, Connection, Transaction, load_answers, record_event

WRITERS = 3
"""Enough for transactions to interleave in the WAL and to wait for each other's locks."""

WRITER_INTERVAL_S = 0.03
EVENT_INTERVAL_S = 0.05
"""Twenty a second: six hundred in half a minute, enough for a p99 that six of them decide."""

BULK_INTERVAL_S = 7.0


class Workload:
    """Writes into ``dsn`` until `stop`. ``transactions`` counts what was committed."""

    def __init__(self, dsn: str, *, seed: int = 1) -> None:
        self._dsn = dsn
        self._seed = seed
        self._stop = asyncio.Event()
        self.transactions = 0

    def stop(self) -> None:
        """Every writer finishes its transaction; then `run` returns."""
        self._stop.set()

    async def run(self) -> None:
        """Write until told to stop."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(WRITERS):
                random = Random(f"{self._seed}/{number}")
                tasks.create_task(self._write(_mixed(random), random, WRITER_INTERVAL_S))
            for transaction, interval_s in ((record_event, EVENT_INTERVAL_S), (load_answers, BULK_INTERVAL_S)):
                random = Random(f"{self._seed}/{transaction.__name__}")
                tasks.create_task(self._write(_always(transaction), random, interval_s))

    async def _write(self, choices: Iterator[Transaction], random: Random, interval_s: float) -> None:
        clock = asyncio.get_running_loop()
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            due = clock.time()
            for transaction in choices:
                due = max(clock.time(), due + interval_s)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await self._stop.wait()
                if self._stop.is_set():
                    return
                await self.commit(connection, transaction, random)

    async def burst(self) -> None:
        """Commit one transaction of thousands of rows, now."""
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            await self.commit(connection, load_answers, Random(f"{self._seed}/burst"))

    async def commit(self, connection: Connection, transaction: Transaction, random: Random) -> None:
        """Run one transaction; a deadlock between two writers rolls one of them back, as in life."""
        is_done = False
        with suppress(psycopg.errors.DeadlockDetected):
            async with connection.transaction():
                await transaction(connection, random)
                is_done = True
            self.transactions += is_done


def _mixed(random: Random) -> Iterator[Transaction]:
    while True:
        yield from random.choices(list(MIX), list(MIX.values()), k=100)


def _always(transaction: Transaction) -> Iterator[Transaction]:
    while True:
        yield transaction
