"""`cdc resync` of tables that are built beside and swapped in: by the command itself, while a real worker streams."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from cdc.bootstrap.progress import Silence
from cdc.bootstrap.run import Scope
from cdc.errors import SetupError, TerminalError
from cdc.service import loading
from cdc.service import resync as asking
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow
from tests.resync import Following, Replicated
from tests.warm import ROOT

TABLES = """
CREATE TABLE lines (number int, text text);
CREATE INDEX lines_number ON lines (number);
INSERT INTO lines SELECT n % 50, 'line ' || n FROM generate_series(1, 500) AS n;
CREATE TABLE users (id int PRIMARY KEY, name text);
INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, 50) AS n;
CREATE VIEW texts AS SELECT text FROM lines;
"""
SLOTS = "SELECT array_agg(slot_name::text) FROM pg_replication_slots WHERE database = current_database()"


@asynccontextmanager
async def writing(source: Database) -> AsyncIterator[None]:
    """Inserts into the keyless table, and all kinds of changes of the other, until the block ends."""

    async def write() -> None:
        number = 0
        async with await psycopg.AsyncConnection.connect(source.dsn, autocommit=True) as connection:
            while not ended:
                number += 1
                for statement in (
                    "INSERT INTO lines VALUES (%(n)s, 'new ' || %(n)s), (%(n)s, 'new ' || %(n)s)",
                    "UPDATE users SET name = name || %(n)s WHERE id = %(n)s %% 50",
                    "DELETE FROM users WHERE id = %(n)s; INSERT INTO users VALUES (%(n)s + 1000, 'new')",
                ):
                    for one in statement.split(";"):
                        await connection.execute(one.encode(), {"n": number})

    ended = False
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        try:
            yield
        finally:
            ended = True


@asynccontextmanager
async def reading(target: Database) -> AsyncIterator[list[int]]:
    """Counts the rows that a reader sees in the table and through its view, until the block ends."""

    async def read() -> None:
        async with await psycopg.AsyncConnection.connect(target.dsn, autocommit=True) as connection:
            while not ended:
                for table in ("lines", "texts"):
                    cursor = await connection.execute(f"SELECT count(*) FROM {table}".encode())
                    row = await cursor.fetchone()
                    assert row is not None
                    seen.append(row[0])

    ended, seen = False, list[int]()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        try:
            yield seen
        finally:
            ended = True


async def test_a_keyless_table_is_built_beside_in_two_targets_while_everything_is_written_and_read(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    first, second = make_target("first"), make_target("second")
    async with Pipeline(source, {"first": follow(first), "second": follow(second)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        first.execute("DELETE FROM lines WHERE number > 10; CREATE INDEX ours ON lines (text)")
        first.execute("GRANT SELECT ON lines TO PUBLIC")
        second.execute("INSERT INTO lines SELECT 7, 'too many' FROM generate_series(1, 100)")
        before = {name: target.fetchval("SELECT 'lines'::regclass::oid") for name, target in pipeline.targets.items()}
        async with writing(source), reading(first) as seen:
            status, printed = await pipeline.cdc("resync", "public.lines")
        assert status == 0, printed
        for name in pipeline.targets:
            assert f"target {name}: public.lines was read again (shadow), " in printed
            assert f"{name}, public.lines: it is built beside and swapped in, because nothing identifies" in printed
        assert min(seen) > 0
        await pipeline.assert_caught_up_and_equal()
        for name, target in pipeline.targets.items():
            assert target.fetchval("SELECT 'lines'::regclass::oid") != before[name]
            assert target.fetch("SELECT state, row_count >= 500, consistent_from IS NOT NULL FROM cdc.resync") == [
                ("done", True, True)
            ]
            assert target.fetch("SELECT pipeline, state FROM cdc.target") == [("cdc", "streaming")]
            assert target.fetchval("SELECT to_regnamespace('cdc_new_public')") is None
            assert target.fetch("SELECT outcome FROM cdc.bootstrap_run WHERE origin = 'resync'") == [("done",)]
        assert first.fetchval("SELECT has_table_privilege('pg_monitor', 'lines', 'SELECT')")
        assert {name for (name,) in first.fetch("SELECT indexname FROM pg_indexes WHERE tablename = 'lines'")} == {
            "lines_number",
            "ours",
        }
        assert source.fetchval(SLOTS) == [pipeline.slot]
        source.execute("INSERT INTO lines VALUES (0, 'goes on'); TRUNCATE lines; INSERT INTO lines VALUES (1, 'anew')")
        await pipeline.assert_caught_up_and_equal()


async def test_a_table_that_joins_the_configuration_and_has_no_key_gets_its_rows(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    target = make_target()
    async with Pipeline(source, {"warehouse": follow(target, "public.users")}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        await pipeline.worker.terminate()
        pipeline.settings["targets"]["warehouse"]["include"] = ["public.users", "public.lines"]
        pipeline.configure()
        await pipeline.start()
        source.execute("INSERT INTO lines VALUES (0, 'before setup')")
        status, printed = await pipeline.cdc("resync", "public.lines")
        assert status != 0
        assert "does not publish public.lines in full: run `cdc setup`" in " ".join(printed.split())
        await pipeline.setup()
        async with writing(source):
            status, printed = await pipeline.cdc("resync", "public.lines", "--target", "warehouse")
        assert status == 0, printed
        await pipeline.assert_caught_up_and_equal()
        assert target.fetch("SELECT source_table, state FROM cdc.target_table ORDER BY 1") == [
            ("lines", "streaming"),
            ("users", "streaming"),
        ]


_DIES = """
import asyncio, os, signal, sys
from pathlib import Path
from cdc.bootstrap.progress import Silence
from cdc.config import load
from cdc.service import loading, resync, swapping
from cdc.target.run_record import RunRecord

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Death(Silence):
    def copied(self, target, table, rows, size):
        if what == "copied":
            die()
    def step(self, kind, name, targets):
        if what == kind:
            die()

