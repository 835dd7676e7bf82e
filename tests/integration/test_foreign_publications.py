"""Publications that somebody else manages: several of them, row filters, column lists, schemas, computed values.

A copy holds what the stream would have brought, so a row that the filter hides is never at the target, and one that
leaves the filter goes.
"""

from __future__ import annotations

import pytest

from cdc.config import SourceConfig
from cdc.errors import SetupError
from cdc.service import checkup
from cdc.source.connection import connect
from cdc.source.published import read_published_tables
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow, owned
from tests.servers import needs

pytestmark = pytest.mark.timeout(120)

SOURCE = """
    CREATE TABLE filtered (id int PRIMARY KEY, country text NOT NULL, v text);
    ALTER TABLE filtered REPLICA IDENTITY FULL;
    CREATE TABLE either (id int PRIMARY KEY, v text);
    CREATE TABLE every (id int PRIMARY KEY, v text);
    CREATE TABLE listed (secret text NOT NULL DEFAULT 'secret', id int PRIMARY KEY, v text, w text);
    CREATE TABLE split (id int PRIMARY KEY, v text);
    CREATE SCHEMA whole; CREATE TABLE whole.t (id int PRIMARY KEY, v text);
    INSERT INTO filtered SELECT n, CASE WHEN n % 2 = 0 THEN 'fr' ELSE 'be' END, 'v' FROM generate_series(1, 20) n;
    INSERT INTO either SELECT n, 'v' FROM generate_series(1, 20) n;
    INSERT INTO every SELECT n, 'v' FROM generate_series(1, 20) n;
    INSERT INTO listed SELECT 's', n, 'v', 'w' FROM generate_series(1, 20) n;
    INSERT INTO split SELECT n, 'v' FROM generate_series(1, 20) n;
    INSERT INTO whole.t SELECT n, 'v' FROM generate_series(1, 5) n;
    CREATE PUBLICATION p1 FOR TABLE filtered WHERE (country = 'fr'), either WHERE (id < 5), every WHERE (id < 5),
        listed (v, id);
    CREATE PUBLICATION p2 FOR TABLE either WHERE (id > 15), every;
    CREATE PUBLICATION p3 FOR TABLE split WITH (publish = 'insert, truncate');
    CREATE PUBLICATION p4 FOR TABLE split WITH (publish = 'update, delete');
    CREATE PUBLICATION p5 FOR TABLES IN SCHEMA whole;
"""

SENT = {
    "public.filtered": "SELECT id, country, v FROM filtered WHERE country = 'fr' ORDER BY id",
    "public.either": "SELECT id, v FROM either WHERE id < 5 OR id > 15 ORDER BY id",
    "public.every": "SELECT id, v FROM every ORDER BY id",
    "public.listed": "SELECT id, v FROM listed ORDER BY id",
    "public.split": "SELECT id, v FROM split ORDER BY id",
    "whole.t": "SELECT id, v FROM whole.t ORDER BY id",
}


def assert_sent(source: Database, target: Database) -> None:
    for table, query in SENT.items():
        everything = query.replace("WHERE country = 'fr' ", "").replace("WHERE id < 5 OR id > 15 ", "")
        assert target.fetch(everything) == source.fetch(query), table


