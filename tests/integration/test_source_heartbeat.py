"""Heartbeats on a real source: the row, the message in the stream, and their setup."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from cdc.errors import ProtocolError, SetupError
from cdc.pgoutput.decoder import decode
from cdc.pgoutput.messages import LogicalMessage
from cdc.source import heartbeat
from cdc.source.connection import Connection, connect
from tests.conftest import MakeRole, RecordChanges
from tests.database import Database


@pytest.fixture
async def session(source: Database) -> AsyncIterator[Connection]:
    async with await connect(source.dsn, application_name="cdc test") as connection:
        yield connection


async def test_a_heartbeat_is_the_same_in_its_row_and_in_the_stream(
    source: Database, session: Connection, record_changes: RecordChanges
) -> None:
    first = await heartbeat.ensure(session, "cdc")
    source.execute("CREATE PUBLICATION p")
    slot = f"slot_{uuid4().hex[:12]}"
    source.create_slot(slot)
    beaten = await heartbeat.beat(session, "cdc")
    assert (first.count, beaten.count, beaten.incarnation) == (0, 1, first.incarnation)
    assert await heartbeat.read(session, "cdc") == beaten
    decoded = [decode(message) for message in record_changes(source, ["p"], slot)]
    (message,) = [one for one in decoded if isinstance(one, LogicalMessage)]
    assert message.prefix == heartbeat.PREFIX
    assert message.transactional
    assert heartbeat.parse(message.content) == beaten


async def test_hazard_21_a_heartbeat_carries_the_clock_of_the_source(source: Database, session: Connection) -> None:
    await heartbeat.ensure(session, "cdc")
    before = source.fetchval("SELECT clock_timestamp()")
    beaten = await heartbeat.beat(session, "cdc")
    assert before <= beaten.at <= source.fetchval("SELECT clock_timestamp()")


async def test_setup_is_idempotent_and_keeps_the_incarnation(session: Connection) -> None:
    first = await heartbeat.ensure(session, "cdc")
    await heartbeat.beat(session, "cdc")
    again = await heartbeat.ensure(session, "cdc")
    assert (again.count, again.incarnation) == (1, first.incarnation)
    assert (await heartbeat.ensure(session, "another")).incarnation != first.incarnation


async def test_a_source_that_was_set_up_anew_has_another_incarnation(session: Connection) -> None:
    first = await heartbeat.ensure(session, "cdc")
    assert await heartbeat.drop(session, "cdc")
    assert await heartbeat.read(session, "cdc") is None
    assert (await heartbeat.ensure(session, "cdc")).incarnation != first.incarnation


async def test_teardown_leaves_other_pipelines_and_other_tables(source: Database, session: Connection) -> None:
    await heartbeat.ensure(session, "one")
    await heartbeat.ensure(session, "two")
    assert await heartbeat.drop(session, "one")
    assert not await heartbeat.drop(session, "one")
    assert await heartbeat.read(session, "two") is not None
    source.execute("CREATE TABLE cdc.of_somebody_else (a int)")
    assert await heartbeat.drop(session, "two")
    assert source.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'cdc'::regnamespace") == [
        ("of_somebody_else",)
    ]
    source.execute("DROP TABLE cdc.of_somebody_else")
    await heartbeat.ensure(session, "three")
    await heartbeat.drop(session, "three")
    assert source.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = 'cdc'") == 0
    assert not await heartbeat.drop(session, "three")


async def test_a_role_without_create_gets_the_sql_and_needs_it_only_once(
    source: Database, session: Connection, make_role: MakeRole
) -> None:
    role = make_role("LOGIN")
    async with await connect(source.dsn_as(role), application_name="cdc") as connection:
        with pytest.raises(SetupError) as caught:
            await heartbeat.ensure(connection, "cdc")
        assert caught.value.sql == f'GRANT CREATE ON DATABASE "{source.name}" TO "{role}";'
        source.execute(caught.value.sql)
        first = await heartbeat.ensure(connection, "cdc")
        source.execute(f'REVOKE CREATE ON DATABASE "{source.name}" FROM "{role}"')
        assert await heartbeat.ensure(connection, "cdc") == first
        assert (await heartbeat.beat(connection, "cdc")).count == 1


async def test_a_pipeline_that_is_not_set_up_says_so(session: Connection) -> None:
    assert await heartbeat.read(session, "cdc") is None
    await heartbeat.ensure(session, "cdc")
    with pytest.raises(SetupError, match="no heartbeat for pipeline other: run `cdc setup`"):
        await heartbeat.beat(session, "other")


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"1", b"{}", b'{"pipeline": "x", "count": "y"}'])
def test_a_message_that_is_no_heartbeat_is_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        heartbeat.parse(content)
