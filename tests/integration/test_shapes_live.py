"""Shapes that a whole pipeline meets: copied from the live source, streamed, checked, with our own publications."""

from __future__ import annotations

import psycopg
import pytest

from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow, owned

pytestmark = pytest.mark.timeout(120)


def squeezed(text: str) -> str:
    return " ".join(text.split())


async def test_an_identity_that_is_taken_away_and_given_back_is_said_and_resync_catches_up(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'v' FROM generate_series(1, 9) n"
    )
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        source.execute("ALTER TABLE t REPLICA IDENTITY NOTHING")
        # What PostgreSQL does, whoever publishes it; setup ends that.
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="does not have a replica identity"):
            source.execute("UPDATE t SET v = 'refused'")
        _, output = await pipeline.cdc("check")
        assert "its replica identity is NOTHING" in squeezed(output) or "does not identify rows" in squeezed(output)
        await pipeline.setup()
        source.execute(
            "UPDATE t SET v = 'unseen' WHERE id < 4; DELETE FROM t WHERE id = 9; INSERT INTO t VALUES (20, 'new')"
        )
        await pipeline.caught_up()
        assert target.fetchval("SELECT count(*) FROM t WHERE v = 'v'") == 9, "updates and deletes are not published"
        await pipeline.until(lambda: any("only inserts and TRUNCATE" in str(e) for e in worker.events()), "it is said")
        source.execute("ALTER TABLE t REPLICA IDENTITY DEFAULT")
        status, output = await pipeline.cdc("setup")
        assert status == 0
        assert "those of before are not in the targets: cdc resync public.t" in squeezed(output)
        source.execute("UPDATE t SET v = 'seen' WHERE id = 5; DELETE FROM t WHERE id = 6")
        await pipeline.caught_up()
        assert target.fetch("SELECT id, v FROM t WHERE id IN (5, 6)") == [(5, "seen")]
        assert any("updates and deletes of a table arrive again" in str(event) for event in worker.events())
        assert (await pipeline.cdc("resync", "public.t"))[0] == 0
        await pipeline.caught_up()
        await pipeline.assert_equal()


async def test_odd_tables_are_copied_live_and_streamed(source: Database, make_target: MakeDatabase) -> None:
    source.execute("""
        CREATE TABLE nothing (); INSERT INTO nothing SELECT FROM generate_series(1, 5);
        CREATE TABLE emptied (gone int); INSERT INTO emptied VALUES (1), (2); ALTER TABLE emptied DROP COLUMN gone;
        ALTER TABLE emptied REPLICA IDENTITY FULL;
        CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT n, 'a' FROM generate_series(1, 9) n;
        CREATE TABLE b (v text, x int, id int PRIMARY KEY);
        INSERT INTO b SELECT 'b', n, n FROM generate_series(11, 19) n;
        CREATE UNLOGGED TABLE quick (id int PRIMARY KEY);
    """)
    following, theirs = make_target(), make_target()
    following.execute("CREATE TABLE nothing (own text DEFAULT 'ours')")
    theirs.execute("CREATE TABLE merged (id int PRIMARY KEY, v text)")
    both = {name: {"to": "public.merged", "columns": ["id", "v"]} for name in ("public.a", "public.b")}
    targets = {
        "internal": follow(following, "public.*"),
        "datamart": owned(theirs, both),
    }
    async with Pipeline(source, targets) as pipeline:
        await pipeline.load()
        await pipeline.start()
        with source.connection().cursor() as cursor:  # somebody's temporary table of the same name disturbs nothing
            cursor.execute("CREATE TEMPORARY TABLE a (other text); INSERT INTO pg_temp.a VALUES ('x')")
        source.execute("INSERT INTO nothing DEFAULT VALUES; DELETE FROM emptied WHERE ctid = '(0,1)'")
        source.execute(
            "UPDATE public.a SET v = 'x' WHERE id = 1; DELETE FROM b WHERE id = 11; UPDATE b SET id = 30 WHERE id = 12"
        )
        source.execute("INSERT INTO emptied DEFAULT VALUES; INSERT INTO emptied DEFAULT VALUES")
        await pipeline.caught_up()

        def counts(database: Database, *tables: str) -> list[int]:
            return [database.fetchval(f"SELECT count(*) FROM {table}") for table in tables]

        assert counts(following, "nothing", "emptied") == counts(source, "nothing", "emptied") == [6, 3]
        assert following.fetchval("SELECT count(*) FROM nothing WHERE own = 'ours'") == 6, "its owner's column"
        merged = "SELECT id, v FROM public.a UNION ALL SELECT id, v FROM b ORDER BY id"
        assert theirs.fetch("SELECT id, v FROM merged ORDER BY id") == source.fetch(merged)
        # What is ours to publish cannot be made unlogged under us; what was never published is said.
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="part of a publication"):
            source.execute("ALTER TABLE b SET UNLOGGED")
        _, output = await pipeline.cdc("check")
        assert "is unlogged: its changes are not in the WAL; it is not replicated" in squeezed(output)
        status, output = await pipeline.cdc("resync", "public.a", "--target", "datamart")
        assert status == 1
        assert "several tables of the source are routed into one there" in squeezed(output)
        # One stops, the other goes on.
        source.execute("INSERT INTO b VALUES ('b', 1, 1); INSERT INTO public.a VALUES (40, 'after')")
        await pipeline.until(lambda: theirs.fetchval("SELECT count(*) FROM merged WHERE id = 40") == 1, "a goes on")
        stopped = await pipeline.table_status("datamart", "public.b")
        assert stopped.state == "stopped"
        source.execute("UPDATE public.a SET v = 'still' WHERE id = 2")
        await pipeline.until(lambda: theirs.fetchval("SELECT v FROM merged WHERE id = 2") == "still", "a goes on")


async def test_a_table_that_a_foreign_publication_of_all_tables_holds_and_that_becomes_unlogged_is_an_error_of_check(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION everything FOR ALL TABLES")
    async with Pipeline(
        source, {"internal": follow(make_target(), tables={"public.t": {}})}, manage_publications=False,
        publications=["everything"],
    ) as pipeline:  # fmt: skip
        await pipeline.setup()
        source.execute("ALTER TABLE t SET UNLOGGED")
        status, output = await pipeline.cdc("check")
        assert status == 1
        assert "unlogged: its changes are not in the WAL" in squeezed(output)
