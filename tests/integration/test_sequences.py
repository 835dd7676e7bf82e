"""Sequences whose positions follow the source's (``sequences = "sync"``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from cdc.errors import FenceLost
from cdc.service import checkup
from cdc.service import sequences as service
from cdc.service.delivery import Delivery
from cdc.service.sequences import follow_sequences
from cdc.source.connection import Connection
from cdc.source.connection import connect as connect_source
from cdc.source.sequences import SequenceUse, read_sequences
from cdc.target import position, sequences
from cdc.target.definitions import NewSequence
from cdc.target.migrations import migrate
from cdc.target.sequences import Differing, SequencePosition
from cdc.target.session import Session, connect
from tests.conftest import MakeDatabase, MakeRole
from tests.database import Database
from tests.pipeline import Pipeline, follow
from tests.resync import DEADLINE_S, Replicated

TABLES = """
CREATE SCHEMA "Else-Where";
CREATE SEQUENCE "Else-Where"."Odd-One" AS smallint START 100 INCREMENT -5 MAXVALUE 100 MINVALUE -100 CYCLE;
CREATE TABLE users (id serial PRIMARY KEY, name text, odd smallint DEFAULT nextval('"Else-Where"."Odd-One"'));
CREATE TABLE more (id int GENERATED ALWAYS AS IDENTITY (START 7) PRIMARY KEY,
    odd smallint DEFAULT nextval('"Else-Where"."Odd-One"'));
CREATE SEQUENCE stand_alone;
"""

DEFINITIONS = """
SELECT schemaname, sequencename, data_type::text, start_value, min_value, max_value, increment_by, cycle, cache_size
  FROM pg_sequences WHERE schemaname <> 'cdc' AND sequencename <> 'stand_alone' ORDER BY 1, 2
"""


def standing(database: Database) -> list[tuple[Any, ...]]:
    """Every sequence with its definition, and where it stands exactly."""
    return [
        (*row, *database.fetch(f'SELECT last_value, is_called FROM "{row[0]}"."{row[1]}"')[0])
        for row in database.fetch(DEFINITIONS)
    ]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition. It is asked in a thread: it may wait for a lock of the transaction that runs meanwhile."""
    async with asyncio.timeout(DEADLINE_S):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - a database announces nothing
            await asyncio.sleep(0.05)


@asynccontextmanager
async def following(replicated: Replicated) -> AsyncIterator[Delivery]:
    """A lane that streams, and beside it what sets the sequences."""
    stop = asyncio.Event()
    async with replicated.worker() as delivery, asyncio.TaskGroup() as tasks:
        tasks.create_task(follow_sequences(replicated.config, {"warehouse": delivery}, stop))
        try:
            yield delivery
        finally:
            stop.set()


async def come_to_stand(replicated: Replicated) -> None:
    await until(lambda: standing(replicated.target) == standing(replicated.source))


def replicated_with(source: Database, target: Database) -> Replicated:
    found = Replicated(source, target, include=["public.*"], sequences="sync")
    found.settings["worker"]["sequence_interval_s"] = 0.1
    return found


async def test_positions_follow_the_sources_wherever_they_go(source: Database, make_target: MakeDatabase) -> None:
    source.execute(TABLES)
    replicated = replicated_with(source, make_target())
    await replicated.load()
    target = replicated.target
    assert standing(target) == standing(source), "as the load left them"
    async with following(replicated):
        for step, statement in {
            "never used": "SELECT 1",
            "used": "INSERT INTO users (name) SELECT 'a' FROM generate_series(1, 20); INSERT INTO more DEFAULT VALUES",
            "descending, and beyond its end": "INSERT INTO users (name) SELECT 'b' FROM generate_series(1, 50)",
            "set forward": "SELECT setval('users_id_seq', 5000)",
            "set back": "SELECT setval('users_id_seq', 500)",
            "set to be handed out next": "SELECT setval('users_id_seq', 400, false)",
            "set elsewhere to be handed out next": "SELECT setval('users_id_seq', 401, false)",
            "restarted": "TRUNCATE users, more RESTART IDENTITY",
            "cached": "ALTER SEQUENCE users_id_seq CACHE 50; INSERT INTO users (name) VALUES ('c')",
            "another type and bounds": "ALTER SEQUENCE users_id_seq AS bigint MAXVALUE 99999999999 RESTART 99999999990;"
            "SELECT nextval('users_id_seq')",
            "narrower again": "ALTER SEQUENCE users_id_seq AS smallint MINVALUE 1 MAXVALUE 90 RESTART 10",
            "one that comes later": "CREATE TABLE later (id bigserial PRIMARY KEY); INSERT INTO later DEFAULT VALUES",
        }.items():
            source.execute(statement)
            try:
                await come_to_stand(replicated)
            except TimeoutError:
                pytest.fail(f"{step}: {standing(target)} and not {standing(source)}")
        assert target.fetchval("SELECT to_regclass('stand_alone')") is None
        source.execute("ALTER SEQUENCE later_id_seq RENAME TO latest")
        await until(lambda: target.fetchval("SELECT to_regclass('latest')") is not None)
        target.execute("DROP SEQUENCE later_id_seq")  # what is gone at the source stays, and may go
        target.execute("SELECT nextval('users_id_seq')")
        await come_to_stand(replicated)


