"""Types that users create have other oids on a target: their values arrive all the same (hazard 8).

Every target of these tests has types of its own before it gets any of the source's, so that no oid agrees by chance.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc.errors import SetupError, TableStopped
from cdc.target.resync_request import Request
from tests.arrivals import arrivals
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.replica import MakeReplica, make_replica
from tests.pipeline import Pipeline, follow
from tests.resync import Replicated
from tests.servers import needs_extension

__all__ = ["make_replica"]

OTHER_OIDS = """
CREATE TYPE before_us AS ENUM ('a'); CREATE TYPE before_too AS (a int); CREATE DOMAIN before_all AS int;
CREATE TYPE before_ranges AS RANGE (subtype = int);
"""

TYPES = """
CREATE SCHEMA "Sch-ema";
CREATE TYPE "Sch-ema"."Mood" AS ENUM ('sad', 'glad', 'it''s');
CREATE DOMAIN age AS int NOT NULL CHECK (VALUE > 0);
CREATE DOMAIN adult AS age CHECK (VALUE > 17);
CREATE DOMAIN moods AS "Sch-ema"."Mood"[] CHECK (cardinality(VALUE) < 5);
CREATE TYPE pair AS ("First" int, second text, gone int, mood "Sch-ema"."Mood");
ALTER TYPE pair DROP ATTRIBUTE gone;
CREATE DOMAIN small_pair AS pair CHECK ((VALUE)."First" < 100);
CREATE TYPE nested AS (a small_pair, b pair[], c moods, d "Sch-ema"."Mood");
CREATE TYPE mood_range AS RANGE (subtype = "Sch-ema"."Mood");
CREATE TYPE pair_range AS RANGE (subtype = pair);
CREATE TYPE row_range AS RANGE (subtype = mood_range, multirange_type_name = several_rows);
"""

TABLE = """
CREATE TABLE t (
    id int PRIMARY KEY, mood "Sch-ema"."Mood", moods "Sch-ema"."Mood"[], age adult, ages adult[], feelings moods,
    several moods[], pair pair, pairs pair[], small small_pair, nested nested, nests nested[],
    span mood_range, spans mood_range[], many mood_multirange, pairspan pair_range, pairspans pair_multirange,
    rowspan row_range, rowspans several_rows
);
CREATE TABLE u (LIKE t); ALTER TABLE u REPLICA IDENTITY FULL;
"""
ROWS = """
INSERT INTO t VALUES
(1, 'sad', '{sad,NULL,"it''s"}', 18, '{18,20}', '{glad}', '{"{sad}",NULL}', '(1,"a b",sad)',
 ARRAY['(1,,)'::pair, NULL, '(2,"",glad)'], '(99,"(",)', ROW(ROW(1,'x','sad'), ARRAY[ROW(2,'y','glad')::pair], '{sad}',
 'glad')::nested, ARRAY[ROW(NULL,NULL,NULL,NULL)::nested, NULL], '[sad,glad]', '{"[sad,glad)",empty,"(,)"}',
 '{[sad,sad],(glad,)}', pair_range(ROW(1,'a','sad')::pair, ROW(2,NULL,NULL)::pair), '{}',
 row_range(mood_range('sad','glad'), NULL),
 several_rows(row_range(mood_range('sad', 'glad'), mood_range('glad', NULL)))),
(2, NULL, '{}', 19, '[2:3][-1:0]={{18,19},{20,21}}', NULL, NULL, '(,,)', '{}', NULL, NULL, NULL, 'empty', '{}', '{}',
 'empty', pair_multirange(pair_range(ROW(1,'a','sad')::pair, ROW(2,NULL,NULL)::pair, '[]')), 'empty', NULL),
