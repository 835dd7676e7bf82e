"""The slot of a lane is dropped only while the shared slot is ours, and has what the lane's target lacks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cdc.errors import SlotInUse
from cdc.lsn import Lsn
from cdc.source.connection import Connection, connect
from cdc.source.replication import ReplicationConnection
from cdc.source.slot import drop_lane_slot, lane_slot, read_slot
from tests.database import Database, unique_name


@pytest.fixture
def shared(source: Database) -> str:
    """The shared slot, and that of a lane, on a source with a publication of the same name."""
    name = unique_name("slot").replace("-", "_")
    source.create_slot(name)
    source.execute(f"CREATE PUBLICATION {name}")
    return name


@pytest.fixture
async def connection(source: Database) -> AsyncIterator[Connection]:
    async with await connect(source.dsn, application_name="tests") as opened:
        yield opened


async def test_it_stays_while_nobody_reads_the_shared_slot_or_somebody_else_does(
    source: Database, shared: str, connection: Connection
) -> None:
    source.create_slot(lane_slot(shared, "late"))
    held = source.current_lsn()
    assert not await drop_lane_slot(connection, shared, "late", sender=1, held=held)
    async with await ReplicationConnection.open(source.dsn, "tests") as stream:
        await stream.start(shared, [shared], binary=True)
        slot = await read_slot(connection, shared)
        assert slot is not None
        assert slot.active_pid is not None
        assert slot.confirmed_flush_lsn is not None
        assert not await drop_lane_slot(connection, shared, "late", sender=slot.active_pid + 1, held=held)
        behind = Lsn(slot.confirmed_flush_lsn - 1)
        assert not await drop_lane_slot(connection, shared, "late", sender=slot.active_pid, held=behind)
        assert await drop_lane_slot(connection, shared, "late", sender=slot.active_pid, held=slot.confirmed_flush_lsn)
        assert not await drop_lane_slot(connection, shared, "late", sender=slot.active_pid, held=held)


async def test_it_stays_while_somebody_streams_from_it(source: Database, shared: str, connection: Connection) -> None:
    source.create_slot(lane_slot(shared, "late"))
    async with (
        await ReplicationConnection.open(source.dsn, "tests") as stream,
        await ReplicationConnection.open(source.dsn, "tests") as own,
    ):
        await stream.start(shared, [shared], binary=True)
        await own.start(lane_slot(shared, "late"), [shared], binary=True)
        slot = await read_slot(connection, shared)
        assert slot is not None
        assert slot.active_pid is not None
        with pytest.raises(SlotInUse):
            await drop_lane_slot(connection, shared, "late", sender=slot.active_pid, held=source.current_lsn())
