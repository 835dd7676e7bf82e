"""Kept rows and keys: rows that trade keys, move onto keys of rows that stayed, or are known by more than an index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cdc.changes.transaction import Run
from cdc.errors import BatchRejected, TableStopped
from cdc.routing.route import Route
from tests.database import Database
from tests.integration.replica import MakeReplica, Replica, make_replica

__all__ = ["make_replica"]

DEFERRED = """CREATE TABLE people (id int NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED, name text);
    ALTER TABLE people REPLICA IDENTITY FULL"""
AT_TARGET = "CREATE TABLE people (id int PRIMARY KEY, name text, gone timestamptz)"
BATCHES = pytest.mark.parametrize("batches", ["one", "many"])
NOTED = pytest.mark.parametrize("noted", [True, False], ids=["noted", "not noted"])


def keeping(source: str, target: str, *, noted: bool) -> Route:
    return Route("public", source, "public", target, keeps_deleted=True, deleted_at="gone" if noted else None)


async def deliver(replica: Replica, *, batches: str) -> None:
    parts = await replica.record()
    for batch in [[part] for part in parts] if batches == "many" else [parts]:
        await replica.apply(batch)


def people(replica: Replica, table: str = "people") -> list[tuple[Any, ...]]:
    return replica.target.fetch(f"SELECT id, name, gone IS NOT NULL FROM {table} ORDER BY id")


def advises_a_note(stopped: TableStopped) -> bool:
    return "name a column of this table that notes deletions (deleted_at)" in str(stopped)


TRADES = {
    "keys are swapped": "UPDATE people SET id = 3 - id",
    "a new row has the key of one that moves": "BEGIN; INSERT INTO people VALUES (1, 'new');"
    "UPDATE people SET id = 7 WHERE name = 'a'; COMMIT",
    "the same, with a change of another key between": "BEGIN; INSERT INTO people VALUES (1, 'new');"
    "UPDATE people SET id = 8 WHERE name = 'c'; UPDATE people SET id = 7 WHERE name = 'a'; COMMIT",
}


@NOTED
@pytest.mark.parametrize("overlap", [False, True], ids=["strict", "overlap"])
@pytest.mark.parametrize("what", TRADES)
async def test_rows_that_share_a_key_for_a_while_are_never_lost(
    make_replica: MakeReplica, source: Database, noted: bool, overlap: bool, what: str
) -> None:
    replica = await make_replica(DEFERRED, AT_TARGET, routes=[keeping("people", "people", noted=noted)])
    source.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    await deliver(replica, batches="one")
    replica.overlap = overlap
    replica.plans.clear()
    source.execute(TRADES[what])
    with pytest.raises(TableStopped) as stopped:
        await deliver(replica, batches="one")
    assert overlap or "brings a key that is already there" in str(stopped.value)
    assert overlap or advises_a_note(stopped.value) is not noted
    assert people(replica) == [(1, "a", False), (2, "b", False), (3, "c", False)]


@pytest.mark.parametrize("overlap", [False, True], ids=["strict", "overlap"])
async def test_a_live_row_is_not_removed_by_the_first_part_of_a_trade(
    make_replica: MakeReplica, source: Database, overlap: bool
) -> None:
    replica = await make_replica(DEFERRED, AT_TARGET, routes=[keeping("people", "people", noted=False)])
    source.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b')")
    await deliver(replica, batches="one")
    replica.overlap = overlap
    replica.plans.clear()
    source.execute("UPDATE people SET id = 3 - id")
    [part] = await replica.record()
    [run] = part.changes
    assert isinstance(run, Run)
    half = replace(part, changes=[replace(run, rows=run.rows[:1])], packed=None)
    with pytest.raises(TableStopped):
        await replica.apply([half])
    assert people(replica) == [(1, "a", False), (2, "b", False)]


@NOTED
async def test_rows_trade_their_keys_where_the_targets_key_is_deferrable_too(
    make_replica: MakeReplica, source: Database, noted: bool
) -> None:
    target = DEFERRED.replace("name text", "name text, gone timestamptz")
    replica = await make_replica(DEFERRED, target, routes=[keeping("people", "people", noted=noted)])
    source.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    source.execute("DELETE FROM people WHERE id = 3")
    await deliver(replica, batches="one")
    source.execute("UPDATE people SET id = 3 - id")
    source.execute("BEGIN; INSERT INTO people VALUES (2, 'new'); UPDATE people SET id = 7 WHERE name = 'a'; COMMIT")
    await deliver(replica, batches="one")
    assert people(replica) == [(1, "b", False), (2, "new", False), (3, "c", noted), (7, "a", False)]


@NOTED
async def test_rows_of_two_tables_that_trade_their_keys_are_never_lost(
    make_replica: MakeReplica, source: Database, noted: bool
) -> None:
    ddl = "CREATE TABLE a (id int PRIMARY KEY, name text); CREATE TABLE b (id int PRIMARY KEY, name text)"
    replica = await make_replica(
        ddl, AT_TARGET, routes=[keeping(table, "people", noted=noted) for table in "ab"], follows=False
    )
    source.execute("INSERT INTO a VALUES (1, 'a'); INSERT INTO b VALUES (2, 'b')")
    await deliver(replica, batches="one")
    for statements in (
        "BEGIN; UPDATE a SET id = 2; UPDATE b SET id = 1; COMMIT",
        "BEGIN; INSERT INTO b VALUES (1, 'new'); UPDATE a SET id = 7; COMMIT",
    ):
        source.execute(statements)
        with pytest.raises(TableStopped, match="brings a key that is already there") as stopped:
            await deliver(replica, batches="one")
        assert advises_a_note(stopped.value) is not noted
        assert people(replica) == [(1, "a", False), (2, "b", False)]
        source.execute(
            "BEGIN; DELETE FROM b WHERE name = 'new'; UPDATE b SET id = 8; UPDATE a SET id = 1;"
            "UPDATE b SET id = 2; COMMIT"
        )
        await replica.record()


HISTORY = {
    "used again": ("DELETE FROM people WHERE id = 1; INSERT INTO people VALUES (1, 'again')", (1, "again", False)),
    "updated": ("UPDATE people SET name = 'new' WHERE id = 2", (2, "new", False)),
    "moved": ("UPDATE people SET id = 30 WHERE id = 3", (30, "c", False)),
    "new, moved, updated and deleted": (
        "INSERT INTO people VALUES (5, 'e'); UPDATE people SET id = 6 WHERE id = 5;"
        "UPDATE people SET name = 'f' WHERE id = 6; DELETE FROM people WHERE id = 6",
        (6, "f", True),
    ),
    "used again and moved": (
        "DELETE FROM people WHERE id = 7; INSERT INTO people VALUES (7, 'x'); UPDATE people SET name = 'y' "
        "WHERE id = 7; UPDATE people SET id = 70 WHERE id = 7",
        (70, "y", False),
    ),
}


@NOTED
@BATCHES
@pytest.mark.parametrize("ends", [True, False], ids=["transactions", "one transaction"])
async def test_rows_that_are_kept_by_their_whole_identity_come_out_alike(
    make_replica: MakeReplica, source: Database, noted: bool, batches: str, ends: bool
) -> None:
    replica = await make_replica(DEFERRED, AT_TARGET, routes=[keeping("people", "people", noted=noted)])
    source.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b'), (3, 'c'), (7, 'g')")
    await deliver(replica, batches="one")
    statements = "; ".join(history for history, _ in HISTORY.values())
    for statement in statements.split(";") if ends else [statements]:
        source.execute(statement)
    await deliver(replica, batches=batches)
    assert people(replica) == sorted((*row[:2], row[2] and noted) for _, row in HISTORY.values())


@BATCHES
async def test_a_row_that_moves_onto_one_that_is_noted_takes_its_place(
    make_replica: MakeReplica, source: Database, batches: str
) -> None:
    replica = await make_replica(DEFERRED, AT_TARGET, routes=[keeping("people", "people", noted=True)])
    source.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b')")
    source.execute("DELETE FROM people WHERE id = 2")
    source.execute("UPDATE people SET id = 2 WHERE id = 1")
    await deliver(replica, batches=batches)
    assert people(replica) == [(2, "a", False)]


@NOTED
@BATCHES
async def test_in_overlap_a_row_is_not_moved_over_one_that_stayed_without_all_values(
    make_replica: MakeReplica, source: Database, noted: bool, batches: str
) -> None:
    replica = await make_replica(
        "CREATE TABLE people (id int PRIMARY KEY, name text); ALTER TABLE people ALTER name SET STORAGE EXTERNAL",
        AT_TARGET,
        routes=[keeping("people", "people", noted=noted)],
    )
    replica.overlap = True
    source.execute("INSERT INTO people VALUES (1, repeat('a', 100000)), (2, repeat('b', 100000))")
    await deliver(replica, batches="one")
    source.execute("DELETE FROM people WHERE id = 2")
    source.execute("UPDATE people SET id = 2 WHERE id = 1")
    with pytest.raises(TableStopped, match="do not tell whether the backup holds that change already"):
        await deliver(replica, batches=batches)
    query = "SELECT id, left(name, 1) FROM people ORDER BY id"
    assert replica.target.fetch(query) == [(1, "a"), (2, "b")]


@BATCHES
async def test_in_overlap_a_row_with_all_values_takes_the_place_of_one_that_is_noted(
    make_replica: MakeReplica, source: Database, batches: str
) -> None:
    replica = await make_replica(
        "CREATE TABLE people (id int PRIMARY KEY, name text)",
        AT_TARGET.replace("gone", "remark text, gone"),
        routes=[keeping("people", "people", noted=True)],
    )
    replica.overlap = True
    source.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b')")
    await deliver(replica, batches="one")
    replica.target.execute("UPDATE people SET remark = 'of ' || name")
    source.execute("DELETE FROM people WHERE id = 2")
    source.execute("UPDATE people SET id = 2 WHERE id = 1")
    await deliver(replica, batches=batches)
    query = "SELECT id, name, remark, gone IS NULL FROM people"
    assert replica.target.fetch(query) == [(2, "a", "of a", True)]


async def test_a_name_that_looks_like_a_list_of_columns_is_a_name(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(
        'CREATE TABLE "old (x)" (id int PRIMARY KEY, name text)',
        'CREATE TABLE "old (x)" (id int PRIMARY KEY, name text, gone timestamptz)',
        routes=[keeping("old (x)", "old (x)", noted=True)],
    )
    source.execute("""INSERT INTO "old (x)" VALUES (1, 'a'); DELETE FROM "old (x)" """)
    await deliver(replica, batches="one")
    source.execute("""INSERT INTO "old (x)" VALUES (1, 'b')""")
    await deliver(replica, batches="one")
    assert people(replica, '"old (x)"') == [(1, "b", False)]


@NOTED
async def test_a_unique_index_over_a_part_of_the_key_lets_the_key_be_used_again(
    make_replica: MakeReplica, source: Database, noted: bool
) -> None:
    replica = await make_replica(
        "CREATE TABLE people (id int, tenant int, name text, PRIMARY KEY (tenant, id))",
        "CREATE TABLE people (id int PRIMARY KEY, tenant int NOT NULL, name text, gone timestamptz)",
        routes=[keeping("people", "people", noted=noted)],
    )
    source.execute("INSERT INTO people VALUES (1, 1, 'a'); DELETE FROM people")
    await deliver(replica, batches="one")
    source.execute("INSERT INTO people VALUES (1, 1, 'b')")
    await deliver(replica, batches="one")
    assert people(replica) == [(1, "b", False)]


@NOTED
async def test_a_row_that_stayed_and_points_to_a_key_that_moved_is_said_to_be_in_the_way(
    make_replica: MakeReplica, source: Database, noted: bool
) -> None:
    parent, child = (
        "CREATE TABLE parent (id int PRIMARY KEY",
        "CREATE TABLE child (id int PRIMARY KEY, up int REFERENCES",
    )
    replica = await make_replica(
        f"{parent}); {child} parent ON UPDATE CASCADE)",
        f"{parent}, gone timestamptz); {child} parent DEFERRABLE, gone timestamptz)",
        routes=[keeping(table, table, noted=noted) for table in ("parent", "child")],
        triggers_fire=True,
    )
    source.execute(
        "INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1), (2, 1); DELETE FROM child WHERE id = 2"
    )
    await deliver(replica, batches="one")
    source.execute("UPDATE parent SET id = 7")
    part = await replica.record()
    with pytest.raises(BatchRejected, match="points to a key that another row has left, only dropping it helps"):
        await replica.apply(part)
    replica.target.execute("ALTER TABLE child DROP CONSTRAINT child_up_fkey")
    replica.applier.forget(replica.routes[0])
    replica.applier.forget(replica.routes[1])
    replica.plans.clear()
    await replica.apply(part)
    assert replica.target.fetch("SELECT id, up FROM child ORDER BY id") == [(1, 7), (2, 1)]
