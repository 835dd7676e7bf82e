"""What identifies a row: every replica identity, changes between them in mid-stream, and keys of every form."""

from __future__ import annotations

from itertools import permutations

import pytest

from cdc.errors import BatchRejected, TableStopped
from tests.database import Database
from tests.integration.replica import MakeReplica, Replica, make_replica
from tests.servers import needs_loose_collations

__all__ = ["make_replica"]

ITEMS = """
    CREATE TABLE items (id int PRIMARY KEY, code text NOT NULL, n int);
    CREATE UNIQUE INDEX items_code ON items (code);
    CREATE UNIQUE INDEX items_both ON items (code, id);
"""

IDENTITIES = {
    "default": "DEFAULT",
    "index": "USING INDEX items_code",
    "another index": "USING INDEX items_both",
    "full": "FULL",
    "nothing": "NOTHING",
}


def fill(source: Database) -> None:
    source.execute("INSERT INTO items SELECT n, 'code ' || n, n FROM generate_series(1, 12) n")


def identify(source: Database, how: str) -> None:
    """Give the table another identity. Without one nothing but inserts is published, as in our own publications."""
    publish = "insert, truncate" if how == "NOTHING" else "insert, update, delete, truncate"
    source.execute(f"ALTER PUBLICATION everything SET (publish = '{publish}')")
    source.execute(f"ALTER TABLE items REPLICA IDENTITY {how}")


def work(source: Database, first: int, *, only_inserts: bool = False) -> None:
    """Changes of every kind, of rows from ``first`` on."""
    source.execute(f"INSERT INTO items VALUES ({first + 100}, 'new {first}', 0)")
    if not only_inserts:
        source.execute(f"UPDATE items SET n = n + 100 WHERE id = {first}")
        source.execute(f"UPDATE items SET id = id + 1000, n = 7 WHERE id = {first}")
        source.execute(f"UPDATE items SET code = code || '!' WHERE id = {first + 1}")
        source.execute(f"UPDATE items SET code = code || '?', id = id + 2000 WHERE id = {first + 1}")
        source.execute(f"DELETE FROM items WHERE id = {first + 2}")
        source.execute(f"UPDATE items SET n = n + 1 WHERE id = {first + 100}")


@pytest.mark.parametrize("is_one_transaction", [False, True], ids=["transactions of a batch", "one transaction"])
async def test_every_replica_identity_gives_way_to_every_other_in_mid_stream(
    make_replica: MakeReplica, source: Database, is_one_transaction: bool
) -> None:
    replica = await make_replica(ITEMS)
    for before, after in permutations(IDENTITIES, 2):
        source.execute("TRUNCATE items")
        identify(source, IDENTITIES[before])
        fill(source)
        if is_one_transaction and "nothing" not in (before, after):
            with source.transaction():
                work(source, 1)
                source.execute(f"ALTER TABLE items REPLICA IDENTITY {IDENTITIES[after]}")
                work(source, 4)
        else:
            work(source, 1, only_inserts=before == "nothing")
            identify(source, IDENTITIES[after])
            work(source, 4, only_inserts=after == "nothing")
        await deliver(replica, f"{before} to {after}")
        work(source, 7, only_inserts=after == "nothing")
        await deliver(replica, f"{before} to {after}, the next batch")


async def deliver(replica: Replica, case: str) -> None:
    """Deliver and compare; a failure says which case it was."""
    try:
        await replica.deliver()
    except (TableStopped, BatchRejected, AssertionError) as error:
        raise AssertionError(f"{case}: {error}") from error


