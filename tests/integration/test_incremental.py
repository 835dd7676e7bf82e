"""``incremental``: rows that a target has stay, missing ones are copied live, and from then on changes arrive."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cdc.bootstrap.backup import BackupChoice
from cdc.bootstrap.progress import Silence
from cdc.errors import SetupError
from tests.backup import Steps, bootstrap_settings
from tests.bootstrap import OnBegin, rows, states
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database
from tests.incremental import (
    DELETED,
    STALE,
    assert_streams,
    bootstrap,
    differing,
    fill,
    kept,
    leftovers,
    missing,
    modes,
)
from tests.pipeline import Pipeline, follow, owned
from tests.scalingo import StandIn


async def test_rows_stay_missing_ones_are_copied_live_and_changes_arrive_from_then_on(
    source: Database, make_target: MakeDatabase
) -> None:
    internal = make_target()
    fill(source, internal)
    size = source.fetchval("SELECT pg_table_size('answers')")
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        modes(pipeline)
        summary = await bootstrap(pipeline)
        assert differing(source, internal) == 0
        assert kept(internal) == [(STALE, "stale", -1), (DELETED, "deleted at the source", 0)]
        assert summary.targets["internal"].rows == missing() + 50
        assert summary.targets["internal"].size < size / 4, "what is the same on both sides is not read"
        assert internal.fetch("SELECT source_table, created_by_cdc FROM cdc.target_table ORDER BY 1") == [
            ("answers", False),
            ("others", True),
        ]
        assert internal.fetch(
            "SELECT row_count FROM cdc.bootstrap_step WHERE kind = 'copy' AND object = 'public.answers'"
        ) == [(missing(),)]
        assert leftovers(internal) == []
        await assert_streams(pipeline, source, internal)
        (loaded,) = internal.fetch("SELECT consistent_from::text FROM cdc.target_table WHERE source_table = 'answers'")
        assert loaded == (str(summary.targets["internal"].consistent_lsn),)


async def test_a_table_from_a_backup_s_run_is_copied_live_and_none_is_left_out(
    source: Database, make_target: MakeDatabase, scalingo: StandIn, tmp_path: Path
) -> None:
    internal = make_target()
    fill(source, internal)
    source.execute(
        'CREATE TABLE "knowledge-elements" (id int PRIMARY KEY); INSERT INTO "knowledge-elements" VALUES (1)'
    )
    scalingo.add_database(source.dsn)
    steps = Steps()
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        modes(
            pipeline,
            modes={"answers": "incremental", "public.knowledge-elements": "none"},
            **bootstrap_settings(scalingo),
            directory=str(tmp_path),
        )
        summary = await bootstrap(pipeline, from_backup=BackupChoice(), progress=steps)
        assert steps.copied_live("internal") == {
            "public.answers": "its rows stay there, and only missing ones are copied (incremental)"
        }
        assert summary.targets["internal"].rows == missing() + 50
        assert differing(source, internal) == 0
        assert kept(internal)[0] == (STALE, "stale", -1)
        assert internal.fetchval("SELECT to_regclass('public.\"knowledge-elements\"')") is None
        source.execute('INSERT INTO "knowledge-elements" VALUES (2)')
        await assert_streams(pipeline, source, internal)
        assert rows(internal, "others") == rows(source, "others")


async def test_a_table_that_stops_while_a_backup_is_joined_to_the_stream_is_not_emptied(
    source: Database, make_target: MakeDatabase, scalingo: StandIn, tmp_path: Path
) -> None:
    internal = make_target()
    fill(source, internal)
    scalingo.add_database(source.dsn)
    steps = Steps({"catch-up": lambda: source.execute("INSERT INTO answers VALUES (%s, 'reused', 0, '')", DELETED)})
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        modes(pipeline, modes={"answers": "incremental"}, **bootstrap_settings(scalingo), directory=str(tmp_path))
        await bootstrap(pipeline, from_backup=BackupChoice(), progress=steps)
        assert states(internal)["public.answers"][0] == "stopped"
        assert kept(internal) == [(STALE, "stale", -1), (DELETED, "deleted at the source", 0)]
        assert rows(internal, "others") == rows(source, "others")


_RUN_AND_DIE = """
import asyncio, os, signal, sys
from cdc.service import loading
from cdc.bootstrap.progress import Silence
from cdc.config import Config

class Death(Silence):
    def copied(self, target, table, rows, size):
        if rows and table == "public.answers":
            os.kill(os.getpid(), signal.SIGKILL)

