"""Constraints that see what the source never showed: foreign keys that act, keys that trade places, ranges that do."""

from __future__ import annotations

import pytest

from cdc.errors import BatchRejected, CdcError
from cdc.routing.route import Route
from tests.database import Database
from tests.integration.replica import MakeReplica, Replica, make_replica

__all__ = ["make_replica"]


async def deliver(replica: Replica, case: str, *, each: bool = False) -> None:
    """Deliver in one batch, or transaction by transaction, and compare; a failure says which case it was."""
    try:
        if each:
            for part in await replica.record():
                await replica.apply([part])
            for relation in replica.plans:
                replica.assert_equal(relation)
        else:
            await replica.deliver()
    except (CdcError, AssertionError) as error:
        raise AssertionError(f"{case}: {error}") from error


FAMILY = """
    CREATE TABLE regions (id int PRIMARY KEY, code text);
    CREATE TABLE people (id int PRIMARY KEY, region int REFERENCES regions {0}, boss int REFERENCES people {0});
    CREATE TABLE pets (region int REFERENCES regions {0}, n int, owner int REFERENCES people {0}, name text,
                       PRIMARY KEY (region, n));
    CREATE TABLE toys (region int, n int, name text, PRIMARY KEY (region, n, name),
                       FOREIGN KEY (region, n) REFERENCES pets {0});
"""
FILL = """
    INSERT INTO regions SELECT n, 'r' || n FROM generate_series(1, 6) n;
    INSERT INTO people SELECT n, n, CASE WHEN n = 6 THEN 5 END FROM generate_series(1, 6) n;
    INSERT INTO pets SELECT n, n, n, 'pet ' || n FROM generate_series(1, 6) n;
    INSERT INTO toys SELECT n, n, 'toy ' || m FROM generate_series(1, 6) n, generate_series(1, 2) m;
"""
ACTIONS = {
    "cascade": "ON DELETE CASCADE ON UPDATE CASCADE",
    "no action": "ON UPDATE CASCADE",
    "restrict": "ON DELETE RESTRICT ON UPDATE CASCADE",
    "deferrable": "ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE",
}
FROM_THE_LEAVES = (
    "DELETE FROM toys WHERE region = 1; DELETE FROM pets WHERE region = 1;"
    "UPDATE people SET boss = NULL WHERE boss = 1;"
    "DELETE FROM people WHERE id = 1; DELETE FROM regions WHERE id = 1"
)
FAMILY_WORK: dict[str, str | dict[str, str]] = {
    "a row and all that refers to it": {
        "cascade": "DELETE FROM regions WHERE id = 1",
        "deferrable": "DELETE FROM regions WHERE id = 1",
        "no action": FROM_THE_LEAVES,
        "restrict": FROM_THE_LEAVES,
    },
    "what refers to it moves away before": (
        "UPDATE people SET region = 3, boss = 3 WHERE id = 2; UPDATE people SET boss = 2 WHERE id = 3;"
        "UPDATE toys SET region = 3, n = 3, name = name || 'x' WHERE region = 2; DELETE FROM pets WHERE region = 2;"
        "DELETE FROM regions WHERE id = 2"
    ),
    "it comes back in one transaction": (
        "DELETE FROM toys WHERE region = 3; DELETE FROM pets WHERE region = 3;"
        "INSERT INTO pets VALUES (3, 3, 4, 'back');"
        "INSERT INTO toys VALUES (3, 3, 'back')"
    ),
    "keys change and drag others along": (
        "UPDATE regions SET id = 40 WHERE id = 4; UPDATE pets SET n = 44 WHERE region = 40;"
        "UPDATE toys SET name = 'dragged' || name WHERE region = 40; UPDATE people SET id = 41 WHERE id = 4"
    ),
    "parent and child of one row": (
        "INSERT INTO people VALUES (50, 5, 5), (51, 5, 50); UPDATE people SET boss = 51 WHERE id = 5;"
        "UPDATE people SET boss = 5 WHERE id = 51; UPDATE people SET boss = NULL WHERE id = 50;"
        "DELETE FROM people WHERE id = 50"
    ),
    "a cycle": (
        "UPDATE people SET boss = 6 WHERE id = 6; INSERT INTO people VALUES (60, 6, 60), (61, 6, 60);"
        "UPDATE people SET boss = 61 WHERE id = 60"
    ),
}


