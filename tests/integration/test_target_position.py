"""Positions and fences on a real server: who may write, and what a lost answer leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from cdc.errors import ConfigurationError, FenceLost, SetupError
from cdc.lsn import Lsn
from cdc.target import migrations, position
from cdc.target.history import History
from cdc.target.session import Session, connect, target_errors
from tests.conftest import MakeDatabase
from tests.database import Database

START = Lsn.parse("1/A0")
NEXT = Lsn.parse("1/FFFFFFFF")
HISTORY = History("7123456789012345678", 1, "cdc", uuid4())


@pytest.fixture
def target(make_target: MakeDatabase) -> Database:
    return make_target("internal")


@pytest.fixture
async def session(target: Database) -> AsyncIterator[Session]:
    opened = await connect(target.dsn, application_name="cdc test", target="internal")
    await migrations.migrate(opened)
    await position.register(opened, "cdc", "internal")
    yield opened
    await opened.close()


async def loaded(session: Session) -> position.Ownership:
    """Take the target and begin a history at START."""
    fence = (await position.take(session, "cdc")).fence
    await position.record_history(session, "cdc", fence, HISTORY, START)
    return await position.take(session, "cdc")


async def advance(session: Session, fence: int, before: Lsn, after: Lsn) -> None:
    with target_errors("committing", session.where):
        await session.connection.execute(f"{position.advance_sql('cdc', fence, before, after, transactions=3)}; COMMIT")


async def test_a_target_that_was_never_loaded_has_no_position(session: Session) -> None:
    owned = await position.take(session, "cdc")
    assert (owned.target, owned.state, owned.position, owned.history) == ("internal", "new", None, None)


async def test_taking_before_setup_says_to_run_setup(target: Database, session: Session) -> None:
    with pytest.raises(SetupError, match="run cdc setup"):
        await position.take(session, "another")
    target.execute("DROP SCHEMA cdc CASCADE")
    with pytest.raises(SetupError, match="has cdc setup been run"):
        await position.take(session, "cdc")


async def test_a_history_is_read_back_as_it_was_recorded(session: Session) -> None:
    owned = await loaded(session)
    assert (owned.position, owned.history, owned.state) == (START, HISTORY, "loading")


async def test_invariant_01_rows_and_position_commit_together_in_one_round_trip(
    target: Database, session: Session
) -> None:
    target.execute("CREATE TABLE public.t (id int)")
    owned = await loaded(session)
    beat = datetime(2026, 5, 1, 12, tzinfo=UTC)
    sql = position.advance_sql(
        "cdc",
        owned.fence,
        START,
        NEXT,
        transactions=2,
        commit_time_us=1_000_000,
        heartbeat_count=7,
        heartbeat_at=beat,
    )
    await session.connection.execute("BEGIN; INSERT INTO public.t VALUES (1)")
    await session.connection.execute(f"{sql}; COMMIT")
    state = await position.read(session, "cdc")
    assert state is not None
    assert (state.position, state.transactions, state.heartbeat_count, state.heartbeat_at) == (NEXT, 2, 7, beat)
    assert target.fetchval("SELECT source_commit_at FROM cdc.target") == datetime(2000, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert target.fetchval("SELECT count(*) FROM public.t") == 1


async def test_invariant_04_a_stale_worker_cannot_commit_a_single_row(target: Database, session: Session) -> None:
    """The former owner's transaction is open when another worker takes the target; its end must not commit."""
    target.execute("CREATE TABLE public.t (id int)")
    owned = await loaded(session)
    # The former owner's session is not found by its process id: the fence alone has to stop it.
    target.execute("UPDATE cdc.target SET backend_pid = NULL")
    rival = await connect(target.dsn, application_name="rival")
    try:
        await session.connection.execute("BEGIN; INSERT INTO public.t VALUES (1)")
        await position.take(rival, "cdc")
        with pytest.raises(FenceLost):
            await advance(session, owned.fence, START, NEXT)
        await session.connection.execute("ROLLBACK")
        assert target.fetchval("SELECT count(*) FROM public.t") == 0
        assert target.fetchval("SELECT position::text FROM cdc.target") == str(START)
    finally:
        await rival.close()


async def test_invariant_04_a_batch_that_grew_before_its_retry_does_not_apply_twice(session: Session) -> None:
    owned = await loaded(session)
    await session.connection.execute("BEGIN")
    await advance(session, owned.fence, START, Lsn(START + 8))
    await session.connection.execute("BEGIN")
    with pytest.raises(FenceLost):
        await advance(session, owned.fence, START, NEXT)
    await session.connection.execute("ROLLBACK")


