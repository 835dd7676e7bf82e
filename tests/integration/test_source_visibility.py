"""Waiting until older transactions have ended, and saying which."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from cdc.source.connection import Connection, connect
from cdc.source.visibility import wait_until_visible
from tests.database import Database


@pytest.fixture
async def session(source: Database) -> AsyncIterator[Connection]:
    async with await connect(source.dsn, application_name="cdc test") as connection:
        yield connection


class Waiting:
    """A wait that is under way, and what it has said."""

    def __init__(self, session: Connection) -> None:
        self.said: list[str] = []
        self.task = asyncio.ensure_future(wait_until_visible(session, self.said.append, poll_s=0.01))

    async def has_said(self, text: str) -> None:
        async with asyncio.timeout(30):
            while not any(text in line for line in self.said):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_nothing_is_waited_for_nor_said_when_nothing_runs(session: Connection) -> None:
    said: list[str] = []
    async with asyncio.timeout(30):
        first = await wait_until_visible(session, said.append, poll_s=0.01)
        assert await wait_until_visible(session, said.append, poll_s=0.01) > first


async def test_a_transaction_that_writes_is_waited_for_and_named_without_its_statement(
    source: Database, session: Connection
) -> None:
    source.execute("CREATE TABLE t (v text)")
    with psycopg.connect(source.dsn, application_name="the application") as older:
        older.execute("INSERT INTO t VALUES ('secret')")
        waiting = Waiting(session)
        await waiting.has_said(f"session {older.info.backend_pid} (the application, ")
        with psycopg.connect(source.dsn) as younger:
            younger.execute("INSERT INTO t VALUES ('younger')")
            assert not waiting.task.done()
            older.commit()
            async with asyncio.timeout(30):
                await waiting.task  # the younger one is not waited for
    assert not any("secret" in line for line in waiting.said)


async def test_a_prepared_transaction_is_waited_for_and_named(source: Database, session: Connection) -> None:
    name = f"gid {source.name}"
    source.execute("CREATE TABLE t (v text)")
    source.execute(f"BEGIN; INSERT INTO t VALUES ('secret'); PREPARE TRANSACTION '{name}'")
    waiting = Waiting(session)
    await waiting.has_said(f"prepared transaction '{name}' of database {source.name}")
    assert "COMMIT PREPARED or ROLLBACK PREPARED" in waiting.said[-1]
    source.execute(f"COMMIT PREPARED '{name}'")
    async with asyncio.timeout(30):
        await waiting.task


async def test_a_cancelled_wait_leaves_the_session_usable(source: Database, session: Connection) -> None:
    source.execute("CREATE TABLE t (v text)")
    with psycopg.connect(source.dsn) as older:
        older.execute("INSERT INTO t VALUES ('x')")
        waiting = Waiting(session)
        await waiting.has_said("waiting until")
        waiting.task.cancel()
        await asyncio.wait([waiting.task])
    await session.execute("SELECT 1")
