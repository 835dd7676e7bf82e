"""Definitions on tables that changes are streamed into, that others read, and whose connections are cut."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from cdc.errors import TerminalError
from cdc.target import definitions
from cdc.target.definitions import NewIndex
from cdc.target.session import connect
from tests.bootstrap import until
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.definitions import constraints, index_definitions, stage
from tests.faults.proxy import Proxy

LARGE = """
CREATE TABLE answers (id int PRIMARY KEY, value text NOT NULL, "challengeId" text, CONSTRAINT "value" UNIQUE (value));
INSERT INTO answers SELECT g, 'value ' || g, repeat('rec', 10) || g FROM generate_series(1, 250000) g;
CREATE INDEX "answers_challengeId" ON answers ("challengeId");
CREATE INDEX answers_recent ON answers (id) WHERE id > 1000;
ALTER TABLE answers ADD CHECK (id > 0);
"""


async def test_a_large_table_can_be_written_to_while_its_indexes_are_built(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(LARGE)
    async with stage(source, make_target()) as built:
        longest = 0.0
        done = asyncio.Event()

        async def write() -> None:
            nonlocal longest
            async with built.target.session() as session:
                number = 0
                while not done.is_set():
                    number += 1
                    begun = time.monotonic()
                    await session.execute("INSERT INTO answers VALUES (%s, %s, 'x')", (10**6 + number, f"new {number}"))
                    longest = max(longest, time.monotonic() - begun)
                    await asyncio.sleep(0.001)

        # A report holds a snapshot, for which CREATE INDEX CONCURRENTLY waits: that blocks nobody, and fails nothing.
        async with built.target.session(autocommit=False) as report, asyncio.TaskGroup() as group:
            await report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await report.execute("SELECT count(*) FROM answers")
            group.create_task(write())
            building = group.create_task(built.build(concurrently=True))
            await until(lambda: built.target.fetch("SELECT FROM pg_stat_progress_create_index WHERE phase ~ 'waiting'"))
            await asyncio.sleep(0.5)
            await report.rollback()
            assert await building == []
            done.set()
        assert longest < 2
        assert built.indexes() == index_definitions(source)
        assert constraints(built.target, "u") == constraints(source, "u") != {}
        assert constraints(built.target, "c") == constraints(source, "c") != {}


async def test_an_invalid_index_of_an_interrupted_run_is_dropped_and_built_again(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(LARGE)
    async with stage(source, make_target()) as built:
        built.target.execute('CREATE UNIQUE INDEX "value" ON answers (value)')
        built.target.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = '\"value\"'::regclass")
        for concurrently in (True, False):
            assert await built.build(concurrently=concurrently) == []
            assert built.indexes() == index_definitions(source)
        assert built.target.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0


async def test_an_index_of_somebody_else_that_is_not_valid_is_left_alone(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY, name text); CREATE INDEX by_name ON a (name)")
    async with stage(source, make_target()) as built:
        built.target.execute("CREATE INDEX of_mine ON a (name)")
        built.target.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'of_mine'::regclass")
        assert await built.build(concurrently=True) == []
        assert built.indexes().keys() == {"a_pkey", "by_name", "of_mine"}


async def test_hazard_20_an_index_whose_connection_was_cut_is_waited_for_and_built_once(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY, name text); INSERT INTO a SELECT generate_series(1, 300), 'x'")
    # Slow enough to be cut in the middle; the server does not notice, because it has nothing to say meanwhile.
    slow = (
        "CREATE FUNCTION slow(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_catalog.pg_sleep(0.01); RETURN $1; END'"
    )
    source.execute(slow.replace("pg_catalog.pg_sleep(0.01)", "1"))
    source.execute("CREATE INDEX a_slow ON a (slow(name))")
    target = make_target()
    target.execute(slow)
    async with stage(source, target, jobs=1) as built, Proxy("127.0.0.1", urlsplit(target.dsn).port or 0) as proxy:
        access = replace(built.build_target.access, dsn=proxy.dsn(target.dsn))
        built.build_target = replace(built.build_target, access=access)
        busy = "SELECT FROM pg_stat_activity WHERE query ~ '^CREATE INDEX' AND state = 'active' AND datname = %s"

        async def cut() -> None:
            await until(lambda: target.fetch(busy, target.name))
            assert proxy.cut() > 0

        async with asyncio.TaskGroup() as group:
            group.create_task(cut())
            building = group.create_task(built.build())
        assert building.result() == []
        assert index_definitions(target) == index_definitions(source)
        assert [step for step in built.steps() if step[0] == "index"] == [("index", "a_slow of public.a")]


async def test_a_failed_unique_index_leaves_nothing_that_refuses_rows(make_target: MakeDatabase) -> None:
    target = make_target()
    target.execute("CREATE TABLE a (id int); INSERT INTO a VALUES (1), (1)")
    session = await connect(target.dsn, application_name="cdc test", target="internal")
    index = NewIndex("public", "a", "once", True, "btree (id)")
    for concurrently in (True, False):
        with pytest.raises(TerminalError, match="SQLSTATE 23505"):
            await definitions.create_index(session, index, concurrently=concurrently)
        assert await definitions.index_state(session, index) == "missing"
    assert await session.connection.fetchval("SELECT current_setting('lock_timeout')") == "10s"
    await session.close()


async def test_an_index_that_is_built_concurrently_waits_for_a_report_however_long_it_takes(
    make_target: MakeDatabase,
) -> None:
    target = make_target()
    target.execute("CREATE TABLE a (id int); INSERT INTO a VALUES (1)")
    session = await connect(target.dsn, application_name="cdc test", target="internal", lock_timeout_ms=50)
    waiting = "SELECT FROM pg_stat_progress_create_index WHERE phase ~ 'waiting' AND datname = %s"
    async with target.session(autocommit=False) as report, asyncio.TaskGroup() as group:
        await report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await report.execute("SELECT count(*) FROM a")
        index = NewIndex("public", "a", "by_id", False, "btree (id)")
        building = group.create_task(definitions.create_index(session, index, concurrently=True))
        await until(lambda: target.fetch(waiting, target.name))
        await asyncio.sleep(0.3)
        await report.rollback()
    assert building.result()
    await session.close()