async def swap(*arguments, **options):
    result = await real_swap(*arguments, **options)
    if what == "swapped":
        die()
    return result

async def drop_slot(connection, name):
    dropped = await real_drop(connection, name)
    if what == "dropped":
        die()
    return dropped

real_swap, swapping.swap = swapping.swap, swap
real_drop, swapping.drop_slot = swapping.drop_slot, drop_slot
file, what = sys.argv[1:]
config, progress = load(Path(file), environ={}), Death()
rebuild = loading.rebuild_with(config, progress)
asyncio.run(resync.resync(config, "public.lines", follower=progress, rebuild=rebuild))
"""


async def run_until(pipeline: Pipeline, death: str) -> None:
    """Run the command as a process that kills itself at this moment."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _DIES, str(pipeline.file), death), cwd=ROOT, stderr=subprocess.PIPE
    )
    _, printed = await process.communicate()
    assert process.returncode == -signal.SIGKILL, printed.decode()[-3000:]


@pytest.mark.timeout(240)
async def test_killed_while_copying_and_around_the_swap_it_goes_on(source: Database, make_target: MakeDatabase) -> None:
    source.execute(TABLES)
    target = make_target()
    async with Pipeline(source, {"warehouse": follow(target)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        target.execute("DELETE FROM lines WHERE number > 10")
        async with reading(target) as seen:
            for death in ("copied", "catch-up", "swap", "swapped"):
                await run_until(pipeline, death)
                source.execute("INSERT INTO lines VALUES (77, 'while it was dead'); UPDATE users SET name = 'new'")
                assert target.fetch("SELECT state FROM cdc.resync") == [("shadow",)]
            assert source.fetchval(SLOTS) != [pipeline.slot]
            swapped = target.fetchval("SELECT 'lines'::regclass::oid")
            status = await pipeline.status()
            (request,) = status.targets[0].resyncs
            assert (request.table, request.way) == ("public.lines", "shadow")
            assert "its new table is in place" in request.says
            await pipeline.assert_caught_up_and_equal()
            status_code, printed = await pipeline.cdc("resync", "public.lines")
        assert status_code == 0, printed
        assert "in place already" in printed
        assert min(seen) > 0
        assert target.fetchval("SELECT 'lines'::regclass::oid") == swapped  # nothing was built twice
        assert source.fetchval(SLOTS) == [pipeline.slot]
        assert target.fetch("SELECT count(*), min(state) FROM cdc.resync") == [(1, "done")]
        await pipeline.assert_caught_up_and_equal()

        # A second one, killed when its slot is gone already.
        target.execute("DELETE FROM lines")
        await run_until(pipeline, "dropped")
        swapped = target.fetchval("SELECT 'lines'::regclass::oid")
        # A load of the whole target is another thing: what is left of the first one does not stand for it.
        await loading.bootstrap(pipeline.config, scope=Scope(targets=("warehouse",), anew=True), progress=Silence())
        assert target.fetchval("SELECT 'lines'::regclass::oid") != swapped
        status_code, printed = await pipeline.cdc("resync", "public.lines")
        assert status_code == 0, printed
        assert source.fetchval(SLOTS) == [pipeline.slot]
        await pipeline.assert_caught_up_and_equal()


async def test_a_large_table_with_other_unique_values_is_rebuilt_with_what_belongs_to_it(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(
        "CREATE TABLE parents (id int PRIMARY KEY); INSERT INTO parents SELECT generate_series(1, 9);"
        "CREATE TABLE seats (id int PRIMARY KEY, seat int UNIQUE, parent int REFERENCES parents, CHECK (id > 0));"
        "CREATE TABLE guests (id int PRIMARY KEY, seat int REFERENCES seats);"
        "INSERT INTO seats SELECT n, n, n FROM generate_series(1, 9) n; INSERT INTO guests VALUES (1, 1)"
    )
    replicated = Replicated(source, make_target())
    replicated.settings["bootstrap"] = {"foreign_keys": True}
    await replicated.load()
    target = replicated.target
    constraints = "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype <> 'n' ORDER BY 1, 2"
    wanted = target.fetch(constraints)
    target.execute("DELETE FROM guests; DELETE FROM seats WHERE id = 3; UPDATE seats SET seat = -id")
    target.execute("INSERT INTO guests VALUES (1, 1)")
    async with replicated.worker(whole_bytes=1):
        source.execute("UPDATE seats SET seat = seat + 100")
        rebuild = loading.rebuild_with(replicated.config, Silence())
        (outcome,), _ = await replicated.resync("public.seats", rebuild=rebuild)
        assert (outcome.way, outcome.rows) == ("shadow", 9)
        source.execute("UPDATE seats SET seat = 10 - (seat - 100) WHERE id <> 5; DELETE FROM parents WHERE id > 20")
        for table in ("seats", "guests", "parents"):
            await replicated.assert_equal(table)
    assert target.fetch(constraints) == wanted


async def test_a_keyless_table_that_has_stopped_goes_on_at_once(source: Database, make_target: MakeDatabase) -> None:
    source.execute(TABLES)
    target = make_target()
    async with Pipeline(source, {"warehouse": follow(target, on_error="quarantine_table")}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        target.execute("ALTER TABLE lines ADD CONSTRAINT short CHECK (text <> 'refused')")
        source.execute("INSERT INTO lines VALUES (1, 'refused')")
        await pipeline.table_in_state("warehouse", "public.lines", "stopped")
        source.execute("INSERT INTO lines VALUES (2, 'after it')")
        target.execute("ALTER TABLE lines DROP CONSTRAINT short; DELETE FROM lines WHERE number < 5")
        status, printed = await pipeline.cdc("resync", "public.lines")
        assert status == 0, printed
        source.execute("INSERT INTO lines VALUES (3, 'later')")
        await pipeline.caught_up()
        await pipeline.until(
            lambda: target.fetchval("SELECT count(*) FROM lines WHERE text = 'later'") == 1, "it streams"
        )
        await pipeline.assert_equal()
        assert (await pipeline.target_status("warehouse")).stopped_tables == ()


async def test_a_table_that_does_not_fit_any_more_is_made_anew_when_cdc_created_it(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    async with Pipeline(source, {"warehouse": follow(make_target())}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("ALTER TABLE users ADD COLUMN rank int GENERATED BY DEFAULT AS IDENTITY")
        source.execute("INSERT INTO users VALUES (100, 'new')")
        stopped = await pipeline.table_in_state("warehouse", "public.users", "stopped")
        assert stopped.mend == "cdc resync public.users --target warehouse"
        assert f"run `{stopped.mend}`; where that is refused: stop the worker" in (stopped.reason or "")
        status, printed = await pipeline.cdc(*stopped.mend.split()[1:])
        assert status == 0, printed
        assert "because it does not fit as it is" in printed
        source.execute("UPDATE users SET rank = -rank WHERE id < 10")
        await pipeline.caught_up()
        await pipeline.table_in_state("warehouse", "public.users", "streaming")
        await pipeline.assert_equal()


async def test_what_is_in_the_way_fails_the_request_with_its_sql_and_leaves_nothing_behind(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    source.execute("CREATE TABLE notes (note text); INSERT INTO notes VALUES ('n')")
    target = make_target()
    replicated = Replicated(source, target)
    await replicated.load()
    target.execute("CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM lines")
    rebuild = loading.rebuild_with(replicated.config, Silence())
    async with replicated.worker():
        with pytest.raises(TerminalError) as refused:
            await replicated.resync("public.lines", rebuild=rebuild)
        assert "DROP MATERIALIZED VIEW" in (refused.value.sql or "")
        assert target.fetch("SELECT state, mend FROM cdc.resync") == [("failed", refused.value.sql)]
        (outcome,), _ = await replicated.resync("public.notes", rebuild=rebuild)
        assert outcome.way == "shadow"
        target.execute("DROP MATERIALIZED VIEW counted")
        await replicated.resync("public.lines", rebuild=rebuild)
        await replicated.assert_equal("lines")
    assert source.fetchval(SLOTS) == [replicated.config.source.slot]


async def test_two_tables_of_one_target_are_built_one_after_the_other(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    source.execute("CREATE TABLE notes (note text); INSERT INTO notes SELECT generate_series(1, 30)")
    replicated = Replicated(source, make_target())
    await replicated.load()
    replicated.target.execute("DELETE FROM notes; DELETE FROM lines")
    rebuild = loading.rebuild_with(replicated.config, Silence(), max_rows_per_second=200)
    following = [Following(), Following()]
    async with replicated.worker(), asyncio.timeout(90):
        began = asyncio.get_running_loop().time()
        await asyncio.gather(
            *(
                asking.resync(replicated.config, table, follower=one, rebuild=rebuild)
                for table, one in zip(("public.lines", "public.notes"), following, strict=True)
            )
        )
        assert asyncio.get_running_loop().time() - began >= 500 / 200 - 0.2  # the pace
        for table in ("lines", "notes"):
            await replicated.assert_equal(table)
    assert any("waiting for it" in line for one in following for line in one.said)


async def test_a_table_is_not_built_beside_in_a_target_that_was_never_loaded(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    async with Pipeline(source, {"warehouse": follow(make_target())}) as pipeline:
        await pipeline.setup()
        with pytest.raises(SetupError, match="was never loaded"):
            await loading.rebuild_with(pipeline.config, Silence())("warehouse", "public.lines", lambda _: None)
        assert pipeline.targets["warehouse"].fetch("SELECT pipeline FROM cdc.target") == [("cdc",)]
        assert source.fetchval(SLOTS) is None
