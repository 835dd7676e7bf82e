"""Where a backup and a stream meet: what was being committed when the slot, or the backup, began. And standbys.

The order in which commits become visible is not the order of their LSNs (hazard 22): a session that waits for a
synchronous standby has written its commit, and nobody sees it yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc.bootstrap.backup import BackupChoice
from cdc.errors import SetupError
from cdc.service import loading
from cdc.source import heartbeat
from tests.backup import Steps, backup_config, bootstrap_settings, standby_of, wait_for
from tests.bootstrap import follow, rows, set_up, states, until
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database
from tests.held_commits import HELD, hold_commits, release_commits
from tests.scalingo import StandIn


@asynccontextmanager
async def waiting_session(database: Database) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
    """A session whose commits wait for the standby, as all do unless they are told otherwise."""
    async with database.session() as session:
        await session.execute("SET synchronous_commit = on")
        yield session


async def begin(session: psycopg.AsyncConnection[tuple[Any, ...]]) -> int:
    """Begin a transaction that has an id."""
    await session.execute("BEGIN")
    cursor = await session.execute("SELECT pg_current_xact_id()::text::bigint")
    ((xid,),) = await cursor.fetchall()
    return int(xid)


async def somebody_waits_for(database: Database, xid: int) -> None:
    """Wait until the creation of the slot has come to the transactions that it has to wait for."""
    waiting = (
        "SELECT count(*) FROM pg_locks"
        " WHERE locktype = 'transactionid' AND NOT granted AND transactionid = %s::text::xid"
    )
    await until(lambda: database.fetchval(waiting, str(xid)))


async def test_what_is_being_committed_when_slot_or_backup_begin_is_there_exactly_once(
    own_server: MakeServer, make_database: MakeDatabase, make_target: MakeDatabase, scalingo: StandIn, tmp_path: Path
) -> None:
    server = own_server()
    source = make_database("source", server=server)
    source.execute(f'ALTER DATABASE "{source.name}" SET synchronous_commit = local')
    source.close()
    source.execute("CREATE TABLE a (id int PRIMARY KEY, what text); INSERT INTO a VALUES (1, 'before'), (2, 'changed')")
    internal = make_target()
    scalingo.add_database(source.dsn)
    scalingo.may_begin.clear()
    settings = bootstrap_settings(scalingo)
    config = backup_config(source, {"internal": follow(internal)}, **settings, directory=str(tmp_path))
    await set_up(config)
    restored: list[Any] = []
    steps = Steps({"catch-up": lambda: restored.extend(rows(internal, "a"))})
    async with (
        source.session() as first,
        source.session() as second,
        waiting_session(source) as held,
        waiting_session(source) as beating,
        asyncio.TaskGroup() as group,
    ):
        # The lower end: a commit record that is written just before the slot's start, when nobody sees it yet.
        hold_commits(server)
        xid = await begin(first)
        running = group.create_task(loading.bootstrap(config, from_backup=BackupChoice(), progress=steps))
        await somebody_waits_for(source, xid)
        xid = await begin(second)
        await first.execute("ROLLBACK")
        await somebody_waits_for(source, xid)
        held_commit = group.create_task(held.execute("INSERT INTO a VALUES (3, 'held below')"))
        await until(lambda: source.fetchval(HELD))
        source.execute("BEGIN; INSERT INTO a VALUES (4, 'prepared'); PREPARE TRANSACTION 'waiting'")
        await second.execute("ROLLBACK")
        await until(lambda: any("synchronous standby" in said for said in steps.said))
        said = next(said for said in steps.said if "synchronous standby" in said)
        assert f"session {held.info.backend_pid} (" in said
        assert "prepared transaction 'waiting'" in said
        peeked = b"".join(source.changes(config.source.slot, config.source.publication_names, peek=True))
        assert b"held below" not in peeked, "the slot streams it: the end that is to be shown was not met"
        assert scalingo.backups == []
        release_commits(server)
        await held_commit
        await until(lambda: not source.fetchval(HELD))
        assert scalingo.backups == []
        source.execute("COMMIT PREPARED 'waiting'")

        # The upper end: what the backup does not see, written before the heartbeat that it sees last; and what it sees,
        # written after the next heartbeat, which it does not see.
        await until(lambda: scalingo.backups)
        hold_commits(server)
        held_commit = group.create_task(held.execute("INSERT INTO a VALUES (5, 'held above')"))
        held_beat = group.create_task(heartbeat.beat(beating, "cdc"))
        await until(lambda: source.fetchval(HELD) == 2)
        source.execute("INSERT INTO a VALUES (6, 'seen too early'); DELETE FROM a WHERE id = 2")
        scalingo.may_begin.set()
        await until(lambda: restored)
        (load,) = internal.fetch("SELECT first_heartbeat, heartbeat FROM cdc.backup_load")
        release_commits(server)
        await held_commit
        assert load == (load[0], load[0]), "the backup saw the heartbeat that was held"
        assert (await held_beat).count == load[0] + 1
        summary = await running
    in_backup = ["(1,before)", '(3,"held below")', "(4,prepared)", '(6,"seen too early")']
    assert [row for (row,) in restored] == in_backup
    assert rows(internal, "a") == rows(source, "a")
    assert [row for (row,) in rows(internal, "a")] == [*in_backup[:3], '(5,"held above")', in_backup[3]]
    # By backup and stream alone: nothing stopped, and nothing was copied once more.
    assert steps.copied_live("internal") == {}
    assert states(internal) == {"public.a": ("streaming", None)}
    assert str(summary.targets["internal"].consistent_lsn) == internal.fetchval(
        "SELECT consistent_at::text FROM cdc.target"
    )


async def test_a_slot_whose_snapshot_would_be_too_large_just_now_is_created_a_little_later(
    own_server: MakeServer, make_database: MakeDatabase, make_target: MakeDatabase
) -> None:
    server = own_server(max_connections=20, max_wal_senders=5, max_prepared_transactions=0)
    source = make_database("source", server=server)
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (0)")
    internal = make_target()
    config = backup_config(source, {"internal": follow(internal)})
    await set_up(config)
    steps = Steps()
    async with (
        source.session() as first,
        source.session() as second,
        source.session() as many,
        asyncio.TaskGroup() as group,
    ):
        xid = await begin(first)
        running = group.create_task(loading.bootstrap(config, progress=steps))
        await somebody_waits_for(source, xid)
        xid = await begin(second)
        await first.execute("ROLLBACK")
        await somebody_waits_for(source, xid)
        # More subtransactions than the server has room for in a snapshot, and not one of them over.
        await many.execute(
            "BEGIN; DO $$ BEGIN FOR n IN 1..500 LOOP BEGIN INSERT INTO a VALUES (n);"
            " EXCEPTION WHEN unique_violation THEN NULL; END; END LOOP; END $$"
        )
        source.execute("INSERT INTO a VALUES (1000)")  # a snapshot reaches to the last transaction that is over
        await second.execute("ROLLBACK")
        await until(lambda: any("it is tried again" in said for said in steps.said))
        await many.execute("COMMIT")
        await running
    assert rows(internal, "a") == rows(source, "a")


async def test_a_backup_of_a_standby_that_is_behind_is_refused_or_serves(
    own_server: MakeServer, make_database: MakeDatabase, make_target: MakeDatabase, scalingo: StandIn, tmp_path: Path
) -> None:
    primary = own_server()
    source = make_database("source", server=primary)
    source.execute("CREATE TABLE a (id int PRIMARY KEY, what text); INSERT INTO a VALUES (1, 'before')")
    source.execute("CREATE TABLE log (what text); INSERT INTO log VALUES ('before')")
    internal = make_target()
    standby = standby_of(primary, own_server)
    addon = scalingo.add_database(standby.dsn(source.name))
    assert addon in scalingo.addons
    settings = bootstrap_settings(scalingo)
    config = backup_config(source, {"internal": follow(internal)}, **settings, directory=str(tmp_path))
    await set_up(config)
    with psycopg.connect(standby.dsn(), autocommit=True) as there:

        def replayed() -> None:
            wait_for(there, f"pg_last_wal_replay_lsn() >= '{source.current_lsn()}'::pg_lsn")

        def pause() -> None:
            there.execute("SELECT pg_wal_replay_pause()")
            wait_for(there, "pg_get_wal_replay_pause_state() = 'paused'")

        # It has a heartbeat of ours, that of the setup, and not the one that the backup is asked for after.
        replayed()
        pause()
        with pytest.raises(SetupError, match=r"older than the slot.*If it was taken on a standby, that is behind"):
            await loading.bootstrap(config, from_backup=BackupChoice(), progress=Steps())
        assert internal.fetchval("SELECT to_regclass('public.a')") is None
        assert internal.fetch("SELECT state FROM cdc.target") == [("loading",)]

        # The same command again takes another backup. The standby has the heartbeat now, and not what came after it.
        there.execute("SELECT pg_wal_replay_resume()")
        scalingo.may_begin.clear()
        steps = Steps()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(loading.bootstrap(config, from_backup=BackupChoice(), progress=steps))
            await until(lambda: len(scalingo.backups) == 2)
            await asyncio.to_thread(replayed)
            await asyncio.to_thread(pause)
            source.execute("INSERT INTO a VALUES (2, 'not at the standby yet'); UPDATE a SET what = 'x' WHERE id = 1")
            source.execute("INSERT INTO log VALUES ('not at the standby yet')")
            scalingo.may_begin.set()
            await running
    assert rows(internal, "a") == rows(source, "a")
    assert rows(internal, "log") == rows(source, "log")
    assert steps.copied_live("internal") == {"public.log": "it has no key"}
    assert states(internal)["public.a"] == ("streaming", None)
    assert len(scalingo.backups) == 2
