"""A batch is one round trip, and what the server compares in it is what would otherwise be looked at in between."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import asyncpg
import pytest

from cdc.changes.transaction import Part
from cdc.errors import FenceLost, TableStopped
from cdc.target import migrations, together
from cdc.target.applier import Applier
from cdc.target.one_trip import MOST_WARY
from cdc.target.session import connect
from cdc.target.table_version import check_to_prepare, check_versions, read_versions
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.faults.proxy import Direction, Proxy
from tests.integration.replica import MakeReplica, Replica, make_replica
from tests.pipeline import Pipeline, follow

__all__ = ["make_replica"]

PEOPLE = "CREATE TABLE people (id int PRIMARY KEY, name text, score int);"
TABLES = f"""
    {PEOPLE}
    CREATE TABLE letters (id int PRIMARY KEY, person int, text text);
    CREATE TABLE log (line text);
"""

READY = b"Z\x00\x00\x00\x05"
"""The beginning of ReadyForQuery: the server has answered all that it was sent, and waits."""

MARKS = "CREATE TABLE marks (number int); INSERT INTO marks VALUES (0)"
MARK = "UPDATE public.marks SET number = number + 1"
"""Stands for the position: a statement that is committed with the rows, or not at all."""


class Answers:
    """Counts how often the target has answered."""

    def __init__(self) -> None:
        self.count = 0

    def look(self, data: bytes) -> bytes:
        self.count += data.count(READY)
        return data


@asynccontextmanager
async def counted(replica: Replica) -> AsyncIterator[Answers]:
    """From here on the replica's target is reached through something that counts its answers."""
    answers = Answers()
    async with Proxy("127.0.0.1", urlsplit(replica.target.dsn).port or 0) as proxy:
        session = await connect(proxy.dsn(replica.target.dsn), application_name="tests", target="warehouse")
        replica.applier = Applier(session, "warehouse", follows=True)
        replica.session, former = session, replica.session
        proxy.damage(Direction.TO_CLIENT, answers.look)
        yield answers
        await session.close()
        replica.session = former


async def attempt(replica: Replica, parts: list[Part], *end: str) -> bool:
    """Apply in one round trip, if that goes."""
    for part in parts:
        for relation in part.relations:
            route = replica.route_of(relation)
            assert route is not None
            if relation not in replica.plans:
                replica.plans[relation] = await replica.applier.plan(relation, route)
    await replica.applier.prepare(replica.plans, parts)
    return await replica.applier.apply_together(parts, replica.plans, end) is not None


