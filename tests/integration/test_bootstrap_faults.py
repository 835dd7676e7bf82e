"""A bootstrap through lost connections and restarts: every row arrives, and none twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg
import pytest
import tenacity

from cdc.bootstrap import copying
from cdc.bootstrap.copying import Job, TargetAccess, hold_fence
from cdc.bootstrap.courtesy import Copies
from cdc.bootstrap.progress import Silence
from cdc.errors import FenceLost, TargetUnavailable
from cdc.service import loading
from cdc.source.connection import connect
from tests.bootstrap import OnBegin, follow, make_config, rows, set_up, states, until
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database
from tests.faults.proxy import Proxy
from tests.held_commits import hold_commits, release_commits

NUMBERS = "SELECT count(*), count(DISTINCT id) FROM a"


class OnCopied(Silence):
    """Does something once, when the first range is on the target."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act: Callable[[], object] | None = act

    def copied(self, target: str, table: str, rows: int, size: int) -> None:
        act, self.act = self.act, None
        if act is not None:
            act()


def fill(database: Database) -> None:
    database.execute("CREATE TABLE a (id int PRIMARY KEY, filler text)")
    database.execute("INSERT INTO a SELECT g, repeat('x', 200) FROM generate_series(1, 3000) g")


async def test_a_target_that_crashes_in_the_middle_gets_every_row_once(
    source: Database, make_target: MakeDatabase, own_server: MakeServer
) -> None:
    fill(source)
    there = own_server(side="target")
    internal = make_target(server=there)
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    summary = await loading.bootstrap(
        config, progress=OnCopied(lambda: there.restart("immediate")), range_bytes=64 * 1024
    )
    assert internal.fetch(NUMBERS) == [(3000, 3000)]
    assert summary.targets["internal"].rows == 3000


async def test_a_range_whose_transaction_id_a_crash_gave_to_another_is_copied_again(
    source: Database, make_target: MakeDatabase, own_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 100)")
    # Nothing of an open transaction is written before its commit: the server that comes back knows nothing of its id.
    there = own_server(side="target", wal_writer_delay="10s")
    internal = make_target(server=there)
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    current = "SELECT pg_current_xact_id()::text::bigint"
    lost: list[int] = []

    async def crash(connection: asyncpg.Connection, access: TargetAccess) -> None:
        await hold_fence(connection, access)
        if not lost:
            mine = await connection.fetchval(current)
            there.restart("immediate")
            later = internal.fetchval(current)
            if later > mine:
                return  # somebody flushed the WAL meanwhile: the next try may come through
            lost.append(mine)
            while later < mine:
                later = internal.fetchval(current)

    monkeypatch.setattr(copying, "hold_fence", crash)
    await loading.bootstrap(config)
    assert internal.fetch(NUMBERS) == [(100, 100)]
    assert lost, "its number was given out again"
    assert internal.fetch("SELECT FROM cdc.copied_range") == []


