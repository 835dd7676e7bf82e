"""Tables that are not like others: without an index, without a column, filled by several, computing by themselves."""

from __future__ import annotations

import time

import pytest

from cdc.errors import CdcError, TableStopped
from cdc.routing.route import Route
from tests.database import Database
from tests.integration.replica import MakeReplica, make_replica

__all__ = ["make_replica"]

PLAIN = "CREATE TABLE t (id int PRIMARY KEY, k text NOT NULL, v text);"
UNINDEXED = {
    "no index": "CREATE TABLE t (v text, k text, id int);",
    "an index that is not unique": "CREATE TABLE t (v text, k text, id int); CREATE INDEX ON t (id);",
    "a unique index of other columns": "CREATE TABLE t (v text, k text UNIQUE, id int);",
    "a partial unique index": "CREATE TABLE t (v text, k text, id int); CREATE UNIQUE INDEX ON t (id) WHERE v > '';",
}


@pytest.mark.parametrize("case", UNINDEXED)
async def test_a_target_without_a_unique_index_is_kept_equal(
    make_replica: MakeReplica, source: Database, case: str
) -> None:
    replica = await make_replica(PLAIN, UNINDEXED[case], follows=False)
    source.execute("INSERT INTO t SELECT n, 'k' || n, 'v' FROM generate_series(1, 300) n")
    await replica.deliver()
    source.execute(
        "UPDATE t SET v = 'x' WHERE id % 2 = 0; DELETE FROM t WHERE id % 3 = 0; UPDATE t SET id = -id WHERE id < 90"
    )
    source.execute(
        "INSERT INTO t VALUES (3, 'new', ''); UPDATE t SET id = 6 WHERE id = 3; UPDATE t SET id = 3 WHERE id = 6"
    )
    source.execute("DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (3, 'newer', '')")
    await replica.deliver()
    source.execute("DELETE FROM t WHERE id IN (9, 101)")
    await replica.deliver()
    for change, back in (
        ("INSERT INTO t VALUES (9, 'nine')", "DELETE FROM t WHERE id = 9"),
        ("UPDATE t SET v = 'x' WHERE id = 100", "UPDATE t SET v = 'y' WHERE id = 100"),
        ("DELETE FROM t WHERE id = 100", "INSERT INTO t VALUES (100, 'k')"),
    ):
        replica.target.execute("INSERT INTO t (id, k) VALUES (9, 'there'); UPDATE t SET id = 0 WHERE id = 100")
        source.execute(change)
        with pytest.raises(TableStopped, match="source and target differ"):
            await replica.deliver()
        replica.target.execute("DELETE FROM t WHERE id = 9; UPDATE t SET id = 100 WHERE id = 0")
        source.execute(back)
        await replica.record()


