"""Rows that stay at the target after the source has deleted them (``deletes = "keep"``)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cdc.errors import BatchRejected, TableStopped
from cdc.routing.route import Route
from tests.database import Database
from tests.integration.replica import MakeReplica, Replica, make_replica

__all__ = ["make_replica"]

AT_SOURCE = "CREATE TABLE people (id int PRIMARY KEY, name text)"
AT_TARGET = 'CREATE TABLE people (id int PRIMARY KEY, name text, "deletedAt" timestamptz)'

NOTED = Route("public", "people", "public", "people", keeps_deleted=True, deleted_at="deletedAt")
KEPT = Route("public", "people", "public", "people", keeps_deleted=True)


async def noting(make_replica: MakeReplica, source: str = AT_SOURCE, target: str = AT_TARGET, **facts: Any) -> Replica:
    return await make_replica(source, target, routes=[NOTED], **facts)


async def deliver(replica: Replica, *, batches: str) -> None:
    """Apply what was committed as one batch, or each transaction as a batch of its own."""
    parts = await replica.record()
    for batch in [[part] for part in parts] if batches == "many" else [parts]:
        await replica.apply(batch)


def people(replica: Replica) -> list[tuple[Any, ...]]:
    """Key, name, and whether the row is noted as deleted."""
    return replica.target.fetch('SELECT id, name, "deletedAt" IS NOT NULL FROM people ORDER BY 1, 2, 3')


def kept(replica: Replica) -> list[tuple[Any, ...]]:
    return replica.target.fetch("SELECT id, name FROM people ORDER BY id, name")


async def test_a_deleted_row_stays_with_the_time_of_the_commit(make_replica: MakeReplica, source: Database) -> None:
    replica = await noting(make_replica)
    source.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    await deliver(replica, batches="one")
    source.execute("DELETE FROM people WHERE id = 1")
    source.execute("DELETE FROM people WHERE id = 2")
    parts = await replica.record()
    applied = await replica.apply(parts)
    assert (applied.tables["public.people"].deleted, applied.was_strict) == (2, False)
    assert people(replica) == [(1, "a", True), (2, "b", True), (3, "c", False)]
    noted = replica.target.fetch(
        """SELECT (extract(epoch FROM "deletedAt" - '2000-01-01 00:00:00+00') * 1000000)::bigint FROM people
            WHERE "deletedAt" IS NOT NULL ORDER BY id"""
    )
    assert [time for (time,) in noted] == [part.commit_time_us for part in parts]
    assert noted[0] < noted[1]


async def test_a_timestamp_without_zone_takes_the_time_in_utc(make_replica: MakeReplica, source: Database) -> None:
    replica = await noting(make_replica, target=AT_TARGET.replace("timestamptz", "timestamp"))
    await replica.session.connection.execute("SET TimeZone = 'Asia/Tokyo'")
    source.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b')")
    source.execute("DELETE FROM people WHERE id = 1")
    source.execute("TRUNCATE people")
    await deliver(replica, batches="one")
    near = """abs(extract(epoch FROM "deletedAt" - now() AT TIME ZONE 'UTC')) < 300"""
    assert replica.target.fetch(f"SELECT id, {near} FROM people ORDER BY id") == [(1, True), (2, True)]


HISTORIES = {
    "a delete": ("INSERT 1 a; DELETE 1", [(1, "a", True)]),
    "a delete after an update": ("INSERT 1 a; UPDATE 1 b; DELETE 1", [(1, "b", True)]),
    "a key used again": ("INSERT 1 a; DELETE 1; INSERT 1 b", [(1, "b", False)]),
    "a key used again and deleted again": ("INSERT 1 a; DELETE 1; INSERT 1 b; DELETE 1", [(1, "b", True)]),
    "a key that is updated when it is used again": ("INSERT 1 a; DELETE 1; INSERT 1 b; UPDATE 1 c", [(1, "c", False)]),
    "a key that moves": ("INSERT 1 a; MOVE 1 2", [(2, "a", False)]),
    "a key that moves onto a deleted one": ("INSERT 1 a; INSERT 2 b; DELETE 2; MOVE 1 2", [(2, "a", False)]),
    "a key that moves and is deleted": ("INSERT 1 a; MOVE 1 2; DELETE 2", [(2, "a", True)]),
    "a key that moves away and is used again": ("INSERT 1 a; MOVE 1 2; INSERT 1 b", [(1, "b", False), (2, "a", False)]),
    "a key that is deleted, moved onto and left": (
        "INSERT 1 a; INSERT 2 b; DELETE 2; MOVE 1 2; MOVE 2 3; INSERT 2 c",
        [(2, "c", False), (3, "a", False)],
    ),
    "a truncate": ("INSERT 1 a; INSERT 2 b; DELETE 1; TRUNCATE", [(1, "a", True), (2, "b", True)]),
    "a truncate and a key used again": (
        "INSERT 1 a; INSERT 2 b; TRUNCATE; INSERT 2 c",
        [(1, "a", True), (2, "c", False)],
    ),
}

WORDS = {
    "INSERT": "INSERT INTO people VALUES ({0}, '{1}')",
    "UPDATE": "UPDATE people SET name = '{1}' WHERE id = {0}",
    "DELETE": "DELETE FROM people WHERE id = {0}",
    "MOVE": "UPDATE people SET id = {1} WHERE id = {0}",
    "TRUNCATE": "TRUNCATE people RESTART IDENTITY",
}


def statements_of(history: str) -> list[str]:
    words = [step.split() for step in history.split("; ")]
    return [WORDS[word].format(*arguments) for word, *arguments in words]


@pytest.mark.parametrize("notes", [True, False], ids=["noted", "not noted"])
async def test_what_becomes_of_a_row_does_not_depend_on_batches_or_transactions(
    make_replica: MakeReplica, source: Database, notes: bool
) -> None:
    target = AT_TARGET if notes else AT_SOURCE
    replica = await make_replica(AT_SOURCE, target, routes=[NOTED if notes else KEPT])
    for name, (history, expected) in HISTORIES.items():
        for batches in ("one transaction", "one", "many"):
            if batches == "one transaction":
                source.execute("; ".join(statements_of(history)))
            else:
                for statement in statements_of(history):
                    source.execute(statement)
            await deliver(replica, batches=batches)
            found = people(replica) if notes else kept(replica)
            assert found == (expected if notes else [row[:2] for row in expected]), (name, batches)
            source.execute("TRUNCATE people")
            await replica.record()
            replica.target.execute("TRUNCATE people")


async def test_a_key_that_is_used_again_overwrites_the_row_that_stayed(
    make_replica: MakeReplica, source: Database
) -> None:
    target = AT_TARGET.replace("name text", "name text, remark text DEFAULT 'none'")
    replica = await noting(make_replica, target=target)
    source.execute("INSERT INTO people SELECT n, 'old' FROM generate_series(1, 10) n")
    source.execute("DELETE FROM people WHERE id <= 5")
    await deliver(replica, batches="one")
    replica.target.execute("UPDATE people SET remark = 'ours'")
    source.execute("INSERT INTO people VALUES (2, 'new'), (11, 'new')")
    await deliver(replica, batches="one")
    assert replica.target.fetch(
        'SELECT id, name, remark, "deletedAt" IS NULL FROM people WHERE id IN (1, 2, 11) ORDER BY id'
    ) == [(1, "old", "ours", False), (2, "new", "ours", True), (11, "new", "none", True)]


async def test_an_identity_that_is_always_generated_is_overwritten_too(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await noting(
        make_replica,
        "CREATE TABLE people (id int PRIMARY KEY, name text, number int)",
        'CREATE TABLE people (id int PRIMARY KEY, name text, number int GENERATED ALWAYS AS IDENTITY, "deletedAt" '
        "timestamptz)",
    )
    source.execute("INSERT INTO people VALUES (1, 'a', 10), (2, 'b', 20)")
    source.execute("DELETE FROM people")
    await deliver(replica, batches="many")
    source.execute("INSERT INTO people VALUES (1, 'c', 30), (2, 'd', 20)")
    await deliver(replica, batches="many")
    query = 'SELECT id, name, number, "deletedAt" IS NULL FROM people ORDER BY id'
    assert replica.target.fetch(query) == [(1, "c", 30, True), (2, "d", 20, True)]


async def test_a_target_without_a_unique_index_keeps_rows_too(make_replica: MakeReplica, source: Database) -> None:
    replica = await noting(make_replica, target=AT_TARGET.replace(" PRIMARY KEY", ""))
    for batches in ("one", "many"):
        for statement in statements_of("INSERT 1 a; INSERT 2 b; DELETE 1; INSERT 1 c; DELETE 2; MOVE 1 2; INSERT 3 d"):
            source.execute(statement)
        await deliver(replica, batches=batches)
        assert people(replica) == [(2, "c", False), (3, "d", False)], batches
        source.execute("TRUNCATE people")
        await replica.record()
        replica.target.execute("TRUNCATE people")


async def test_what_contradicts_the_source_stops_the_table_all_the_same(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await noting(make_replica)
    source.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    await deliver(replica, batches="one")
    replica.target.execute("DELETE FROM people WHERE id = 1")
    replica.target.execute("""UPDATE people SET "deletedAt" = '2020-01-01' WHERE id = 2""")
    replica.target.execute("INSERT INTO people VALUES (4, 'd')")
    for statement, words in {
        "DELETE FROM people WHERE id = 1": "a delete of .* finds no row",
        "UPDATE people SET name = 'x' WHERE id = 2": "an update of .* finds no row",
        "DELETE FROM people WHERE id = 2": "a delete of .* finds no row",
        "INSERT INTO people VALUES (4, 'e')": "an insert of .* brings a key that is already there",
        "UPDATE people SET id = 4 WHERE id = 3": "an update of .* brings a key that is already there",
    }.items():
        source.execute(f"DELETE FROM people WHERE id = 4; {statement}")
        part = (await replica.record())[-1]
        part = dataclasses.replace(part, changes=part.changes[-1:], packed=None)
        with pytest.raises(TableStopped, match=words):
            await replica.apply([part])


async def test_without_a_note_a_delete_is_not_even_looked_for(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(AT_SOURCE, routes=[KEPT])
    source.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b')")
    await deliver(replica, batches="one")
    replica.target.execute("DELETE FROM people WHERE id = 1")
    source.execute("DELETE FROM people")
    applied = await replica.apply(await replica.record())
    assert not applied.was_strict
    assert kept(replica) == [(2, "b")]


async def test_exactly_one_of_equal_rows_is_noted(make_replica: MakeReplica, source: Database) -> None:
    ddl = "CREATE TABLE people (id int, name text); ALTER TABLE people REPLICA IDENTITY FULL"
    replica = await noting(make_replica, ddl, 'CREATE TABLE people (id int, name text, "deletedAt" timestamptz)')
    source.execute("INSERT INTO people VALUES (1, 'a'), (1, 'a'), (1, 'a'), (NULL, NULL), (2, 'b')")
    await deliver(replica, batches="one")
    one = "ctid = (SELECT min(ctid) FROM people WHERE id = 1)"
    source.execute(f"DELETE FROM people WHERE {one}")
    source.execute(f"DELETE FROM people WHERE {one}")
    source.execute("DELETE FROM people WHERE id IS NULL; UPDATE people SET name = 'c' WHERE id = 2")
    source.execute("INSERT INTO people VALUES (1, 'a')")
    await deliver(replica, batches="one")
    assert people(replica) == [
        (1, "a", False),
        (1, "a", False),
        (1, "a", True),
        (1, "a", True),
        (2, "c", False),
        (None, None, True),
    ]


async def test_rows_without_a_key_stay_where_nothing_notes_it(make_replica: MakeReplica, source: Database) -> None:
    ddl = "CREATE TABLE people (id int, name text); ALTER TABLE people REPLICA IDENTITY FULL"
    replica = await make_replica(ddl, routes=[KEPT])
    source.execute("INSERT INTO people VALUES (1, 'a'), (1, 'a')")
    source.execute("DELETE FROM people")
    source.execute("INSERT INTO people VALUES (1, 'a')")
    await deliver(replica, batches="one")
    assert kept(replica) == [(1, "a")] * 3


async def test_a_truncate_of_several_tables_empties_only_those_that_do_not_keep(
    make_replica: MakeReplica, source: Database
) -> None:
    other = "CREATE TABLE pets (id int PRIMARY KEY, owner int)"
    replica = await make_replica(
        f"{AT_SOURCE}; {other}", f"{AT_TARGET}; {other}", routes=[NOTED, Route("public", "pets", "public", "pets")]
    )
    source.execute("INSERT INTO people VALUES (1, 'a'); INSERT INTO pets VALUES (1, 1)")
    source.execute("TRUNCATE people, pets RESTART IDENTITY")
    parts = await replica.record()
    await replica.apply(parts)
    assert people(replica) == [(1, "a", True)]
    assert replica.target.fetch("SELECT count(*) FROM pets") == [(0,)]
    time = """(extract(epoch FROM "deletedAt" - '2000-01-01 00:00:00+00') * 1000000)::bigint"""
    assert replica.target.fetch(f"SELECT {time} FROM people") == [(parts[-1].commit_time_us,)]


async def test_a_row_that_moves_from_leaf_to_leaf_is_not_deleted(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(
        """CREATE TABLE parent (id int, name text, PRIMARY KEY (id, name)) PARTITION BY LIST (name);
           CREATE TABLE low PARTITION OF parent FOR VALUES IN ('a'); CREATE TABLE high PARTITION OF parent DEFAULT""",
        AT_TARGET,
        routes=[
            Route("public", leaf, "public", "people", keeps_deleted=True, deleted_at="deletedAt")
            for leaf in ("low", "high")
        ],
    )
    replica.target.execute("ALTER TABLE people DROP CONSTRAINT people_pkey, ADD PRIMARY KEY (id, name)")
    source.execute("INSERT INTO parent VALUES (1, 'a'), (2, 'a')")
    await deliver(replica, batches="one")
    source.execute("DELETE FROM low WHERE id = 1; INSERT INTO high VALUES (1, 'b'); DELETE FROM low WHERE id = 2")
    await deliver(replica, batches="one")
    assert people(replica) == [(1, "a", True), (1, "b", False), (2, "a", True)]


async def test_a_kept_row_in_the_way_of_another_is_said_to_be(make_replica: MakeReplica, source: Database) -> None:
    replica = await noting(make_replica, target=AT_TARGET.replace("name text", "name text UNIQUE"))
    source.execute("INSERT INTO people VALUES (1, 'a')")
    source.execute("DELETE FROM people WHERE id = 1")
    await deliver(replica, batches="one")
    source.execute("INSERT INTO people VALUES (2, 'a')")
    with pytest.raises(BatchRejected, match=r"A row that the source has deleted .* may be in the way"):
        await deliver(replica, batches="one")
    replica.target.execute("ALTER TABLE people DROP CONSTRAINT people_name_key")
    replica.target.execute('CREATE UNIQUE INDEX ON people (name) WHERE "deletedAt" IS NULL')


@pytest.mark.parametrize("batches", ["one", "many"])
async def test_in_overlap_a_delete_is_noted_where_there_is_a_row_and_an_insert_takes_it_away(
    make_replica: MakeReplica, source: Database, batches: str
) -> None:
    replica = await noting(make_replica)
    replica.overlap = True
    source.execute("INSERT INTO people SELECT n, 'old' FROM generate_series(1, 6) n")
    source.execute("DELETE FROM people WHERE id IN (1, 2)")
    source.execute("INSERT INTO people VALUES (2, 'again')")
    replica.restore(people="id, name")
    source.execute("DELETE FROM people WHERE id = 3")
    source.execute("INSERT INTO people VALUES (7, 'short'); DELETE FROM people WHERE id = 7")
    source.execute("UPDATE people SET name = 'new' WHERE id = 4; DELETE FROM people WHERE id = 4")
    source.execute("UPDATE people SET id = 50 WHERE id = 5")
    await deliver(replica, batches=batches)
    replica.cut_over()
    source.execute("INSERT INTO people VALUES (3, 'back')")
    await deliver(replica, batches=batches)
    assert people(replica) == [
        (1, "old", True),
        (2, "again", False),
        (3, "back", False),
        (4, "new", True),
        (6, "old", False),
        (7, "short", True),
        (50, "old", False),
    ]


@pytest.mark.parametrize(
    ("column", "words", "sql"),
    [
        (None, "it lacks column deletedAt", 'ALTER TABLE "public"."people" ADD COLUMN "deletedAt" timestamptz'),
        ("text", "is of type text, and not timestamptz or timestamp", None),
        ("timestamptz NOT NULL", "is NOT NULL", 'ALTER COLUMN "deletedAt" DROP NOT NULL'),
        ("timestamptz DEFAULT now()", "has a default", 'ALTER COLUMN "deletedAt" DROP DEFAULT'),
        ("timestamptz GENERATED ALWAYS AS (NULL) STORED", "is generated", None),
    ],
)
async def test_a_column_that_cannot_note_the_time_stops_the_table(
    make_replica: MakeReplica, source: Database, column: str | None, words: str, sql: str | None
) -> None:
    replica = await make_replica(
        AT_SOURCE, AT_SOURCE if column is None else AT_TARGET.replace("timestamptz", column), routes=[NOTED]
    )
    source.execute("INSERT INTO people VALUES (1, 'a')")
    with pytest.raises(TableStopped, match=words) as stopped:
        await deliver(replica, batches="one")
    assert (stopped.value.sql is None) if sql is None else (sql in (stopped.value.sql or ""))
    if column is None:
        replica.target.execute(stopped.value.sql or "")


async def test_a_column_of_the_source_cannot_note_the_time(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(AT_TARGET, routes=[NOTED])
    source.execute("INSERT INTO people VALUES (1, 'a', NULL)")
    with pytest.raises(TableStopped, match="is one that the source's table fills"):
        await deliver(replica, batches="one")


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "strict"])
async def test_rows_stay_where_changes_are_taken_in_order_too(
    make_replica: MakeReplica, source: Database, overlap: bool
) -> None:
    ddl = AT_SOURCE.replace("name text", "name text UNIQUE")
    noted = AT_TARGET.replace("people", "noted").replace("name text", "name text UNIQUE")
    into = [KEPT, Route("public", "other", "public", "noted", keeps_deleted=True, deleted_at="deletedAt")]
    replica = await make_replica(f"{ddl}; {ddl.replace('people', 'other')}", f"{ddl}; {noted}", routes=into)
    for table, target in (("people", "people"), ("other", "noted")):
        rows = "VALUES (1, 'a'), (2, 'b'), (3, 'c')"
        source.execute(f"INSERT INTO {table} {rows}")
        replica.target.execute(f"INSERT INTO {target} {rows}")
    await replica.record()
    replica.overlap = overlap
    for table in ("people", "other"):
        source.execute(
            f"DELETE FROM {table} WHERE id = 1; UPDATE {table} SET name = 'x' WHERE id = 2;"
            f"UPDATE {table} SET name = 'b' WHERE id = 3; UPDATE {table} SET name = 'c' WHERE id = 2"
        )
    applied = await replica.apply(await replica.record())
    assert applied.was_strict
    assert kept(replica) == [(1, "a"), (2, "c"), (3, "b")]
    query = 'SELECT id, name, "deletedAt" IS NOT NULL FROM noted ORDER BY id'
    assert replica.target.fetch(query) == [(1, "a", True), (2, "c", False), (3, "b", False)]