async def test_rows_of_which_nobody_can_say_whether_they_are_there_are_not_written_again(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a key, a range that is written twice shows.
    source.execute("CREATE TABLE a (id int); INSERT INTO a SELECT generate_series(1, 100)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    monkeypatch.setattr(tenacity, "wait_random_exponential", lambda **_: tenacity.wait_none())
    commit = asyncpg.transaction.Transaction.commit
    away: list[bool] = []

    async def unanswered(self: asyncpg.transaction.Transaction) -> None:
        is_range = not away and await self._connection.fetchval(  # type: ignore[attr-defined]  # asyncpg's own
            "SELECT count(*) FROM cdc.copied_range"
        )
        await commit(self)
        if is_range:
            away.append(True)
            raise ConnectionResetError

    async def ask(*_: object) -> bool:
        raise TargetUnavailable("away")

    with monkeypatch.context() as absent:
        absent.setattr(asyncpg.transaction.Transaction, "commit", unanswered)
        absent.setattr(Job, "_was_lost", ask)
        with pytest.raises(TargetUnavailable, match="could not be asked whether the rows are there"):
            await loading.bootstrap(config)
    assert internal.fetch(NUMBERS) == [(100, 100)]
    await loading.bootstrap(config)
    assert internal.fetch(NUMBERS) == [(100, 100)]
    assert internal.fetch("SELECT FROM cdc.copied_range") == []


async def test_what_former_runs_left_is_forgotten_and_nobody_waits_for_that(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY); INSERT INTO {name} SELECT generate_series(1, 100)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    internal.execute(f"INSERT INTO cdc.copied_range VALUES (gen_random_uuid(), '{config.pipeline}', -1)")
    first: list[TargetAccess] = []
    written = asyncio.Event()

    async def wait_for_another(connection: asyncpg.Connection, access: TargetAccess) -> None:
        await hold_fence(connection, access)
        if first:
            written.set()
        else:
            first.append(access)
            await written.wait()

    monkeypatch.setattr(copying, "hold_fence", wait_for_another)
    monkeypatch.setattr(copying, "TRIES", 1)
    async with asyncio.timeout(9):  # a lock is waited for longer
        await loading.bootstrap(config)
    assert internal.fetch("SELECT FROM cdc.copied_range") == []


async def test_a_source_that_crashes_in_the_middle_is_read_from_another_snapshot(
    make_database: MakeDatabase, make_target: MakeDatabase, own_server: MakeServer
) -> None:
    here = own_server()
    source = make_database("source", server=here)
    fill(source)
    source.execute("CHECKPOINT")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    await loading.bootstrap(config, progress=OnCopied(lambda: here.restart("immediate")), range_bytes=64 * 1024)
    assert internal.fetch(NUMBERS) == [(3000, 3000)]
    later = states(internal)["public.a"][1]
    assert later is not None
    assert str(later) != internal.fetchval("SELECT position::text FROM cdc.target")


async def test_a_commit_without_an_answer_is_asked_after_and_not_repeated(
    source: Database, make_target: MakeDatabase, own_server: MakeServer
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 100)")
    there = own_server(side="target")
    datamart = make_target("datamart", server=there)
    # Without a key, a range that is written twice shows.
    datamart.execute("CREATE TABLE a (id int)")

    holding = "SELECT max(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    async with Proxy("127.0.0.1", there.port) as proxy:
        owned = {"dsn": proxy.dsn(datamart.dsn), "schema": "owned", "tables": {"public.a": ["id"]}}
        config = make_config(source, {"datamart": owned})
        await set_up(config)
        async with asyncio.TaskGroup() as group:
            group.create_task(loading.bootstrap(config, progress=OnBegin(lambda: hold_commits(there))))
            await until(lambda: datamart.fetchval(holding))
            held = datamart.fetchval(holding)
            proxy.cut()
            # That session has to end; the next one may be held already.
            await until(lambda: not datamart.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", held))
            release_commits(there)
    assert datamart.fetch(NUMBERS) == [(100, 100)]


async def test_a_run_that_has_lost_its_target_writes_nothing_more(source: Database, make_target: MakeDatabase) -> None:
    fill(source)
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)

    def take() -> None:
        internal.execute("UPDATE cdc.target SET fence = fence + 1")

    with pytest.raises(FenceLost, match="was taken by another worker"):
        await loading.bootstrap(config, progress=OnBegin(take), range_bytes=64 * 1024)
    assert rows(internal, "a") == []
    assert states(internal)["public.a"] == ("copying", None)


async def test_a_copy_that_nobody_waits_for_is_not_disturbed(source: Database) -> None:
    source.execute("CREATE TABLE a (id int)")
    copies = Copies()
    async with (
        await connect(source.dsn, application_name="copy") as copy,
        await connect(source.dsn, application_name="watch") as watch,
        source.session(autocommit=False) as reader,
    ):
        await copy.execute("BEGIN")
        await copy.execute("SELECT FROM public.a")
        await reader.execute("SELECT FROM public.a")
        with copies.copying(copy):
            assert await copies.end_blockers(watch) == 0
        cursor = await copy.execute("SELECT 1")
        assert await cursor.fetchone() == (1,)