async def test_invariant_04_taking_ends_the_former_owner_and_returns_what_it_committed(
    target: Database, session: Session
) -> None:
    owned = await loaded(session)
    await session.connection.execute("BEGIN")
    await session.connection.execute(position.advance_sql("cdc", owned.fence, START, NEXT))
    rival = await connect(target.dsn, application_name="rival")
    try:
        taken = await asyncio.wait_for(position.take(rival, "cdc"), 10)
        assert taken.position == START, "an open transaction of the former owner is rolled back, not waited for"
        assert taken.fence > owned.fence
        assert target.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cdc test'") == 0
    finally:
        await rival.close()


async def test_two_workers_that_take_at_once_both_get_a_fence_and_one_of_them_owns(
    target: Database, session: Session
) -> None:
    await loaded(session)
    await session.close()
    rivals = [await connect(target.dsn, application_name=f"rival {number}") for number in range(2)]
    try:
        results = await asyncio.gather(*(position.take(rival, "cdc") for rival in rivals), return_exceptions=True)
        fences = [result.fence for result in results if isinstance(result, position.Ownership)]
        assert fences
        assert len(set(fences)) == len(fences)
        assert max(fences) == target.fetchval("SELECT fence FROM cdc.target")
    finally:
        for rival in rivals:
            await rival.close()


async def test_advancing_does_not_slow_down_while_old_versions_of_the_row_stay_alive(session: Session) -> None:
    """A long report keeps them alive; here it is the open transaction itself."""
    owned = await loaded(session)
    await session.connection.execute("BEGIN")
    for step in range(600):
        sql = position.advance_sql("cdc", owned.fence, Lsn(START + step), Lsn(START + step + 1))
        await session.connection.execute(sql)
    blocks = await session.connection.fetchval("SELECT pg_stat_get_xact_blocks_fetched('cdc.target'::regclass)")
    await session.connection.execute("ROLLBACK")
    assert blocks < 600 * 5, "the row is found by its place, not by walking its versions"


async def test_advancing_leaves_the_table_as_small_as_it_is(target: Database, session: Session) -> None:
    """Autovacuum has nothing to do with it: it comes once a minute at most."""
    target.execute("ALTER TABLE cdc.target SET (autovacuum_enabled = off)")
    owned = await loaded(session)
    for step in range(2_000):
        await session.connection.execute("BEGIN")
        await advance(session, owned.fence, Lsn(START + step), Lsn(START + step + 1))
    assert target.fetchval("SELECT pg_relation_size('cdc.target') / current_setting('block_size')::int") <= 8


async def test_a_rolled_back_advance_is_found_again(session: Session) -> None:
    owned = await loaded(session)
    await session.connection.execute("BEGIN")
    await advance(session, owned.fence, START, Lsn(START + 1))
    await session.connection.execute("BEGIN")
    await session.connection.execute(position.advance_sql("cdc", owned.fence, Lsn(START + 1), NEXT))
    await session.connection.execute("ROLLBACK")
    await position.record_error(session, "cdc", "something passed")
    await session.connection.execute("BEGIN")
    await advance(session, owned.fence, Lsn(START + 1), NEXT)
    state = await position.read(session, "cdc")
    assert state is not None
    assert (state.position, state.last_error) == (NEXT, "something passed")
    await position.record_error(session, "cdc", None)
    state = await position.read(session, "cdc")
    assert state is not None
    assert state.last_error is None


async def test_state_and_timeline_are_recorded_by_the_owner_only(session: Session) -> None:
    owned = await loaded(session)
    await position.record_state(session, "cdc", owned.fence, "streaming", consistent_at=NEXT)
    await position.record_timeline(session, "cdc", owned.fence, 2)
    state = await position.read(session, "cdc")
    assert state is not None
    assert state.history is not None
    assert (state.state, state.consistent_at, state.history.timeline) == ("streaming", NEXT, 2)
    for stale in (
        position.record_state(session, "cdc", owned.fence - 1, "stopped"),
        position.record_history(session, "cdc", owned.fence - 1, HISTORY, NEXT),
    ):
        with pytest.raises(FenceLost):
            await stale


async def test_one_database_cannot_be_two_targets_of_one_pipeline(session: Session) -> None:
    await position.register(session, "cdc", "internal")
    with pytest.raises(ConfigurationError, match="already target 'internal'"):
        await position.register(session, "cdc", "external")
    await position.register(session, "another", "external")


async def test_forgetting_says_when_nothing_is_left(session: Session) -> None:
    await position.register(session, "another", "internal")
    assert not await position.forget(session, "another")
    assert await position.forget(session, "cdc")
    assert await position.read(session, "cdc") is None
