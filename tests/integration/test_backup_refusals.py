"""Backups that cannot be joined to the stream: each is refused, says why, and leaves the target as it was."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cdc.bootstrap.backup import BackupChoice
from cdc.config import Config
from cdc.errors import SetupError
from cdc.service import loading
from tests.backup import Steps, backup_config, bootstrap_settings, dump, restore
from tests.bootstrap import follow, rows, set_up
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database
from tests.scalingo import StandIn
from tests.scalingo.dumps import packed

TABLE = "CREATE TABLE a (id int PRIMARY KEY, what text); INSERT INTO a VALUES (1, 'one'), (2, 'two')"


async def refused(config: Config, file: Path, message: str, target: Database) -> None:
    """The file is refused with this message, which names it, and nothing has come into the target."""
    with pytest.raises(SetupError, match=message) as refusal:
        await loading.bootstrap(config, from_backup=BackupChoice(file), progress=Steps())
    assert str(file) in str(refusal.value)
    assert target.fetchval("SELECT to_regclass('public.a')") is None
    assert target.fetch("SELECT state, cut_over_heartbeat FROM cdc.target") == [("loading", None)]


async def test_a_backup_that_cannot_be_joined_to_the_stream_is_refused_and_the_next_one_serves(
    source: Database,
    make_database: MakeDatabase,
    make_target: MakeDatabase,
    own_server: MakeServer,
    tmp_path: Path,
) -> None:
    source.execute(TABLE)
    before_setup = dump(source.dsn, tmp_path / "before_setup.pgsql")
    internal = make_target()
    config = backup_config(source, {"internal": follow(internal)}, directory=str(tmp_path))
    await set_up(config)
    before_slot = dump(source.dsn, tmp_path / "before_slot.pgsql")

    await refused(config, before_setup, "holds no heartbeat of this pipeline.*make the dump now", internal)
    older = r"older than the slot: the last heartbeat in it is number \d+, and it has to hold number \d+ or a later one"
    await refused(config, before_slot, older, internal)

    # Other databases of the same name and the same pipeline: on another server, and on this one.
    elsewhere = make_database("elsewhere", server=own_server())
    beside = make_database("beside")
    for other in (elsewhere, beside):
        other.execute(TABLE)
        await set_up(backup_config(other, {"internal": follow(make_target())}))
        other.execute("UPDATE cdc.heartbeat SET count = 1000")
    identifier = "SELECT system_identifier::text FROM pg_control_system()"
    theirs, ours = elsewhere.fetchval(identifier), source.fetchval(identifier)
    there = rf"another database cluster \(system identifier {theirs}, the source's is {ours}\)"
    await refused(config, dump(elsewhere.dsn, tmp_path / "elsewhere.pgsql"), there, internal)
    await refused(config, dump(beside.dsn, tmp_path / "beside.pgsql"), "another incarnation's", internal)

    good = dump(source.dsn, tmp_path / "good.pgsql")
    without = dump(source.dsn, tmp_path / "without.pgsql", "--exclude-table-data=cdc.heartbeat")
    await refused(config, without, "cdc.heartbeat was excluded from it", internal)

    # A copy of the source, which has its heartbeat, and may have gone its own way since.
    copy = make_database("copy")
    restore(good, copy)
    await refused(config, dump(copy.dsn, tmp_path / "copy.pgsql"), "was made of a copy of the source", internal)

    # What is no archive, or is not whole.
    cut = tmp_path / "cut.pgsql"
    cut.write_bytes(good.read_bytes()[:2000])
    text = tmp_path / "text.pgsql"
    text.write_text("--\n-- PostgreSQL database dump\n--\n")
    packed_cut = packed(good.read_bytes(), tmp_path / "packed.tar.gz", "/backups/good.pgsql")
    packed_cut.write_bytes(packed_cut.read_bytes()[:-500])
    for file, message in (
        (cut, "damaged|cut short|ends"),
        (text, "plain|custom format|no archive"),
        (packed_cut, "cut short or damaged"),
        (tmp_path / "missing.pgsql", "there is no file"),
        (tmp_path, "but a directory"),
    ):
        await refused(config, file, message, internal)

    # An archive that is newer than the program that is to read it.
    old = tmp_path / "pg_restore"
    old.write_text("#!/bin/sh\necho 'pg_restore (PostgreSQL) 9.6'\n")
    old.chmod(0o755)
    with_old = config.model_copy(update={"bootstrap": config.bootstrap.model_copy(update={"pg_restore": old})})
    needed = (
        r"needs a pg_restore of PostgreSQL \d+ or later, and the one that was found is pg_restore 9\.6 \(\S+\). Install"
    )
    with pytest.raises(SetupError, match=needed):
        await loading.bootstrap(with_old, from_backup=BackupChoice(good), progress=Steps())

    # The slot is the first one still, and what was written meanwhile arrives.
    source.execute("UPDATE a SET what = 'later' WHERE id = 2; INSERT INTO a VALUES (3, 'three')")
    steps = Steps()
    await loading.bootstrap(config, from_backup=BackupChoice(good), progress=steps)
    assert steps.copied_live("internal") == {}
    assert rows(internal, "a") == rows(source, "a")
    assert internal.fetch("SELECT state FROM cdc.target") == [("streaming",)]


async def test_a_backup_of_the_provider_that_cannot_serve_is_not_taken_twice(
    source: Database, make_target: MakeDatabase, scalingo: StandIn, tmp_path: Path
) -> None:
    source.execute(TABLE)
    internal = make_target()
    addon = scalingo.add_database(source.dsn)
    settings = bootstrap_settings(scalingo)
    config = backup_config(source, {"internal": follow(internal)}, **settings, directory=str(tmp_path / "kept"))

    with pytest.raises(SetupError, match=r"no backup that began after .* UTC.*leave out --latest"):
        await loading.bootstrap(config, from_backup=BackupChoice(newest=True), progress=Steps())
    assert scalingo.backups == []

    # It fails at the provider's.
    scalingo.looks = ["scheduled", "error"]
    with pytest.raises(SetupError, match="ended as error"):
        await loading.bootstrap(config, from_backup=BackupChoice(), progress=Steps())
    scalingo.looks = []
    (failed,) = scalingo.backups
    failed.failure = "it failed"

    # It is damaged.
    damaged = packed(b"no dump", tmp_path / "damaged.tar.gz", "/backups/damaged.pgsql")
    scalingo.add_backup(addon, damaged, began_at=datetime.now(UTC))
    steps = Steps()
    with pytest.raises(SetupError, match=r"\.pgsql"):
        await loading.bootstrap(config, from_backup=BackupChoice(newest=True), progress=steps)
    assert any(f"backup {failed.id} ended as error" in said for said in steps.said)
    assert list((tmp_path / "kept").iterdir()) == []

    await loading.bootstrap(config, from_backup=BackupChoice(), progress=Steps())
    assert len(scalingo.backups) == 3
    assert rows(internal, "a") == rows(source, "a")
    assert internal.fetch("SELECT state FROM cdc.target") == [("streaming",)]
