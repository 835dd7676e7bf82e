"""Large transactions that come before their commit: they wait on the worker's disk, and arrive as if they had not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc.identifiers import quote
from cdc.service.stream_options import _have_ended
from cdc.source.connection import connect
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.test_pipeline import _connections_refused
from tests.pipeline import Pipeline, follow

TABLES = "CREATE TABLE items (id bigint PRIMARY KEY, body text); CREATE TABLE log (id bigint PRIMARY KEY, line text)"
MANY = 12_000
"""Rows of a large transaction: more than a megabyte, so that blocks of it are written before it ends."""

Session = psycopg.AsyncConnection[tuple[Any, ...]]


def prepare(source: Database) -> None:
    """Tables, and a source that streams whatever is larger than it must be."""
    source.execute(TABLES)
    source.execute(f"ALTER DATABASE {quote(source.name)} SET logical_decoding_work_mem = '64kB'")


@asynccontextmanager
async def large(source: Database, *, start: int = 0, rows: int = MANY) -> AsyncIterator[Session]:
    """A transaction that has written many rows, and has not ended; the test says how it ends."""
    async with source.session(autocommit=False) as session:
        await insert(session, start, rows)
        yield session


async def insert(session: Session, start: int, rows: int = MANY) -> None:
    await session.execute(
        "INSERT INTO items SELECT g, repeat(md5(g::text), 3) FROM generate_series(%s::bigint, %s) g",
        (start + 1, start + rows),
    )


async def spooled(pipeline: Pipeline, transactions: int = 1) -> None:
    """Wait until so many are open on the worker's side, and something of them is on its disk if any is."""

    async def is_there() -> bool:
        found = await pipeline.worker.metric("cdc_spool_transactions", target="all")
        size_bytes = await pipeline.worker.metric("cdc_spool_bytes", target="all")
        return found == transactions and (size_bytes > 0) == (transactions > 0)

    await pipeline.until(is_there, f"{transactions} transactions are in the spool")


def items(target: Database) -> int:
    return int(target.fetchval("SELECT count(*) FROM items"))


async def small_ones_pass(pipeline: Pipeline, number: int) -> None:
    """A transaction that begins and ends meanwhile reaches every target, and is acknowledged."""
    pipeline.source.execute("INSERT INTO log VALUES (%s, 'small')", number)
    goal = pipeline.source.current_lsn()
    await pipeline.caught_up(goal)
    await pipeline.until(lambda: pipeline.confirmed() >= goal, "it is acknowledged")


async def test_a_large_transaction_waits_for_its_commit_and_holds_nobody_up(
    source: Database, make_target: MakeDatabase
) -> None:
    prepare(source)
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        async with (
            large(source) as first,
            large(source, start=100_000) as second,
            large(source, start=200_000) as third,
        ):
            await spooled(pipeline, 3)
            await small_ones_pass(pipeline, 1)
            assert items(target) == 0
            await second.commit()
            await pipeline.caught_up()
            assert items(target) == MANY
            await third.rollback()
            await spooled(pipeline, 1)
            await small_ones_pass(pipeline, 2)
            await first.commit()
        await pipeline.assert_caught_up_and_equal()
        assert items(target) == 2 * MANY
        await spooled(pipeline, 0)
        assert len(pipeline.worker.events("streaming")) == 1, "one stream has brought it all"


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "lost connection"])
async def test_what_waits_for_its_commit_is_not_lost_with_the_stream(
    source: Database, make_target: MakeDatabase, how: str
) -> None:
    """Small transactions after its beginning are acknowledged, and yet all of it comes again."""
    prepare(source)
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        async with large(source) as session:
            await spooled(pipeline)
            await small_ones_pass(pipeline, 1)
            if how == "lost connection":
                pid = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s"
                source.fetch(pid, pipeline.slot)
                await pipeline.until(lambda: len(worker.events("streaming")) == 2, "it streams again")
            else:
                await (worker.kill() if how == "SIGKILL" else worker.terminate())
                await pipeline.start()
            await insert(session, 100_000)
            await session.commit()
        await pipeline.assert_caught_up_and_equal()
        await spooled(pipeline, 0)


