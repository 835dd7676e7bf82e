"""Exported snapshots of real slots: exact, shared, and alive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import psycopg
import pytest

from cdc.errors import SourceUnavailable
from cdc.source import snapshot
from cdc.source.connection import Connection, connect
from cdc.source.slot import read_slot
from cdc.source.snapshot import exported_snapshot, read_past_start
from tests.conftest import RecordChanges
from tests.database import Database


@pytest.fixture
def slot() -> str:
    return f"slot_{uuid4().hex[:12]}"


@pytest.fixture
async def session(source: Database) -> AsyncIterator[Connection]:
    source.execute("CREATE TABLE public.t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE public.t")
    async with await connect(source.dsn, application_name="cdc test") as connection:
        yield connection


def rows(source: Database, name: str) -> list[int]:
    """What another session sees through the snapshot."""
    with psycopg.connect(source.dsn) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute(f"SET TRANSACTION SNAPSHOT '{name}'".encode())
        return [row[0] for row in connection.execute("SELECT id FROM public.t ORDER BY id").fetchall()]


async def test_the_snapshot_and_the_stream_hold_every_row_exactly_once(
    source: Database, session: Connection, slot: str, record_changes: RecordChanges
) -> None:
    source.execute("INSERT INTO public.t VALUES (1)")
    async with exported_snapshot(source.dsn, slot, temporary=False, application_name="cdc") as exported:
        source.execute("INSERT INTO public.t VALUES (2)")
        assert rows(source, exported.name) == [1]
        assert await asyncio.to_thread(rows, source, exported.name) == [1]
        found = await read_slot(session, slot)
        assert found is not None
        assert (exported.slot, exported.consistent_point) == (slot, found.confirmed_flush_lsn)
        assert not found.active
    inserts = [message for message in record_changes(source, ["p"], slot) if message[:1] == b"I"]
    assert len(inserts) == 1
    assert inserts[0].endswith(b"\x00\x00\x00\x02")


async def test_a_temporary_slot_leaves_only_its_snapshot(source: Database, session: Connection, slot: str) -> None:
    async with exported_snapshot(source.dsn, slot, temporary=True, application_name="cdc") as exported:
        source.execute("INSERT INTO public.t VALUES (1)")
        await snapshot.wait_until_free(session, slot)
        assert await read_slot(session, slot) is None
        assert rows(source, exported.name) == []


async def test_the_snapshot_ends_with_the_block(source: Database, session: Connection, slot: str) -> None:
    async with exported_snapshot(source.dsn, slot, temporary=True, application_name="cdc") as exported:
        pass
    with pytest.raises(psycopg.Error):
        rows(source, exported.name)


async def test_an_error_of_the_block_comes_out_as_it_is(source: Database, session: Connection, slot: str) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        async with exported_snapshot(source.dsn, slot, temporary=True, application_name="cdc"):
            raise ZeroDivisionError("of the block") from KeyError("its cause")
    assert isinstance(caught.value.__cause__, KeyError)


async def test_hazard_20_the_session_is_kept_busy_and_its_loss_ends_the_block(
    source: Database, session: Connection, slot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "KEEP_ALIVE_S", 0.05)
    query = "SELECT max(query_start) FROM pg_stat_activity WHERE application_name = 'keeper'"

    async def work() -> None:
        async with exported_snapshot(source.dsn, slot, temporary=True, application_name="keeper"):
            seen = {source.fetchval(query)}
            while len(seen) < 3:
                await asyncio.sleep(0.02)
                seen.add(source.fetchval(query))
            source.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'keeper'")
            await asyncio.Event().wait()

    with pytest.raises(SourceUnavailable, match="keep the snapshot"):
        await work()


async def test_hazard_26_a_new_slot_is_read_past_its_start_and_stays_where_it_is(
    source: Database, session: Connection, slot: str, record_changes: RecordChanges
) -> None:
    source.create_slot(slot)
    before = await read_slot(session, slot)
    source.execute("INSERT INTO public.t VALUES (1)")
    await read_past_start(source.dsn, slot, ["p"], application_name="cdc")
    after = await read_slot(session, slot)
    assert before is not None
    assert after is not None
    assert (after.confirmed_flush_lsn, after.active) == (before.confirmed_flush_lsn, False)
    assert b"I" in [message[:1] for message in record_changes(source, ["p"], slot)]
