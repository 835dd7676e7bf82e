"""What happens between a backup's beginning and the cut-over: it may be in the backup, or in the stream, or in both."""

from __future__ import annotations

import asyncio
import subprocess
import tarfile
from pathlib import Path

from cdc.bootstrap.backup import BackupChoice
from cdc.service import loading
from tests.backup import Steps, backup_config, bootstrap_settings, serve_snapshots
from tests.bootstrap import follow, rows, set_up, states, until
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.servers import program

BEFORE, AFTER, LATER = 100, 200, 300
"""Numbers of the rows that change before the backup's snapshot, after it, and after its rows are restored."""

LONG = "(SELECT string_agg(md5({0} || '-' || m), '') FROM generate_series(1, 100) m)"


TABLES = (
    *("item", "moved", "moved_before", "quiet"),
    *("rewritten", "emptied", "emptied_later", "widened_later", "log"),
)


def fill(source: Database) -> None:
    for table in ("item", "moved", "moved_before"):
        source.execute(
            f"CREATE TABLE {table} (id int PRIMARY KEY, label text UNIQUE, n int, long text);"
            f"ALTER TABLE {table} ALTER long SET STORAGE EXTERNAL"
        )
        for base in (BEFORE, AFTER, LATER):
            source.execute(
                f"INSERT INTO {table} SELECT n, 'label ' || n, 0, {LONG.format('n')}"
                f" FROM generate_series({base + 3}, {base + 20}) n"
            )
    for table in ("quiet", "rewritten", "emptied", "emptied_later", "widened_later"):
        source.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int)")
        source.execute(f"INSERT INTO {table} SELECT n, n FROM generate_series(1, 10) n")
    source.execute("CREATE TABLE log (what text); INSERT INTO log SELECT 'first' FROM generate_series(1, 10)")


def write(source: Database, base: int) -> None:
    """Each of the things that make replaying hard, on rows of its own; some in one transaction, some in several."""
    for sql in (
        # Inserted, deleted, inserted again; inserted and deleted.
        "INSERT INTO item VALUES ({b} + 1, 'a', 1, 'x')",
        "DELETE FROM item WHERE id = {b} + 1",
        "INSERT INTO item VALUES ({b} + 1, 'b{b}', 2, 'y')",
        "INSERT INTO item VALUES ({b} + 2, 'c', 1, 'x'); DELETE FROM item WHERE id = {b} + 2",
        # Unique values swapped, and passed on.
        "UPDATE item SET label = 'none {b}' WHERE id = {b} + 3;"
        " UPDATE item SET label = 'label ' || {b} + 3 WHERE id = {b} + 4;"
        " UPDATE item SET label = 'label ' || {b} + 4 WHERE id = {b} + 3",
        "DELETE FROM item WHERE id = {b} + 6; UPDATE item SET label = 'label ' || {b} + 6 WHERE id = {b} + 7",
        # The key changes with all values sent, and a new row takes the old key.
        "UPDATE item SET id = {b} + 40, long = 'x' WHERE id = {b} + 12;"
        " INSERT INTO item VALUES ({b} + 12, 'k{b}', 0, 'z')",
        # A row whose long value is unsent goes, and comes back with another one.
        "UPDATE item SET n = 10 WHERE id = {b} + 10; DELETE FROM item WHERE id = {b} + 10;"
        " INSERT INTO item VALUES ({b} + 10, 'ten {b}', 11, " + LONG.format("{b}") + ")",
        "UPDATE item SET n = n + 1 WHERE id = {b} + 10",
        "UPDATE item SET long = 'no more' WHERE id = {b} + 11",
        # The key changes while the long value stays unsent, and a new row takes the old key.
        *(MOVE.format(table=table, b="{b}") for table in ("moved", "moved_before")[: 2 if base == BEFORE else 1]),
        # The same in a ring: each row ends where another one was.
        "UPDATE moved SET id = {b} + 60 WHERE id = {b} + 8; UPDATE moved SET id = {b} + 8, n = 9 WHERE id = {b} + 9;"
        " UPDATE moved SET id = {b} + 9, n = 8 WHERE id = {b} + 60",
        # A table without a key: two equal rows are two rows.
        "INSERT INTO log VALUES ('line {b}'), ('line {b}')",
    ):
        source.execute(sql.format(b=base))