async def test_a_worker_killed_while_it_applies_a_spooled_transaction_applies_it_once(
    source: Database, make_target: MakeDatabase
) -> None:
    prepare(source)
    target = make_target()
    async with Pipeline(
        source, {"internal": follow(target)}, worker={"max_batch_bytes": "64kB", "max_queue_bytes": "64kB"}
    ) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        async with large(source) as session:
            await spooled(pipeline)
            with psycopg.connect(target.dsn) as holder:
                holder.execute("LOCK items")
                await session.commit()
                waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'items'::regclass"
                await pipeline.until(lambda: target.fetchval(waits) > 0, "the worker is inside the transaction")
                await worker.kill()
            assert items(target) == 0
        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()


async def test_the_same_history_gives_the_same_target_with_streaming_and_without(
    source: Database, make_target: MakeDatabase
) -> None:
    prepare(source)
    streams, waits = make_target("streams"), make_target("waits")
    async with (
        Pipeline(source, {"internal": follow(streams)}) as one,
        Pipeline(source, {"internal": follow(waits)}, worker={"max_spool_bytes": 0}) as other,
    ):
        for pipeline, target in ((one, streams), (other, waits)):
            await pipeline.load()
            target.execute("ALTER TABLE items ADD COLUMN kept int")  # which the source adds below
            await pipeline.start()
        async with large(source) as session:
            await spooled(one)
            await session.execute("SAVEPOINT a")
            await session.execute("DELETE FROM items WHERE id % 2 = 0")
            await session.execute("ALTER TABLE items ADD COLUMN gone int")
            await session.execute("INSERT INTO items SELECT g, 'gone', g FROM generate_series(50000, 60000) g")
            await session.execute("ROLLBACK TO a")
            await session.execute("UPDATE items SET body = body || 'x' WHERE id % 3 = 0")
            await session.execute("SAVEPOINT b")
            await session.execute("ALTER TABLE items ADD COLUMN kept int")
            await insert_kept(session, 70_000)
            await session.execute("RELEASE b")
            await session.execute("DELETE FROM items WHERE id % 5 = 0")
            source.execute("INSERT INTO log SELECT g, 'between' FROM generate_series(1, 100) g")
            await session.commit()
        source.execute("INSERT INTO items VALUES (-1, 'after', 1); UPDATE items SET kept = 5 WHERE id < 100")
        async with source.session(autocommit=False) as session:
            await insert_kept(session, 200_000)
            await session.execute("PREPARE TRANSACTION 'prepared'")
        await small_ones_pass(one, 1000)
        source.execute("COMMIT PREPARED 'prepared'")
        for pipeline in (one, other):
            await pipeline.assert_caught_up_and_equal()
        assert await other.worker.metric("cdc_spool_transactions") == 0
        rows = "SELECT * FROM items ORDER BY id"
        assert streams.fetch(rows) == waits.fetch(rows)


async def insert_kept(session: Session, start: int) -> None:
    await session.execute(
        "INSERT INTO items SELECT g, repeat(md5(g::text), 3), g FROM generate_series(%s::bigint, %s) g",
        (start, start + MANY),
    )


@pytest.mark.parametrize("why", ["limit", "disk"])
async def test_invariant_10_where_the_spool_ends_large_transactions_come_after_their_commit(
    source: Database, make_target: MakeDatabase, tmp_path: Path, why: str
) -> None:
    prepare(source)
    directory = tmp_path / "spool"
    limited = {"max_spool_bytes": "100kB"} if why == "limit" else {"spool_directory": str(directory)}
    async with Pipeline(source, {"internal": follow(make_target())}, worker=limited) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        async with large(source) as session:
            line = await pipeline.logged("stream starts anew; large transactions come after their commit")
            named = "worker.max_spool_bytes" if why == "limit" else "No such file or directory"
            assert named in line["reason"]
            directory.mkdir()
            await pipeline.ready()
            await small_ones_pass(pipeline, 1)
            assert await worker.metric("cdc_spool_fallback", target="all") == 1
            assert await worker.metric("cdc_spool_transactions") == 0
            assert worker.events("the next stream has large transactions before their commit again") == []
            await session.commit()
        await pipeline.assert_caught_up_and_equal()
        await pipeline.logged("the next stream has large transactions before their commit again")
        assert await worker.metric("cdc_spool_fallback", target="all") == 0
        assert len(worker.events("streaming")) == 2, "no stream ends for that"
        await worker.terminate()
        await pipeline.start()
        async with large(source, start=100_000, rows=4_000) as session:
            await spooled(pipeline)
            await session.commit()
        await pipeline.assert_caught_up_and_equal()
        assert worker.log_text().count("large transactions come after") == 1


