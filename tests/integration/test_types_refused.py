"""Values that cannot be carried over stop their table with a sentence, never with another value; and large ones."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdc.changes.relation import DataType
from cdc.errors import CdcError, TableStopped
from cdc.target import applier
from cdc.target.catalog import TargetTable, read_tables
from cdc.target.fast_path import FastPath
from tests.arrivals import arrivals
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.replica import MakeReplica, make_replica
from tests.pipeline import Pipeline, follow

__all__ = ["make_replica"]

MEGABYTES = 64


async def test_an_object_is_known_by_the_name_that_it_has_now_and_stops_the_table_where_there_is_none(
    make_replica: MakeReplica, source: Database
) -> None:
    ddl = "CREATE TABLE t (id int PRIMARY KEY, object regclass, objects regclass[])"
    replica = await make_replica(f"CREATE TABLE secret_name (); {ddl}", f"CREATE TYPE before_us AS (a int); {ddl}")
    source.execute("INSERT INTO t VALUES (1, 'pg_class', '{pg_type,0}')")
    await replica.deliver()
    source.execute("INSERT INTO t VALUES (2, NULL, '{pg_class,secret_name}'); UPDATE t SET object = 'secret_name'")
    parts = await replica.record()
    for _ in range(2):
        with pytest.raises(TableStopped) as stopped:
            await replica.apply(parts)
        message = str(stopped.value)
        assert "names an object by a value of type regclass that does not exist there, in one of its columns" in message
        assert "object, objects" in message
        assert 'SELECT DISTINCT "object", "objects" FROM "public"."t" at the source' in message
        assert "secret_name" not in message
        assert stopped.value.commit_lsn == parts[0].commit_lsn
    replica.target.execute("CREATE TABLE secret_name ()")
    await replica.apply(parts)
    replica.assert_equal(next(iter(parts[0].relations)))
    source.execute("ALTER TABLE secret_name RENAME TO another")
    replica.target.execute("CREATE TABLE another ()")
    source.execute("UPDATE t SET object = 'another', objects = '{another}'")
    await replica.deliver()


KINDS = (
    *("regclass", "regtype", "regproc", "regprocedure", "regoper", "regoperator", "regnamespace", "regrole"),
    *("regcollation", "regconfig", "regdictionary"),
)
DIGITS = 'CREATE TABLE "4000000000" (); CREATE SCHEMA "12"; CREATE TEXT SEARCH CONFIGURATION "13" (COPY = simple);'


def number_of_theirs(target: Database, source: Database, kind: str) -> int:
    """The number of an object that the target has, and the source does not: of a table and of its row type."""
    catalog = {"regclass": "pg_class", "regtype": "pg_type"}[kind]
    for place in itertools.count():
        target.execute(f"CREATE TABLE of_theirs_{place} ()")
        number = int(target.fetchval(f"SELECT 'of_theirs_{place}'::{kind}::oid::int8"))
        if not source.fetchval(f"SELECT EXISTS (SELECT FROM {catalog} WHERE oid = {number})"):
            return number
    raise AssertionError


async def test_an_object_that_is_gone_becomes_its_number_where_that_is_nothing_else_at_the_target(
    make_replica: MakeReplica, source: Database
) -> None:
    columns = ", ".join(f"v_{kind} {kind}" for kind in KINDS)
    ddl = f"{DIGITS} CREATE TABLE t (id int PRIMARY KEY, {columns}); CREATE TABLE u (id int PRIMARY KEY, v regclass)"
    replica = await make_replica(ddl, f"CREATE TYPE before_us AS (a int); {ddl}")
    source.execute(f"INSERT INTO t VALUES (1, {', '.join(['4000000000'] * len(KINDS))})")
    source.execute(
        """INSERT INTO t (id, v_regclass, v_regnamespace, v_regconfig) VALUES (2, '"4000000000"', '"12"', '"13"')"""
    )
    await replica.deliver()
    number = number_of_theirs(replica.target, source, "regclass")
    source.execute(f"INSERT INTO u VALUES (1, {number})")
    parts = await replica.record()
    with pytest.raises(TableStopped, match="its number is that of another object there") as stopped:
        await replica.apply(parts)
    assert "by a value of type regclass that the source does not have any more, in one of its columns v" in str(
        stopped.value
    )
    assert "cdc resync public.u --target warehouse" in str(stopped.value)
    assert stopped.value.commit_lsn == parts[0].commit_lsn
    assert str(number) not in str(stopped.value)


async def test_an_object_that_is_gone_becomes_its_number_also_as_text(
    make_replica: MakeReplica, source: Database
) -> None:
    kinds = [kind for kind in KINDS if kind != "regclass"]
    columns = ", ".join(f"v_{kind} {kind}, a_{kind} {kind}[]" for kind in kinds)
    ddl = f"{DIGITS} CREATE TABLE t (id int PRIMARY KEY, {columns}, a_regclass regclass[]);"
    others = (
        "CREATE TABLE u (id int PRIMARY KEY, v regtype, a regtype[]); CREATE TABLE c (id int PRIMARY KEY, v regclass)"
    )
    replica = await make_replica(f"{ddl}{others}", f"CREATE TYPE before_us AS (a int); {ddl}{others}", binary=False)
    values = ", ".join(["4000000000, '{4000000000,-,NULL,4000000001}'"] * len(kinds)).replace("-", "0")
    source.execute(f"INSERT INTO t VALUES (1, {values}, '{{4000000000,pg_class}}')")
    source.execute(
        "INSERT INTO t (id, v_regnamespace, v_regconfig, a_regclass) "
        """VALUES (2, '"12"', '"13"', '{"\\"4000000000\\""}')"""
    )
    await replica.deliver()
    number = number_of_theirs(replica.target, source, "regtype")
    for value in (f"{number}, NULL", f"NULL, '{{text,{number}}}'"):
        source.execute(f"INSERT INTO u VALUES (1, {value}); DELETE FROM u")
        with pytest.raises(TableStopped, match="its number is that of another object there") as stopped:
            await replica.deliver()
        assert str(number) not in str(stopped.value)
    source.execute("INSERT INTO c VALUES (1, 4000000000)")
    with pytest.raises(TableStopped, match="that the source does not have any more, and such a value cannot come as"):
        await replica.deliver()


async def test_an_object_whose_argument_is_not_there_stops_its_table(
    make_replica: MakeReplica, source: Database
) -> None:
    """Older servers say so by an error, and not by finding nothing."""
    ddl = "CREATE TABLE t (id int PRIMARY KEY, v regprocedure)"
    replica = await make_replica(ddl, f"CREATE SCHEMA one; {ddl}")
    source.execute("CREATE SCHEMA one; CREATE SCHEMA two; CREATE TYPE one.t AS (a int); CREATE TYPE two.t AS (a int)")
    for place, schema in enumerate(("one", "two")):
        source.execute(f"CREATE FUNCTION f({schema}.t) RETURNS int LANGUAGE sql AS 'SELECT 1'")
        source.execute(f"INSERT INTO t VALUES ({place}, 'f({schema}.t)'), (9, 'abs(int)'); DELETE FROM t")
        with pytest.raises(TableStopped, match="by a value of type regprocedure that does not exist there"):
            await replica.deliver()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("key", ["PRIMARY KEY (v, id)", "UNIQUE (id, v)", "CHECK (true)"])
async def test_a_row_that_is_known_by_an_object_that_is_gone_stops_its_table(
    make_replica: MakeReplica, source: Database, key: str, binary: bool
) -> None:
    """It is there under the oid that the object's name had, and perhaps another is there under the object's number."""
    ddl = f"CREATE TABLE one (); CREATE TABLE t (v regclass, id int, other regclass, {key});"
    full = "" if "PRIMARY" in key else "ALTER TABLE t REPLICA IDENTITY FULL;"
    replica = await make_replica(ddl + full, f"CREATE TYPE before_us AS (a int); {ddl}", follows=False, binary=binary)
    gone = f"({4000000000}, 3)" if binary else "('pg_type', 3)"
    source.execute(f"INSERT INTO t VALUES ('one', 1), ('pg_class', 2), {gone}")
    await replica.deliver()
    if key.startswith("PRIMARY") and binary:
        source.execute("UPDATE t SET other = 4000000000 WHERE id = 2")
        await replica.deliver()
    source.execute("DROP TABLE one; DELETE FROM t WHERE id = 1")
    parts = await replica.record()
    with pytest.raises(TableStopped, match="is known by a value of type regclass in one of its columns v, other") as e:
        await replica.apply(parts)
    assert "object by it that the source does not have any more, so nothing tells which row there is meant" in str(
        e.value
    )
    assert e.value.commit_lsn == parts[0].commit_lsn


async def test_objects_are_looked_up_before_anything_is_applied(
    make_replica: MakeReplica, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ddl = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, object regclass)"
    replica = await make_replica(ddl, f"CREATE TYPE before_us AS (a int); {ddl}")
    source.execute("INSERT INTO a VALUES (1); INSERT INTO t VALUES (1, 't'), (2, NULL)")
    source.execute("UPDATE t SET object = 'a' WHERE id = 2")
    apply, times = FastPath.apply, 0

    async def counted(*arguments: Any) -> None:
        nonlocal times
        times += 1
        await apply(*arguments)

    monkeypatch.setattr(FastPath, "apply", counted)
    await replica.deliver()
    assert times == 1


async def test_a_live_copy_says_which_columns_name_objects_that_may_be_missing(
    source: Database, make_target: MakeDatabase, postgres_binaries: Path, tmp_path: Path
) -> None:
    async with arrivals(source, make_target, postgres_binaries, tmp_path) as ways:
        source.execute("CREATE TABLE secret_name (); CREATE TABLE t (id int PRIMARY KEY, object regclass)")
        source.execute("INSERT INTO t VALUES (1, 'secret_name')")
        await ways.create("public.t")
        for way, bring in (("live", ways.copy_live), ("backup", ways.restore)):
            with pytest.raises(CdcError) as refused:
                await bring("public.t")
            assert "whose values in object name objects that have to exist there" in str(refused.value)
            assert "secret_name" not in str(refused.value)
            # What is refused for another reason is not laid on them.
            ways.targets[way].execute("CREATE TABLE secret_name (); ALTER TABLE t ADD CHECK (object IS NULL)")
            with pytest.raises(CdcError, match="23514") as refused:
                await bring("public.t")
            assert "name objects" not in str(refused.value)


@pytest.mark.parametrize("data_type", ["tsquery", "oidvector", "int2vector"])
async def test_what_postgresql_does_not_read_back_inside_of_a_value_stops_the_table(
    make_replica: MakeReplica, source: Database, data_type: str
) -> None:
    replica = await make_replica(f"CREATE TABLE t (id int PRIMARY KEY, v {data_type}[])")
    source.execute("INSERT INTO t VALUES (1, '{1,NULL}')")
    source.execute("INSERT INTO t VALUES (2, '{\"\"}')")
    parts = await replica.record()
    with pytest.raises(
        TableStopped, match=f"column v of a row .* holds an empty {data_type} inside of another value"
    ) as e:
        await replica.apply(parts)
    assert e.value.commit_lsn == parts[1].commit_lsn
    assert "Its rows are known by id. Give such rows another value" in str(e.value)


@pytest.mark.parametrize("theirs", ["interval", "text"])
async def test_an_infinite_interval_stops_the_table_of_a_target_that_has_none(
    make_replica: MakeReplica, source: Database, monkeypatch: pytest.MonkeyPatch, theirs: str
) -> None:
    """Two servers of different versions are the matrix's business; here the target's catalog speaks as the other kind.

    What is infinite to 17 and later is the longest interval to older ones, with the same bytes.
    """
    is_new = int(source.fetchval("SHOW server_version_num")) >= 170_000
    # 14 reads neither the longest interval as one literal nor that many hours.
    older = (
        "make_interval(months => 2147483647, days => 2147483647)"
        " + interval '2147483647 hours' + interval '414564141 hours' + interval '54.775807 s'"
    )
    longest = "interval 'infinity'" if is_new else older

    def other(data_type: DataType) -> DataType:
        element = None if data_type.element is None else other(data_type.element)
        return replace(data_type, element=element, lacks_infinity=is_new and data_type.name == "interval")

    def of_other(table: TargetTable) -> TargetTable:
        columns = tuple(replace(column, type=other(column.type)) for column in table.columns)
        return replace(table, columns=columns, lacks_infinity=is_new)

    async def read_other_tables(*arguments: Any) -> dict[tuple[str, str], TargetTable]:
        return {name: of_other(table) for name, table in (await read_tables(*arguments)).items()}

    monkeypatch.setattr(applier, "read_tables", read_other_tables)
    columns = "(id int PRIMARY KEY, i {0}, more {0}[])"
    replica = await make_replica(
        f"CREATE TABLE t {columns.format('interval')}", f"CREATE TABLE t {columns.format(theirs)}", follows=False
    )
    source.execute("INSERT INTO t VALUES (1, '1 day', '{-178000000 years}')")
    await replica.deliver()
    for value in (f"{longest}, NULL", f"NULL, ARRAY['1 day', {longest}]"):
        source.execute(f"INSERT INTO t VALUES (2, {value}); DELETE FROM t WHERE id = 2")
        with pytest.raises(TableStopped, match="an interval is infinite") as stopped:
            await replica.deliver()
        assert "Its rows are known by id. Give such rows another value at the source, then load the table" in (
            str(stopped.value)
        )
        assert "run `cdc resync public.t --target warehouse`" in str(stopped.value)
        assert str(stopped.value).endswith("Or leave the column out of the route.")


async def test_an_unknown_label_names_the_enums_of_the_target(make_replica: MakeReplica, source: Database) -> None:
    enums = "CREATE TYPE mood AS ENUM ('sad');"
    replica = await make_replica(
        f"{enums} CREATE TABLE t (id int PRIMARY KEY, e mood, tx text)",
        "CREATE SCHEMA w; CREATE TYPE w.mood AS ENUM ('sad'); CREATE TABLE t (id int PRIMARY KEY, e text, tx w.mood)",
        follows=False,
    )
    source.execute("INSERT INTO t VALUES (1, 'sad', 'sad')")
    await replica.deliver()
    source.execute("UPDATE t SET tx = 'secret label'")
    parts = await replica.record()
    with pytest.raises(TableStopped) as stopped:
        await replica.apply(parts)
    message = str(stopped.value)
    assert "does not have at the target (SQLSTATE 22P02" in message
    assert "; its enum columns: tx (w.mood)." in message
    assert "Its rows are known by id" in message
    assert "secret" not in message
    assert str(parts[0].commit_lsn) in message
    assert stopped.value.sql == "ALTER TYPE w.mood ADD VALUE '<label>'"
    replica.target.execute((stopped.value.sql or "").replace("<label>", "secret label"))
    await replica.apply(parts)


async def test_a_value_of_many_megabytes_arrives(source: Database, make_target: MakeDatabase) -> None:
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int, raw bytea); ALTER TABLE t ALTER raw SET STORAGE EXTERNAL"
    )
    insert = f"INSERT INTO t SELECT %s, 0, decode(repeat(md5('%s'), {MEGABYTES} * 65536), 'hex')"
    source.execute(insert % (1, 1))
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        source.execute(insert % (2, 2))
        source.execute("UPDATE t SET n = n + 1; UPDATE t SET id = 3 WHERE id = 1")
        await pipeline.caught_up()
        assert worker.peak_rss_bytes() < 700 << 20
    query = "SELECT id, n, length(raw), md5(raw) FROM t ORDER BY id"
    assert target.fetch(query) == source.fetch(query)
    assert target.fetchval("SELECT min(length(raw)) FROM t") == MEGABYTES << 20
