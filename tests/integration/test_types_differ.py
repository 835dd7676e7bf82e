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
