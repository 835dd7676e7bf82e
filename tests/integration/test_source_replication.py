"""A real walsender: commands, the stream, and what each end of it says."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from cdc.errors import ResyncNeeded, SetupError, SlotInUse, SourceUnavailable
from cdc.lsn import INVALID_LSN, Lsn
from cdc.pgoutput.compiled import is_compiled
from cdc.source import replication
from cdc.source.connection import Connection, connect
from cdc.source.replication import BinaryRefused, ReplicationConnection, StreamPoisoned
from cdc.source.slot import drop_slot, read_slot, read_slots
from cdc.source.snapshot import wait_until_free
from tests.conftest import MakeServer
from tests.database import Database
from tests.servers import needs


@pytest.fixture
def slot() -> str:
    """Slots belong to the whole server: each test has its own."""
    return f"slot_{uuid4().hex[:12]}"


@pytest.fixture
async def session(source: Database) -> AsyncIterator[Connection]:
    source.execute('CREATE TABLE public."t-t" (id bigint PRIMARY KEY, v text)')
    source.execute('CREATE PUBLICATION "p-""P" FOR TABLE public."t-t"')
    async with await connect(source.dsn, application_name="cdc test") as connection:
        yield connection


PUBLICATIONS = ['p-"P']


async def started(dsn: str, slot: str, publications: list[str] | None = None) -> ReplicationConnection:
    async with AsyncExitStack() as stack:
        walsender = await stack.enter_async_context(await ReplicationConnection.open(dsn, slot))
        await walsender.start(slot, publications or PUBLICATIONS)
        stack.pop_all()
    return walsender


async def messages(walsender: ReplicationConnection, until: bytes) -> list[bytes]:
    """The pgoutput messages up to the first of kind ``until``."""
    found: list[bytes] = []
    while True:
        found += (await walsender.receive())[0]
        if any(message[:1] == until for message in found):
            return found


async def read_for_ever(walsender: ReplicationConnection) -> None:
    while True:
        await walsender.receive()


async def test_a_slot_streams_what_commits_after_its_consistent_point(
    source: Database, session: Connection, slot: str
) -> None:
    source.execute("INSERT INTO public.\"t-t\" VALUES (1, 'before')")
    async with await ReplicationConnection.open(source.dsn, slot) as walsender:
        system = await walsender.identify_system()
        created = await walsender.create_slot(slot)
        assert created.name == slot
        assert created.snapshot is None
        assert created.consistent_point >= system.wal_position > INVALID_LSN
        assert system.timeline == 1
        source.execute("INSERT INTO public.\"t-t\" VALUES (2, 'after')")
        await walsender.start(slot, PUBLICATIONS)
        got = await messages(walsender, b"C")
    assert [message[:1] for message in got] == [b"B", b"R", b"I", b"C"]
    assert b"after" in got[2]


_READS_ONCE = """
import asyncio, sys
from psycopg import pq
from cdc.source.replication import ReplicationConnection

async def main(dsn, slot, publication):
    async with await ReplicationConnection.open(dsn, slot) as walsender:
        await walsender.start(slot, [publication])
        kinds = b""
        while b"C" not in kinds:
            kinds += b"".join(message[:1] for message in (await walsender.receive())[0])
        print(pq.__impl__, walsender._reader is not None, kinds.decode())