async def test_a_transaction_of_several_tables_and_kinds_is_one_round_trip(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(TABLES)
    change = """
        BEGIN;
        INSERT INTO people SELECT n, 'name', 0 FROM generate_series({n} * 10 + 1, {n} * 10 + 9) n;
        INSERT INTO letters VALUES ({n} * 10 + 1, {n} * 10 + 1, 'a'), ({n} * 10 + 2, {n} * 10 + 2, 'b');
        UPDATE people SET score = score + 1 WHERE id = {n} * 10 - 9;
        UPDATE letters SET text = 'c' WHERE id = {n} * 10 - 9;
        DELETE FROM people WHERE id = {n} * 10 - 5;
        INSERT INTO log VALUES ('a line');
        COMMIT;
    """
    async with counted(replica) as answers:
        for number in range(3):
            source.execute(change.format(n=number))
            await replica.deliver()
        before = answers.count
        for number in range(3, 6):
            source.execute(change.format(n=number))
            await replica.deliver()
        assert answers.count - before == 3
        # A row alone goes the same way: into its table, or by staging.
        source.execute("INSERT INTO people VALUES (1000, 'one', 1)")
        await replica.deliver()
        source.execute("UPDATE people SET score = 2 WHERE id = 1000")
        await replica.deliver()
        assert answers.count - before == 5


@pytest.mark.parametrize("change", ["UPDATE people SET score = 1 WHERE id = 2", "DELETE FROM people WHERE id = 2"])
async def test_a_row_that_is_missing_keeps_everything_of_its_batch_out(
    make_replica: MakeReplica, source: Database, change: str
) -> None:
    replica = await make_replica(TABLES)
    replica.target.execute(MARKS)
    source.execute("INSERT INTO people VALUES (1), (2), (3)")
    await replica.deliver()
    replica.target.execute("DELETE FROM people WHERE id = 2")
    source.execute(f"BEGIN; INSERT INTO letters VALUES (1); {change}; COMMIT")
    parts = await replica.record()
    assert not await attempt(replica, parts, MARK)
    assert not replica.session.connection.is_in_transaction()
    assert replica.target.fetch("SELECT number, (SELECT count(*) FROM letters) FROM marks") == [(0, 0)]
    with pytest.raises(TableStopped, match="finds no row"):
        await replica.apply(parts)
    replica.target.execute("INSERT INTO people VALUES (2)")
    assert await attempt(replica, parts, MARK)
    assert replica.target.fetch("SELECT number, (SELECT count(*) FROM letters) FROM marks") == [(1, 1)]


async def test_what_is_executed_at_the_end_is_committed_with_the_rows(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(PEOPLE)
    replica.target.execute(MARKS)
    source.execute("INSERT INTO people VALUES (1)")
    parts = await replica.record()
    lost = "DO $$ BEGIN RAISE EXCEPTION 'not ours' USING ERRCODE = 'CDC01'; END $$"
    with pytest.raises(FenceLost):
        await attempt(replica, parts, MARK, lost)
    assert not replica.session.connection.is_in_transaction()
    assert replica.target.fetch("SELECT number, (SELECT count(*) FROM people) FROM marks") == [(0, 0)]
    assert await attempt(replica, parts, MARK)
    assert replica.target.fetch("SELECT number, (SELECT count(*) FROM people) FROM marks") == [(1, 1)]


async def test_a_trigger_that_appears_and_leaves_rows_out_is_noticed(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(PEOPLE)
    source.execute("INSERT INTO people VALUES (1)")
    await replica.deliver()
    replica.target.execute(
        "CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER leaves_out BEFORE INSERT ON people FOR EACH ROW EXECUTE FUNCTION leave_out();"
        "ALTER TABLE people ENABLE ALWAYS TRIGGER leaves_out"
    )
    source.execute("INSERT INTO people VALUES (2)")
    parts = await replica.record()
    with pytest.raises(TableStopped):
        await replica.apply(parts)
    replica.target.execute("DROP TRIGGER leaves_out ON people")
    await replica.apply(parts)
    assert replica.target.fetch("SELECT id FROM people ORDER BY 1") == [(1,), (2,)]


async def test_prepared_statements_outlive_ddl_on_their_table(make_replica: MakeReplica, source: Database) -> None:
    """Hazard 18."""
    replica = await make_replica(PEOPLE, follows=False)
    source.execute("INSERT INTO people VALUES (1, 'a', 1), (2, 'b', 2)")
    async with counted(replica) as answers:
        for ddl in (
            "ALTER TABLE people ADD own int DEFAULT 7",
            "ALTER TABLE people ALTER COLUMN score TYPE bigint",
            "ALTER TABLE people DROP CONSTRAINT people_pkey; ALTER TABLE people ADD PRIMARY KEY (id)",
            "ALTER TABLE people RENAME TO old; CREATE TABLE people (LIKE old INCLUDING ALL);"
            "INSERT INTO people SELECT * FROM old; DROP TABLE old",
            "DROP INDEX IF EXISTS nothing",
        ):
            for _ in range(3):
                source.execute("UPDATE people SET score = score + 1; INSERT INTO people SELECT max(id) + 1 FROM people")
                source.execute("DELETE FROM people WHERE id = (SELECT max(id) FROM people)")
                before = answers.count
                await replica.deliver()
            # Once the table is known again, and its statements are prepared again.
            assert answers.count - before == 1
            replica.target.execute(ddl)


async def test_what_the_first_of_several_large_copies_is_refused_ends_them_all(
    make_replica: MakeReplica, source: Database
) -> None:
    """The server has answered while rows are still on their way, for this COPY and for those behind it."""
    replica = await make_replica(TABLES)
    replica.target.execute(MARKS)
    rows = 20_000
    change = f"""
        BEGIN;
        INSERT INTO people SELECT n, repeat('x', 200), 0 FROM generate_series(1, {rows}) n;
        INSERT INTO letters SELECT n, n, repeat('y', 200) FROM generate_series(1, {rows}) n;
        INSERT INTO log SELECT repeat('z', 200) FROM generate_series(1, {rows}) n;
        COMMIT;
    """
    replica.target.execute("INSERT INTO people VALUES (1, 'in the way', 0)")
    source.execute(change)
    parts = await replica.record()
    assert not await attempt(replica, parts, MARK)
    counts = "SELECT number, (SELECT count(*) FROM letters), (SELECT count(*) FROM log) FROM marks"
    assert replica.target.fetch(counts) == [(0, 0, 0)]
    replica.target.execute("DELETE FROM people")
    assert not await attempt(replica, parts, MARK), "the batch that follows one that went wrong goes step by step"
    assert await attempt(replica, parts, MARK)
    assert replica.target.fetch(counts) == [(1, rows, rows)]


async def test_the_versions_of_tables_are_read_again_only_when_something_has_changed(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(TABLES)
    replica.target.execute(
        "CREATE SEQUENCE cdc.reads; ALTER FUNCTION cdc.table_version RENAME TO read_version;"
        "CREATE FUNCTION cdc.table_version(of_table regclass) RETURNS text LANGUAGE plpgsql IMMUTABLE AS"
        " 'BEGIN PERFORM nextval(''cdc.reads''); RETURN cdc.read_version(of_table); END'"
    )

    async def reads() -> int:
        """How often the catalogs are read while a batch is applied."""
        before = replica.target.fetchval("SELECT last_value FROM cdc.reads")
        source.execute("BEGIN; UPDATE people SET score = score + 1; INSERT INTO log VALUES ('a line'); COMMIT")
        await replica.deliver()
        return int(replica.target.fetchval("SELECT last_value FROM cdc.reads")) - int(before)

    source.execute("INSERT INTO people VALUES (1, 'a', 1)")
    await replica.deliver()
    await reads()
    assert [await reads() for _ in range(5)] == [0, 0, 0, 0, 0]
    replica.target.execute("ALTER TABLE people ALTER score SET STATISTICS 200")
    assert await reads() > 0


@pytest.mark.parametrize(
    "ddl",
    [
        "ALTER TABLE people ADD own int",
        "ALTER TABLE people DROP score",
        "ALTER TABLE people ALTER score TYPE float8",
        "ALTER TABLE people ALTER name SET DEFAULT 'x'",
        "ALTER TABLE people RENAME name TO title",
        "CREATE INDEX ON people (name)",
        "ALTER TABLE people DROP CONSTRAINT people_pkey",
        "CREATE TRIGGER t BEFORE INSERT ON people FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "ALTER TABLE people ENABLE ALWAYS TRIGGER told",
        "DROP TRIGGER told ON people",
        "ALTER TABLE people RENAME TO old; CREATE TABLE people (LIKE old INCLUDING ALL)",
        "ALTER SCHEMA public RENAME TO old; CREATE SCHEMA public; CREATE TABLE public.people (LIKE old.people)",
        "DROP TABLE people",
    ],
)
async def test_whatever_describes_a_table_changes_its_version(make_target: MakeDatabase, ddl: str) -> None:
    target = make_target()
    target.execute(
        f"{PEOPLE} CREATE TRIGGER told BEFORE UPDATE ON people FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    )
    session = await connect(target.dsn, application_name="tests", target="warehouse")
    await migrations.migrate(session)
    people = ("public", "people")
    version = (await read_versions(session.connection, [people]))[people]
    await session.connection.execute(f"PREPARE check_it AS {check_to_prepare(people, version)}")
    for work in ("INSERT INTO people SELECT n FROM generate_series(1, 1000) n", "ANALYZE people", "VACUUM people"):
        target.execute(work)
    await session.connection.execute(f"EXECUTE check_it; {check_versions({people: version})}")
    target.execute(ddl)
    for check in ("EXECUTE check_it", check_versions({people: version})):
        with pytest.raises((asyncpg.DivisionByZeroError, asyncpg.UndefinedTableError)):
            await session.connection.execute(check)
    await session.close()


async def prepared(replica: Replica, table: str) -> list[str]:
    """The names of the session's prepared statements that write to a table."""
    rows = await replica.session.connection.fetch(
        "SELECT name FROM pg_prepared_statements WHERE statement LIKE '%UPDATE%' AND statement LIKE $1",
        f'%ONLY "public"."{table}"%',
    )
    return [row["name"] for row in rows]


async def plan_of(replica: Replica, statement: str, settings: str = together._BY_INDEX) -> str:
    connection = replica.session.connection
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(settings.removeprefix("; "))
        return "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {statement}"))
    finally:
        await transaction.rollback()


async def test_few_rows_find_theirs_by_the_index_also_in_a_table_that_was_empty_when_it_was_planned(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(PEOPLE + "ALTER TABLE people SET (autovacuum_enabled = off);")
    source.execute("INSERT INTO people VALUES (1)")
    await replica.deliver()
    replica.target.execute("ANALYZE people")  # a page with one row: nothing is cheaper than to read it
    source.execute("UPDATE people SET score = 0")
    await replica.deliver()
    [name] = await prepared(replica, "people")
    # Nothing tells the planner that the table has grown.
    replica.target.execute("INSERT INTO people SELECT n FROM generate_series(2, 100000) n")
    assert "Index Scan using people_pkey on people t" in await plan_of(replica, f"EXECUTE {name}(1, 1, 1)")
    assert "Seq Scan on people" not in await plan_of(replica, f"EXECUTE {name}(1, 999, 999)")
    replica.target.execute("ANALYZE people")
    assert "Index Scan using people_pkey on people t" in await plan_of(replica, f"EXECUTE {name}(1, 1, 1)")


async def test_many_rows_are_planned_for_what_they_are(
    make_replica: MakeReplica, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    send = together._send

    async def note(connection: asyncpg.Connection, text: str, copies: list[AsyncIterator[bytes]]) -> str:
        sent.append(text)
        return await send(connection, text, copies)

    monkeypatch.setattr(together, "_send", note)
    replica = await make_replica(PEOPLE)
    source.execute("INSERT INTO people SELECT n FROM generate_series(1, 3000) n")
    await replica.deliver()
    for share, is_prepared in ((4, True), (1, False), (4, True)):
        source.execute(f"UPDATE people SET score = {share} WHERE id % {share} = 0")
        await replica.deliver()
        text = sent[-1]
        assert (re.search(r"EXECUTE cdc_\d+\(", text) is not None) is is_prepared
        assert ("UPDATE ONLY" in text.partition("FROM STDIN")[2].partition("PREPARE")[0]) is not is_prepared
    # What is not prepared may read the table.
    assert "enable_seqscan TO off" not in sent[-2]
    assert "enable_seqscan TO off" in sent[-1]


async def test_an_error_that_passes_leaves_a_session_that_can_say_so(
    source: Database, make_target: MakeDatabase
) -> None:
    target = make_target("internal")
    source.execute(PEOPLE)
    async with Pipeline(source, {"internal": follow(target)}, worker={"lock_timeout_s": 0.2}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("INSERT INTO people VALUES (1, 'a', 1)")
        await pipeline.caught_up()
        async with target.session(autocommit=False) as session:
            await session.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
            source.execute("UPDATE people SET score = 2")
            told = "SELECT last_error_at IS NOT NULL FROM cdc.target"
            await pipeline.until(lambda: bool(target.fetchval(told)), "the target says what keeps it")
        await pipeline.caught_up()
        assert target.fetch("SELECT score FROM people") == [(2,)]


async def test_the_catalog_does_not_grow_with_batches(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(TABLES)
    source.execute("INSERT INTO people SELECT n, 'x', 0 FROM generate_series(1, 500) n; INSERT INTO letters VALUES (1)")
    await replica.deliver()
    sizes = "SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace"

    async def batch(number: int) -> None:
        source.execute(f"UPDATE people SET score = {number}, name = repeat('y', 20); UPDATE letters SET text = 'z'")
        source.execute(f"INSERT INTO letters VALUES ({number}); DELETE FROM letters WHERE id = {number}")
        await replica.deliver(compare=False)

    for number in range(100, 110):
        await batch(number)
    before = replica.target.fetchval(sizes)
    filenodes = set()
    for number in range(110, 210):
        await batch(number)
        filenodes.add(
            await replica.session.connection.fetchval("SELECT pg_relation_filenode('pg_temp.cdc_stage_1'::regclass)")
        )
    # 50,000 staged rows of some 100 bytes: each truncation leaves one dead row of pg_class, and nothing else does.
    assert len(filenodes) < 20
    assert replica.target.fetchval(sizes) <= before + 2 * 8192


async def test_a_target_on_which_nothing_goes_together_is_not_tried_each_time(
    make_replica: MakeReplica, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0
    send = together.Together.send

    async def count(self: together.Together, *arguments: object) -> None:
        nonlocal tried
        tried += 1
        await send(self, *arguments)  # type: ignore[arg-type]  # they are handed on as they are

    monkeypatch.setattr(together.Together, "send", count)
    replica = await make_replica("CREATE TABLE seats (id int PRIMARY KEY, person int UNIQUE);")
    source.execute("INSERT INTO seats SELECT n, n FROM generate_series(1, 2) n")
    await replica.deliver()
    swap = "BEGIN; UPDATE seats SET person = -1 WHERE id = 1; UPDATE seats SET person = {} WHERE id = 2;"
    swap += "UPDATE seats SET person = {} WHERE id = 1; COMMIT"
    before = tried
    for number in range(40):
        source.execute(swap.format(*((1, 2) if number % 2 == 0 else (2, 1))))
        assert (await replica.deliver()).was_strict
    assert 3 <= tried - before <= 6
    assert replica.applier._one_trip._wary_for < MOST_WARY


async def test_rows_that_cannot_be_encoded_end_the_copy_and_not_the_session(
    make_replica: MakeReplica, source: Database
) -> None:
    """A stream of text values, which plans do not expect: it shows while the rows are on their way."""
    replica = await make_replica(TABLES, binary=True)
    source.execute("INSERT INTO people VALUES (1, 'a', 1)")
    await replica.deliver()
    replica = replace(replica, binary=False)
    source.execute("INSERT INTO people VALUES (2, 'b', 2); UPDATE people SET score = 3 WHERE id = 1")
    applied = await replica.apply(await replica.record())
    assert applied.tables["public.people"].inserted == 1
    assert replica.target.fetch("SELECT id, score FROM people ORDER BY 1") == [(1, 3), (2, 2)]
