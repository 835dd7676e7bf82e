"""`cdc resync` in place: a table is made right again while everything streams, whatever happens to it meanwhile.

Chunks have ten rows here. What a test does "in between" happens when a chunk is read and staged, and its watermark is
not written yet: the stream brings it before the chunk is merged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
import pytest

from cdc.service import provision
from cdc.target.resync_request import Request
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.resync import Replicated

TABLE = """
CREATE TABLE orders (id bigint PRIMARY KEY, customer text, note text);
ALTER TABLE orders ALTER COLUMN note SET STORAGE EXTERNAL;
INSERT INTO orders SELECT n, 'customer ' || n, repeat('n', 3000) || n FROM generate_series(10, 400, 10) AS n;
"""
"""Forty rows; notes are TOASTed, so an update of another column does not send them."""

SPOIL = """
SET session_replication_role = replica;
DELETE FROM orders WHERE id % 70 = 0;
UPDATE orders SET customer = 'wrong', note = 'wrong' WHERE id % 30 = 0;
INSERT INTO orders SELECT n, 'too many', 'too many' FROM generate_series(15, 600, 45) AS n ON CONFLICT DO NOTHING;
"""


@pytest.fixture
async def replicated(source: Database, make_target: MakeDatabase) -> Replicated:
    source.execute(TABLE)
    found = Replicated(source, make_target())
    await found.load()
    return found


class InBetween:
    """Does something when the chunk with a number (counted from 1) is staged; or when every chunk is."""

    def __init__(self, *acts: Callable[[], object], every: Callable[[], object] | None = None) -> None:
        self.acts = list(acts)
        self.every = every
        self.chunks = 0

    async def __call__(self, _: Request) -> None:
        self.chunks += 1
        if self.acts:
            self.acts.pop(0)()
        if self.every is not None:
            self.every()


async def resync_and_compare(replicated: Replicated, act: InBetween) -> None:
    async with replicated.worker(act, most_rows=10):
        (outcome,), _ = await replicated.resync("public.orders")
        assert outcome.way == "in place"
        assert replicated.state("orders") == "streaming"
        await replicated.assert_equal("orders")
        # Strict again: a row that is missing now would stop the table.
        replicated.source.execute("UPDATE orders SET customer = 'later' WHERE id % 20 = 0")
        await replicated.assert_equal("orders")
        assert replicated.state("orders") == "streaming"
    assert replicated.target.fetch("SELECT tablename FROM pg_tables WHERE tablename LIKE 'resync\\_%%'") == []


async def test_rows_that_are_missing_too_many_or_different_are_mended(replicated: Replicated) -> None:
    replicated.target.execute(SPOIL)
    await resync_and_compare(replicated, InBetween())


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE orders SET customer = 'new', note = 'new' WHERE id IN (20, 30, 70, 150, 210, 390)",
        "UPDATE orders SET customer = 'new' WHERE id IN (20, 30, 70, 150, 210, 390)",
        "DELETE FROM orders WHERE id IN (20, 30, 70, 150, 210, 390)",
        "DELETE FROM orders WHERE id IN (20, 70); INSERT INTO orders VALUES (20, 'again', 'a'), (70, 'again', 'b')",
        "INSERT INTO orders VALUES (15, 'new', 'new'), (16, 'new', 'new'), (155, 'new', 'new'), (999, 'new', 'new')",
        "TRUNCATE orders; INSERT INTO orders VALUES (20, 'first', 'a'), (70, 'second', 'b')",
    ],
    ids=["all values", "unchanged toast", "delete", "delete and insert", "insert", "truncate"],
)
async def test_what_changes_between_the_read_of_a_chunk_and_its_watermark_keeps_the_streams_version(
    replicated: Replicated, change: str
) -> None:
    replicated.target.execute(SPOIL)
    await resync_and_compare(replicated, InBetween(lambda: replicated.source.execute(change)))


@pytest.mark.parametrize("sends_all", [True, False], ids=["all values", "unchanged toast"])
@pytest.mark.parametrize(("key", "to"), [(350, 25), (20, 355), (30, 31), (70, 71), (300, 26)])
async def test_a_key_that_changes_between_ranges_arrives_whole(
    replicated: Replicated, sends_all: bool, key: int, to: int
) -> None:
    replicated.target.execute(SPOIL)
    note = ", note = 'sent'" if sends_all else ""
    change = f"UPDATE orders SET id = {to}, customer = 'moved'{note} WHERE id = {key}"
    act = InBetween(lambda: None, lambda: replicated.source.execute(change))
    await resync_and_compare(replicated, act)


async def test_rows_that_move_and_change_all_the_time_do_not_keep_a_resync_from_ending(replicated: Replicated) -> None:
    replicated.target.execute(SPOIL)
    moving = iter(range(10, 400, 10))

    def act() -> None:
        key = next(moving)
        replicated.source.execute(f"UPDATE orders SET id = {key + 1000}, customer = 'moved' WHERE id = {key}")
        replicated.source.execute("UPDATE orders SET customer = customer || '.' WHERE id IN (210, 300, 390)")

    in_between = InBetween(every=act)
    await resync_and_compare(replicated, in_between)
    assert in_between.chunks < 20


async def test_a_transaction_that_is_open_while_chunks_are_read_is_not_lost(replicated: Replicated) -> None:
    replicated.target.execute(SPOIL)
    with psycopg.connect(replicated.source.dsn) as open_transaction:

        def begin() -> None:
            open_transaction.execute("UPDATE orders SET customer = 'open' WHERE id IN (10, 20, 70, 110)")
            open_transaction.execute("SAVEPOINT a")
            open_transaction.execute("UPDATE orders SET note = 'in a subtransaction' WHERE id IN (30, 120)")
            open_transaction.execute("RELEASE SAVEPOINT a; SAVEPOINT b")
            open_transaction.execute("DELETE FROM orders WHERE id = 40")
            open_transaction.execute("ROLLBACK TO SAVEPOINT b")

        act = InBetween(begin, lambda: None, open_transaction.commit)
        await resync_and_compare(replicated, act)


async def test_a_prepared_transaction_is_not_lost(replicated: Replicated) -> None:
    replicated.target.execute(SPOIL)
    name = f"gid-{replicated.source.name}"

    def prepare() -> None:
        replicated.source.execute(
            "BEGIN; UPDATE orders SET customer = 'prepared' WHERE id IN (10, 70, 110);"
            f"INSERT INTO orders VALUES (7, 'prepared', 'p'); PREPARE TRANSACTION '{name}'"
        )

    act = InBetween(prepare, lambda: None, lambda: replicated.source.execute(f"COMMIT PREPARED '{name}'"))
    await resync_and_compare(replicated, act)


async def test_a_table_that_joins_gets_its_rows_also_those_of_a_transaction_that_was_open_then(
    replicated: Replicated,
) -> None:
    source, target = replicated.source, replicated.target
    with psycopg.connect(source.dsn) as open_transaction:
        source.execute("CREATE TABLE joined (id int PRIMARY KEY, word text)")
        source.execute("CREATE INDEX joined_word ON joined (word)")
        source.execute("INSERT INTO joined SELECT n, 'before' FROM generate_series(1, 25) AS n")
        open_transaction.execute("INSERT INTO joined VALUES (100, 'open'), (0, 'open')")
        open_transaction.execute("UPDATE joined SET word = 'open' WHERE id = 3")
        await provision.setup(replicated.config, lambda _: None)
        async with replicated.worker(most_rows=10):
            asking = asyncio.ensure_future(replicated.resync("public.joined"))
            async with asyncio.timeout(30):
                while not target.fetchval("SELECT says FROM cdc.resync"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert "waiting until what was begun before has ended" in target.fetchval("SELECT says FROM cdc.resync")
            source.execute("UPDATE joined SET word = 'meanwhile' WHERE id = 4")
            open_transaction.commit()
            await asking
            await replicated.assert_equal("joined")
            source.execute("DELETE FROM joined WHERE id IN (0, 1)")
            await replicated.assert_equal("joined")
    assert target.fetchval("SELECT count(*) FROM pg_indexes WHERE indexname = 'joined_word'") == 1
    assert target.fetchval("SELECT created_by_cdc FROM cdc.target_table WHERE source_table = 'joined'")


async def test_a_stopped_table_is_mended(replicated: Replicated) -> None:
    replicated.target.execute("DELETE FROM orders WHERE id = 50")
    async with replicated.worker(most_rows=10):
        replicated.source.execute("UPDATE orders SET customer = 'new' WHERE id IN (40, 50)")
        async with asyncio.timeout(30):
            while replicated.state("orders") != "stopped":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        replicated.source.execute("UPDATE orders SET customer = 'newer' WHERE id IN (50, 60)")
        await replicated.resync("public.orders")
        await replicated.assert_equal("orders")
        assert replicated.state("orders") == "streaming"


async def test_a_table_that_is_rewritten_between_two_chunks_is_read_on(replicated: Replicated) -> None:
    replicated.target.execute(SPOIL)
    source = replicated.source
    act = InBetween(
        lambda: None,
        lambda: source.execute("CREATE TABLE unrelated (id int)"),
        lambda: source.execute("VACUUM FULL orders"),
    )
    await resync_and_compare(replicated, act)