asyncio.run(main(*sys.argv[1:]))
"""


async def test_psycopg_in_pure_python_is_read_as_the_others_are(
    source: Database, session: Connection, slot: str
) -> None:
    source.create_slot(slot)
    source.execute("INSERT INTO public.\"t-t\" VALUES (1, 'a')")
    reading = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _READS_ONCE, source.dsn, slot, PUBLICATIONS[0]),
        env={**os.environ, "PSYCOPG_IMPL": "python"},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(reading.communicate(), 60)
    assert said.decode().split() == ["python", str(is_compiled()), "BRIC"]


async def test_the_name_of_the_connection_is_the_one_that_was_asked_for(source: Database, slot: str) -> None:
    async with await ReplicationConnection.open(source.dsn, "the name"):
        assert source.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'the name'") == 1


async def test_a_temporary_slot_ends_with_its_connection(source: Database, session: Connection, slot: str) -> None:
    async with await ReplicationConnection.open(source.dsn, slot) as walsender:
        created = await walsender.create_slot(slot, temporary=True, snapshot="export")
        assert created.snapshot
        found = await read_slot(session, slot)
        assert found is not None
        assert found.temporary
    await wait_until_free(session, slot)
    assert await read_slot(session, slot) is None


async def test_a_slot_name_that_is_taken_says_so(source: Database, session: Connection, slot: str) -> None:
    source.create_slot(slot)
    async with await ReplicationConnection.open(source.dsn, slot) as walsender:
        with pytest.raises(SetupError, match=f"already has a slot {slot}"):
            await walsender.create_slot(slot)


async def test_a_source_without_a_free_slot_says_what_to_raise(own_server: MakeServer) -> None:
    server = own_server(max_replication_slots=1)
    async with await ReplicationConnection.open(server.dsn(), "cdc") as walsender:
        await walsender.create_slot("one")
        with pytest.raises(SetupError, match="max_replication_slots"):
            await walsender.create_slot("two")


async def test_wal_level_replica_says_what_to_set(own_server: MakeServer) -> None:
    server = own_server(wal_level="replica")
    async with await ReplicationConnection.open(server.dsn(), "cdc") as walsender:
        with pytest.raises(SetupError, match="wal_level = replica: set it to logical and restart") as caught:
            await walsender.create_slot("cdc")
    assert caught.value.sql is not None
    assert "ALTER SYSTEM SET wal_level" in caught.value.sql


async def test_hazard_05_second_worker_is_told_that_the_slot_is_in_use_and_gets_it_later(
    source: Database, session: Connection, slot: str
) -> None:
    source.create_slot(slot)
    async with await started(source.dsn, slot):
        with pytest.raises(SlotInUse, match=slot):
            await started(source.dsn, slot)
    await wait_until_free(session, slot)
    async with await started(source.dsn, slot):
        found = await read_slot(session, slot)
        assert found is not None
        assert found.active


async def test_a_missing_slot_needs_a_resync(source: Database, session: Connection, slot: str) -> None:
    with pytest.raises(ResyncNeeded, match=f"no slot {slot}.*bootstrap"):
        await started(source.dsn, slot)


async def test_a_slot_of_another_database_says_whose_it_is(source: Database, session: Connection, slot: str) -> None:
    source.create_slot(slot)
    with pytest.raises(SetupError, match=f"belongs to database {source.name}"):
        await started(source.server.dsn(), slot)


async def test_a_lost_slot_needs_a_resync(own_server: MakeServer) -> None:
    server = own_server(max_slot_wal_keep_size="1MB", min_wal_size="32MB", max_wal_size="32MB")
    async with await connect(server.dsn(), application_name="cdc") as session:
        await session.execute("SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')")
        for _ in range(3):
            await session.execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)), pg_switch_wal()")
        await session.execute("CHECKPOINT")
        found = await read_slot(session, "cdc")
        assert found is not None
        assert found.is_lost
        if session.info.server_version >= 170000:
            assert found.invalidation_reason == "wal_removed"
        says = r"slot cdc is lost: WAL that it needs was removed \(max_slot_wal_keep_size\); drop it and bootstrap"
        with pytest.raises(ResyncNeeded, match=says) as caught:
            await started(server.dsn(), "cdc", ["p"])
    assert caught.value.sql == "SELECT pg_drop_replication_slot('cdc');"


async def test_a_slot_that_nobody_reads_for_too_long_is_lost_and_says_so(
    source: Database, own_server: MakeServer
) -> None:
    needs(source, 18, "idle_replication_slot_timeout")
    server = own_server(idle_replication_slot_timeout="1s")
    async with await connect(server.dsn(), application_name="cdc") as session:
        await session.execute("SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')")
        async with asyncio.timeout(20):
            while not ((found := await read_slot(session, "cdc")) and found.is_lost):
                await session.execute("CHECKPOINT")
        assert found.invalidation_reason == "idle_timeout"
        says = "slot cdc is lost: nobody read it for longer than idle_replication_slot_timeout allows; drop it"
        with pytest.raises(ResyncNeeded, match=says):
            await started(server.dsn(), "cdc", ["p"])


async def test_receive_hands_over_bounded_pieces_and_lets_other_tasks_run(
    source: Database, session: Connection, slot: str
) -> None:
    source.create_slot(slot)
    rows = 3 * replication.MAX_PACKED_FRAMES
    source.execute(f"INSERT INTO public.\"t-t\" SELECT g, 'x' FROM generate_series(1, {rows}) AS g")
    turns = 0

    async def other_task() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with await started(source.dsn, slot) as walsender, asyncio.TaskGroup() as group:
        other = group.create_task(other_task())
        received = calls = 0
        while received < rows:
            got, keepalives = await walsender.receive()
            assert len(got) + len(keepalives) <= replication.MAX_PACKED_FRAMES
            received += len(got)
            calls += 1
        other.cancel()
    assert turns >= calls // 2


async def test_a_cancelled_receive_loses_nothing(source: Database, session: Connection, slot: str) -> None:
    source.create_slot(slot)
    async with await started(source.dsn, slot) as walsender:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await messages(walsender, b"C")
        source.execute("INSERT INTO public.\"t-t\" VALUES (1, 'x')")
        got = await messages(walsender, b"C")
    assert [message[:1] for message in got] == [b"B", b"R", b"I", b"C"]


async def test_a_status_update_moves_the_slot_while_nothing_is_received(
    source: Database, session: Connection, slot: str
) -> None:
    source.create_slot(slot)
    async with await started(source.dsn, slot) as walsender:
        source.execute("INSERT INTO public.\"t-t\" VALUES (1, 'x')")
        durable = source.current_lsn()
        await messages(walsender, b"C")
        await walsender.send_status(durable, durable, durable)
        confirmed = None
        async with asyncio.timeout(10):
            while confirmed != durable:
                found = await read_slot(session, slot)
                confirmed = found and found.confirmed_flush_lsn
                await asyncio.sleep(0.01)


async def test_what_was_sent_before_close_still_counts(source: Database, session: Connection, slot: str) -> None:
    source.create_slot(slot)
    async with await started(source.dsn, slot) as walsender:
        source.execute("INSERT INTO public.\"t-t\" VALUES (1, 'x')")
        await messages(walsender, b"C")
        durable = source.current_lsn()
        await walsender.send_status(durable, durable, durable)
    await wait_until_free(session, slot)
    found = await read_slot(session, slot)
    assert found is not None
    assert found.confirmed_flush_lsn == durable


async def test_a_walsender_that_is_terminated_is_temporary(source: Database, session: Connection, slot: str) -> None:
    source.create_slot(slot)
    async with await started(source.dsn, slot) as walsender:
        source.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", slot)
        with pytest.raises(SourceUnavailable):
            await read_for_ever(walsender)


async def test_a_killed_server_is_temporary_and_its_reader_says_so(own_server: MakeServer) -> None:
    server = own_server()
    async with await connect(server.dsn(), application_name="cdc") as session:
        await session.execute("CREATE PUBLICATION p")
    async with await ReplicationConnection.open(server.dsn(), "cdc") as walsender:
        await walsender.create_slot("cdc")
        await walsender.start("cdc", ["p"])
        server.kill()
        await walsender.send_status(Lsn(1), Lsn(1), Lsn(1))
        with pytest.raises(SourceUnavailable):
            await read_for_ever(walsender)
        await walsender.send_status(Lsn(1), Lsn(1), Lsn(1))


async def test_hazard_24_a_publication_that_did_not_exist_poisons_the_slot(
    source: Database, session: Connection, slot: str
) -> None:
    source.create_slot(slot)
    source.execute("INSERT INTO public.\"t-t\" VALUES (1, 'x')")
    async with await started(source.dsn, slot, ["missing"]) as walsender:
        with pytest.raises(StreamPoisoned, match=r"publication.*does not exist") as caught:
            await read_for_ever(walsender)
    assert isinstance(caught.value, ResyncNeeded)


async def test_hazard_24_a_publication_that_was_created_again_poisons_the_slot(
    source: Database, session: Connection, slot: str
) -> None:
    source.create_slot(slot)
    publication = 'PUBLICATION "p-""P"'
    source.execute(f"DROP {publication}")
    source.execute("INSERT INTO public.\"t-t\" VALUES (1, 'never sent')")
    source.execute(f'CREATE {publication} FOR TABLE public."t-t"')
    source.execute("INSERT INTO public.\"t-t\" VALUES (2, 'not sent before the first')")
    async with await started(source.dsn, slot) as walsender:
        with pytest.raises(StreamPoisoned):
            await messages(walsender, b"I")


async def test_hazard_25_an_array_without_send_function_asks_for_text_values(
    source: Database, session: Connection, slot: str
) -> None:
    source.execute("CREATE TABLE public.acl (id int PRIMARY KEY, items aclitem[])")
    source.execute('ALTER PUBLICATION "p-""P" ADD TABLE public.acl')
    source.create_slot(slot)
    source.execute("INSERT INTO public.acl VALUES (1, ARRAY[makeaclitem(10, 10, 'SELECT', false)])")
    async with await started(source.dsn, slot) as walsender:
        with pytest.raises(BinaryRefused, match="text values"):
            await messages(walsender, b"C")
    await wait_until_free(session, slot)
    async with await ReplicationConnection.open(source.dsn, slot) as walsender:
        await walsender.start(slot, PUBLICATIONS, binary=False)
        assert [message[:1] for message in await messages(walsender, b"C")] == [b"B", b"R", b"I", b"C"]


async def test_a_status_update_that_meets_the_end_first_leaves_it_to_the_reader_to_say_why(
    source: Database, session: Connection, slot: str
) -> None:
    source.execute("CREATE TABLE public.acl (id int PRIMARY KEY, items aclitem[])")
    source.execute('ALTER PUBLICATION "p-""P" ADD TABLE public.acl')
    source.create_slot(slot)
    source.execute("INSERT INTO public.acl VALUES (1, ARRAY[makeaclitem(10, 10, 'SELECT', false)])")
    async with await started(source.dsn, slot) as walsender:
        # By now the server has said why, behind the messages that it sent; nothing of it has been read.
        await wait_until_free(session, slot)
        await walsender.receive()
        await walsender.send_status(Lsn(1), Lsn(1), Lsn(1))
        with pytest.raises(BinaryRefused):
            await read_for_ever(walsender)


async def test_a_new_timeline_tells_where_the_old_one_ended(own_server: MakeServer) -> None:
    server = own_server()
    before = Lsn.parse(str(await one_value(server.dsn(), "SELECT pg_current_wal_insert_lsn()::text")))
    server.stop()
    server.data.joinpath("standby.signal").touch()
    server.start()
    await one_value(server.dsn(), "SELECT pg_promote()")
    async with await ReplicationConnection.open(server.dsn(), "cdc") as walsender:
        system = await walsender.identify_system()
        history = await walsender.timeline_history(system.timeline)
        assert await walsender.timeline_history(1) == []
    assert system.timeline == 2
    assert [timeline for timeline, _ in history] == [1]
    assert before <= history[0][1] <= system.wal_position


async def one_value(dsn: str, sql: str) -> object:
    async with await connect(dsn, application_name="cdc") as session:
        row = await (await session.execute(sql.encode())).fetchone()
        assert row is not None
        return row[0]


async def test_slots_are_listed_with_their_lanes_and_dropped_once(
    source: Database, session: Connection, slot: str
) -> None:
    source.create_slot(slot)
    source.create_slot(f"{slot}__internal")
    source.create_slot(f"{slot}x")
    try:
        assert [found.name for found in await read_slots(session, slot)] == [slot, f"{slot}__internal"]
        assert await drop_slot(session, slot)
        assert not await drop_slot(session, slot)
        assert await read_slot(session, slot) is None
    finally:
        source.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name ~ %s", slot
        )


async def test_a_slot_in_use_is_not_dropped(source: Database, session: Connection, slot: str) -> None:
    source.create_slot(slot)
    async with await started(source.dsn, slot):
        with pytest.raises(SlotInUse):
            await drop_slot(session, slot)


async def test_hazard_04_status_updates_keep_a_reader_that_does_not_read(own_server: MakeServer) -> None:
    server = own_server(wal_sender_timeout="1s")
    async with await connect(server.dsn(), application_name="cdc") as session:
        await session.execute("CREATE TABLE public.t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE public.t")
        async with await ReplicationConnection.open(server.dsn(), "cdc") as walsender:
            await walsender.create_slot("cdc")
            await walsender.start("cdc", ["p"])
            busy_until = time.monotonic() + 3
            while time.monotonic() < busy_until:
                await walsender.send_status(INVALID_LSN, INVALID_LSN, INVALID_LSN)
                await asyncio.sleep(0.2)
            await session.execute("INSERT INTO public.t VALUES (1)")
            assert b"I" in [message[:1] for message in await messages(walsender, b"C")]