MOVE = (
    "UPDATE {table} SET id = {b} + 50, label = 'moved {b}' WHERE id = {b} + 5;"
    " INSERT INTO {table} VALUES ({b} + 5, 'label ' || {b} + 5, 5, 'short')"
)


def archived_rows(archive: Path, table: str) -> int:
    """The rows of a table in a tar.gz as Scalingo gives it."""
    with tarfile.open(archive) as tar:
        (member,) = tar.getmembers()
        content = tar.extractfile(member)
        assert content is not None
        restored = subprocess.run(
            [program("pg_restore"), "--data-only", f"--table={table}", "--file=-"],
            input=content.read(),
            capture_output=True,
            check=True,
        ).stdout
    copied = restored.split(b"FROM stdin;\n")[1].split(b"\\.\n")[0]
    return copied.count(b"\n")


async def test_hazard_23_and_every_other_change_inside_the_overlap_arrives_once(
    source: Database, make_target: MakeDatabase, tmp_path: Path
) -> None:
    fill(source)
    internal = make_target()

    def write_later() -> None:
        write(source, LATER)
        source.execute("TRUNCATE emptied_later; INSERT INTO emptied_later VALUES (70, 1)")
        source.execute("ALTER TABLE widened_later ALTER n TYPE bigint; UPDATE widened_later SET n = 2 WHERE id = 1")

    steps = Steps({"catch-up": write_later})
    with serve_snapshots(tmp_path / "scalingo") as (scalingo, back_up_snapshot):
        scalingo.add_database(source.dsn)
        scalingo.may_begin.clear()
        settings = bootstrap_settings(scalingo)
        config = backup_config(source, {"internal": follow(internal)}, **settings, directory=str(tmp_path))
        await set_up(config)
        async with asyncio.TaskGroup() as group, source.session(autocommit=False) as exporting:
            running = group.create_task(loading.bootstrap(config, from_backup=BackupChoice(), progress=steps))
            await until(lambda: scalingo.backups)
            # In the backup, and in the stream.
            write(source, BEFORE)
            await exporting.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor = await exporting.execute("SELECT pg_export_snapshot()")
            ((snapshot,),) = await cursor.fetchall()
            back_up_snapshot(snapshot)
            # In the stream only; what was rewritten is, for the backup's snapshot, without a row.
            write(source, AFTER)
            source.execute("ALTER TABLE rewritten ALTER n TYPE bigint; UPDATE rewritten SET n = 2 WHERE id = 1")
            source.execute("TRUNCATE emptied; INSERT INTO emptied VALUES (50, 1)")
            scalingo.may_begin.set()
            summary = await running
        archive = scalingo.backups[0].archive
        assert archive is not None
        assert archived_rows(archive, "rewritten") == archived_rows(archive, "emptied") == 0
        assert archived_rows(archive, "quiet") == 10

    for table in TABLES:
        assert rows(internal, table) == rows(source, table), table
    reasons = {table: reason.split(": load this table")[0] for table, reason in steps.copied_live("internal").items()}
    again = "the source truncated or rewrote it since the backup was asked for, which a backup may miss"
    assert reasons.pop("public.log") == "it has no key"
    assert "another key without sending all its values" in reasons.pop("public.moved")
    assert "column n is of type integer, and of type bigint at the source" in reasons.pop("public.widened_later")
    assert reasons == {"public.rewritten": again, "public.emptied": again, "public.emptied_later": again}
    # The planner knows what came, whichever way it came.
    known = {
        table for (table,) in internal.fetch("SELECT DISTINCT tablename FROM pg_stats WHERE schemaname = 'public'")
    }
    assert known == {*TABLES}
    # What has an LSN of its own was copied from a snapshot; the others came from the backup.
    copied = {name.removeprefix("public.") for name, (_, lsn) in states(internal).items() if lsn is not None}
    assert copied == {*TABLES} - {"item", "moved_before", "quiet"}
    assert {state for state, _ in states(internal).values()} == {"streaming"}
    assert summary.targets["internal"].consistent_lsn == max(lsn for _, lsn in states(internal).values() if lsn)
    assert source.fetch("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == [(1,)]