async def test_an_identity_whose_index_is_dropped_takes_inserts_until_there_is_another(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(ITEMS)
    identify(source, "USING INDEX items_code")
    fill(source)
    work(source, 1)
    source.execute("ALTER PUBLICATION everything SET (publish = 'insert, truncate'); DROP INDEX items_code")
    work(source, 4, only_inserts=True)
    await replica.deliver()
    assert replica.plans[list(replica.plans)[-1]].shape.is_insert_only
    identify(source, "DEFAULT")
    work(source, 7)
    await replica.deliver()


async def test_rows_that_were_deleted_while_nothing_identified_them_are_met_again(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(ITEMS)
    source.execute("ALTER PUBLICATION everything SET (publish = 'insert, update, delete, truncate')")
    source.execute("INSERT INTO items VALUES (1, 'a', 1)")
    identify(source, "NOTHING")
    source.execute("UPDATE items SET n = 2; DELETE FROM items; INSERT INTO items VALUES (1, 'b', 1)")
    identify(source, "DEFAULT")
    with pytest.raises(BatchRejected, match="what the source deleted may still be there"):
        await replica.deliver()


@pytest.mark.parametrize("is_one_batch", [False, True], ids=["batches", "one batch"])
async def test_hazard_11_a_primary_key_that_moves_to_another_column_is_followed(
    make_replica: MakeReplica, source: Database, is_one_batch: bool
) -> None:
    replica = await make_replica(
        "CREATE TABLE t (id int PRIMARY KEY, v text, new_id bigint)",
        "CREATE TABLE t (id bigint PRIMARY KEY, v text, new_id bigint)",
        follows=False,
    )
    source.execute("INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, 9) n")
    if not is_one_batch:
        await replica.deliver()
    source.execute("UPDATE t SET new_id = id; UPDATE t SET v = 'before' WHERE id = 1; DELETE FROM t WHERE id = 2")
    if not is_one_batch:
        await replica.deliver()
    with source.transaction():
        source.execute("UPDATE t SET v = 'within, before' WHERE id = 3; UPDATE t SET id = 40, new_id = 40 WHERE id = 4")
        source.execute("ALTER TABLE t ALTER COLUMN new_id SET NOT NULL")
        source.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (new_id)")
        source.execute("ALTER TABLE t RENAME COLUMN id TO old_id; ALTER TABLE t RENAME COLUMN new_id TO id")
        source.execute("ALTER TABLE t ALTER COLUMN old_id DROP NOT NULL")
        source.execute("UPDATE t SET v = 'within, after' WHERE id = 5; DELETE FROM t WHERE id = 6")
        source.execute("UPDATE t SET id = 5000000000, old_id = NULL WHERE id = 7")
        source.execute("INSERT INTO t (id, v) VALUES (6000000000, 'large')")
    source.execute("UPDATE t SET v = 'after' WHERE id > 5; DELETE FROM t WHERE id = 8")
    await replica.deliver(compare=False)
    query = "SELECT id, v FROM t ORDER BY id"
    assert replica.target.fetch(query) == source.fetch(query)


WIDE = ", ".join(f"k{n} int" for n in range(10))
WIDE_KEY = ", ".join(f"k{n}" for n in range(10))

KEYS = {
    "the same columns in another order": (
        "CREATE TABLE t (a int, v text, b text, PRIMARY KEY (b, a))",
        "CREATE TABLE t (v text, b text, a int, UNIQUE (a, b))",
        "n, 'v' || n, 'b' || n % 3",
        "UPDATE t SET b = 'moved' WHERE a = 3; UPDATE t SET a = 100, b = 'both' WHERE a = 4",
    ),
    "columns that are not the first, of mixed types": (
        "CREATE TABLE t (v text, d date, n int, u uuid, k numeric, PRIMARY KEY (d, u, k))",
        None,
        "'v' || n, date '2020-01-01' + n, n, md5(n::text)::uuid, n / 7.0",
        "UPDATE t SET k = k * 1.000 WHERE n = 3; UPDATE t SET d = 'infinity' WHERE n = 4;"
        "UPDATE t SET k = 'NaN' WHERE n = 5",
    ),
    "an index with columns that it only includes": (
        "CREATE TABLE t (n int NOT NULL, a int, v text);"
        "CREATE UNIQUE INDEX t_n ON t (n) INCLUDE (a, v); ALTER TABLE t REPLICA IDENTITY USING INDEX t_n",
        None,
        "n, n, 'v' || n",
        "UPDATE t SET a = NULL WHERE n = 3; UPDATE t SET v = 'x' WHERE n = 3; UPDATE t SET n = 100 WHERE n = 4",
    ),
    "ten columns": (
        f"CREATE TABLE t ({WIDE}, v text, PRIMARY KEY ({WIDE_KEY}))",
        f"CREATE TABLE t ({WIDE}, v text, UNIQUE ({', '.join(f'k{n}' for n in reversed(range(10)))}))",
        ", ".join(["n"] * 10) + ", 'v'",
        "UPDATE t SET k9 = 0 WHERE k0 = 3; UPDATE t SET k0 = 100, k5 = 7 WHERE k0 = 4; DELETE FROM t WHERE k3 = 5",
    ),
    "nothing but the key": (
        "CREATE TABLE t (a int, b int, PRIMARY KEY (b, a))",
        None,
        "n, n",
        "UPDATE t SET b = 0 WHERE a = 3; UPDATE t SET a = 100 WHERE a = 4; UPDATE t SET a = 5 WHERE a = 5",
    ),
    "more than the target's unique index": (
        "CREATE TABLE t (a int, b int, v text, PRIMARY KEY (a, b))",
        "CREATE TABLE t (v text, b int, a int UNIQUE)",
        "n, n, 'v'",
        "UPDATE t SET b = 0 WHERE a = 3; UPDATE t SET a = 100 WHERE a = 4; UPDATE t SET v = 'x' WHERE a = 5",
    ),
    "fewer than the target's unique index": (
        "CREATE TABLE t (a int PRIMARY KEY, b int NOT NULL, v text)",
        "CREATE TABLE t (v text, b int, a int, UNIQUE (b, a))",
        "n, n, 'v'",
        "UPDATE t SET b = 0 WHERE a = 3; UPDATE t SET a = 100 WHERE a = 4; UPDATE t SET v = 'x' WHERE a = 5",
    ),
}


@pytest.mark.parametrize("case", KEYS)
async def test_a_key_of_any_columns_in_any_order_finds_its_rows(
    make_replica: MakeReplica, source: Database, case: str
) -> None:
    here, there, row, changes = KEYS[case]
    replica = await make_replica(here, there, follows=False)
    source.execute(f"INSERT INTO t SELECT {row} FROM generate_series(1, 20) n")
    await replica.deliver()
    source.execute(changes)
    assert not (await replica.deliver()).was_strict
    source.execute("DELETE FROM t")
    for statement in (f"INSERT INTO t SELECT {row} FROM generate_series(1, 9) n", *changes.split(";"), "DELETE FROM t"):
        source.execute(statement)
    source.execute(f"INSERT INTO t SELECT {row} FROM generate_series(5, 7) n")
    await replica.deliver()


async def test_rows_with_null_in_a_unique_index_are_known_by_all_their_values(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(
        "CREATE TABLE t (k int UNIQUE, v text); ALTER TABLE t REPLICA IDENTITY FULL",
    )
    with pytest.raises(Exception, match="nullable"):
        source.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX t_k_key")
    source.execute("INSERT INTO t VALUES (1, 'a'), (NULL, 'b'), (NULL, 'b'), (NULL, NULL)")
    source.execute("UPDATE t SET v = 'c' WHERE k IS NULL AND v IS NULL; DELETE FROM t WHERE ctid = '(0,2)'")
    source.execute("UPDATE t SET k = 2 WHERE v = 'b'; UPDATE t SET k = NULL WHERE k = 1")
    await replica.deliver()


CI = "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
NAMES = "CREATE TABLE names (name text {} PRIMARY KEY, v int);"
COLLATIONS = {
    "on both sides": (CI + NAMES.format("COLLATE ci"), None),
    "at the source": (CI + NAMES.format("COLLATE ci"), NAMES.format("")),
    "at the target": (NAMES.format(""), CI + NAMES.format("COLLATE ci")),
    "at the target, without a unique index": (
        NAMES.format(""),
        CI + "CREATE TABLE names (v int, name text COLLATE ci);",
    ),
    "at both, without a unique index at the target": (
        CI + NAMES.format("COLLATE ci"),
        CI + "CREATE TABLE names (v int, name text COLLATE ci);",
    ),
}


@pytest.mark.parametrize("case", COLLATIONS)
async def test_a_key_that_changes_its_bytes_but_not_its_value_is_found(
    make_replica: MakeReplica, source: Database, case: str
) -> None:
    needs_loose_collations(source)
    here, there = COLLATIONS[case]
    replica = await make_replica(here, there, follows=False)
    source.execute("INSERT INTO names SELECT 'name ' || n, n FROM generate_series(1, 9) n")
    await replica.deliver()
    source.execute("UPDATE names SET name = 'NAME 1' WHERE name = 'name 1'")
    await replica.deliver()
    source.execute(
        "UPDATE names SET name = 'Name 2', v = 20 WHERE v = 2; UPDATE names SET name = 'name 2' WHERE v = 20"
    )
    source.execute("DELETE FROM names WHERE v = 3; INSERT INTO names VALUES ('NAME 3', 30)")
    source.execute("DELETE FROM names WHERE v = 4; INSERT INTO names VALUES ('NAME 4', 4)")
    source.execute("UPDATE names SET name = 'nAme 4' WHERE v = 4; UPDATE names SET v = 44 WHERE v = 4")
    source.execute("UPDATE names SET name = 'NAME 5' WHERE v = 5; DELETE FROM names WHERE v = 5")
    source.execute("INSERT INTO names VALUES ('Name 5', 5)")
    await replica.deliver()
    source.execute("UPDATE names SET name = upper(name), v = v + 100; DELETE FROM names WHERE v = 109")
    await replica.deliver()


async def test_rows_that_a_targets_collation_takes_for_one_are_told_apart_by_their_bytes(
    make_replica: MakeReplica, source: Database
) -> None:
    needs_loose_collations(source)
    replica = await make_replica(*COLLATIONS["at the target, without a unique index"], follows=False)
    source.execute("INSERT INTO names VALUES ('a', 1), ('A', 2), ('b', 3), ('B', 4)")
    await replica.deliver()
    source.execute("UPDATE names SET v = v * 10")
    await replica.deliver()
    source.execute("DELETE FROM names WHERE name = 'a'; UPDATE names SET name = 'a' WHERE name = 'A'")
    source.execute("INSERT INTO names VALUES ('A', 5); UPDATE names SET v = 50 WHERE name = 'b'")
    source.execute("DELETE FROM names WHERE name = 'B'")
    await replica.deliver()


async def test_rows_that_a_targets_unique_index_takes_for_one_are_refused(
    make_replica: MakeReplica, source: Database
) -> None:
    needs_loose_collations(source)
    replica = await make_replica(*COLLATIONS["at the target"], follows=False)
    source.execute("INSERT INTO names VALUES ('a', 1), ('A', 2)")
    with pytest.raises(BatchRejected, match="breaks a rule that the source does not have"):
        await replica.deliver()