async def test_a_target_holds_exactly_the_rows_and_columns_that_publications_of_somebody_else_send(
    source: Database, make_target: MakeDatabase
) -> None:
    needs(source, 15, "row filters and column lists")
    source.execute(SOURCE)
    target = make_target()
    publications = ["p1", "p2", "p3", "p4", "p5"]
    async with Pipeline(
        source,
        {"internal": follow(target, "public.*", "whole.*")},
        manage_publications=False,
        publications=publications,
    ) as pipeline:
        await pipeline.load()
        assert_sent(source, target)
        names = "SELECT attname FROM pg_attribute WHERE attrelid = 'listed'::regclass AND attnum > 0"
        assert sorted(target.fetch(names)) == [("id",), ("v",)]
        await pipeline.start()
        source.execute(
            "UPDATE filtered SET country = 'be' WHERE id = 2; UPDATE filtered SET country = 'fr' WHERE id = 3"
        )
        source.execute("UPDATE filtered SET v = 'w' WHERE id IN (4, 5); DELETE FROM filtered WHERE id IN (6, 7)")
        source.execute("INSERT INTO filtered VALUES (30, 'fr', 'new'), (31, 'be', 'new')")
        source.execute("UPDATE either SET id = id + 100 WHERE id IN (1, 8); UPDATE either SET id = 1 WHERE id = 14")
        source.execute(
            "UPDATE either SET v = 'w'; UPDATE every SET v = 'w' WHERE id > 10; DELETE FROM every WHERE id = 20"
        )
        source.execute("UPDATE listed SET w = 'x', secret = ''; UPDATE listed SET v = 'x' WHERE id < 5")
        source.execute(
            "INSERT INTO split VALUES (30, 'new'); UPDATE split SET v = 'w' WHERE id < 9;DELETE FROM split WHERE id = 9"
        )
        source.execute("UPDATE whole.t SET v = 'w'; DELETE FROM whole.t WHERE id = 1")
        await pipeline.caught_up()
        assert_sent(source, target)
        # The rows of the target are not the source's any more: a resync brings back what is sent, and no more.
        target.execute("UPDATE filtered SET v = 'wrong'; INSERT INTO filtered VALUES (5, 'be', 'hidden')")
        target.execute("DELETE FROM either WHERE id > 16; INSERT INTO either VALUES (10, 'hidden')")
        for table in ("public.filtered", "public.either"):
            status, output = await pipeline.cdc("resync", table)
            assert status == 0, output
        await pipeline.caught_up()
        assert_sent(source, target)
        status, output = await pipeline.cdc("check")
        assert (
            "has row filters or column lists for public.either, public.every, public.filtered, public.listed" in output
        )


async def test_different_column_lists_of_one_table_are_refused_before_the_stream_would_end(
    source: Database, make_target: MakeDatabase
) -> None:
    needs(source, 15, "row filters and column lists")
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, b int); CREATE PUBLICATION p1 FOR TABLE t (id, a);"
        "CREATE PUBLICATION p2 FOR TABLE t (id, b);"
    )
    async with Pipeline(
        source, {"internal": follow(make_target())}, manage_publications=False, publications=["p1", "p2"]
    ) as pipeline:
        with pytest.raises(SetupError, match=r"the publications p1, p2 send different columns of public\.t"):
            await pipeline.load()
        status, output = await pipeline.cdc("check")
        assert status == 1
        assert "send different columns of public.t" in output


async def test_a_partition_that_is_sent_in_part_is_refused_where_its_table_is_copied_as_a_whole(
    source: Database, make_target: MakeDatabase
) -> None:
    needs(source, 15, "row filters and column lists")
    source.execute(
        "CREATE TABLE events (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);"
        "CREATE TABLE events_0 PARTITION OF events FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (10) TO (20);"
        "CREATE PUBLICATION filter FOR TABLE events_0 WHERE (id < 5), events_1;"
        "CREATE PUBLICATION list FOR TABLE events_0, events_1 (id, k);"
        "CREATE PUBLICATION root FOR TABLE events (id, k) WHERE (id < 5) WITH (publish_via_partition_root = true);"
    )
    for publication, leaf in (("filter", "events_0"), ("list", "events_1"), ("root", None)):
        settings = SourceConfig.model_validate(
            {"dsn": source.dsn, "slot": "s", "manage_publications": False, "publications": [publication]}
        )
        async with await connect(source.dsn, application_name="tests") as connection:
            if leaf is None:
                (table,) = await read_published_tables(connection, settings, ["public.events"])
                assert "id < 5" in str(table.row_filter)
                assert len(table.relation.columns) == 2
                continue
            refused = f"leave out rows or columns of public.{leaf}, a partition of public.events, which is copied as"
            with pytest.raises(SetupError, match=refused):
                await read_published_tables(connection, settings, ["public.events"])
            # By itself it is taken as it is sent.
            await read_published_tables(connection, settings, [f"public.{leaf}"])


async def test_column_lists_that_begin_to_differ_end_the_stream_with_a_sentence(
    source: Database, make_target: MakeDatabase
) -> None:
    needs(source, 15, "row filters and column lists")
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, b int); CREATE PUBLICATION p1 FOR TABLE t (id, a);"
        "CREATE PUBLICATION p2"
    )
    target = make_target()
    async with Pipeline(
        source, {"internal": follow(target)}, manage_publications=False, publications=["p1", "p2"]
    ) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        source.execute("ALTER PUBLICATION p2 ADD TABLE t (id, b)")
        source.execute("INSERT INTO t VALUES (1, 1, 1)")
        await pipeline.until(lambda: "send different columns of one table" in worker.log_text(), "it is said")
        await worker.kill()
        source.execute("ALTER PUBLICATION p2 DROP TABLE t")
        pipeline.settings["source"]["publications"] = ["p1"]
        pipeline.configure()
        await pipeline.start()
        await pipeline.until(lambda: target.fetch("SELECT id, a FROM t") == [(1, 1)], "the change has arrived")


