"""What a set-based statement cannot do: the batch is replayed in the source's order, and comes out equal."""

from __future__ import annotations

from tests.database import Database
from tests.integration.replica import MakeReplica, make_replica

__all__ = ["make_replica"]

USERS = """
    CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE, active boolean DEFAULT true, rank int);
    CREATE UNIQUE INDEX ON users (rank) WHERE active;
"""


async def test_hazard_10_a_unique_value_swapped_through_a_temporary_one_arrives(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(USERS)
    source.execute("INSERT INTO users VALUES (1, 'a', true, 1), (2, 'b', true, 2), (3, 'c', true, 3)")
    await replica.deliver()
    with source.transaction():
        source.execute("UPDATE users SET email = 'tmp' WHERE id = 1")
        source.execute("UPDATE users SET email = 'a' WHERE id = 2")
        source.execute("UPDATE users SET email = 'b' WHERE id = 1")
    applied = await replica.deliver()
    assert applied.was_strict


async def test_hazard_10_values_of_a_partial_unique_index_move_between_rows(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(USERS)
    source.execute("INSERT INTO users SELECT n, 'mail ' || n, true, n FROM generate_series(1, 200) n")
    await replica.deliver()
    with source.transaction():
        source.execute("UPDATE users SET active = false WHERE id = 1")
        source.execute("UPDATE users SET rank = 1 WHERE id = 2")
        source.execute("UPDATE users SET rank = 2 WHERE id = 3")
        source.execute("UPDATE users SET rank = 3, active = true WHERE id = 1")
    source.execute("UPDATE users SET active = NOT active WHERE id > 100")
    with source.transaction():
        source.execute("DELETE FROM users WHERE id = 50")
        source.execute("INSERT INTO users VALUES (500, 'mail 50', true, 50)")
        source.execute("UPDATE users SET email = 'mail 500' WHERE id = 500")
        source.execute("UPDATE users SET email = 'mail 50' WHERE id = 51")
    await replica.deliver()


async def test_only_the_transaction_that_needs_it_is_replayed_in_order(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(USERS + "CREATE TABLE log (id int PRIMARY KEY)")
    source.execute("INSERT INTO users VALUES (1, 'a', false, 1), (2, 'b', false, 2)")
    for number in range(20):
        source.execute("INSERT INTO log VALUES (%s)", number)
        if number == 13:
            source.execute(
                "BEGIN; UPDATE users SET email = 't' WHERE id = 1; UPDATE users SET email = 'a' WHERE id = 2;"
                "UPDATE users SET email = 'b' WHERE id = 1; COMMIT"
            )
    applied = await replica.deliver()
    assert applied.tables["public.log"].inserted == 20


async def test_a_child_before_its_parent_arrives_although_the_target_cannot_defer(
    make_replica: MakeReplica, source: Database
) -> None:
    tables = (
        "CREATE TABLE parents (id int PRIMARY KEY, u int UNIQUE); CREATE TABLE children (id int PRIMARY KEY, parent int"
    )
    here = tables + " REFERENCES parents DEFERRABLE INITIALLY DEFERRED);"
    there = tables + " REFERENCES parents);"
    replica = await make_replica(here, there, triggers_fire=True)
    source.execute("INSERT INTO parents VALUES (1, 1), (2, 2)")
    await replica.deliver()
    with source.transaction():
        source.execute("INSERT INTO children SELECT n, 10 FROM generate_series(1, 5) n")
        # Refused by the fast path, so that the order of the source is tried:
        source.execute("UPDATE parents SET u = 0 WHERE id = 1; UPDATE parents SET u = 1 WHERE id = 2")
        source.execute("UPDATE parents SET u = 2 WHERE id = 1")
        source.execute("INSERT INTO parents VALUES (10, 10)")
        source.execute("UPDATE children SET parent = 1 WHERE id = 2; DELETE FROM children WHERE id = 3")
    applied = await replica.deliver()
    assert applied.was_strict


async def test_parents_are_inserted_first_and_deleted_last(make_replica: MakeReplica, source: Database) -> None:
    ddl = """
        CREATE TABLE a_children (id int PRIMARY KEY, parent int);
        CREATE TABLE parents (id int PRIMARY KEY, up int REFERENCES parents);
        ALTER TABLE a_children ADD FOREIGN KEY (parent) REFERENCES parents;
    """
    replica = await make_replica(ddl, triggers_fire=True)
    source.execute("INSERT INTO parents VALUES (1, NULL), (2, 1), (3, 2); INSERT INTO a_children VALUES (1, 3), (2, 2)")
    source.execute("DELETE FROM a_children WHERE parent = 3; DELETE FROM parents WHERE id = 3")
    source.execute("INSERT INTO parents VALUES (4, 1); INSERT INTO a_children VALUES (4, 4)")
    assert not (await replica.deliver()).was_strict
    source.execute("DELETE FROM a_children; DELETE FROM parents WHERE id = 4; DELETE FROM parents WHERE id = 2")
    assert not (await replica.deliver()).was_strict


async def test_rows_that_the_target_cascaded_away_are_not_missed(make_replica: MakeReplica, source: Database) -> None:
    ddl = """
        CREATE TABLE parents (id int PRIMARY KEY);
        CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE);
    """
    replica = await make_replica(ddl, triggers_fire=True)
    source.execute(
        "INSERT INTO parents VALUES (1), (2); INSERT INTO children SELECT n, n % 2 + 1 FROM generate_series(1, 9) n"
    )
    await replica.deliver()
    source.execute("DELETE FROM parents WHERE id = 1")
    parts = await replica.record()
    replica.target.execute("DELETE FROM parents WHERE id = 1; INSERT INTO parents VALUES (1)")
    await replica.apply(parts)
    for relation in parts[0].relations:
        replica.assert_equal(relation)


async def test_a_key_that_is_referred_to_is_updated_in_place(make_replica: MakeReplica, source: Database) -> None:
    ddl = """
        CREATE TABLE parents (id int PRIMARY KEY, x text);
        CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON UPDATE CASCADE);
    """
    replica = await make_replica(ddl, triggers_fire=True)
    source.execute("INSERT INTO parents VALUES (1, 'a'), (2, 'b'); INSERT INTO children VALUES (1, 1), (2, 2)")
    await replica.deliver()
    source.execute("UPDATE parents SET id = 10 WHERE id = 1; UPDATE parents SET x = 'c' WHERE id = 10")
    await replica.deliver()


async def test_deferred_constraints_are_checked_at_the_end_of_each_transaction(
    make_replica: MakeReplica, source: Database
) -> None:
    ddl = """
        CREATE TABLE parents (id int PRIMARY KEY);
        CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED);
        CREATE TABLE slots (id int PRIMARY KEY, place int UNIQUE DEFERRABLE);
    """
    replica = await make_replica(ddl, triggers_fire=True)
    source.execute("BEGIN; INSERT INTO children VALUES (1, 1); INSERT INTO parents VALUES (1); COMMIT")
    source.execute("INSERT INTO slots SELECT n, n FROM generate_series(1, 9) n; UPDATE slots SET place = 10 - place")
    assert not (await replica.deliver()).was_strict


async def test_a_hot_row_among_others_is_replayed_in_order(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(USERS)
    source.execute("INSERT INTO users SELECT n, 'mail ' || n, false, n FROM generate_series(1, 50) n")
    await replica.deliver()
    with source.transaction():
        for number in range(60):
            source.execute("UPDATE users SET rank = %s WHERE id IN (1, 2)", number)
        source.execute("UPDATE users SET email = 'tmp' WHERE id = 3; UPDATE users SET email = 'mail 3' WHERE id = 4")
        source.execute("UPDATE users SET email = 'mail 4' WHERE id = 3; UPDATE users SET id = 100 WHERE id = 1")
        source.execute("INSERT INTO users VALUES (1, 'again', true, 1); DELETE FROM users WHERE id = 100")
    applied = await replica.deliver()
    assert applied.was_strict
