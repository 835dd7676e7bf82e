"""Overlap: changes are streamed over rows that hold them already, and come out as the source has them.

The tests let the source do something, restore what it holds then, and stream everything over it from the start.
"""

from __future__ import annotations

import pytest

from cdc.errors import BatchRejected, TableStopped
from tests.database import Database
from tests.integration.replica import MakeReplica, Replica, make_replica

__all__ = ["make_replica"]

BIG = "repeat(md5(random()::text), 300)"
"""A text of 9 kB, which is stored out of line and not sent while it stays as it is."""

COLUMNS = "id, name, body, size"
DOCS = """
    CREATE TABLE docs (id int PRIMARY KEY, name text, body text, size int);
    ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
"""
FILL = f"INSERT INTO docs SELECT n, 'name ' || n, {BIG}, n FROM generate_series(1, 6) n"

TARGETS = {
    "as restored": DOCS,
    "another order and columns of its own": """
        CREATE TABLE docs (extra text DEFAULT 'ours', size numeric, body text, id bigint PRIMARY KEY, name text)""",
    "without an index": "CREATE TABLE docs (body text, name text, size int, id int)",
    "a key that is unique at the end only": "CREATE TABLE docs (id int UNIQUE DEFERRABLE, name text, body text,"
    " size int)",
    "identities that refuse values": """
        CREATE TABLE docs (name text, id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text, size int)""",
    "an identity beside the key": """
        CREATE TABLE docs (name text, id int PRIMARY KEY, body text, size int GENERATED ALWAYS AS IDENTITY)""",
    "a generated column": """
        CREATE TABLE docs (name text, id int PRIMARY KEY, body text, size int,
            loud text GENERATED ALWAYS AS (upper(name)) STORED)""",
}