async def test_a_column_list_that_changes_is_not_taken_for_a_renamed_column(
    source: Database, make_target: MakeDatabase
) -> None:
    needs(source, 15, "row filters and column lists")
    tables = ("other", "more", "whole")
    for table in tables:
        source.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, b text, secret text)")
        source.execute(f"INSERT INTO {table} SELECT n, 'b' || n, 's' || n FROM generate_series(1, 3) n")
    source.execute("CREATE PUBLICATION p1 FOR TABLE other (id, b), more (id), whole (id, b)")
    target = make_target()
    async with Pipeline(
        source, {"internal": follow(target)}, manage_publications=False, publications=["p1"]
    ) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("ALTER PUBLICATION p1 SET TABLE other (id, secret), more (id, secret), whole")
        source.execute("".join(f"UPDATE {table} SET secret = 'new' WHERE id = 2;" for table in tables))
        states = {table: await pipeline.table_in_state("internal", f"public.{table}", "stopped") for table in tables}
        reasons = {table: state.reason or "" for table, state in states.items()}
        assert (
            "still has b, but does not send it with its rows, so rows that are there already may have values of"
            in (reasons["other"])
        )
        assert (
            "if it left out secret before, rows that are there already may have values that are not"
            in (reasons["more"])
        )
        assert "If the publication, which is somebody else's, did not send secret before" in reasons["whole"]
        assert "if they are new: rows that are there already have no value" in reasons["whole"].lower()
        for table, state in states.items():
            command = f"cdc resync public.{table} --target internal"
            assert f"`{command}`" in reasons[table]
            sql = f'ALTER TABLE "public"."{table}" ADD COLUMN "secret" text'
            assert state.mend == (sql if table == "whole" else f"{sql};  -- and then: {command}")
            (found,) = [one for one in await checkup.check(pipeline.config) if one.subject == f"public.{table}"]
            assert found.message == state.reason
            assert state.mend is not None
            target.execute(state.mend)
            status, printed = await pipeline.cdc(*command.split()[1:])
            assert status == 0, printed
            query = f"SELECT id, secret FROM {table} ORDER BY id"
            assert target.fetch(query) == source.fetch(query) == [(1, "s1"), (2, "new"), (3, "s3")]


async def test_values_that_the_source_computes_and_publishes_arrive(
    source: Database, make_target: MakeDatabase
) -> None:
    needs(source, 18, "published generated columns")
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int, doubled int GENERATED ALWAYS AS (n * 2) STORED, last text);"
        "INSERT INTO t (id, n) SELECT n, n FROM generate_series(1, 9) n"
    )
    source.execute("CREATE PUBLICATION p FOR ALL TABLES WITH (publish_generated_columns = stored)")
    following, plain, computing = make_target(), make_target(), make_target()
    plain.execute("CREATE TABLE mine (id int PRIMARY KEY, twice bigint)")
    computing.execute("CREATE TABLE mine (twice int GENERATED ALWAYS AS (n * 2) STORED, n int, id int PRIMARY KEY)")
    listed = {"id": "id", "doubled": "twice"}
    targets = {
        "following": follow(following),
        "plain": owned(plain, {"public.t": {"to": "public.mine", "columns": listed}}),
        "computing": owned(computing, {"public.t": {"to": "public.mine", "columns": {**listed, "n": "n"}}}),
    }
    async with Pipeline(source, targets, manage_publications=False, publications=["p"]) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute(
            "UPDATE t SET n = 50 WHERE id = 1; INSERT INTO t (id, n) VALUES (20, 20); DELETE FROM t WHERE id = 2"
        )
        source.execute("UPDATE t SET id = 30 WHERE id = 3")
        await pipeline.caught_up()
        expected = source.fetch("SELECT id, doubled FROM t ORDER BY id")
        assert following.fetch("SELECT id, doubled FROM t ORDER BY id") == expected
        for target in (plain, computing):
            assert target.fetch("SELECT id, twice FROM mine ORDER BY id") == expected