@pytest.mark.parametrize("action", ACTIONS)
async def test_foreign_keys_that_fire_do_not_do_twice_what_the_source_did(
    make_replica: MakeReplica, source: Database, action: str
) -> None:
    ddl = FAMILY.format(ACTIONS[action])
    # A unique value that is traded makes the whole transaction go change by change.
    trade = "UPDATE regions SET code = 'x' WHERE id = {0}; UPDATE regions SET code = 'r{0}' WHERE id = {1};"
    trade += "UPDATE regions SET code = 'r{1}' WHERE id = {0};"
    unique = "ALTER TABLE regions ADD UNIQUE (code); ALTER TABLE people ADD own text DEFAULT 'ours';"
    replica = await make_replica(ddl, ddl + unique, triggers_fire=True, follows=False)
    works = {name: work if isinstance(work, str) else work[action] for name, work in FAMILY_WORK.items()}
    for way in ("one batch", "batches", "one transaction", "in order"):
        source.execute(f"TRUNCATE regions, people, pets, toys; {FILL}")
        await deliver(replica, f"before {way}")
        if way == "one transaction":
            source.execute(";".join(works.values()))
        else:
            for number, (name, work) in enumerate(works.items()):
                source.execute(trade.format(*((5, 6), (6, 5))[number % 2]) + work if way == "in order" else work)
                if way != "one batch":
                    await deliver(replica, f"{way}: {name}")
        await deliver(replica, way)


SET_NULL = """
    CREATE TABLE regions (id int PRIMARY KEY);
    CREATE TABLE people (
        id int PRIMARY KEY, region int DEFAULT 1 REFERENCES regions ON DELETE {0} ON UPDATE {0}, v int);
    CREATE TABLE log (region int DEFAULT 1 REFERENCES regions ON DELETE {0} ON UPDATE {0}, v int);
    ALTER TABLE log REPLICA IDENTITY FULL;
"""


@pytest.mark.parametrize("action", ["SET NULL", "SET DEFAULT", "CASCADE"])
async def test_rows_that_the_target_has_changed_by_itself_are_found(
    make_replica: MakeReplica, source: Database, action: str
) -> None:
    replica = await make_replica(SET_NULL.format(action), triggers_fire=True)
    source.execute("INSERT INTO regions SELECT generate_series(1, 9)")
    source.execute(
        "INSERT INTO people SELECT n, n, n FROM generate_series(1, 9) n;"
        "INSERT INTO log SELECT n, n FROM generate_series(1, 9) n"
    )
    await replica.deliver()
    source.execute("DELETE FROM regions WHERE id = 2")
    await deliver(replica, "deleted")
    source.execute("UPDATE regions SET id = 30 WHERE id = 3")
    await deliver(replica, "changed")
    source.execute(
        "UPDATE people SET v = 40 WHERE id = 4; UPDATE log SET v = 40 WHERE v = 4;"
        "DELETE FROM regions WHERE id = 4; UPDATE people SET v = v + 1; UPDATE log SET v = v + 1"
    )
    await deliver(replica, "among others")


ROTATION = """
    CREATE TABLE t (id int, v text, big text, UNIQUE (id) {0});
    ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL, ALTER COLUMN id SET NOT NULL;
    ALTER TABLE t REPLICA IDENTITY FULL;
"""
BIG = "repeat(md5(n::text), 100)"
ROTATIONS = {
    "a swap in one statement": ["UPDATE t SET id = 3 - id WHERE id IN (1, 2)"],
    "a chain in one statement": ["UPDATE t SET id = id + 1"],
    "a chain down in one statement": ["UPDATE t SET id = id - 1"],
    "a rotation in one statement": ["UPDATE t SET id = id % 9 + 1"],
    "rotations in one transaction": ["UPDATE t SET id = id % 9 + 1; UPDATE t SET id = id % 9 + 1, v = v || 'x'"],
    "rotations in one batch": ["UPDATE t SET id = id % 9 + 1", "UPDATE t SET id = id % 9 + 1, v = v || 'x'"],
    "a chain among other changes": [
        "UPDATE t SET v = 'before' WHERE id = 3; UPDATE t SET id = id + 1; UPDATE t SET v = 'after' WHERE id = 5;"
        "DELETE FROM t WHERE id = 6; INSERT INTO t VALUES (1, 'new', 'big'); UPDATE t SET id = 6 WHERE id = 1"
    ],
    "the new row before the old one goes": [
        "INSERT INTO t VALUES (1, 'new', 'big'); DELETE FROM t WHERE id = 1 AND v <> 'new'"
    ],
    "both rows of a key change before one goes": [
        "INSERT INTO t VALUES (1, 'new', 'big'); UPDATE t SET v = v || '!' WHERE id = 1;"
        "DELETE FROM t WHERE id = 1 AND v = 'new!'"
    ],
}


