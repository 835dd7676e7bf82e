"""Random histories around `cdc resync`: whatever the source does meanwhile, the table ends as the source has it.

Each seed spoils the target's table, then has it read again in chunks of a few rows, while a seeded mix of transactions
runs at the source: between the read of a chunk and its watermark, and all the time. Several are open at once, across
chunks, with subtransactions; some are prepared. Keys move between ranges, with and without their TOASTed values, rows
are deleted and come back, the table is emptied. Sessions of ours are ended at random, too.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import ExitStack

import psycopg
import pytest

from cdc.target.resync_request import Request
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.resync import Replicated

KEYS = 60
SESSIONS = 3


class Writers:
    """Sessions on the source, each of which may have a transaction open; all choices come from the seed."""

    def __init__(self, source: Database, chance: random.Random, stack: ExitStack) -> None:
        self.source = source
        self.chance = chance
        self.sessions = [
            stack.enter_context(psycopg.connect(source.dsn, autocommit=True, options="-c lock_timeout=50ms"))
            for _ in range(SESSIONS)
        ]
        self.prepared: list[str] = []
        self.count = 0

    def act(self, steps: int) -> None:
        """Do some things."""
        for _ in range(steps):
            session = self.chance.choice(self.sessions)
            try:
                self._one(session)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
                session.execute("ROLLBACK")
            except psycopg.errors.InFailedSqlTransaction:
                session.execute("ROLLBACK")

    def finish(self) -> None:
        """End everything that is open."""
        for session in self.sessions:
            if session.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                session.execute(self.chance.choice(["COMMIT", "ROLLBACK"]))
        for name in self.prepared:
            self.source.execute(f"{self.chance.choice(['COMMIT', 'ROLLBACK'])} PREPARED '{name}'")
        self.prepared.clear()

    def _one(self, session: psycopg.Connection[tuple[object, ...]]) -> None:
        chance = self.chance
        self.count += 1
        is_open = session.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        way = chance.random()
        if is_open and way < 0.3:
            session.execute(chance.choice(["COMMIT", "COMMIT", "ROLLBACK"]).encode())
            return
        if is_open and way < 0.36:
            name = f"{self.source.name} {self.count}"
            session.execute(f"PREPARE TRANSACTION '{name}'".encode())
            self.prepared.append(name)
            return
        if self.prepared and way < 0.45:
            self.source.execute(f"{chance.choice(['COMMIT', 'COMMIT', 'ROLLBACK'])} PREPARED '{self.prepared.pop(0)}'")
            return
        if not is_open and chance.random() < 0.5:
            session.execute("BEGIN")
        if session.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS and chance.random() < 0.3:
            session.execute(f"SAVEPOINT s{self.count}".encode())
            self._change(session)
            session.execute(f"{chance.choice(['RELEASE', 'ROLLBACK TO'])} SAVEPOINT s{self.count}".encode())
        else:
            self._change(session)

    def _change(self, session: psycopg.Connection[tuple[object, ...]]) -> None:
        chance, word = self.chance, f"w{self.count}"
        key, other = chance.randrange(KEYS), chance.randrange(KEYS)
        big = f"repeat('{word}', 1500)"
        change = chance.choices(
            [
                f"UPDATE t SET word = '{word}' WHERE id = {key}",
                f"UPDATE t SET word = '{word}', big = {big} WHERE id = {key}",
                f"UPDATE t SET big = {big} WHERE id BETWEEN {key} AND {key + 5}",
                f"DELETE FROM t WHERE id = {key}",
                f"INSERT INTO t VALUES ({key}, '{word}', {big}, 'other') ON CONFLICT DO NOTHING",
                f"UPDATE t SET id = {other}, word = '{word}' WHERE id = {key}",
                f"UPDATE t SET id = {other}, big = {big} WHERE id = {key}",
                f"UPDATE t SET id = id + 1000, word = '{word}' WHERE id = {key}",
                f"UPDATE t SET id = {key} WHERE id = (SELECT min(id) FROM t WHERE id >= 1000)",
                "TRUNCATE t",
            ],
            weights=[20, 8, 5, 8, 12, 10, 5, 5, 5, 1],
        )[0]
        session.execute(change.encode())


@pytest.mark.parametrize("seed", range(6))
async def test_a_table_that_is_read_again_ends_as_the_source_has_it(
    source: Database, make_target: MakeDatabase, seed: int
) -> None:
    chance = random.Random(seed)
    source.execute("CREATE TABLE t (id int PRIMARY KEY, word text, big text, second text)")
    source.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL, ALTER second SET STORAGE EXTERNAL")
    source.execute(
        "INSERT INTO t SELECT n, 'first', repeat('b', 3000) || n, repeat('s', 3000) || n"
        f" FROM generate_series(0, {KEYS}, 2) n"
    )
    target = make_target()
    replicated = Replicated(source, target)
    await replicated.load()
    target.execute("SET session_replication_role = replica")
    target.execute(f"DELETE FROM t WHERE id % {chance.randint(2, 5)} = 0")
    target.execute("UPDATE t SET word = 'wrong', big = 'wrong' WHERE random() < 0.5")
    target.execute("INSERT INTO t SELECT n, 'wrong', 'wrong' FROM generate_series(1, 90, 7) n ON CONFLICT DO NOTHING")
    with ExitStack() as stack:
        writers = Writers(source, chance, stack)
        chunks = 0

        async def in_between(_: Request) -> None:
            nonlocal chunks
            chunks += 1
            writers.act(chance.randrange(8))
            if chance.random() < 0.15:
                database = chance.choice([source, target])
                database.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND application_name <> 'tests' AND backend_type = 'client backend' AND pid <> ALL (%s)",
                    [session.info.backend_pid for session in writers.sessions],
                )

        async def all_the_time() -> None:
            while True:
                await asyncio.sleep(chance.random() * 0.05)
                writers.act(2)

        async with replicated.worker(in_between, most_rows=chance.randint(4, 12)):
            writing = asyncio.ensure_future(all_the_time())
            asking = asyncio.ensure_future(replicated.resync("public.t"))
            try:
                while not asking.done():
                    await asyncio.wait([asking], timeout=3)
                    # Transactions that stay open for ever would keep it waiting for ever, as they should.
                    writers.finish()
                await asking
            finally:
                writing.cancel()
            writers.finish()
            await replicated.assert_equal("t")
            assert replicated.state("t") == "streaming"
            source.execute("UPDATE t SET word = 'strict'")
            await replicated.assert_equal("t")
    assert chunks >= 1