config = Config.model_validate_json(sys.stdin.read())
asyncio.run(loading.bootstrap(config, jobs=1, progress=Death(), range_bytes=16384))
"""


def run_and_die(pipeline: Pipeline) -> None:
    process = subprocess.run(
        [sys.executable, "-c", _RUN_AND_DIE],
        input=json.dumps(pipeline.settings).encode(),
        cwd=Path(__file__).resolve().parents[2],
        check=False,
    )
    assert process.returncode == -signal.SIGKILL


async def test_a_run_that_was_killed_has_changed_nothing_and_its_rows_are_not_older_than_the_next_one_s(
    source: Database, make_target: MakeDatabase
) -> None:
    internal = make_target()
    fill(source, internal)
    before = internal.fetchval("SELECT count(*) FROM answers")
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        modes(pipeline)
        await pipeline.setup()
        run_and_die(pipeline)
        assert len(leftovers(internal)) == 1
        assert internal.fetchval(f"SELECT count(*) FROM cdc.{leftovers(internal)[0]}") > 0
        assert internal.fetchval("SELECT count(*) FROM answers") == before
        # Without the mode its rows are somebody else's, as they were before.
        pipeline.settings["bootstrap"] = {}
        pipeline.configure()
        with pytest.raises(SetupError, match=r"hold rows that cdc did not copy: public\.answers of target internal"):
            await bootstrap(pipeline)
        source.execute("UPDATE answers SET value = 'changed' WHERE id BETWEEN 10001 AND 10300")
        source.execute("DELETE FROM answers WHERE id BETWEEN 10301 AND 10400")
        modes(pipeline)
        await bootstrap(pipeline)
        assert differing(source, internal) == 0
        assert leftovers(internal) == []
        await assert_streams(pipeline, source, internal)


async def test_teardown_takes_away_what_a_killed_run_collected(source: Database, make_target: MakeDatabase) -> None:
    internal = make_target()
    fill(source, internal)
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        modes(pipeline)
        await pipeline.setup()
        run_and_die(pipeline)
        status, output = await pipeline.cdc("teardown", "--yes")
        assert status == 0, output
        assert internal.fetchval("SELECT to_regnamespace('cdc')") is None


async def test_rows_stay_when_an_interrupted_load_cannot_be_joined_to_the_stream_any_more(
    source: Database, make_target: MakeDatabase
) -> None:
    internal = make_target()
    fill(source, internal)
    source.execute("CREATE TABLE zz (id int PRIMARY KEY); INSERT INTO zz VALUES (1)")

    class Loses(Silence):
        """The last table's copy ends the run."""

        def finish(self, target: str, table: str) -> None:
            if table == "public.answers":
                source.execute("DROP TABLE zz")
                internal.execute("UPDATE cdc.target SET fence = fence + 1")

    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        modes(pipeline)
        with pytest.raises(Exception, match="another worker"):
            await bootstrap(pipeline, progress=Loses(), jobs=1)
        assert states(internal)["public.answers"][0] == "streaming"
        source.fetch("SELECT pg_drop_replication_slot(%s)", pipeline.slot)
        source.execute("INSERT INTO answers VALUES (50000, 'later', 0, '')")
        steps = Steps()
        await bootstrap(pipeline, progress=steps)
        assert any("cannot be joined to the stream any more" in said for said in steps.said)
        assert kept(internal) == [(STALE, "stale", -1), (DELETED, "deleted at the source", 0)]
        assert differing(source, internal) == 0


async def test_a_crash_of_the_target_takes_nothing_away_from_what_was_collected(
    source: Database, make_target: MakeDatabase, own_server: MakeServer
) -> None:
    there = own_server(side="target")
    internal = make_target(server=there)
    fill(source, internal)
    crash: list[Callable[[], object]] = [lambda: there.restart("immediate")]

    class Crash(Silence):
        def copied(self, target: str, table: str, rows: int, size: int) -> None:
            if rows and crash:
                crash.pop()()

    async with Pipeline(source, {"internal": follow(internal, "public.answers")}) as pipeline:
        modes(pipeline)
        await bootstrap(pipeline, progress=Crash(), jobs=1)
        assert crash == []
        assert differing(source, internal) == 0


async def test_hazard_23_a_table_that_is_emptied_after_the_snapshot_is_compared_with_a_newer_one(
    source: Database, make_target: MakeDatabase
) -> None:
    internal = make_target()
    fill(source, internal)
    emptied = OnBegin(lambda: source.execute("TRUNCATE answers; INSERT INTO answers VALUES (10001, 'only', 1, '')"))
    async with Pipeline(source, {"internal": follow(internal, "public.answers")}) as pipeline:
        modes(pipeline)
        before = internal.fetchval("SELECT count(*) FROM answers")
        await bootstrap(pipeline, progress=emptied)
        assert any("rewritten or emptied" in said for said in emptied.said)
        assert internal.fetch("SELECT value FROM answers WHERE id = 10001") == [("only",)]
        assert internal.fetchval("SELECT count(*) FROM answers") == before + 1