async def test_what_stands_already_is_not_written_again(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute(TABLES)
    replicated = replicated_with(source, make_target())
    await replicated.load()
    readings, written = 0, 0

    async def counted_read(connection: Connection) -> list[SequenceUse]:
        nonlocal readings
        readings += 1
        return await read_sequences(connection)

    async def counted_bring(session: Session, key: str, found: Differing) -> None:
        nonlocal written
        written += 1
        await sequences.bring(session, key, found)

    async def five_more() -> None:
        goal = readings + 5
        await until(lambda: readings >= goal)

    monkeypatch.setattr(service, "read_sequences", counted_read)
    monkeypatch.setattr(service, "bring", counted_bring)
    async with following(replicated):
        await come_to_stand(replicated)
        await five_more()
        at_rest = written
        await five_more()
        assert written == at_rest
        source.execute("SELECT setval('users_id_seq', 77)")
        await come_to_stand(replicated)
        await five_more()
        assert written == at_rest + 1


async def test_what_is_not_ours_or_may_not_be_read_is_left_alone_and_said_once(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    source.execute("INSERT INTO users (name) VALUES ('a'); INSERT INTO more DEFAULT VALUES")
    target = make_target()
    target.execute("CREATE SEQUENCE users_id_seq; SELECT setval('users_id_seq', 4711)")
    replicated = replicated_with(source, target)
    await replicated.load()
    with capture_logs() as logs:
        async with following(replicated):
            source.execute("SELECT setval('users_id_seq', 77), setval('more_id_seq', 88)")
            await until(lambda: target.fetchval("SELECT last_value FROM more_id_seq") == 88)
            source.execute("SELECT setval('more_id_seq', 99)")
            await until(lambda: target.fetchval("SELECT last_value FROM more_id_seq") == 99)
    assert target.fetchval("SELECT last_value FROM users_id_seq") == 4711
    left = [(log["sequence"], log["reason"]) for log in logs if log["event"] == "sequence does not follow"]
    assert left == [("public.users_id_seq", "is not ours at the target")]


async def test_a_sequence_that_the_role_may_not_read_is_found_by_the_check(
    source: Database, make_target: MakeDatabase, make_role: MakeRole
) -> None:
    source.execute(TABLES)
    role = make_role("LOGIN REPLICATION")
    source.execute(f'GRANT USAGE ON SCHEMA "Else-Where" TO "{role}"')
    replicated = replicated_with(source, make_target())
    replicated.settings["source"]["dsn"] = source.dsn_as(role)

    async def unreadable() -> list[str]:
        findings = await checkup.check(replicated.config)
        return [finding.subject for finding in findings if "it does not follow at the targets" in finding.message]

    every = ['"Else-Where"."Odd-One"', '"public"."more_id_seq"', '"public"."users_id_seq"']
    assert await unreadable() == [f"sequence {name}" for name in every]
    for name in every[:2]:
        source.execute(f'GRANT SELECT ON SEQUENCE {name} TO "{role}"')
    assert await unreadable() == [f"sequence {every[2]}"]
    replicated.settings["targets"]["warehouse"]["sequences"] = "once"
    assert await unreadable() == []


async def test_who_has_lost_the_target_sets_nothing(source: Database, make_target: MakeDatabase) -> None:
    source.execute(TABLES)
    replicated = replicated_with(source, make_target())
    await replicated.load()
    target = replicated.target
    session = await connect(target.dsn, application_name="tests", target="warehouse")
    try:
        definition = NewSequence("public", "users_id_seq", "integer", 1, 1, 1, 2147483647, 1, False, None)
        found = await sequences.differing(session, [SequencePosition(definition, 1234, True)])
        assert found.count == 1
        before = standing(target)
        with pytest.raises(FenceLost):
            async with session.connection.transaction():
                await sequences.bring(session, "cdc", found)
        assert standing(target) == before
    finally:
        await session.close()


async def test_more_sequences_than_a_select_has_columns_follow(source: Database, make_target: MakeDatabase) -> None:
    """1664 columns is the most that a SELECT has."""
    count, target = 1_700, make_target()
    columns = ", ".join(f"c{number} int GENERATED BY DEFAULT AS IDENTITY" for number in range(850))
    source.execute(f"CREATE TABLE a ({columns}); CREATE TABLE b ({columns})")
    async with await connect_source(source.dsn, application_name="tests") as connection:
        uses = await read_sequences(connection)
    assert len(uses) == count
    found = [use.sequence for use in uses]
    wanted = [
        SequencePosition(
            NewSequence(
                one.schema, one.name, one.type, one.start, one.increment, one.minimum, one.maximum, 1, False, None
            ),
            number + 2,
            number % 2 == 0,
        )
        for number, one in enumerate(found)
    ]
    session = await connect(target.dsn, application_name="tests", target="warehouse")
    try:
        await migrate(session)
        await position.register(session, "cdc", "warehouse")
        await position.take(session, "cdc")
        async with session.connection.transaction():
            await sequences.bring(session, "cdc", await sequences.differing(session, wanted))
        assert not await sequences.differing(session, wanted)
    finally:
        await session.close()


async def test_the_worker_lets_sequences_follow_at_every_target_that_asks(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    asks, asks_not = make_target("asks"), make_target("asks-not")
    targets = {"asks": follow(asks, sequences="sync"), "asks_not": follow(asks_not)}
    async with Pipeline(source, targets, worker={"sequence_interval_s": 0.1}) as pipeline:
        await pipeline.load()
        before = standing(asks_not)
        worker = await pipeline.start()
        source.execute("INSERT INTO users (name) SELECT 'a' FROM generate_series(1, 30)")
        await until(lambda: standing(asks) == standing(source))
        assert standing(asks_not) == before
        assert await worker.metric("cdc_sequences_timestamp_seconds", target="asks") > 0
        assert await worker.metric("cdc_sequences_timestamp_seconds", target="asks_not") == 0
        for database in (source, asks):
            database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        source.execute("INSERT INTO users (name) SELECT 'b' FROM generate_series(1, 30)")
        await until(lambda: standing(asks) == standing(source))
        assert worker.runs