async def stream_over(replica: Replica, columns: str = COLUMNS, *, batches: int = 1) -> None:
    """Restore, stream in overlap what was committed before and what comes now, cut over; it comes out equal."""
    replica.overlap = True
    parts = await replica.record()
    replica.restore(docs=columns)
    replica.source.execute("UPDATE docs SET name = name || '.' WHERE id % 2 = 0; DELETE FROM docs WHERE id = 5")
    replica.source.execute("INSERT INTO docs (id, name, size) VALUES (5, 'again', 5), (99, 'late', 99)")
    parts += await replica.record()
    size = -(-len(parts) // batches)
    for first in range(0, len(parts), size):
        await replica.apply(parts[first : first + size])
    replica.assert_equal(next(iter(replica.plans)))
    replica.cut_over()
    replica.source.execute("UPDATE docs SET size = 1000 + id; DELETE FROM docs WHERE id = 99")
    await replica.deliver()


@pytest.mark.parametrize("ddl", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("batches", [1, 100])
async def test_rows_that_came_changed_and_went_arrive_as_they_are(
    make_replica: MakeReplica, source: Database, ddl: str, batches: int
) -> None:
    replica = await make_replica(DOCS, ddl, follows=False)
    source.execute(FILL)
    source.execute("UPDATE docs SET size = size + 1 WHERE id < 4")  # the bodies are not sent
    source.execute("DELETE FROM docs WHERE id IN (1, 2); INSERT INTO docs VALUES (1, 'new', 'small', 1)")
    source.execute(f"UPDATE docs SET body = {BIG} WHERE id IN (1, 3); UPDATE docs SET size = 0 WHERE id = 3")
    source.execute("INSERT INTO docs (id, size) VALUES (7, 7); DELETE FROM docs WHERE id = 7")
    source.execute("UPDATE docs SET id = 8, name = NULL WHERE id = 4; INSERT INTO docs VALUES (4, 'heir', 'x', 44)")
    await stream_over(replica, batches=batches)


@pytest.mark.parametrize("ddl", TARGETS.values(), ids=TARGETS)
async def test_hazard_06_a_changed_key_keeps_the_unchanged_value_of_the_restored_row(
    make_replica: MakeReplica, source: Database, ddl: str
) -> None:
    replica = await make_replica(DOCS, ddl, follows=False)
    source.execute(FILL)
    await replica.record()  # the stream begins behind it: nobody sends these bodies again
    source.execute("UPDATE docs SET id = 10, name = 'moved' WHERE id = 1")
    source.execute(f"INSERT INTO docs VALUES (1, 'the old key again', {BIG}, 0)")
    source.execute("UPDATE docs SET id = 20 WHERE id = 2; UPDATE docs SET size = 22 WHERE id = 20")
    await stream_over(replica, batches=100)


@pytest.mark.parametrize("ddl", TARGETS.values(), ids=TARGETS)
async def test_a_row_that_sends_all_its_values_moves_to_a_key_that_was_in_use(
    make_replica: MakeReplica, source: Database, ddl: str
) -> None:
    replica = await make_replica(DOCS, ddl, follows=False)
    source.execute(FILL)
    await replica.record()
    source.execute("DELETE FROM docs WHERE id = 3")
    source.execute("UPDATE docs SET id = 3, body = 'small' WHERE id = 1")
    await stream_over(replica, batches=100)


async def test_hazard_06_an_old_key_that_the_stream_has_written_goes(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(DOCS)
    source.execute(FILL)
    source.execute("UPDATE docs SET id = 10 WHERE id = 1")
    await stream_over(replica, batches=100)


async def test_many_keys_change_in_one_transaction(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(DOCS)
    source.execute(FILL)
    source.execute("UPDATE docs SET id = id + 100; UPDATE docs SET id = id - 90, body = 'x'")
    await stream_over(replica)


@pytest.mark.parametrize(
    "changes",
    [
        ["DELETE FROM docs WHERE id = 2", "UPDATE docs SET id = 2 WHERE id = 1"],
        [f"UPDATE docs SET id = {new} WHERE id = {old}" for old, new in ((1, -1), (2, 1), (-1, 2))],
        [f"UPDATE docs SET id = {old + 1} WHERE id = {old}" for old in (6, 5, 4)],
    ],
    ids=["its new key was in use", "two rows exchange their keys", "rows move up by one"],
)
@pytest.mark.parametrize("batches", [1, 100])
async def test_hazard_06_a_changed_key_that_the_rows_cannot_explain_stops_the_table(
    make_replica: MakeReplica, source: Database, changes: list[str], batches: int
) -> None:
    # Each would otherwise lose a body, or give it to another row, without any error.
    replica = await make_replica(DOCS)
    source.execute(FILL)
    await replica.record()
    for change in changes:
        source.execute(change)
    with pytest.raises(TableStopped, match=r"without sending all its values.*from the live source") as caught:
        await stream_over(replica, batches=batches)
    assert (caught.value.source_table, caught.value.xid is None) == ("public.docs", False)


async def test_a_changed_key_whose_values_are_known_is_no_riddle(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(DOCS)
    source.execute(FILL)
    for old, new in ((1, -1), (2, 1), (-1, 2)):
        source.execute(f"UPDATE docs SET id = {new} WHERE id = {old}")
    await stream_over(replica)  # the inserts are in the same batch


async def test_hazard_10_unique_values_change_places_while_there_is_no_unique_index_yet(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(DOCS.replace("name text", "name text UNIQUE"), DOCS)
    source.execute(FILL)
    with source.transaction():
        source.execute("UPDATE docs SET name = 'tmp' WHERE id = 1; UPDATE docs SET name = 'name 1' WHERE id = 2")
        source.execute("UPDATE docs SET name = 'name 2' WHERE id = 1")
    source.execute("DELETE FROM docs WHERE id = 3; INSERT INTO docs VALUES (7, 'name 3', 'x', 7)")
    await stream_over(replica, batches=100)


async def test_hazard_10_an_owned_table_that_forbids_what_history_brings_says_so(
    make_replica: MakeReplica, source: Database
) -> None:
    unique = DOCS.replace("name text", "name text UNIQUE")
    replica = await make_replica(unique, follows=False)
    source.execute(FILL)
    source.execute("UPDATE docs SET name = 'tmp' WHERE id = 1; UPDATE docs SET name = 'name 1' WHERE id = 2")
    with pytest.raises(BatchRejected, match="breaks a rule that the source does not have"):
        await stream_over(replica, batches=100)


async def test_an_owned_table_takes_at_once_what_it_forbids_step_by_step(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(DOCS.replace("name text", "name text UNIQUE"), follows=False)
    source.execute(FILL)
    source.execute("UPDATE docs SET name = 'tmp' WHERE id = 1; UPDATE docs SET name = 'name 1' WHERE id = 2")
    await stream_over(replica)


async def test_a_truncated_table_is_filled_again(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(DOCS)
    source.execute(FILL)
    source.execute("TRUNCATE docs")
    source.execute(FILL.replace("(1, 6)", "(4, 9)"))
    await stream_over(replica, batches=100)


async def test_a_key_that_changes_its_bytes_only_keeps_its_row(make_replica: MakeReplica, source: Database) -> None:
    ddl = DOCS.replace("id int", "id numeric")
    replica = await make_replica(ddl)
    source.execute(FILL)
    await replica.record()
    source.execute("UPDATE docs SET id = 1.0 WHERE id = 1")
    source.execute(
        "UPDATE docs SET id = 1.00, name = 'one' WHERE id = 1; UPDATE docs SET id = 2.0, body = 'x' WHERE id = 2"
    )
    await stream_over(replica, batches=100)


@pytest.mark.parametrize("unique", ["id, name", "id"], ids=["its columns", "one of its columns"])
async def test_a_composite_key_of_which_the_target_makes_unique(
    make_replica: MakeReplica, source: Database, unique: str
) -> None:
    ddl = "CREATE TABLE docs (id int, name text, body text, size int, PRIMARY KEY (name, id));"
    replica = await make_replica(ddl, f"CREATE TABLE docs (body text, name text, size int, id int, UNIQUE ({unique}))")
    source.execute("INSERT INTO docs SELECT n, 'name ' || n, 'b', n FROM generate_series(1, 6) n")
    source.execute("UPDATE docs SET name = 'other' WHERE id = 1; DELETE FROM docs WHERE id = 2")
    await stream_over(replica)


async def test_a_table_of_nothing_but_its_key(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica("CREATE TABLE keys (id int PRIMARY KEY)")
    replica.overlap = True
    source.execute("INSERT INTO keys SELECT generate_series(1, 5); DELETE FROM keys WHERE id = 1")
    source.execute("UPDATE keys SET id = 10 WHERE id = 2")
    replica.restore(keys="id")
    await replica.deliver()


async def test_a_table_without_a_key_is_never_in_overlap(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica("CREATE TABLE bag (a int); ALTER TABLE bag REPLICA IDENTITY FULL")
    replica.overlap = True
    source.execute("INSERT INTO bag VALUES (1)")
    with pytest.raises(TableStopped, match="where a key identifies the rows; copy this table from the live source"):
        await replica.deliver()


async def test_after_the_cut_over_a_change_that_does_not_fit_stops_the_table(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(DOCS)
    source.execute(FILL)
    await stream_over(replica)
    replica.target.execute("DELETE FROM docs WHERE id = 3")
    source.execute("UPDATE docs SET size = 7 WHERE id = 3")
    with pytest.raises(TableStopped, match="finds no row"):
        await replica.deliver()


async def test_both_kinds_of_plan_are_kept_beside_each_other(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(DOCS)
    source.execute(FILL)
    await stream_over(replica)
    [(relation, strict)] = replica.plans.items()
    lenient = await replica.applier.plan(relation, strict.route, overlap=True)
    assert (lenient.shape.overlap, strict.shape.overlap) == (True, False)
    assert await replica.applier.plan(relation, strict.route) is strict
    assert await replica.applier.plan(relation, strict.route, overlap=True) is lenient
    replica.applier.forget(strict.route)
    assert await replica.applier.plan(relation, strict.route, overlap=True) is not lenient


async def test_values_that_turn_to_text_are_read_so_in_overlap_and_after_it(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(DOCS, binary=False)
    source.execute(FILL)
    await stream_over(replica, batches=3)