@pytest.mark.parametrize(
    ("key", "columns"),
    [
        ("a int, b text, PRIMARY KEY (b, a)", "g, 'b ' || g"),
        ("a int, b text PRIMARY KEY", "g, 'b ' || g"),
        ("a int, b uuid PRIMARY KEY", "g, md5(g::text)::uuid"),
        ("a smallint PRIMARY KEY, b text", "g - 1000, 'b'"),
        ("a int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, b text", "g, 'b'"),
        ("a int NOT NULL, b numeric NOT NULL, PRIMARY KEY (a, b)", "g, g / 2.0"),
    ],
)
async def test_any_key_tells_which_rows_are_missing(
    source: Database, make_target: MakeDatabase, key: str, columns: str
) -> None:
    internal = make_target()
    source.execute(f"CREATE TABLE answers ({key}, c text)")
    internal.execute(f"CREATE TABLE answers ({key}, c text)")
    source.execute(f"INSERT INTO answers OVERRIDING SYSTEM VALUE SELECT {columns}, 'c' FROM generate_series(1, 2000) g")
    internal.execute(
        f"INSERT INTO answers OVERRIDING SYSTEM VALUE SELECT {columns}, 'stays' FROM generate_series(1, 2000, 2) g"
    )
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        modes(pipeline)
        summary = await bootstrap(pipeline, range_bytes=16 * 1024)
        assert summary.targets["internal"].rows == 1000
        assert internal.fetch("SELECT c, count(*) FROM answers GROUP BY 1 ORDER BY 1") == [("c", 1000), ("stays", 1000)]
        assert differing(source, internal, columns="a, b") == 0
        await pipeline.start()
        source.execute("UPDATE answers SET c = 'changed'; DELETE FROM answers WHERE abs(a) % 3 = 0")
        await pipeline.assert_caught_up_and_equal()


async def test_keys_far_apart_and_at_the_ends_of_their_type_are_found(
    source: Database, make_target: MakeDatabase
) -> None:
    internal = make_target()
    chance = random.Random(7)
    keys = [-(2**63), 2**63 - 1, 0, -1, *(chance.randrange(-(2**62), 2**62) for _ in range(3000)), *range(9000, 21_000)]
    lacking = {keys[0], keys[1], *chance.sample(keys, 200), 9000, 20_999}
    for database, held in ((source, keys), (internal, [key for key in keys if key not in lacking])):
        database.execute("CREATE TABLE answers (id bigint PRIMARY KEY)")
        database.execute("INSERT INTO answers SELECT unnest(%s::bigint[])", held)
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        modes(pipeline)
        summary = await bootstrap(pipeline)
        assert summary.targets["internal"].rows == len(lacking)
        assert differing(source, internal, columns="id") == 0


async def test_a_table_that_is_not_there_is_loaded_like_any_other(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE answers (id int PRIMARY KEY, n int); CREATE INDEX of_n ON answers (n)")
    source.execute("INSERT INTO answers SELECT g, g FROM generate_series(1, 100) g")
    internal = make_target()
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        modes(pipeline)
        await bootstrap(pipeline)
        assert rows(internal, "answers") == rows(source, "answers")
        assert internal.fetchval("SELECT created_by_cdc FROM cdc.target_table")
        assert internal.fetchval("SELECT to_regclass('of_n') IS NOT NULL")


async def test_a_table_without_a_unique_index_gets_the_primary_key_first(
    source: Database, make_target: MakeDatabase
) -> None:
    internal = make_target()
    fill(source, internal)
    internal.execute("ALTER TABLE answers DROP CONSTRAINT answers_pkey; ALTER TABLE answers ALTER id DROP NOT NULL")
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        modes(pipeline)
        await bootstrap(pipeline)
        assert differing(source, internal) == 0
        assert (
            internal.fetchval(
                "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
                " WHERE contype = 'p' AND conrelid = 'answers'::regclass"
            )
            == "PRIMARY KEY (id)"
        )


async def test_an_owned_target_keeps_its_rows_too_and_no_key_is_in_a_statement_there(
    make_database: MakeDatabase, own_server: MakeServer
) -> None:
    there = own_server(side="target", log_statement="all", log_min_duration_statement=0)
    source, mart = make_database("source"), make_database("datamart", server=there)
    source.execute("CREATE TABLE answers (id int PRIMARY KEY, value text, secret text)")
    source.execute("INSERT INTO answers SELECT 7654000 + g, 'value', 'secret' FROM generate_series(1, 1000) g")
    mart.execute("CREATE TABLE facts (value text, id bigint PRIMARY KEY, own int DEFAULT 5)")
    mart.execute("INSERT INTO facts SELECT 'stays', 7654000 + g FROM generate_series(1, 1000, 2) g")
    told = len(there.log_text())
    targets = {"datamart": owned(mart, {"public.answers": {"to": "public.facts", "columns": ["id", "value"]}})}
    async with Pipeline(source, targets) as pipeline:
        modes(pipeline)
        summary = await bootstrap(pipeline, range_bytes=16 * 1024)
        assert summary.targets["datamart"].rows == 500
        assert mart.fetch("SELECT value, own, count(*) FROM facts GROUP BY 1, 2 ORDER BY 1") == [
            ("stays", 5, 500),
            ("value", 5, 500),
        ]
        assert "incremental" in there.log_text()[told:]
        assert "7654" not in there.log_text()[told:]
        await pipeline.start()
        source.execute("DELETE FROM answers WHERE id % 5 > 0; UPDATE answers SET value = 'changed'")
        await pipeline.assert_caught_up_and_equal()
