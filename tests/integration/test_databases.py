"""The fixtures themselves: fresh databases, roles, servers of one's own, and that nothing is left behind."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from tests.conftest import MakeDatabase, MakeRole, MakeServer, RecordChanges
from tests.database import Database, Server


def test_a_database_runs_statements_and_answers_queries(source: Database) -> None:
    source.execute("CREATE TABLE t (id int, name text); CREATE TABLE u (id int)")
    assert source.execute("INSERT INTO t VALUES (%s, %s)", 1, "one") == 1
    source.executemany("INSERT INTO t VALUES (%s, %s)", [(2, "two"), (3, None)])
    assert source.fetch("SELECT * FROM t ORDER BY id") == [(1, "one"), (2, "two"), (3, None)]
    assert source.fetchval("SELECT count(*) FROM t") == 3
    assert source.fetchval("SELECT 1 FROM u") is None


def test_a_transaction_is_one(source: Database) -> None:
    source.execute("CREATE TABLE t (id int)")
    with source.transaction():
        source.execute("INSERT INTO t VALUES (1)")
        with psycopg.connect(source.dsn) as other:
            assert other.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert source.fetchval("SELECT count(*) FROM t") == 1


def test_databases_of_one_test_are_apart(source: Database, make_target: MakeDatabase) -> None:
    internal, external = make_target("internal"), make_target("external")
    assert len({source.name, internal.name, external.name}) == 3
    internal.execute("CREATE TABLE t (id int)")
    assert external.fetchval("SELECT to_regclass('t')") is None


def test_a_database_is_dropped_with_its_slots_and_connections_and_prepared_transactions(
    server: Server, make_database: MakeDatabase
) -> None:
    database = Database(server, "busy-database")
    database.execute("CREATE TABLE t (id int); CREATE PUBLICATION p FOR TABLE t")
    database.create_slot("busy_slot")
    database.execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'busy'")
    with psycopg.connect(database.dsn):
        database.drop()
    other = make_database()
    assert other.fetch("SELECT datname FROM pg_database WHERE datname = 'busy-database'") == []
    assert other.fetch("SELECT slot_name FROM pg_replication_slots WHERE slot_name = 'busy_slot'") == []


def test_record_changes_gives_the_messages_of_the_stream(source: Database, record_changes: RecordChanges) -> None:
    source.execute('CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION "my-publication" FOR TABLE t')
    source.create_slot("slot")
    source.execute("INSERT INTO t VALUES (7)")
    peeked = record_changes(source, ["my-publication"], "slot", peek=True)
    messages = record_changes(source, ["my-publication"], "slot")
    assert peeked == messages
    assert [message[:1] for message in messages] == [b"B", b"R", b"I", b"C"]
    assert record_changes(source, ["my-publication"], "slot") == []


def test_a_role_with_a_password_must_give_it(source: Database, make_role: MakeRole) -> None:
    role = make_role("LOGIN REPLICATION", password="secret")
    with psycopg.connect(source.dsn_as(role, "secret")) as connection:
        assert connection.info.user == role
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(source.dsn_as(role, "wrong"))
    with psycopg.connect(source.dsn_as(make_role())) as connection:
        connection.execute("SELECT 1")


def test_an_own_server_comes_back_on_its_port_after_a_crash(
    own_server: MakeServer, make_database: MakeDatabase
) -> None:
    server = own_server(max_replication_slots=3)
    database = make_database("crashing", server=server)
    database.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    server.kill()
    assert not server.running
    with pytest.raises(psycopg.OperationalError):
        database.fetch("SELECT 1")
    server.configure({"max_replication_slots": 4})
    server.start()
    assert database.fetch("SELECT id, current_setting('max_replication_slots') FROM t") == [(1, "4")]
    assert "database system was not properly shut down" in server.log_text()


async def test_a_session_does_not_block_the_loop(source: Database) -> None:
    async with source.session() as connection, asyncio.TaskGroup() as group:
        sleeping = group.create_task(connection.execute("SELECT pg_sleep(0.2)"))
        await asyncio.sleep(0)
        assert source.fetchval("SELECT 1") == 1
        assert not sleeping.done()
