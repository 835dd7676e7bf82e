"""A generation takes the place of another: in one transaction, unseen by readers, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cdc.errors import FenceLost, SetupError, TargetUnavailable
from cdc.lsn import Lsn
from cdc.target import position
from cdc.target.dependents import read_dependents
from cdc.target.session import connect, target_errors
from cdc.target.swap import swap
from cdc.target.swap_lock import lock
from cdc.target.table_swap import read_pairs
from tests.bootstrap import until
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database
from tests.swap import NEW_POSITION, OLD_POSITION, PIPELINE, Generations, generations, table_swap


@pytest.fixture
def target(make_target: MakeDatabase) -> Database:
    return make_target("internal")


@pytest.fixture
async def both(target: Database) -> AsyncIterator[Generations]:
    async with generations(target) as made:
        yield made


async def test_the_new_generation_has_the_names_the_rows_and_the_position_of_the_old(both: Generations) -> None:
    both.make("users", "element-answers")
    both.database.execute("UPDATE cdc.target SET consistent_at = '1/150', transactions = 3 WHERE pipeline = 'cdc+'")
    result = await both.swap(table_swap(), table_swap("element-answers"))
    assert (result.position, result.tries) == (NEW_POSITION, 1)
    assert both.asked == [OLD_POSITION], "the old generation cannot move on while the new one comes to it"
    assert both.names() == both.names("element-answers") == {"new"}
    assert both.schemas() == [], "nothing of the swap is left"
    assert both.database.fetch(
        "SELECT pipeline, fence, position::text, consistent_at::text, state, slot, transactions FROM cdc.target"
    ) == [("cdc", 6, "1/200", "1/150", "streaming", "cdc", 3)]
    assert both.database.fetch("SELECT pipeline, source_table, target_schema FROM cdc.target_table ORDER BY 2") == [
        ("cdc", "element-answers", "public"),
        ("cdc", "users", "public"),
    ]


async def test_whoever_owned_the_old_generation_cannot_commit_any_more(both: Generations) -> None:
    both.make("users")
    worker = await connect(both.database.dsn, application_name="worker")
    try:
        owned = await position.take(worker, PIPELINE)
        await both.swap()
        sql = position.advance_sql(PIPELINE, owned.fence, OLD_POSITION, Lsn(OLD_POSITION + 8))
        with pytest.raises(FenceLost), target_errors("committing", worker.where):
            await worker.connection.execute(f"BEGIN; {sql}; COMMIT")
        await worker.connection.execute("ROLLBACK")
        taken = await position.take(worker, PIPELINE)
        assert (taken.position, taken.fence) == (NEW_POSITION, owned.fence + 2)
    finally:
        await worker.close()


async def test_a_table_that_is_not_there_yet_is_moved_in(both: Generations) -> None:
    both.make("users")
    both.database.execute("DROP TABLE public.users; DELETE FROM cdc.target_table WHERE pipeline = 'cdc'")
    await both.swap(table_swap(created_by_cdc=False))
    assert both.names() == {"new"}


async def test_only_some_tables_get_positions_of_their_own_and_the_target_stays_where_it_is(both: Generations) -> None:
    both.make("users", "answers")
    both.database.execute(
        "DROP TABLE cdc_new_public.answers;"
        "DELETE FROM cdc.target_table WHERE pipeline = 'cdc+' AND source_table = 'answers'"
    )
    await both.swap(whole=False)
    assert (both.names(), both.names("answers")) == ({"new"}, {"old"})
    assert both.database.fetch("SELECT pipeline, fence, position::text FROM cdc.target") == [
        ("cdc", 6, str(OLD_POSITION))
    ]
    assert both.database.fetch("SELECT source_table, position::text FROM cdc.target_table ORDER BY 1") == [
        ("answers", None),
        ("users", str(NEW_POSITION)),
    ]


async def test_a_table_that_is_ahead_of_its_generation_keeps_its_position(both: Generations) -> None:
    both.make("users")
    both.database.execute("UPDATE cdc.target_table SET position = '1/300' WHERE pipeline = 'cdc+'")
    await both.swap(whole=False)
    assert both.database.fetchval("SELECT position::text FROM cdc.target_table") == "1/300"


async def test_which_backup_was_restored_is_forgotten_in_the_swap(both: Generations) -> None:
    both.make("users")
    both.database.execute(
        "INSERT INTO cdc.backup_load (pipeline, slot, first_heartbeat, asked_at, backup)"
        " VALUES ('cdc', 's', 1, now(), 'old'), ('cdc+', 's', 2, now(), 'new')"
    )
    await both.swap()
    assert both.database.fetch("SELECT pipeline, backup FROM cdc.backup_load") == []


@pytest.mark.parametrize("state", ["copying", "overlap"])
async def test_a_generation_that_is_not_complete_replaces_nothing(both: Generations, state: str) -> None:
    both.make("users")
    both.database.execute("UPDATE cdc.target_table SET state = %s WHERE pipeline = 'cdc+'", state)
    before = both.state()
    with pytest.raises(SetupError, match=rf"not complete: public.users \({state}\)"):
        await both.swap()
    assert both.state() == before


async def test_a_generation_before_its_cut_over_replaces_nothing(both: Generations) -> None:
    both.make("users")
    both.database.execute("UPDATE cdc.target SET cut_over_heartbeat = 7 WHERE pipeline = 'cdc+'")
    with pytest.raises(SetupError, match="the cut-over is still to come"):
        await both.swap()


async def test_a_table_of_the_generation_that_nobody_named_is_not_lost(both: Generations) -> None:
    both.make("users", "answers")
    with pytest.raises(SetupError, match=r"public\.answers"):
        await both.swap()
    assert both.names() == {"old"}


async def test_readers_see_rows_all_the_time_through_tables_and_views(both: Generations) -> None:
    """They read without a pause: what comes back is never empty, and never half old and half new."""
    both.make("users", "answers", rows=1000)
    both.database.execute("CREATE VIEW report AS SELECT u.name FROM users u JOIN answers a USING (id)")
    queries = (
        "SELECT count(*), min(name), max(name) FROM public.users",
        "SELECT count(*), min(name), max(name) FROM public.report",
        "SELECT count(*), min(a.name), max(u.name) FROM public.answers a JOIN public.users u USING (id)",
    )
    is_done = asyncio.Event()
    seen: list[tuple[int, str, str]] = []

    async def read(query: str) -> None:
        async with both.database.session() as session:
            while not is_done.is_set():
                row = await (await session.execute(query.encode())).fetchone()
                assert row is not None
                seen.append((row[0], row[1], row[2]))

    async with asyncio.TaskGroup() as group:
        for query in queries * 2:
            group.create_task(read(query))
        await until(lambda: len(seen) > 50)
        await both.swap(table_swap(), table_swap("answers"))
        count = len(seen)
        await until(lambda: len(seen) > count + 50)
        is_done.set()
    assert set(seen) == {(1000, "old", "old"), (1001, "new", "new")}


async def test_hazard_16_a_long_report_delays_the_swap_and_not_the_other_readers(both: Generations) -> None:
    both.make("users")
    async with both.database.session(autocommit=False) as report, both.database.session() as reader:
        await report.execute("SELECT * FROM public.users")
        swapping = asyncio.create_task(both.swap())
        await until(lambda: bool(both.said))
        assert f"process {report.info.backend_pid}" in both.said[0]
        slowest = 0.0
        loop = asyncio.get_running_loop()
        for _ in range(40):
            began = loop.time()
            await reader.execute("SELECT * FROM public.users")
            slowest = max(slowest, loop.time() - began)
            await asyncio.sleep(0.05)
        assert slowest < 0.5, "nobody queues behind a swap that waits for a report"
        assert not swapping.done()
        await report.rollback()
        result = await swapping
    assert result.tries > 1
    assert both.names() == {"new"}


async def test_patience_ends_where_it_was_limited(both: Generations) -> None:
    both.make("users")
    async with both.database.session(autocommit=False) as report:
        await report.execute("SELECT * FROM public.users")
        before = both.state()
        with pytest.raises(TargetUnavailable, match="in use by process"):
            await both.swap(patience_s=1)
    assert both.state() == before


async def test_a_prepared_transaction_that_holds_a_table_is_named(both: Generations) -> None:
    both.make("users")
    both.database.execute("BEGIN; DELETE FROM public.users; PREPARE TRANSACTION 'held'")
    with pytest.raises(TargetUnavailable, match="users is in use by a prepared transaction"):
        await both.swap(patience_s=0.5)


async def test_readers_are_let_in_again_when_the_new_generation_is_late(both: Generations) -> None:
    both.make("users")
    calls: list[Lsn] = []

    async def late(held: Lsn) -> Lsn:
        calls.append(held)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return NEW_POSITION

    result = await swap(
        both.session,
        pipeline=PIPELINE,
        swaps=[table_swap()],
        whole=True,
        caught_up=late,
        say=both.said.append,
        catch_up_s=0.3,
    )
    assert "were not as far as the present ones within 0.3 seconds" in both.said[0]
    assert (result.tries, calls) == (2, [OLD_POSITION, OLD_POSITION])
    assert both.names() == {"new"}


@pytest.mark.parametrize(("stands_at", "said"), [("1/FF", NEW_POSITION), ("1/50", Lsn.parse("1/50"))])
async def test_a_lane_that_ended_too_early_is_not_believed(both: Generations, stands_at: str, said: Lsn) -> None:
    both.make("users")
    both.database.execute("UPDATE cdc.target SET position = %s::pg_lsn WHERE pipeline = 'cdc+'", stands_at)

    async def caught_up(held: Lsn) -> Lsn:
        return said

    with pytest.raises(TargetUnavailable, match="do not stand where their lane ended"):
        await swap(
            both.session,
            pipeline=PIPELINE,
            swaps=[table_swap()],
            whole=True,
            caught_up=caught_up,
            say=both.said.append,
            patience_s=0.1,
        )
    assert both.names() == {"old"}


async def test_positions_of_another_history_are_not_compared(both: Generations) -> None:
    both.make("users")
    both.database.execute("UPDATE cdc.target SET position = '9/0', system_identifier = '8' WHERE pipeline = 'cdc'")
    await both.swap()
    assert both.asked == [Lsn(0)]
    assert both.database.fetchval("SELECT system_identifier FROM cdc.target") == "7"


async def test_killed_in_the_middle_nothing_has_happened(both: Generations) -> None:
    both.make("users")
    both.database.execute("CREATE VIEW report AS SELECT name FROM users; GRANT SELECT ON users TO PUBLIC")
    before = both.state()

    async def killed(held: Lsn) -> Lsn:
        pid = both.session.connection.get_server_pid()
        await asyncio.to_thread(both.database.execute, f"SELECT pg_terminate_backend({pid}, 5000)")
        return NEW_POSITION

    with pytest.raises(TargetUnavailable):
        await swap(
            both.session, pipeline=PIPELINE, swaps=[table_swap()], whole=True, caught_up=killed, say=both.said.append
        )
    assert both.state() == before
    again = await connect(both.database.dsn, application_name="cdc swap again")
    try:
        await both.swap(session=again)
    finally:
        await again.close()
    assert both.names() == both.names("report") == {"new"}


async def test_cancelled_while_it_holds_the_tables_it_lets_go_of_them(both: Generations) -> None:
    both.make("users")
    holds = asyncio.Event()

    async def forever(held: Lsn) -> Lsn:
        holds.set()
        await asyncio.Event().wait()
        return held

    swapping = asyncio.create_task(
        swap(both.session, pipeline=PIPELINE, swaps=[table_swap()], whole=True, caught_up=forever, say=both.said.append)
    )
    await holds.wait()
    swapping.cancel()
    await asyncio.gather(swapping, return_exceptions=True)
    assert both.names() == {"old"}
    await both.swap()
    assert both.names() == {"new"}


async def test_a_vacuum_delays_the_swap_and_nobody_else(both: Generations) -> None:
    both.make("users")
    async with both.database.session(autocommit=False) as vacuum, both.database.session() as reader:
        await vacuum.execute("LOCK TABLE public.users IN SHARE UPDATE EXCLUSIVE MODE")
        swapping = asyncio.create_task(both.swap())
        await until(
            lambda: both.database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode ~ 'Share'")
        )
        await asyncio.wait_for(reader.execute("SELECT * FROM public.users"), 1)
        await asyncio.wait_for(reader.execute("UPDATE public.users SET name = name"), 1)
        await vacuum.rollback()
        await swapping
    assert both.names() == {"new"}


async def test_autovacuum_gives_way(own_server: MakeServer, make_database: MakeDatabase) -> None:
    server = own_server(
        side="target",
        deadlock_timeout="200ms",
        autovacuum="on",
        autovacuum_naptime="1s",
        autovacuum_vacuum_cost_delay="100ms",
        autovacuum_vacuum_cost_limit=1,
    )
    async with generations(make_database("internal", server=server)) as both:
        both.make("users", rows=50_000)
        both.database.execute("UPDATE public.users SET name = 'old'")
        vacuums = (
            "SELECT count(*) FROM pg_locks WHERE relation = 'public.users'::regclass AND granted"
            " AND mode = 'ShareUpdateExclusiveLock'"
        )
        await until(lambda: both.database.fetchval(vacuums))
        result = await both.swap()
        assert both.names() == {"new"}
        assert result.tries == 1, "it was sent away, not waited for"


async def test_a_reader_that_would_close_a_circle_of_locks_is_never_the_one_that_is_ended(both: Generations) -> None:
    """It holds the second table and comes for the first, which the swap holds while it waits for the second."""
    both.make("users", "answers")
    pairs = await read_pairs(
        both.session.connection, both.session.server_version, [table_swap(), table_swap("answers")]
    )
    found = await read_dependents(both.session.connection, pairs)
    async with both.database.session(autocommit=False) as reader:
        await reader.execute("SELECT count(*) FROM public.answers")
        transaction = both.session.connection.transaction()
        await transaction.start()
        locking = asyncio.create_task(lock(both.session.connection, "the target", found, pairs))
        await until(lambda: both.database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        row = (
            await (await reader.execute("SELECT count(*) FROM public.users")).fetchone() if not locking.done() else None
        )
        with pytest.raises(TargetUnavailable, match="readers go first"):
            await locking
        assert row == (3,)
        await transaction.rollback()


async def test_what_the_enrichment_made_is_carried_over_and_stays_recorded(both: Generations) -> None:
    both.make("users")
    both.database.execute(
        "INSERT INTO cdc.enrichment (pipeline, file, digest, refreshes) SELECT p, f, d, '{}' FROM"
        " (VALUES ('cdc', 'a.sql', 'old'), ('cdc+', 'a.sql', 'new'), ('cdc+', 'b.sql', 'new')) AS v (p, f, d)"
    )
    await both.swap()
    assert both.database.fetch("SELECT pipeline, file, digest FROM cdc.enrichment ORDER BY file") == [
        ("cdc", "a.sql", "old"),
        ("cdc", "b.sql", "new"),
    ]


async def test_a_table_that_cdc_did_not_create_is_never_replaced(both: Generations) -> None:
    both.make("users")
    before = both.state()
    with pytest.raises(SetupError, match="was not created by cdc") as refused:
        await both.swap(replace(table_swap(), created_by_cdc=False))
    assert 'ALTER TABLE "public"."users" RENAME TO' in (refused.value.sql or "")
    assert both.state() == before


async def test_what_somebody_else_keeps_beside_the_new_tables_stays(both: Generations) -> None:
    both.make("users")
    both.database.execute("CREATE TABLE cdc_new_public.notes (id int)")
    await both.swap()
    assert both.schemas() == ["cdc_new_public"]
    assert "schema cdc_new_public stays" in both.said[0]
