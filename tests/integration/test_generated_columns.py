"""Columns that a database computes itself: nobody sends their values, and they are there all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cdc.errors import TableStopped
from cdc.routing.route import Route
from cdc.source.catalog import SourceTable, read_tables
from cdc.source.connection import connect as connect_source
from cdc.target import schema
from cdc.target.session import Session, connect
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.replica import MakeReplica, make_replica
from tests.pipeline import Pipeline, follow
from tests.servers import needs

__all__ = ["make_replica"]

PARTS = """
    CREATE SCHEMA calc; CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE FUNCTION calc.twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 2';
    CREATE TABLE parts (doubled int GENERATED ALWAYS AS (n * 2) STORED NOT NULL, id int PRIMARY KEY,
        "Full Name" text GENERATED ALWAYS AS (upper(name) || '''s') STORED, n int, name text,
        called int GENERATED ALWAYS AS (calc.twice(n)) STORED,
        spirits mood GENERATED ALWAYS AS (CASE WHEN n > 5 THEN 'happy'::mood ELSE 'sad'::mood END) STORED);
    CREATE INDEX ON parts (doubled); CREATE UNIQUE INDEX ON parts ("Full Name", id);
    INSERT INTO parts (id, n, name) SELECT n, n, 'name ' || n FROM generate_series(1, 9) n;
"""


@pytest.fixture
async def session(target: Database) -> AsyncIterator[Session]:
    opened = await connect(target.dsn, application_name="tests", target="internal")
    yield opened
    await opened.close()


@pytest.fixture
def target(make_target: MakeDatabase) -> Database:
    return make_target()


async def source_table(source: Database, name: str) -> SourceTable:
    async with await connect_source(source.dsn, application_name="tests") as connection:
        [table] = await read_tables(connection, [name])
    return table


def new_table(table: SourceTable, route: Route) -> schema.NewTable:
    return schema.new_table(
        route,
        table.relation,
        not_null=table.not_null,
        primary_key=table.primary_key,
        generated=table.generated,
    )


ROUTE = Route("public", "parts", "public", "parts")
COLUMNS = """
    SELECT attname, attgenerated, attnotnull FROM pg_attribute WHERE attrelid = '{}'::regclass AND attnum > 0
     ORDER BY attnum
"""


async def test_a_following_target_computes_what_the_source_computes(
    source: Database, target: Database, session: Session
) -> None:
    source.execute(PARTS)
    target.execute(
        "CREATE SCHEMA calc; CREATE TYPE mood AS ENUM ('sad', 'happy');"
        "CREATE FUNCTION calc.twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 2'"
    )
    await schema.create_table(session, new_table(await source_table(source, "public.parts"), ROUTE))
    assert target.fetch(COLUMNS.format("parts")) == source.fetch(COLUMNS.format("parts")), "order, kind and NOT NULL"


async def test_a_column_that_the_target_cannot_compute_is_left_out_alone(
    source: Database, target: Database, session: Session
) -> None:
    source.execute(PARTS)
    table = await source_table(source, "public.parts")
    await schema.create_table(session, new_table(table, ROUTE))
    names = [name for name, *_ in target.fetch(COLUMNS.format("parts"))]
    assert sorted(names) == ["Full Name", "doubled", "id", "n", "name"], "neither what calls a function nor of a type"
    listed = Route("public", "parts", "public", "listed", (("id", "id"), ("n", "n")))
    await schema.create_table(session, new_table(table, listed))
    assert [name for name, *_ in target.fetch(COLUMNS.format("listed"))] == ["id", "n"], "nothing that is not listed"


async def test_virtual_columns_are_virtual_where_the_target_knows_them(
    source: Database, target: Database, session: Session
) -> None:
    needs(source, 18, "virtual generated columns")
    source.execute("CREATE TABLE parts (id int PRIMARY KEY, n int, inverse int GENERATED ALWAYS AS (100 / n) VIRTUAL)")
    table = await source_table(source, "public.parts")
    new = new_table(table, ROUTE)
    assert "AS ((100 / n)) STORED" in schema.create_table_sql(new, has_virtual=False), "an older one stores its values"
    await schema.create_table(session, new)
    target.execute("INSERT INTO parts VALUES (2, 50)")
    assert target.fetchval("SELECT inverse FROM parts WHERE id = 2") == 2
    if session.server_version >= 180000:
        target.execute("INSERT INTO parts VALUES (1, 0)")  # computed when it is read, and only then


async def test_computed_values_are_equal_after_a_copy_and_after_changes(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(PARTS)
    # A key that the source computes is not sent, so it identifies nothing.
    source.execute("CREATE TABLE keyed (n int, double int GENERATED ALWAYS AS (n * 2) STORED PRIMARY KEY)")
    source.execute("INSERT INTO keyed VALUES (1)")
    target = make_target()
    target.execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("INSERT INTO keyed VALUES (2); UPDATE keyed SET n = 9 WHERE n = 1")
        source.execute("UPDATE parts SET n = 50, name = 'new' WHERE id = 1; INSERT INTO parts (id, n) VALUES (20, 20)")
        source.execute("DELETE FROM parts WHERE id = 2; UPDATE parts SET id = 30 WHERE id = 3")
        await pipeline.caught_up()
        query = 'SELECT id, doubled, "Full Name", spirits, n, name FROM parts ORDER BY id'
        assert target.fetch(query) == source.fetch(query)
        assert target.fetch("SELECT double FROM keyed ORDER BY 1") == [(2,), (4,)], "only inserts of it are published"
        assert "doubled" in str(target.fetch("SELECT indexdef FROM pg_indexes WHERE tablename = 'parts'"))
        _, output = await pipeline.cdc("check")
        assert "the source computes column called itself, and this table lacks it" in " ".join(output.split())
        mend = 'ADD COLUMN "called" integer GENERATED ALWAYS AS (calc.twice(n)) STORED;'
        assert mend in " ".join(output.split())
        assert "updates and deletes do not reach any target" in " ".join(output.split())


async def test_a_computed_column_of_a_row_that_is_known_by_its_values_is_no_part_of_them(
    make_replica: MakeReplica, source: Database
) -> None:
    plain = "CREATE TABLE t (n int, v text, doubled int GENERATED ALWAYS AS (n * {}) STORED);"
    replica = await make_replica(
        plain.format(2) + "ALTER TABLE t REPLICA IDENTITY FULL", plain.format(3), follows=False
    )
    if source.fetchval("SELECT current_setting('server_version_num')::int") >= 180000:
        source.execute("ALTER PUBLICATION everything SET (publish_generated_columns = stored)")
    source.execute("INSERT INTO t SELECT n % 2, 'v' FROM generate_series(1, 6) n; UPDATE t SET v = 'w' WHERE n = 1")
    source.execute("DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t); UPDATE t SET n = 5 WHERE n = 0")
    await replica.deliver(compare=False)
    assert replica.target.fetchval("SELECT sum(doubled) FROM t") == 3 * source.fetchval("SELECT sum(n) FROM t")


async def test_a_value_that_the_target_cannot_compute_stops_its_table(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(
        "CREATE TABLE t (id int PRIMARY KEY, n int)",
        "CREATE TABLE t (id int PRIMARY KEY, n int, inverse int GENERATED ALWAYS AS (100 / n) STORED)",
        follows=False,
    )
    source.execute("INSERT INTO t VALUES (1, 0)")
    with pytest.raises(TableStopped, match="22012"):
        await replica.deliver()


async def test_hazard_01_a_full_identity_with_generated_columns_breaks_no_update_of_the_application(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE t (n int, doubled int GENERATED ALWAYS AS (n * 2) STORED)")
    source.execute("ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1)")
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.setup()
        source.execute("UPDATE t SET n = 2")
        _, output = await pipeline.cdc("check")
        is_refused = source.fetchval("SELECT current_setting('server_version_num')::int") >= 180000
        assert (
            "PostgreSQL 18 publishes no updates of one with generated columns" in " ".join(output.split())
        ) == is_refused
        where = source.fetchval("SELECT pubname FROM pg_publication_tables WHERE tablename = 't'")
        assert where.endswith("_insert_only") == is_refused


async def test_a_column_that_the_source_computes_no_more_is_written(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(
        "CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED)"
    )
    source.execute("INSERT INTO t VALUES (1, 1), (2, 2)")
    await replica.deliver()
    source.execute("ALTER TABLE t ALTER COLUMN twice DROP EXPRESSION; UPDATE t SET twice = 7 WHERE id = 1")
    parts = await replica.record()
    with pytest.raises(
        TableStopped, match="the source sends values of twice, which this table computes itself"
    ) as caught:
        await replica.apply(parts)
    replica.target.execute(str(caught.value.sql))
    replica.applier.forget(Route("public", "t", "public", "t"))
    await replica.apply(parts)
    assert replica.target.fetch("SELECT * FROM t ORDER BY id") == [(1, 1, 7), (2, 2, 4)]