async def test_a_row_that_a_target_without_a_unique_index_has_twice_stops_the_table(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(PLAIN, UNINDEXED["no index"], follows=False)
    source.execute("INSERT INTO t SELECT n, 'k' || n FROM generate_series(1, 9) n")
    await replica.deliver()
    replica.target.execute("INSERT INTO t (id, k) VALUES (4, 'k4'); DELETE FROM t WHERE id = 5")
    # One row too many and one too few come to the right number.
    source.execute("UPDATE t SET v = 'x'")
    with pytest.raises(TableStopped, match=r"finds (?:no|more than one) row"):
        await replica.deliver()


async def test_thousands_of_changes_of_a_target_without_an_index_take_no_square_of_the_time(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(PLAIN, UNINDEXED["no index"], follows=False)

    async def seconds(rows: int) -> float:
        source.execute(f"TRUNCATE t; INSERT INTO t SELECT n, 'k' || n, 'v' FROM generate_series(1, {rows}) n")
        await replica.deliver()
        source.execute("UPDATE t SET v = 'w'; UPDATE t SET id = -id; DELETE FROM t WHERE id % 2 = 0")
        source.execute(f"INSERT INTO t SELECT n, 'new' FROM generate_series(1, {rows}) n")
        parts = await replica.record()
        begun = time.monotonic()
        await replica.apply(parts)
        return time.monotonic() - begun

    small = await seconds(2_000)
    large = await seconds(20_000)
    assert large < 30 * max(small, 0.05), f"ten times the rows took {large:.2f} s after {small:.2f} s"


MERGED = [Route("public", name, "public", "merged") for name in ("a", "b")]
TWO = "CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b ({} id int PRIMARY KEY, v text);"


@pytest.mark.parametrize("other", ["", "x date, w int, "], ids=["alike", "of different shapes"])
@pytest.mark.parametrize("there", ["id int PRIMARY KEY", "id int"], ids=["unique", "without an index"])
async def test_a_row_that_moves_between_two_tables_that_fill_one_arrives(
    make_replica: MakeReplica, source: Database, other: str, there: str
) -> None:
    merged = f"CREATE TABLE merged (v text, w int, {there}, own text DEFAULT 'ours');".replace(
        ", own text DEFAULT 'ours'", ""
    )
    replica = await make_replica(TWO.format(other), merged, routes=MERGED, follows=False)

    async def equal(case: str) -> None:
        try:
            await replica.deliver(compare=False)
        except CdcError as error:
            raise AssertionError(f"{case}: {error}") from error
        both = "SELECT id, v FROM a UNION ALL SELECT id, v FROM b ORDER BY id"
        assert replica.target.fetch("SELECT id, v FROM merged ORDER BY id") == source.fetch(both), case

    source.execute("INSERT INTO a SELECT n, 'a' || n FROM generate_series(1, 9) n")
    source.execute("INSERT INTO b (id, v) SELECT n, 'b' || n FROM generate_series(11, 19) n")
    await equal("both")
    source.execute("DELETE FROM a WHERE id = 1; INSERT INTO b (id, v) VALUES (1, 'moved')")
    await equal("deleted, then inserted")
    if other:
        return  # Rows of different shapes are not folded together: the insert would bring a second row of a key.
    source.execute("INSERT INTO b (id, v) VALUES (2, 'moved'); DELETE FROM a WHERE id = 2")
    await equal("inserted, then deleted, in one transaction")
    source.execute("INSERT INTO b (id, v) SELECT id, 'moved' FROM a WHERE id > 2")
    source.execute("UPDATE b SET v = v || '!' WHERE id = 4")
    source.execute("DELETE FROM a WHERE id > 2; UPDATE b SET v = v || '?' WHERE id = 4")
    await equal("in one batch")
    source.execute(
        "UPDATE b SET id = 100 WHERE id = 11; INSERT INTO a VALUES (11, 'again'); UPDATE a SET v = 'x' WHERE id = 11"
    )
    await equal("a key that gets free")


async def test_a_key_that_both_of_two_tables_hold_stops_the_second(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(TWO.format(""), "CREATE TABLE merged (id int PRIMARY KEY, v text)", routes=MERGED)
    source.execute("INSERT INTO a VALUES (1, 'a')")
    source.execute("INSERT INTO b VALUES (1, 'b')")
    with pytest.raises(TableStopped, match=r"merged \(from public.b\).*brings a key that is already there"):
        await replica.deliver()


@pytest.mark.parametrize("there", ["", "own text DEFAULT 'ours'"], ids=["as empty", "with columns of its own"])
async def test_a_table_without_columns_arrives(make_replica: MakeReplica, source: Database, there: str) -> None:
    replica = await make_replica("CREATE TABLE t ()", f"CREATE TABLE t ({there})", follows=False)
    publish = "ALTER PUBLICATION everything SET (publish = '{}')"
    source.execute(publish.format("insert, truncate"))

    async def rows(case: str) -> None:
        await replica.deliver(compare=False)
        assert replica.target.fetchval("SELECT count(*) FROM t") == source.fetchval("SELECT count(*) FROM t"), case

    source.execute("INSERT INTO t SELECT FROM generate_series(1, 5)")
    await rows("inserts")
    source.execute("TRUNCATE t; INSERT INTO t DEFAULT VALUES")
    await rows("a truncate")
    source.execute("ALTER TABLE t REPLICA IDENTITY FULL;" + publish.format("insert, update, delete, truncate"))
    source.execute("INSERT INTO t SELECT FROM generate_series(1, 5); DELETE FROM t WHERE ctid = '(0,2)'")
    source.execute("DELETE FROM t WHERE ctid IN ('(0,3)', '(0,4)'); INSERT INTO t DEFAULT VALUES")
    await rows("deletes")
    source.execute("ALTER TABLE t ADD COLUMN id int; INSERT INTO t VALUES (1)")
    with pytest.raises(TableStopped, match="no column in common"):
        await replica.apply(await replica.record(), holds=None)


async def test_identity_columns_of_a_composite_key_are_written_as_the_source_writes_them(
    make_replica: MakeReplica, source: Database
) -> None:
    ddl = "CREATE TABLE t (v text, a int, n int GENERATED {} AS IDENTITY, PRIMARY KEY (a, n));"
    replica = await make_replica(ddl.format("BY DEFAULT"), ddl.format("ALWAYS") + "ALTER TABLE t ADD own int DEFAULT 7")
    source.execute("INSERT INTO t (v, a) SELECT 'v', g % 3 FROM generate_series(1, 9) g")
    await replica.deliver()
    source.execute(
        "UPDATE t SET n = n + 100 WHERE a = 1; UPDATE t SET v = 'w' WHERE a = 2; UPDATE t SET a = 5 WHERE n = 3"
    )
    source.execute(
        "DELETE FROM t WHERE n = 6; UPDATE t SET n = DEFAULT WHERE n = 9; INSERT INTO t (v, a) VALUES ('new', 0)"
    )
    await replica.deliver()
    assert replica.target.fetchval("SELECT count(*) FROM t WHERE own = 7") == source.fetchval("SELECT count(*) FROM t")


async def test_keys_that_trade_places_in_a_table_that_keeps_its_rows_are_refused_in_a_sentence(
    make_replica: MakeReplica, source: Database
) -> None:
    here = "CREATE TABLE t (id int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text); ALTER TABLE t REPLICA IDENTITY FULL"
    there = "CREATE TABLE t (id int PRIMARY KEY, v text, own text DEFAULT 'a note')"
    replica = await make_replica(here, there, follows=False)
    source.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    await replica.deliver()
    source.execute("UPDATE t SET id = 3 - id")
    with pytest.raises(TableStopped, match="this table's key would have to be deferrable"):
        await replica.deliver()