(3, NULL, NULL, 20, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
"""


async def test_values_of_users_types_arrive_on_a_target_with_other_oids(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(TYPES + TABLE, OTHER_OIDS + TYPES + TABLE)
    source.execute(ROWS)
    await replica.deliver()
    source.execute("UPDATE t SET mood = 'glad' WHERE id < 3; CREATE TEMPORARY TABLE more AS SELECT * FROM t")
    source.execute("UPDATE more SET id = id + 10; INSERT INTO t SELECT * FROM more")
    source.execute("UPDATE t SET id = id + 20; DELETE FROM t WHERE id = 23")
    await replica.deliver()
    source.execute("INSERT INTO u SELECT * FROM t")
    await replica.deliver()
    source.execute("UPDATE u SET id = 0; DELETE FROM u WHERE moods = '{}'; UPDATE u SET mood = 'sad'")
    await replica.deliver()
    assert len(replica.target.fetch("SELECT FROM u WHERE mood = 'sad'")) == 3


EXTENSIONS = """
CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext;
CREATE EXTENSION ltree SCHEMA ext; CREATE EXTENSION cube SCHEMA ext;
"""

EXTENDED = """
CREATE DOMAIN mail AS ext.citext;
CREATE TYPE extended AS (name ext.citext, tags ext.hstore[], path ext.ltree);
CREATE TYPE name_range AS RANGE (subtype = ext.citext);
CREATE TABLE e (id ext.citext PRIMARY KEY, mails mail[], tags ext.hstore, more ext.hstore[], path ext.ltree,
                paths ext.ltree[], ask ext.lquery, place ext.cube, places ext.cube[], all_of extended, span name_range);
INSERT INTO e VALUES ('A', '{"a@b",NULL}', 'a=>1, b=>NULL', '{"\\"x y\\"=>\\"\\"",""}', 'Top.Science', '{a.b,NULL,""}',
                      '*.foo{2}', '(1,2),(3,4)', '{"(1)","(0.1,NaN)"}', ROW('N', '{x=>1}', 'a.b'), '[a,B]');
"""


async def test_a_following_target_gets_the_types_it_lacks_and_every_way_brings_their_values(
    source: Database, make_target: MakeDatabase, postgres_binaries: Path, tmp_path: Path
) -> None:
    async with arrivals(source, make_target, postgres_binaries, tmp_path, target_ddl=OTHER_OIDS + EXTENSIONS) as ways:
        source.execute(EXTENSIONS + TYPES + TABLE + ROWS)
        source.execute(EXTENDED + "INSERT INTO u SELECT * FROM t")
        tables = ("public.t", "public.u", "public.e")
        await ways.create(*tables)
        await ways.copy_live(*tables)
        await ways.restore(*tables)
        assert ways.refused == {"public.u": "it has no key"}
        await ways.deliver()
        ways.assert_equal(*tables)

        source.execute("UPDATE t SET mood = 'glad'; UPDATE e SET id = 'a', tags = ext.hstore('k', 'v'); DELETE FROM u")
        await ways.deliver()
        source.execute("DELETE FROM e WHERE id::text = 'a'; INSERT INTO e (id) VALUES ('B'); UPDATE e SET id = 'b'")
        await ways.deliver()
        stream = ways.targets["stream"]
        assert stream.fetch("SELECT id::text, tags FROM e") == [("b", None)]
        assert stream.fetch("SELECT DISTINCT mood::text FROM t") == [("glad",)]
        assert stream.fetch("SELECT FROM u") == []


async def test_vectors_arrive(
    source: Database, make_target: MakeDatabase, postgres_binaries: Path, tmp_path: Path
) -> None:
    needs_extension(source, "vector")
    needs_extension(make_target("asked"), "vector")
    extension = "CREATE SCHEMA ext; CREATE EXTENSION vector SCHEMA ext;"
    async with arrivals(source, make_target, postgres_binaries, tmp_path, target_ddl=OTHER_OIDS + extension) as ways:
        source.execute(
            f"{extension} CREATE TYPE near AS (v ext.vector, n int);"
            "CREATE TABLE v (id int PRIMARY KEY, v ext.vector(3), vs ext.vector[], near near, h ext.halfvec,"
            " s ext.sparsevec);"
            "INSERT INTO v VALUES (1, '[1,-0.5,1e-20]', '{\"[1]\",NULL}', ROW('[2,3]', 1), '[1,2]', '{1:1.5,5:-2}/9')"
        )
        await ways.create("public.v")
        await ways.copy_live("public.v")
        await ways.restore("public.v")
        await ways.deliver()
        source.execute("UPDATE v SET v = '[0,0,0]', near.n = 2; INSERT INTO v VALUES (2)")
        await ways.deliver()
        ways.assert_equal("public.v", ways=["stream"])
        assert not ways.refused


async def test_rows_are_known_by_keys_of_users_types(make_replica: MakeReplica, source: Database) -> None:
    ddl = """
        CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN age AS int NOT NULL CHECK (VALUE > 0);
        CREATE TABLE by_mood (mood mood, age age, n int, PRIMARY KEY (age, mood));
        CREATE TABLE by_moods (moods mood[] PRIMARY KEY, n int); CREATE DOMAIN moods AS mood[];
        CREATE TABLE by_domain (moods moods PRIMARY KEY, n int);
    """
    replica = await make_replica(ddl, OTHER_OIDS + ddl)
    for table, one, two, three in (
        ("by_mood", "'sad', 1", "'glad', 1", "'glad', 7"),
        ("by_moods", "'{sad}'", "'{}'", "'{glad,NULL}'"),
        ("by_domain", "'{sad}'", "'{}'", "'{glad,NULL}'"),
    ):
        source.execute(f"INSERT INTO {table} VALUES ({one}, 1), ({two}, 2), ({three}, 3)")
        await replica.deliver()
        source.execute(f"UPDATE {table} SET n = n + 10; DELETE FROM {table} WHERE n = 12")
        await replica.deliver()
    source.execute("UPDATE by_mood SET age = age + 1, mood = 'glad'; UPDATE by_moods SET moods = moods || moods")
    source.execute("UPDATE by_domain SET moods = '{}' WHERE n = 13")
    await replica.deliver()


async def test_a_table_with_values_of_users_types_is_read_again_while_it_streams(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TYPES + TABLE + ROWS)
    source.execute(
        "CREATE TABLE objects (id int PRIMARY KEY, object regclass); INSERT INTO objects VALUES (1, 'pg_class')"
    )
    target = make_target()
    target.execute(OTHER_OIDS)
    replicated = Replicated(source, target)
    await replicated.load()

    async def change(_: Request) -> None:
        source.execute("UPDATE t SET moods = '{glad}' WHERE id = 2; UPDATE objects SET object = 'pg_type'")

    async with replicated.worker(change) as _:
        target.execute("SET session_replication_role = replica; UPDATE t SET pairs = NULL; DELETE FROM t WHERE id = 1")
        target.execute("UPDATE objects SET object = 'pg_proc'")
        for table in ("t", "objects"):
            (outcome,), _ = await replicated.resync(f"public.{table}")
            assert outcome.way == "in place"
            await replicated.assert_equal(table)
        source.execute("UPDATE t SET pairs = NULL WHERE id = 1; DELETE FROM t WHERE id = 3")
        await replicated.assert_equal("t")
        assert replicated.state("t") == "streaming"


async def test_a_type_that_exists_and_is_another_is_refused_with_what_mends_it(
    source: Database, make_target: MakeDatabase, postgres_binaries: Path, tmp_path: Path
) -> None:
    source.execute(
        "CREATE TYPE mood AS ENUM ('a', 'b'); CREATE TYPE pair AS (x int, mood mood); CREATE TABLE k (a int);"
        "CREATE TABLE t (id int PRIMARY KEY, pairs pair[]); CREATE TABLE r (id int PRIMARY KEY, k k)"
    )
    async with arrivals(source, make_target, postgres_binaries, tmp_path, target_ddl=OTHER_OIDS) as ways:
        for database in ways.targets.values():
            database.execute("CREATE TYPE mood AS ENUM ('b'); CREATE TYPE pair AS (mood mood)")
        for message in (
            "enum public.mood exists there but lacks 1 of the source's labels",
            "type public.pair exists there and is another than at the source: the composite type public.pair lacks the "
            "attribute x that public.pair has at the source",
        ):
            with pytest.raises(SetupError, match=message) as refused:
                await ways.create("public.t")
            assert refused.value.sql is not None
            for database in ways.targets.values():
                database.execute(refused.value.sql)
        await ways.create("public.t")
        source.execute("INSERT INTO t VALUES (1, ARRAY[(7, 'a')::pair, NULL])")
        with pytest.raises(TableStopped, match="has its attributes in another order than at the source"):
            await ways.copy_live("public.t")
        await ways.restore("public.t")
        assert "public.t" in ways.refused
        await ways.deliver()
        assert ways.targets["stream"].fetchval("SELECT (pairs[1]).x FROM t") == 7

        with pytest.raises(SetupError, match="at the source it is the row type of a table"):
            await ways.create("public.r")
        await ways.create("public.k", "public.r")
        source.execute("INSERT INTO r VALUES (1, ROW(5))")
        await ways.deliver()
        assert ways.targets["stream"].fetchval("SELECT (k).a FROM r") == 5


async def test_columns_keep_collations_of_their_own(
    source: Database, make_target: MakeDatabase, postgres_binaries: Path, tmp_path: Path
) -> None:
    source.execute(
        "CREATE SCHEMA s; CREATE COLLATION s.bytes (provider = libc, locale = 'C');"
        'CREATE TABLE t (a text COLLATE "C" PRIMARY KEY, b text COLLATE s.bytes, c text, d int)'
    )
    async with arrivals(source, make_target, postgres_binaries, tmp_path) as ways:
        await ways.create("public.t")
        for database in ways.targets.values():
            collations = database.fetch(
                "SELECT attcollation::regcollation::text FROM pg_attribute WHERE attrelid = 't'::regclass"
                " AND attnum > 0 ORDER BY attnum"
            )
            assert [one for (one,) in collations] == ['"C"', "s.bytes", '"default"', "-"]
            made = "SELECT collprovider::text || collcollate FROM pg_collation WHERE collname = 'bytes'"
            assert database.fetchval(made) == "cC"


async def test_attributes_in_another_order_are_matched_by_name_also_in_a_key(
    make_replica: MakeReplica, source: Database
) -> None:
    here = (
        "CREATE TYPE pair AS (a int, b text, c int); CREATE TYPE two AS (x pair, y pair);"
        "CREATE TABLE t (id pair PRIMARY KEY, n int, two two[])"
    )
    replica = await make_replica(here, OTHER_OIDS + here.replace("a int, b text, c int", "c int, a int, b text"))
    source.execute(
        "INSERT INTO t SELECT ROW(n, 'x', 10 * n)::pair, n, ARRAY[ROW(ROW(n, 'y', 1), NULL)::two]"
        " FROM generate_series(1, 4) n"
    )
    source.execute("UPDATE t SET n = 20 WHERE n = 2; DELETE FROM t WHERE n = 3; UPDATE t SET id.a = 40 WHERE n = 4")
    await replica.deliver(compare=False)
    source.execute("UPDATE t SET n = n + 1; DELETE FROM t WHERE n = 2; UPDATE t SET id.c = 7, two = NULL WHERE n = 5")
    await replica.deliver(compare=False)
    query = "SELECT (id).a, (id).b, (id).c, n, (two[1]).x.b FROM t ORDER BY n"
    assert replica.target.fetch(query) == source.fetch(query) == [(40, "x", 7, 5, None), (2, "x", 20, 21, "y")]


async def test_text_values_of_a_composite_go_by_the_order_of_its_attributes_or_not_at_all(
    make_replica: MakeReplica, source: Database
) -> None:
    here = TYPES + TABLE
    replica = await make_replica(here, OTHER_OIDS + here, binary=False)
    source.execute(ROWS)
    await replica.deliver()
    source.execute("UPDATE t SET id = id + 20; DELETE FROM t WHERE id = 23; UPDATE t SET mood = 'glad'")
    await replica.deliver()
    other = "CREATE TYPE p AS (a int, b int); CREATE TABLE other (id int PRIMARY KEY, p p[])"
    source.execute(other)
    replica.target.execute(other.replace("a int, b int", "b int, a int"))
    source.execute("INSERT INTO other VALUES (1, '{\"(1,2)\"}')")
    with pytest.raises(TableStopped, match=r"column p: the composite type public\.p has its attributes in another"):
        await replica.deliver()


@pytest.mark.parametrize("attribute", ["int", "mood"])
async def test_a_composite_that_is_altered_in_mid_stream_stops_its_table_until_the_target_s_is(
    source: Database, make_target: MakeDatabase, attribute: str
) -> None:
    """No message tells of ALTER TYPE: with oids that agree on both sides the server finds it, otherwise we do."""
    target = make_target()
    target.execute(OTHER_OIDS)
    source.execute(
        f"CREATE TYPE mood AS ENUM ('a'); CREATE TYPE pair AS (x {attribute});"
        "CREATE TABLE t (id int PRIMARY KEY, pair pair, pairs pair[]); CREATE TABLE u (id int PRIMARY KEY, mood mood)"
    )
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        worker.pause()
        source.execute("INSERT INTO t VALUES (1, ROW(NULL), ARRAY[ROW(NULL)::pair])")
        source.execute("ALTER TYPE pair ADD ATTRIBUTE y mood")
        source.execute(
            "INSERT INTO t VALUES (2, ROW(NULL, 'a'), ARRAY[ROW(NULL, 'a')::pair]); INSERT INTO u VALUES (1)"
        )
        worker.resume()
        await pipeline.table_in_state("internal", "public.t", "stopped")
        await pipeline.caught_up()
        await pipeline.assert_equal(leave_out=["public.t"])

        async def is_told() -> bool:
            told = await pipeline.table_status("internal", "public.t")
            return "lacks the attribute y" in (told.reason or "") and "ADD ATTRIBUTE" in (told.mend or "")

        await pipeline.until(is_told, "the reason names the attribute")
        target.execute((await pipeline.table_status("internal", "public.t")).mend or "")
        await pipeline.table_in_state("internal", "public.t", "streaming")
        await pipeline.assert_caught_up_and_equal()