@pytest.mark.parametrize("there", ["DEFERRABLE INITIALLY DEFERRED", "", "none"])
async def test_keys_that_trade_places_while_the_source_defers_its_constraint_arrive(
    make_replica: MakeReplica, source: Database, there: str
) -> None:
    here = ROTATION.format("DEFERRABLE INITIALLY DEFERRED")
    target = (
        here.replace(", UNIQUE (id) DEFERRABLE INITIALLY DEFERRED", "") if there == "none" else ROTATION.format(there)
    )
    replica = await make_replica(here, target, follows=False, triggers_fire=True)
    for name, statements in ROTATIONS.items():
        source.execute(f"TRUNCATE t; INSERT INTO t SELECT n, 'v' || n, {BIG} FROM generate_series(1, 9) n")
        await deliver(replica, f"before {name}")
        for statement in statements:
            source.execute(statement)
        await deliver(replica, name)
        source.execute("UPDATE t SET v = v || 'afterwards'; DELETE FROM t WHERE id = 4")
        await deliver(replica, f"after {name}")


SECOND = "CREATE TABLE t (id int PRIMARY KEY, place int, v text, UNIQUE (place) {0});"


@pytest.mark.parametrize("fires", [False, True], ids=["replica", "origin"])
@pytest.mark.parametrize("timing", ["DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"])
async def test_values_of_a_deferrable_unique_constraint_rotate_among_rows(
    make_replica: MakeReplica, source: Database, timing: str, fires: bool
) -> None:
    replica = await make_replica(SECOND.format(timing), triggers_fire=fires)
    source.execute("INSERT INTO t SELECT n, n, 'v' FROM generate_series(1, 9) n")
    await replica.deliver()
    source.execute("UPDATE t SET place = place % 9 + 1")
    source.execute("UPDATE t SET place = 10 - place; DELETE FROM t WHERE id = 3; UPDATE t SET place = 0 WHERE id = 4")
    source.execute(
        "UPDATE t SET id = id + 100 WHERE id > 4;"
        "INSERT INTO t SELECT 4 + n, 100 + n, 'new' FROM generate_series(1, 5) n"
    )
    await replica.deliver()


