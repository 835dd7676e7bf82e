"""Names of columns that come to mean other columns of the same table: the rows that are there know nothing of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cdc.bootstrap import live, rounds
from cdc.target.resync_request import Request
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow, owned
from tests.resync import Replicated

LOOKS = {"partition_interval_s": 0.2}


def made(table: str, columns: str = "id int PRIMARY KEY, a int, b int, v text", partitioned: str = "") -> str:
    """A table; a partitioned one has its columns in another order than its only partition."""
    return f"CREATE TABLE {table} ({columns}) {partitioned}; " + (
        f"CREATE TABLE {table}_1 (v text, b int, a int NOT NULL, id int NOT NULL);"
        f" ALTER TABLE {table} ATTACH PARTITION {table}_1 DEFAULT;"
        if partitioned
        else ""
    )


def filled(table: str) -> str:
    return f"INSERT INTO {table} (id, a, b, v) SELECT g, g * 10, g * 100, 'v' FROM generate_series(1, 5) AS g;"


def swapped(table: str, one: str = "a", other: str = "b") -> str:
    """What swaps two names."""
    return "".join(
        f"ALTER TABLE {table} RENAME COLUMN {old} TO {new};" for old, new in ((one, "x"), (other, one), ("x", other))
    )


def replaced(table: str, column: str, kind: str = "int") -> str:
    """What drops a column and adds it again."""
    return f"ALTER TABLE {table} DROP COLUMN {column}; ALTER TABLE {table} ADD COLUMN {column} {kind};"


async def stopped(pipeline: Pipeline, target: str, tables: Sequence[str]) -> dict[str, str]:
    """Wait until all of these have stopped, each with the command that mends it; the reasons."""
    reasons = {}
    for table in tables:
        state = await pipeline.table_in_state(target, f"public.{table}", "stopped")
        assert state.mend == f"cdc resync public.{table} --target {target}", (table, state.reason)
        reasons[table] = state.reason or ""
        assert state.mend in reasons[table]
    return reasons


async def read_again(pipeline: Pipeline, tables: Sequence[tuple[str, str]]) -> None:
    for target, table in tables:
        status, said = await pipeline.cdc("resync", f"public.{table}", "--target", target)
        assert status == 0, said
        await pipeline.table_in_state(target, f"public.{table}", "streaming", deadline_s=30)


async def test_names_that_mean_other_columns_stop_their_tables_until_these_are_read_again(
    source: Database, make_target: MakeDatabase
) -> None:
    changes = {
        "swap": swapped("swap") + "UPDATE swap SET v = 'touched' WHERE id = 2",
        "quiet": swapped("quiet"),
        "keys": swapped("keys", "id", "a") + "UPDATE keys SET v = 'touched' WHERE id = 20",
        "middle": replaced("middle", "a") + "UPDATE middle SET v = 'touched' WHERE id = 2",
        "last": replaced("last", "v", "text") + "UPDATE last SET b = 7 WHERE id = 3",
        "types": swapped("types") + "UPDATE types SET v = 'touched' WHERE id = 2",
        "chain": "ALTER TABLE chain DROP COLUMN a; ALTER TABLE chain RENAME COLUMN b TO a; UPDATE chain SET v = 'x'",
        "parts": swapped("parts") + "UPDATE parts SET v = 'touched' WHERE id = 2",
    }
    kinds = {"keys": "id int PRIMARY KEY, a int NOT NULL UNIQUE, b int, v text"}
    kinds["types"] = "id int PRIMARY KEY, a int, b bigint, v text"
    for table in (*changes, "same", "wider"):
        parts = "PARTITION BY RANGE (id)" if table == "parts" else ""
        source.execute(made(table, kinds.get(table, "id int PRIMARY KEY, a int, b int, v text"), parts))
        source.execute(filled(table))
    source.execute("ALTER TABLE parts ALTER COLUMN a SET NOT NULL")
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}, worker=LOOKS) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("UPDATE same SET v = 'before'; UPDATE last SET a = 8 WHERE id = 4; UPDATE parts SET b = 1")
        await pipeline.assert_caught_up_and_equal()
        for change in changes.values():
            with source.transaction():
                source.execute(change)
        source.execute("ALTER TABLE same RENAME COLUMN a TO c; UPDATE same SET v = 'renamed'")
        source.execute("ALTER TABLE wider ADD COLUMN c int; UPDATE wider SET c = 3")

        reasons = await stopped(pipeline, "internal", list(changes))
        for table in ("swap", "quiet", "types", "parts"):
            assert "under a there are the values of the column that is called b now" in reasons[table], reasons
            assert "ALTER COLUMN" not in reasons[table]
        assert "under id there are the values of the column that is called a now" in reasons["keys"]
        assert "under a there are the values of one that is gone, whose name another one has" in reasons["middle"]
        assert "under v there are the values of one that is gone" in reasons["last"]
        for table, column in (("same", "c"), ("wider", "c")):
            state = await pipeline.table_in_state("internal", f"public.{table}", "stopped")
            assert f"lacks columns: {column}" in (state.reason or ""), "what a name lacks is told as before"
        # What names alone have done, names alone undo; the others stay stopped whatever is done to their columns.
        target.execute("ALTER TABLE same RENAME COLUMN a TO c; ALTER TABLE wider ADD COLUMN c int")
        target.execute(swapped("swap") + swapped("quiet") + replaced("last", "v", "text"))
        for table in ("same", "wider", "swap", "quiet"):
            await pipeline.table_in_state("internal", f"public.{table}", "streaming", deadline_s=20)
        remaining = [table for table in changes if table not in ("swap", "quiet")]
        await pipeline.worker.terminate()
        await pipeline.start()
        source.execute("UPDATE last SET b = 70 WHERE id = 3")
        await stopped(pipeline, "internal", ["last", "middle"])

        await read_again(pipeline, [("internal", table) for table in remaining])

        for table in changes:
            source.execute(f"UPDATE {table} SET v = 'at the end'")
        source.execute("UPDATE same SET v = 'at the end'; UPDATE wider SET v = 'at the end'")
        await pipeline.assert_caught_up_and_equal()
        states = {table.source_name: table.state for table in (await pipeline.target_status("internal")).tables}
        assert set(states.values()) == {"streaming"}, states


async def test_what_was_renamed_while_no_worker_ran_and_other_names_at_the_target(
    source: Database, make_target: MakeDatabase
) -> None:
    for table in ("swap", "last", "older", "mapped"):
        source.execute(made(table) + filled(table))
    internal, mart = make_target("internal"), make_target("mart")
    mart.execute("CREATE TABLE theirs (text text, two int, one int, number int PRIMARY KEY, own int DEFAULT 1)")
    columns = {"id": "number", "a": "one", "b": "two", "v": "text"}
    targets = {
        "internal": follow(internal, "public.swap", "public.last", "public.older"),
        "mart": owned(mart, {"public.mapped": {"to": "public.theirs", "columns": columns}}),
    }
    async with Pipeline(source, targets, worker=LOOKS) as pipeline:
        await pipeline.load()
        internal.execute("UPDATE cdc.target_table SET source_columns = NULL WHERE source_table = 'older'")
        worker = await pipeline.start()
        recorded = "SELECT count(source_columns) FROM cdc.target_table WHERE source_table = 'older'"
        await pipeline.until(lambda: internal.fetchval(recorded) == 1, "what an older version loaded is looked at")
        await worker.terminate()
        source.execute("UPDATE swap SET a = 77, b = 78 WHERE id = 1; UPDATE mapped SET a = 7 WHERE id = 1")
        for table in ("swap", "older", "mapped"):
            with source.transaction():
                source.execute(swapped(table))
        source.execute(replaced("last", "v", "text"))
        source.execute("UPDATE swap SET a = 5 WHERE id = 2; UPDATE mapped SET a = 6 WHERE id = 2")
        await pipeline.start()

        await stopped(pipeline, "internal", ["swap", "last", "older"])
        reasons = await stopped(pipeline, "mart", ["mapped"])

        assert "under a (here one) there are the values of the column that is called b now" in reasons["mapped"]
        assert internal.fetch("SELECT a, b FROM swap WHERE id = 1") == [(77, 78)], "what came before fitted"
        await read_again(pipeline, [("internal", table) for table in ("swap", "last", "older")] + [("mart", "mapped")])
        source.execute("UPDATE swap SET a = 50 WHERE id = 2; UPDATE mapped SET a = 60 WHERE id = 2")
        await pipeline.assert_caught_up_and_equal()
        assert mart.fetch("SELECT one, two FROM theirs WHERE id = 1".replace("id", "number")) == [(100, 7)]


async def test_a_copy_notices_names_that_are_swapped_after_it_was_planned(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in ("swap", "last"):
        source.execute(made(table) + filled(table))
    said = [swapped("swap") + replaced("last", "v", "text")]
    original = rounds.copy_round

    async def copy_round(*of: object, **named: object) -> object:
        if said:
            source.execute(said.pop() + "UPDATE swap SET v = 'touched' WHERE id = 2")
        return await original(*of, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(live, "copy_round", copy_round)
    async with Pipeline(source, {"internal": follow(make_target())}, worker=LOOKS) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("UPDATE swap SET v = 'again' WHERE id = 3; UPDATE last SET v = 'again' WHERE id = 3")
        await pipeline.assert_caught_up_and_equal()
        assert not pipeline.worker.events("table stopped")


async def test_names_that_are_swapped_while_the_table_is_read_again(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(made("swap") + filled("swap").replace("(1, 5)", "(1, 60)"))
    replicated = Replicated(source, make_target())
    replicated.settings["worker"] |= LOOKS
    await replicated.load()
    statements = iter(
        [
            "SELECT 1",
            swapped("swap") + "UPDATE swap SET v = 'x' WHERE id = 2",
            "SELECT 1",
            replaced("swap", "v", "text"),
        ]
    )

    async def disturb(_: Request) -> None:
        statement = next(statements, None)
        if statement is not None:
            source.execute(statement)

    async with replicated.worker(before_mark=disturb, most_rows=10):
        await replicated.resync("public.swap")
        assert next(statements, None) is None
        source.execute("UPDATE swap SET v = 'at the end' WHERE id < 30")
        await replicated.caught_up()
        columns = "SELECT id, a, b, v FROM swap ORDER BY id"
        assert replicated.target.fetch(columns) == source.fetch(columns)
        assert replicated.state("swap") == "streaming"