async def test_a_table_that_stops_inside_a_spooled_transaction_keeps_the_others_going(
    source: Database, make_target: MakeDatabase
) -> None:
    prepare(source)
    target = make_target()
    async with Pipeline(source, {"internal": follow(target, on_error="quarantine_table")}) as pipeline:
        await pipeline.load()
        target.execute("ALTER TABLE log ADD CONSTRAINT short CHECK (length(line) < 10)")
        await pipeline.start()
        async with large(source) as session:
            await session.execute("INSERT INTO log VALUES (1, 'longer than it may be')")
            await insert(session, 100_000)
            await spooled(pipeline)
            await session.commit()
        await pipeline.caught_up()
        await pipeline.table_in_state("internal", "public.log", "stopped")
        assert items(target) == 2 * MANY
        await pipeline.assert_equal(leave_out=["public.log"])
        target.execute("ALTER TABLE log DROP CONSTRAINT short")
        await pipeline.table_in_state("internal", "public.log", "streaming")
        await pipeline.assert_caught_up_and_equal()


async def test_a_target_that_is_away_gets_a_spooled_transaction_when_it_is_back(
    source: Database, make_target: MakeDatabase
) -> None:
    prepare(source)
    targets = {name: make_target(name) for name in ("internal", "external", "datamart")}
    async with Pipeline(source, {name: follow(database) for name, database in targets.items()}) as pipeline:
        await pipeline.load()
        with _connections_refused(targets["external"]):
            await pipeline.start(ready=False)
            async with large(source) as session:
                await spooled(pipeline)
                await session.commit()
            commit = source.current_lsn()
            source.execute("INSERT INTO log VALUES (1, 'behind it')")
            await pipeline.caught_up(None, "internal", "datamart")
            assert items(targets["internal"]) == items(targets["datamart"]) == MANY
            assert pipeline.confirmed() < commit
        await pipeline.assert_caught_up_and_equal()


async def test_many_large_transactions_at_once_arrive_in_the_order_of_their_commits(
    source: Database, make_target: MakeDatabase
) -> None:
    prepare(source)
    source.execute("INSERT INTO log VALUES (0, '')")
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        await pipeline.start()

        async def write(number: int) -> None:
            for round_ in range(3):
                start = 1_000_000 * number + 100_000 * round_
                async with large(source, start=start, rows=3_000) as session:
                    # One row that all of them change: what is there last tells the order.
                    await session.execute("UPDATE log SET line = %s WHERE id = 0", (f"{number} {round_}",))
                    await insert(session, start + 50_000, 3_000)
                    await session.commit()

        async with asyncio.TaskGroup() as tasks:
            for number in range(4):
                tasks.create_task(write(number))
        await pipeline.assert_caught_up_and_equal()
        await spooled(pipeline, 0)


async def test_what_has_ended_is_told_from_what_runs_or_is_prepared(source: Database) -> None:
    source.execute(TABLES)
    own_xid = "SELECT (pg_current_xact_id()::text::bigint & 4294967295)::bigint"
    async with await connect(source.dsn, application_name="tests") as catalog:
        async with source.session(autocommit=False) as session:
            (running,) = await (await session.execute(own_xid)).fetchone() or (0,)
            assert not await _have_ended(catalog, frozenset({running}))
            await session.rollback()
            assert await _have_ended(catalog, frozenset({running}))
            (prepared,) = await (await session.execute(own_xid)).fetchone() or (0,)
            await session.execute("INSERT INTO log VALUES (1, '')")
            await session.execute("PREPARE TRANSACTION 'waits'")
        source.execute("INSERT INTO log VALUES (2, '')")
        assert not await _have_ended(catalog, frozenset({running, prepared}))
        source.execute("COMMIT PREPARED 'waits'")
        assert await _have_ended(catalog, frozenset({running, prepared}))
        assert not await _have_ended(catalog, frozenset({prepared + 1000})), "what is to come has not ended"