async def test_values_that_rotate_through_a_unique_index_which_cannot_wait_are_refused(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(SECOND.format("DEFERRABLE"), SECOND.format(""), follows=False)
    source.execute("INSERT INTO t SELECT n, n, 'v' FROM generate_series(1, 9) n")
    await replica.deliver()
    source.execute("UPDATE t SET place = place % 9 + 1")
    with pytest.raises(BatchRejected, match="Drop the constraint or make it deferrable"):
        await replica.deliver()


BOOKINGS = "CREATE TABLE bookings (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&) {0});"


@pytest.mark.parametrize("fires", [False, True], ids=["replica", "origin"])
@pytest.mark.parametrize("timing", ["", "DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"])
async def test_ranges_that_exclude_each_other_trade_places(
    make_replica: MakeReplica, source: Database, timing: str, fires: bool
) -> None:
    replica = await make_replica(BOOKINGS.format(timing), triggers_fire=fires)
    source.execute("INSERT INTO bookings SELECT n, int4range(n * 10, n * 10 + 10) FROM generate_series(1, 9) n")
    await replica.deliver()
    source.execute(
        "UPDATE bookings SET during = int4range(500, 510) WHERE id = 1;"
        "UPDATE bookings SET during = int4range(10, 20) WHERE id = 2;"
        "UPDATE bookings SET during = int4range(20, 30) WHERE id = 1"
    )
    source.execute("DELETE FROM bookings WHERE id = 3; INSERT INTO bookings VALUES (100, '[30,40)')")
    if timing:
        source.execute("UPDATE bookings SET during = int4range(130 - upper(during), 140 - upper(during))")
        with source.transaction():
            source.execute("SET CONSTRAINTS ALL DEFERRED")
            source.execute("UPDATE bookings SET during = '[50,60)' WHERE id = 4")
            source.execute("UPDATE bookings SET during = '[900,910)' WHERE id <> 4 AND during && '[50,60)'")
    source.execute("UPDATE bookings SET id = id + 100 WHERE id < 100")
    await replica.deliver()


async def test_a_deferred_constraint_that_only_the_target_has_speaks_at_the_end_of_its_transaction(
    make_replica: MakeReplica, source: Database
) -> None:
    plain = "CREATE TABLE bookings (id int PRIMARY KEY, during int4range);"
    replica = await make_replica(
        plain, BOOKINGS.format("DEFERRABLE INITIALLY DEFERRED"), follows=False, triggers_fire=True
    )
    source.execute("INSERT INTO bookings VALUES (1, '[1,9)')")
    source.execute("INSERT INTO bookings VALUES (2, '[5,7)')")
    source.execute("INSERT INTO bookings VALUES (3, '[20,30)')")
    parts = await replica.record()
    with pytest.raises(BatchRejected, match="bookings_during_excl") as caught:
        await replica.apply(parts)
    assert caught.value.commit_lsn == parts[1].commit_lsn


async def test_keys_trade_places_under_foreign_keys(make_replica: MakeReplica, source: Database) -> None:
    ddl = """
        CREATE TABLE parents (id int PRIMARY KEY, v text, big text);
        ALTER TABLE parents ALTER COLUMN big SET STORAGE EXTERNAL;
        CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON UPDATE CASCADE);
    """
    replica = await make_replica(ddl, triggers_fire=True)
    source.execute(
        f"INSERT INTO parents SELECT n, 'v' || n, {BIG} FROM generate_series(1, 5) n;"
        "INSERT INTO children SELECT n, n FROM generate_series(1, 5) n"
    )
    await replica.deliver()
    swap = "UPDATE parents SET id = -1 WHERE id = {0}; UPDATE parents SET id = {0} WHERE id = {1};"
    swap += "UPDATE parents SET id = {1} WHERE id = -1;"
    source.execute(swap.format(1, 2))
    await deliver(replica, "a swap")
    source.execute(swap.format(1, 2) + swap.format(2, 3) + swap.format(3, 4))
    source.execute(swap.format(4, 5))
    source.execute(
        "UPDATE children SET parent = 1 WHERE id = 5; DELETE FROM parents WHERE id NOT IN (SELECT parent FROM children)"
    )
    await deliver(replica, "a rotation")


async def test_truncate_among_changes_of_the_same_tables(make_replica: MakeReplica, source: Database) -> None:
    ddl = """
        CREATE TABLE a (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
        CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);
        CREATE TABLE c (v text); ALTER TABLE c REPLICA IDENTITY FULL;
        CREATE TABLE unrouted (a int REFERENCES a);
    """
    replica = await make_replica(ddl, triggers_fire=True)
    replica.routes = [Route("public", name, "public", name) for name in ("a", "b", "c")]
    with source.transaction():
        source.execute("INSERT INTO a (v) VALUES ('x'), ('y'); INSERT INTO b VALUES (1, 1); INSERT INTO c VALUES ('z')")
        source.execute("INSERT INTO unrouted VALUES (1)")
        source.execute("UPDATE a SET v = 'u'; TRUNCATE a, c RESTART IDENTITY CASCADE; INSERT INTO c VALUES ('z')")
        source.execute("INSERT INTO a (v) VALUES ('again'); INSERT INTO b VALUES (2, 1); UPDATE c SET v = 'w'")
    await deliver(replica, "one transaction")
    source.execute("DELETE FROM b; UPDATE a SET v = 'v'; DELETE FROM c")
    source.execute("TRUNCATE b")
    source.execute("INSERT INTO b VALUES (2, 1); INSERT INTO c VALUES ('c')")
    source.execute("TRUNCATE a RESTART IDENTITY CASCADE; TRUNCATE c")
    source.execute(
        "INSERT INTO a (v) VALUES ('new'); INSERT INTO b VALUES (3, 1); TRUNCATE b; INSERT INTO b VALUES (3, 1)"
    )
    await deliver(replica, "one batch")


async def test_keys_that_trade_places_in_overlap_come_out_right(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(
        ROTATION.format("DEFERRABLE INITIALLY DEFERRED"), ROTATION.format(""), follows=False, triggers_fire=True
    )
    replica.overlap = True
    for name, statements in ROTATIONS.items():
        for restored in range(len(statements) + 1):
            source.execute(f"DELETE FROM t; INSERT INTO t SELECT n, 'v' || n, {BIG} FROM generate_series(1, 9) n")
            await replica.record()
            replica.target.execute("TRUNCATE t")
            for number, statement in enumerate([*statements, "UPDATE t SET v = v || '.' WHERE id = 5"]):
                if number == restored:
                    replica.restore(t="id, v, big")
                source.execute(statement)
            await deliver(replica, f"{name}, restored before {restored}")
