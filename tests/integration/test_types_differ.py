"""Columns of an owned target that have other types than the source's: what is converted, and what does not fit."""

from __future__ import annotations

import pytest

from cdc.errors import TableStopped
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.replica import MakeReplica, make_replica
from tests.pipeline import Pipeline, owned

__all__ = ["make_replica"]

CONVERTED = (
    # The source's type, values, the target's type.
    ("int8", ("7", "-2147483648"), "int4"),
    ("int4", ("7", "-1"), "numeric(12,2)"),
    ("numeric", ("1.5", "NaN", "-Infinity"), "float8"),
    ("numeric(10,4)", ("1.2345", "0"), "int4"),
    ("float8", ("0.5", "1e10"), "numeric"),
    ("text", ("sad", "glad"), "mood"),
    ("mood", ("sad", "glad"), "text"),
    ("mood", ("sad",), "varchar(3)"),
    ("mood[]", ("{sad,NULL}", "{}", "[0:1]={glad,sad}"), "text[]"),
    ("text[]", ("{sad,NULL}", "{}"), "mood[]"),
    ("varchar(9)[]", ('{a,"b c"}',), "text[]"),
    ("int4[]", ("{1,NULL}", "[-1:0]={3,4}"), "int8[]"),
    ("varchar(9)", ("Ab", ""), "ext.citext"),
    ("ext.citext", ("Ab", ""), "text"),
    ("text", ("6f6f6f6f-0000-0000-0000-000000000001",), "uuid"),
    ("text", ("12", "-0", " 3 "), "int4"),
    ("text", ("yes", "f"), "bool"),
    ("text", ('{"a": [1,  2]}',), "jsonb"),
    ("text", ("::1/128", "10.0.0.1"), "inet"),
    ("positive", ("1", "2"), "int8"),
    ("int4", ("1", "2"), "positive"),
    ("json", ('{"a":  1, "a": 2}',), "jsonb"),
    ("jsonb", ('{"a":  1}',), "json"),
    ("timestamptz", ("2024-03-31 02:30:00+02", "infinity"), "timestamp"),
    ("timestamp", ("2024-03-31 02:30:00", "-infinity"), "timestamptz"),
    ("timestamptz", ("2024-03-31 00:30:00+02",), "date"),
    ("date", ("2024-02-29", "infinity"), "timestamptz"),
    ("bool", ("t", "f"), "text"),
    ("uuid", ("6f6f6f6f-0000-0000-0000-000000000001",), "text"),
    ("interval", ("1 mon -1 days",), "text"),
    ("int4range", ("[1,4)", "empty"), "text"),
    ("char(4)", ("ab",), "text"),
    ("inet", ("10.0.0.1", "::1"), "text"),
    ("float4", ("0.1", "NaN"), "float8"),
    ("float8", ("2.5", "-3.5"), "int8"),
    ("float4[]", ("{0.1,NULL}",), "float8[]"),
    ("bool[]", ("{t,f}",), "text[]"),
    ("char(4)", ("ab",), "varchar(3)"),
    ("time", ("01:02:03.5",), "interval"),
    ("timestamp", ("2024-03-31 02:30:00.5",), "time"),
    ("cidr", ("10.0.0.0/8",), "inet"),
    ("tsquery", ("", "a & !b", "'it''s':*A <2> c"), "text"),
    ("oidvector", ("", "1 4294967295"), "text"),
    ("int2vector", ("", "1 -2"), "text"),
)

TYPES = """
CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
"""


def table(place: int, data_type: str) -> str:
    return f"CREATE TABLE t{place} (id int PRIMARY KEY, v {data_type});"


