"""Loads that go on in another way than they were begun, beside targets that are in order, or not at all."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psycopg
import pytest

from cdc.bootstrap import assumed
from cdc.bootstrap.backup import BackupChoice
from cdc.bootstrap.progress import Silence
from cdc.bootstrap.run import Scope
from cdc.config import Config
from cdc.errors import ConfigurationError, ResyncNeeded, SetupError
from cdc.lsn import Lsn
from cdc.service import loading, notifications
from tests.backup import Steps, backup_config, dump
from tests.bootstrap import follow, rows, set_up, states
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database
from tests.pipeline import Pipeline
from tests.pipeline import follow as followed

TABLES = """
    CREATE TABLE item (id int PRIMARY KEY, label text UNIQUE);
    CREATE TABLE other (id int PRIMARY KEY, n int);
    INSERT INTO item VALUES (1, 'a'), (2, 'b'), (3, 'c');
    INSERT INTO other SELECT n, 0 FROM generate_series(1, 200) n;
"""


class Interrupted(Exception):
    """Somebody pulls the plug."""


def pull_the_plug() -> None:
    raise Interrupted


async def set_up_the_stream(config: Config, directory: Path, *targets: str) -> None:
    """Two first tries, without a backup and with one that is older than the stream: afterwards that is set up."""
    too_old = directory / "too-old.pgsql"
    scope = Scope(targets=targets or None)
    with pytest.raises(SetupError, match="make the dump"):
        await loading.bootstrap(config, scope=scope, from_backup=BackupChoice(directory / "no"), progress=Silence())
    dump(config.source.dsn.get_secret_value(), too_old, "--exclude-table=cdc.heartbeat")
    with pytest.raises(SetupError, match="make the dump now"):
        await loading.bootstrap(config, scope=scope, from_backup=BackupChoice(too_old), progress=Silence())


@pytest.mark.parametrize("step", ["catch-up", "primary key"])
async def test_what_was_begun_from_a_backup_goes_on_live_and_nothing_of_it_is_taken_for_complete(
    source: Database, make_target: MakeDatabase, tmp_path: Path, step: str
) -> None:
    source.execute(TABLES)
    internal = make_target()
    config = backup_config(source, {"internal": follow(internal)}, directory=str(tmp_path))
    await set_up(config)
    await set_up_the_stream(config, tmp_path)
    for label, number in (("x", 1), ("a", 2), ("b", 1)):
        source.execute(f"UPDATE item SET label = '{label}' WHERE id = {number}")
    good = dump(source.dsn, tmp_path / "good.pgsql")
    with pytest.raises((Interrupted, BaseExceptionGroup)):
        await loading.bootstrap(config, from_backup=BackupChoice(good), jobs=1, progress=Steps({step: pull_the_plug}))
    with pytest.raises(SetupError, match="--from backup" if step == "catch-up" else "cdc bootstrap"):
        await assumed.bootstrap(config, progress=Silence())
    assert good.is_file()
    await loading.bootstrap(config, progress=Silence())
    assert {state for state, _ in states(internal).values()} == {"streaming"}
    assert internal.fetch("SELECT state, cut_over_heartbeat FROM cdc.target") == [("streaming", None)]
    for table in ("item", "other"):
        assert rows(internal, table) == rows(source, table)
    assert internal.fetchval("SELECT count(*) FROM pg_indexes WHERE indexname = 'item_label_key'") == 1


async def test_a_target_that_is_in_order_keeps_its_rows_whatever_became_of_its_former_backup(
    source: Database, make_target: MakeDatabase, tmp_path: Path
) -> None:
    source.execute(TABLES)
    a, b = make_target("a"), make_target("b")
    config = backup_config(source, {"a": follow(a), "b": follow(b)}, directory=str(tmp_path))
    await set_up(config)
    await set_up_the_stream(config, tmp_path, "a")
    good = dump(source.dsn, tmp_path / "good.pgsql")
    await loading.bootstrap(config, scope=Scope(targets=("a",)), from_backup=BackupChoice(good), progress=Silence())
    file = a.fetchval("SELECT pg_relation_filenode('other')")
    source.execute("VACUUM FULL other")
    await set_up_the_stream(config, tmp_path)
    again = dump(source.dsn, tmp_path / "again.pgsql")
    await loading.bootstrap(config, from_backup=BackupChoice(again), progress=Silence())
    assert a.fetchval("SELECT pg_relation_filenode('other')") == file, "it was neither emptied nor made anew"
    assert rows(b, "other") == rows(source, "other")
    assert [one.fetchval("SELECT state FROM cdc.target") for one in (a, b)] == ["streaming", "streaming"]


async def test_a_slot_that_vanishes_while_a_backup_is_joined_ends_the_run(
    source: Database, make_target: MakeDatabase, tmp_path: Path
) -> None:
    source.execute(TABLES)
    config = backup_config(source, {"internal": follow(make_target())}, directory=str(tmp_path))
    await set_up(config)
    await set_up_the_stream(config, tmp_path)
    good = dump(source.dsn, tmp_path / "good.pgsql")

    def lose_the_slot() -> None:
        source.fetch(f"SELECT pg_drop_replication_slot('{config.source.slot}')")

    async with asyncio.timeout(60):
        with pytest.raises((ResyncNeeded, SetupError)):
            await loading.bootstrap(config, from_backup=BackupChoice(good), progress=Steps({"catch-up": lose_the_slot}))


async def test_a_load_that_was_killed_before_its_slot_was_there_keeps_no_wal_for_the_others(
    own_server: MakeServer, make_database: MakeDatabase, make_target: MakeDatabase
) -> None:
    source = make_database("source", server=own_server())
    source.execute(TABLES)
    a, b = make_target("a"), make_target("b")
    async with Pipeline(source, {"a": followed(a), "b": followed(b)}) as pipeline:
        await pipeline.setup()
        await loading.bootstrap(pipeline.config, scope=Scope(targets=("a",)), progress=Silence())
        await pipeline.start(ready=False)
        with psycopg.connect(source.dsn) as holder:
            holder.execute("SELECT pg_current_xact_id()")
            command = pipeline._command("bootstrap", "--from", "live", "--target", "b")
            process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
            await pipeline.until(
                lambda: b.fetchval("SELECT state FROM cdc.target") == "loading", "it waits for an old transaction"
            )
            process.send_signal(signal.SIGKILL)
            await process.wait()
        source.execute("UPDATE other SET n = 1")
        written = Lsn.parse(source.fetchval("SELECT pg_current_wal_lsn()::text"))
        await pipeline.until(lambda: pipeline.confirmed() >= written, "the slot of the others moves on")
        assert b.fetchval("SELECT state FROM cdc.target") == "loading"


async def test_what_was_unpacked_of_a_backup_does_not_stay(
    source: Database, make_target: MakeDatabase, tmp_path: Path
) -> None:
    source.execute(TABLES)
    directory = tmp_path / "unpacked"
    config = backup_config(source, {"internal": follow(make_target())}, directory=str(directory))
    await set_up(config)
    await set_up_the_stream(config, tmp_path)
    packed = tmp_path / "good.tar.gz"
    good = dump(source.dsn, tmp_path / "good.pgsql")
    process = await asyncio.create_subprocess_exec("tar", "-czf", packed, "-C", tmp_path, good.name)
    assert await process.wait() == 0
    await loading.bootstrap(config, from_backup=BackupChoice(packed), progress=Silence())
    assert list(directory.iterdir()) == [], "it holds every row, also what no target may have"
    assert packed.is_file()
    assert good.is_file(), "what is the operator's own stays"


async def test_what_makes_a_load_impossible_is_said_before_anything_is_made(
    source: Database, make_target: MakeDatabase, tmp_path: Path
) -> None:
    source.execute(TABLES)
    internal = make_target()
    config = backup_config(source, {"internal": follow(internal)}, directory=str(tmp_path))
    for choice, error, says in (
        (BackupChoice(tmp_path / "missing" / "good.pgsql"), SetupError, "there is no directory"),
        (BackupChoice(), ConfigurationError, "SCALINGO_APP"),
    ):
        with pytest.raises(error, match=says):
            await loading.bootstrap(config, from_backup=choice, progress=Silence())
    assert source.fetch("SELECT FROM pg_replication_slots WHERE slot_name = %s", config.source.slot) == []
    assert internal.fetch("SELECT state FROM cdc.target") == [("new",)]


async def test_a_token_that_no_header_can_hold_is_a_warning(source: Database, make_target: MakeDatabase) -> None:
    config = backup_config(source, {"internal": follow(make_target())})
    receiver = {"url": "http://127.0.0.1:9/", "token": "ends in a\n"}
    told = Config.model_validate({**config.model_dump(), **_sources(config), "notifications": [receiver]})
    await notifications.notify(told, {"target": "internal", "event": "bootstrap", "outcome": "done"})


def _sources(config: Config) -> dict[str, object]:
    """What a dump of a configuration leaves out: connection strings with their passwords."""
    return {
        "source": {"dsn": config.source.dsn.get_secret_value()},
        "targets": {
            name: {"dsn": target.dsn.get_secret_value(), "include": list(target.include)}
            for name, target in config.targets.items()
        },
    }
