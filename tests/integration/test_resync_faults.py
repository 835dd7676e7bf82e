"""`cdc resync` when something is in its way: it says what, loses nothing, and the stream goes on."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from cdc.errors import TerminalError
from cdc.service import tracking
from cdc.target.resync_request import Request
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.resync import Replicated

NUMBERS = """
CREATE TABLE numbers (id int PRIMARY KEY, v text);
INSERT INTO numbers SELECT n, 'v' FROM generate_series(1, 40) AS n;
"""
UNIQUE = """
CREATE TABLE seats (id int PRIMARY KEY, seat int UNIQUE);
INSERT INTO seats SELECT n, n FROM generate_series(1, 9) AS n;
"""


async def until(condition: str, database: Database) -> None:
    async with asyncio.timeout(30):
        while not database.fetchval(condition):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_row_that_the_target_refuses_fails_the_request_and_nothing_else(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(NUMBERS)
    target = make_target()
    target.execute("CREATE TABLE numbers (id bigint PRIMARY KEY, v text)")
    replicated = Replicated(source, target, schema="owned", tables={"public.numbers": ["id", "v"]})
    await replicated.load()
    source.execute("CREATE TABLE unrelated (id int)")
    target.execute("DELETE FROM numbers WHERE id = 7; ALTER TABLE numbers ADD CONSTRAINT no_seven CHECK (id <> 7)")
    async with replicated.worker():
        with pytest.raises(TerminalError, match="no_seven"):
            await replicated.resync("public.numbers")
        assert target.fetchval("SELECT reason FROM cdc.target_table") is not None
        source.execute("UPDATE numbers SET v = 'comes later' WHERE id = 8")
        await replicated.caught_up()
        target.execute("ALTER TABLE numbers DROP CONSTRAINT no_seven")
        (outcome,), _ = await replicated.resync("public.numbers")
        assert outcome.rows == 40
        await replicated.assert_equal("numbers")
        assert target.fetch("SELECT state, reason FROM cdc.target_table") == [("streaming", None)]
    assert target.fetch("SELECT tablename FROM pg_tables WHERE tablename LIKE 'resync\\_%%'") == []
    assert target.fetch("SELECT outcome FROM cdc.bootstrap_run WHERE origin = 'resync' ORDER BY run")[-1] == ("done",)


async def test_a_table_that_gets_another_shape_between_two_chunks_is_begun_anew(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(NUMBERS)
    replicated = Replicated(source, make_target())
    await replicated.load()
    replicated.target.execute("DELETE FROM numbers WHERE id % 3 = 0")
    chunks = 0

    async def alter(_: Request) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            replicated.target.execute("ALTER TABLE numbers ADD COLUMN more int")
            source.execute("ALTER TABLE numbers ADD COLUMN more int DEFAULT 5")

    async with replicated.worker(alter, most_rows=10):
        (outcome,), _ = await replicated.resync("public.numbers")
        await replicated.assert_equal("numbers")
    assert outcome.rows == 40


async def test_more_changes_than_can_be_remembered_cost_a_chunk_and_no_row(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "TOUCHED_BYTES", 3000)
    source.execute(NUMBERS)
    replicated = Replicated(source, make_target())
    await replicated.load()
    replicated.target.execute("UPDATE numbers SET v = 'wrong'")
    chunks = 0

    async def write(_: Request) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            source.execute("UPDATE numbers SET v = 'new' WHERE id BETWEEN 5 AND 35")

    async with replicated.worker(write, most_rows=10):
        (outcome,), _ = await replicated.resync("public.numbers")
        await replicated.assert_equal("numbers")
    assert outcome.rows == 40
    assert chunks > 5


async def test_a_table_that_waits_while_it_is_read_whole_loses_nothing_when_the_targets_session_ends(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(UNIQUE)
    replicated = Replicated(source, make_target())
    await replicated.load()
    target = replicated.target
    target.execute("DELETE FROM seats WHERE id = 4")
    async with replicated.worker():
        with psycopg.connect(source.dsn) as holding:
            holding.execute("UPDATE seats SET seat = 100 WHERE id = 1")  # the slot's snapshot has to wait for it
            asking = asyncio.ensure_future(replicated.resync("public.seats"))
            await until("SELECT state = 'stopped' FROM cdc.target_table", target)
            source.execute("UPDATE seats SET seat = seat + 200 WHERE id IN (2, 3)")
            await replicated.caught_up()
            target.execute(
                "SELECT pg_terminate_backend(backend_pid) FROM cdc.target; UPDATE seats SET seat = -1 WHERE id = 9"
            )
            source.execute("INSERT INTO seats VALUES (20, 20)")
            await replicated.caught_up()
            holding.commit()
        (outcome,), _ = await asking
        assert outcome.way == "whole"
        source.execute("UPDATE seats SET seat = seat + 1000")
        await until("SELECT state = 'streaming' AND position IS NULL FROM cdc.target_table", target)
        await replicated.assert_equal("seats")