async def test_values_are_converted_as_postgresql_assigns_them_in_the_stream_and_in_a_live_copy(
    source: Database, make_target: MakeDatabase
) -> None:
    target = make_target()
    names = [f"public.t{place}" for place in range(len(CONVERTED))]
    source.execute(TYPES + "".join(table(place, mine) for place, (mine, _, _) in enumerate(CONVERTED)))
    target.execute(
        "CREATE TYPE before_us AS ENUM ('x');"
        + TYPES
        + "".join(table(place, theirs) for place, (_, _, theirs) in enumerate(CONVERTED))
    )

    def insert(first: int) -> None:
        for place, (_, values, _) in enumerate(CONVERTED):
            for number, value in enumerate((*values, None), first):
                source.executemany(f"INSERT INTO t{place} VALUES (%s, %s)", [(number, value)])

    insert(100)
    async with Pipeline(source, {"datamart": owned(target, {name: ["id", "v"] for name in names})}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        insert(200)
        with source.transaction():
            for place in range(len(CONVERTED)):
                source.execute(
                    f"UPDATE t{place} SET v = NULL WHERE id = 200; DELETE FROM t{place} WHERE id = 201;"
                    f"UPDATE t{place} SET v = (SELECT v FROM t{place} WHERE id = 100) WHERE v IS NULL AND id < 200"
                )
        await pipeline.caught_up()
    source.execute("SET TIME ZONE 'UTC'")
    target.execute("SET TIME ZONE 'UTC'")
    for place, (mine, _, theirs) in enumerate(CONVERTED):
        expected = source.fetch(f"SELECT id, v::{theirs}::text FROM t{place} ORDER BY id")
        assert target.fetch(f"SELECT id, v::text FROM t{place} ORDER BY id") == expected, (mine, theirs)


@pytest.mark.parametrize("binary", [True, False])
async def test_values_are_converted_alike_in_binary_and_as_text_also_where_rows_are_known_by_them(
    make_replica: MakeReplica, source: Database, binary: bool
) -> None:
    """One array of a type without a binary format makes the source send text for all tables (hazard 25)."""
    # Those that can be a part of a key.
    keys = {place for place, (mine, _, theirs) in enumerate(CONVERTED) if "json" not in (mine, theirs)}

    def ddl(types: list[str]) -> str:
        tables = [table(place, one) for place, one in enumerate(types)]
        for place in keys:
            tables.append(f"CREATE TABLE k{place} (v {types[place]}, id int, n int, PRIMARY KEY (id, v));")
            tables.append(f"CREATE TABLE w{place} (v {types[place]}, n int);")
        return TYPES + "".join(tables)

    mine, theirs = [mine for mine, _, _ in CONVERTED], [theirs for _, _, theirs in CONVERTED]
    full = "".join(f"ALTER TABLE w{place} REPLICA IDENTITY FULL;" for place in keys)
    replica = await make_replica(
        ddl(mine) + full, "CREATE TYPE before_us AS ENUM ('x');" + ddl(theirs), follows=False, binary=binary
    )

    async def in_turn() -> None:
        # One by one: each column that comes as text takes a batch once more, until it is known.
        for part in await replica.record():
            await replica.apply([part])

    for place, (_, values, _) in enumerate(CONVERTED):
        with source.transaction():
            source.executemany(f"INSERT INTO t{place} VALUES (%s, %s)", list(enumerate((*values, None))))
            for name in [f"k{place}", f"w{place}"] if place in keys else []:
                source.executemany(f"INSERT INTO {name} VALUES (%s, %s)", [(v, n) for n, v in enumerate(values)])
    await in_turn()
    for place in range(len(CONVERTED)):
        source.execute(f"UPDATE t{place} SET v = (SELECT v FROM t{place} WHERE id = 0) WHERE v IS NULL")
    for place in keys:
        source.execute(
            f"UPDATE k{place} SET n = id + 7; UPDATE w{place} SET n = n + 7 WHERE n > 0;"
            f"DELETE FROM w{place} WHERE n = 0"
        )
    await in_turn()
    source.execute("SET TIME ZONE 'UTC'")
    replica.target.execute("SET TIME ZONE 'UTC'")
    for place, (here, _, there) in enumerate(CONVERTED):
        for name in [f"t{place}", *([f"k{place}", f"w{place}"] if place in keys else [])]:
            rest = "id" if name[0] == "t" else "n"
            expected = source.fetch(f"SELECT {rest}, v::{there}::text FROM {name} ORDER BY 1")
            found = replica.target.fetch(f"SELECT {rest}, v::text FROM {name} ORDER BY 1")
            assert found == expected, (name, here, there)


async def test_a_column_that_no_update_can_change_is_compared_as_what_its_text_means(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(
        "CREATE TABLE t (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, v text)", binary=False
    )
    source.execute("INSERT INTO t (id, v) VALUES (1, 'a'), (2, 'b')")
    await replica.deliver()
    source.execute("UPDATE t SET v = 'c'; UPDATE t SET n = DEFAULT WHERE id = 1")
    await replica.deliver()


@pytest.mark.parametrize("binary", [True, False])
async def test_objects_become_the_texts_of_their_names(
    make_replica: MakeReplica, source: Database, binary: bool
) -> None:
    """Not of what has their numbers here. Outside of pg_catalog they come with their schema."""
    ddl = "CREATE TABLE some_table (); CREATE TABLE t (a {0} PRIMARY KEY, b {0}[], n int)"
    replica = await make_replica(
        ddl.format("regclass"),
        f"CREATE TABLE before_us (); CREATE TABLE before_us_too (); {ddl.format('text')}",
        follows=False,
        binary=binary,
    )
    source.execute("SET search_path = ''")  # as in our sessions
    source.execute(
        "INSERT INTO public.t VALUES ('public.some_table', '{public.some_table,pg_class,NULL}', 1),"
        " ('pg_class', NULL, 2)"
    )
    source.execute("UPDATE public.t SET n = n + 10; DELETE FROM public.t WHERE n = 12")
    await replica.deliver(compare=False)
    expected = [("public.some_table", ["public.some_table", "pg_class", None], 11)]
    assert replica.target.fetch("SELECT a, b, n FROM t") == expected


async def test_a_domain_is_what_it_is_made_of(make_replica: MakeReplica, source: Database) -> None:
    """Also of one name on both sides: the bytes of a bigint are those of some double precision."""
    ddl = (
        "CREATE DOMAIN amount AS {}; CREATE TABLE t (id int PRIMARY KEY, v amount); CREATE TABLE u (id int, v amount[])"
    )
    replica = await make_replica(ddl.format("int8"), ddl.format("float8"), follows=False)
    source.execute("INSERT INTO t VALUES (1, 42)")
    source.execute("UPDATE t SET v = 43")
    await replica.deliver()
    source.execute("INSERT INTO u VALUES (1, '{42}')")
    with pytest.raises(TableStopped, match="column v: values of bigint cannot be taken as double precision"):
        await replica.deliver()


async def test_a_following_target_s_domain_has_to_be_made_of_the_same(
    make_replica: MakeReplica, source: Database
) -> None:
    ddl = "CREATE DOMAIN amount AS {}; CREATE TABLE t (id int PRIMARY KEY, v amount)"
    replica = await make_replica(ddl.format("int8"), ddl.format("float8"))
    source.execute("INSERT INTO t VALUES (1, 42)")
    with pytest.raises(
        TableStopped, match="amount, which is made of double precision there and of bigint at the source"
    ):
        await replica.deliver()


REFUSED = (
    ("amount[]", "int8[]"),
    ("pair", "text"),
    ("pair[]", "text[]"),
    ("span", "text"),
    ("amount[]", "text"),
    ("mood[]", "text"),
    ("ext.hstore", "text"),
)


@pytest.mark.parametrize(("mine", "theirs"), REFUSED)
async def test_what_is_not_converted_is_refused_when_the_table_is_planned(
    make_replica: MakeReplica, source: Database, mine: str, theirs: str
) -> None:
    types = f"{TYPES} CREATE DOMAIN amount AS int4; CREATE TYPE pair AS (a int); CREATE EXTENSION hstore SCHEMA ext;"
    types += "CREATE TYPE span AS RANGE (subtype = float8);"
    replica = await make_replica(types + table(0, mine), types + table(0, theirs), follows=False)
    source.execute("INSERT INTO t0 VALUES (1)")
    with pytest.raises(TableStopped, match=r"and cdc does not convert values of the source's type .* to it\."):
        await replica.deliver()


UNFIT = (
    ("int8", "int4", "3000000000", "22003"),
    ("text", "mood", "s3cret", "22P02"),
    ("text", "uuid", "s3cret", "22P02"),
    ("mood", "varchar(3)", "glad", "22001"),
    ("text[]", "mood[]", "{s3cret}", "22P02"),
    ("float8", "int2", "77777", "22003"),
)


@pytest.mark.parametrize(("mine", "theirs", "value", "sqlstate"), UNFIT)
async def test_a_value_that_does_not_fit_is_told_by_key_types_sqlstate_and_lsn_never_by_itself(
    make_replica: MakeReplica, source: Database, mine: str, theirs: str, value: str, sqlstate: str
) -> None:
    shape = "(region text, other int, v {}, id int, PRIMARY KEY (region, id))"
    replica = await make_replica(
        f"{TYPES}CREATE TABLE t {shape.format(mine)}", f"{TYPES}CREATE TABLE t {shape.format(theirs)}", follows=False
    )
    source.execute("INSERT INTO t (region, id) VALUES ('r', 1)")
    source.execute(f"UPDATE t SET v = '{value}' WHERE id = 1")
    parts = await replica.record()
    with pytest.raises(TableStopped) as stopped:
        await replica.apply(parts)
    message = str(stopped.value)
    assert f"SQLSTATE {sqlstate}" in message
    assert str(parts[-1].commit_lsn) in message
    assert stopped.value.commit_lsn == parts[-1].commit_lsn
    assert "region, id" in message
    assert "v (" in message
    assert value not in message + (stopped.value.sql or "")


async def test_only_its_table_stops_and_goes_on_when_the_target_s_type_holds_the_value(
    source: Database, make_target: MakeDatabase
) -> None:
    target = make_target()
    source.execute("CREATE TABLE t (id int PRIMARY KEY, n int8); CREATE TABLE u (id int PRIMARY KEY)")
    target.execute("CREATE TABLE t (id int PRIMARY KEY, n int4); CREATE TABLE u (id int PRIMARY KEY)")
    async with Pipeline(source, {"datamart": owned(target, {"public.t": ["id", "n"], "public.u": ["id"]})}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("INSERT INTO t VALUES (1, 3000000000); INSERT INTO u VALUES (1)")
        stopped = await pipeline.table_in_state("datamart", "public.t", "stopped")
        assert "n (bigint at the source, integer here)" in (stopped.reason or "")
        assert "3000000000" not in pipeline.worker.log_text() + (stopped.reason or "")
        await pipeline.caught_up()
        await pipeline.assert_equal(leave_out=["public.t"])
        target.execute("ALTER TABLE t ALTER n TYPE int8")
        await pipeline.table_in_state("datamart", "public.t", "streaming")
        await pipeline.assert_caught_up_and_equal()
