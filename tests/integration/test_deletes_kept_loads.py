"""Where deleted rows stay (``deletes = "keep"``), no way of loading a table again loses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cdc.bootstrap.again import Again
from cdc.bootstrap.backup import BackupChoice
from cdc.bootstrap.progress import Silence
from cdc.bootstrap.run import Scope
from cdc.errors import ConfigurationError, SetupError, TerminalError
from cdc.service import checkup, loading, provision
from tests.backup import Steps, backup_config, bootstrap_settings, serve_snapshots
from tests.bootstrap import follow, set_up
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.definitions import constraints, stage
from tests.resync import Replicated

PEOPLE = """
CREATE TABLE people (id bigint PRIMARY KEY, name text);
INSERT INTO people SELECT n, 'name ' || n FROM generate_series(1, 30) n;
CREATE TABLE words (word text PRIMARY KEY, meaning text);
INSERT INTO words VALUES ('a', '1'), ('b', '2'), ('c', '3');
CREATE TABLE plain (id int PRIMARY KEY);
"""

NOTED = {"deletes": "keep", "deleted_at": "deletedAt"}


def keeping(source: Database, target: Database, **tables: Any) -> Replicated:
    named = {f"public.{name}": settings for name, settings in tables.items()}
    return Replicated(source, target, include=["public.*"], tables=named)


def rows(target: Database, table: str, key: str = "id") -> list[tuple[Any, ...]]:
    return target.fetch(f'SELECT {key}, "deletedAt" IS NOT NULL FROM {table} ORDER BY 1')


async def test_what_a_resync_finds_gone_at_the_source_is_noted_and_stays(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(PEOPLE)
    replicated = keeping(source, make_target(), people=NOTED, words=NOTED)
    await replicated.load()
    target = replicated.target
    assert (
        target.fetchval(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = 'people'::regclass AND attname = 'deletedAt' AND NOT attnotnull"
        )
        == "timestamp with time zone"
    )
    async with replicated.worker(most_rows=7):
        source.execute("DELETE FROM people WHERE id IN (1, 2); DELETE FROM words WHERE word = 'a'")
        await replicated.caught_up()
        noted = target.fetch("""SELECT "deletedAt" FROM people WHERE "deletedAt" IS NOT NULL""")
        assert len(noted) == 2
        target.execute("INSERT INTO people VALUES (99, 'too many'); INSERT INTO words VALUES ('z', 'too many')")
        target.execute("""DELETE FROM people WHERE id = 3; UPDATE people SET name = 'wrong', "deletedAt" = now()
                           WHERE id = 4; UPDATE words SET "deletedAt" = now() WHERE word = 'b'""")
        (outcome,), _ = await replicated.resync("public.people")
        assert outcome.way == "in place"
        (outcome,), _ = await replicated.resync("public.words")
        assert outcome.way == "whole"
        await replicated.caught_up()
        present = [(n, False) for n in range(3, 31)]
        assert rows(target, "people") == [(1, True), (2, True), *present, (99, True)]
        assert rows(target, "words", "word") == [("a", True), ("b", False), ("c", False), ("z", True)]
        assert target.fetch("SELECT name FROM people WHERE id = 4") == [("name 4",)]
        assert target.fetch("""SELECT "deletedAt" FROM people WHERE id IN (1, 2)""") == noted
        source.execute("INSERT INTO people VALUES (1, 'again'); TRUNCATE words")
        await replicated.caught_up()
        assert rows(target, "people")[0] == (1, False)
        assert [is_noted for _, is_noted in rows(target, "words", "word")] == [True] * 4


async def test_where_nothing_notes_it_a_resync_lets_everything_stay(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(PEOPLE)
    replicated = keeping(source, make_target(), people={"deletes": "keep"}, words={"deletes": "keep"})
    await replicated.load()
    target = replicated.target
    async with replicated.worker(most_rows=7):
        source.execute("DELETE FROM people WHERE id <= 20; DELETE FROM words WHERE word = 'a'")
        await replicated.caught_up()
        target.execute("UPDATE people SET name = 'wrong'; UPDATE words SET meaning = 'wrong'")
        for table in ("people", "words"):
            await replicated.resync(f"public.{table}")
        await replicated.caught_up()
        assert target.fetch("SELECT count(*), count(*) FILTER (WHERE name = 'wrong') FROM people") == [(30, 20)]
        assert target.fetch("SELECT meaning FROM words ORDER BY word") == [("wrong",), ("2",), ("3",)]


async def test_what_would_lose_rows_that_stayed_is_refused(source: Database, make_target: MakeDatabase) -> None:
    source.execute(f"{PEOPLE}; CREATE TABLE keyless (id int); ALTER TABLE keyless REPLICA IDENTITY FULL")
    replicated = keeping(source, make_target(), people=NOTED, keyless={"deletes": "keep"})
    await replicated.load()
    config = replicated.config
    with pytest.raises(
        ConfigurationError, match=r"--again: target warehouse keeps the rows of public.people .*`cdc re"
    ):
        await loading.bootstrap(config, scope=Scope(again=Again(("public.people",), "warehouse")), progress=Silence())
    with pytest.raises(SetupError, match=r'rows stay there that the source has deleted .* the mode "incremental"'):
        await loading.bootstrap(config, scope=Scope(("warehouse",), anew=True), progress=Silence())
    async with replicated.worker():
        with pytest.raises(TerminalError, match=r"nothing identifies its rows\. Rows stay there that the source has"):
            await replicated.resync("public.keyless")
    assert replicated.target.fetchval("SELECT count(*) FROM people") == 30


async def test_the_sources_unique_indexes_are_made_over_the_rows_that_it_has(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(
        """
        CREATE TABLE parents (id int PRIMARY KEY);
        CREATE TABLE noted (id int PRIMARY KEY, name text UNIQUE, seat int, place int, room int4range,
            parent int CONSTRAINT parent REFERENCES parents, other int CONSTRAINT other REFERENCES noted,
            CONSTRAINT later UNIQUE (place) DEFERRABLE, CONSTRAINT exclusive EXCLUDE USING gist (room WITH &&));
        CREATE UNIQUE INDEX noted_seat ON noted (seat, lower(name)) WHERE seat > 3 OR place IS NULL;
        CREATE UNIQUE INDEX noted_id ON noted (id);
        CREATE INDEX noted_place ON noted (place);
        CREATE TABLE kept (id int PRIMARY KEY, name text UNIQUE);
        CREATE TABLE named (name text NOT NULL, n int);
        CREATE UNIQUE INDEX named_name ON named (name);
        ALTER TABLE named REPLICA IDENTITY USING INDEX named_name;
        """
    )
    tables = {
        "public.noted": {"deletes": "keep", "deleted_at": "gone at"},
        "public.kept": {"deletes": "keep"},
        "public.named": {"deletes": "keep", "deleted_at": "gone at"},
    }
    target = make_target()
    async with stage(source, target, bootstrap={"foreign_keys": True}, include=["public.*"], tables=tables) as built:
        left_out = await built.build()
        unique = {name: text.partition(" USING ")[2] for name, text in built.indexes().items() if "UNIQUE" in text}
        assert unique == {
            "noted_pkey": "btree (id)",
            "noted_name_key": 'btree (name) WHERE ("gone at" IS NULL)',
            "noted_seat": 'btree (seat, lower(name)) WHERE (((seat > 3) OR (place IS NULL)) AND ("gone at" IS NULL))',
            "noted_id": "btree (id)",
            "kept_pkey": "btree (id)",
            "parents_pkey": "btree (id)",
            "named_name": "btree (name)",
        }
        assert "noted_place" in built.indexes()
        assert set(constraints(target, "f")) == {"other"}
        assert constraints(target, "x") == {}
        said = "\n".join([*left_out, *built.said])
        for name in ("unique index later", "index exclusive", "unique index kept_name_key"):
            assert f"{name} of public." in said, name
        assert "foreign key parent of public.noted is left out: rows stay in this table that" in said
        await built.build()
        assert unique.keys() <= built.indexes().keys()


async def test_the_check_finds_what_a_table_lacks_and_what_is_in_the_way(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(PEOPLE)
    target = make_target()
    replicated = Replicated(source, target, include=["public.*"])
    await replicated.load()
    replicated.settings["targets"]["warehouse"]["tables"] = {"public.people": NOTED}
    found = [finding for finding in await checkup.check(replicated.config) if finding.subject.endswith("people")]
    (lacking,) = (finding for finding in found if "it lacks column deletedAt" in finding.message)
    assert lacking.mend is not None
    target.execute(lacking.mend)
    target.execute("CREATE UNIQUE INDEX one_name ON people (name)")
    found = [finding for finding in await checkup.check(replicated.config) if "one_name" in finding.message]
    assert [str(finding.severity) for finding in found] == ["warning"]
    assert 'WHERE "deletedAt" IS NULL' in (found[0].mend or "")


async def test_what_is_deleted_after_a_backup_stays_from_the_backup_on(
    source: Database, make_target: MakeDatabase, tmp_path: Path
) -> None:
    source.execute(PEOPLE)
    target = make_target()
    wanted = {**follow(target), "tables": {"public.people": NOTED}}
    steps = Steps(
        {
            "catch-up": lambda: source.execute(
                "DELETE FROM people WHERE id IN (1, 2, 3); INSERT INTO people VALUES (3, 'again'); DELETE FROM plain"
            )
        }
    )
    with serve_snapshots(tmp_path / "scalingo") as (scalingo, _):
        scalingo.add_database(source.dsn)
        config = backup_config(source, {"warehouse": wanted}, **bootstrap_settings(scalingo), directory=str(tmp_path))
        await set_up(config)
        await loading.bootstrap(config, from_backup=BackupChoice(), progress=steps)
    assert steps.copied_live("warehouse") == {}
    assert rows(target, "people") == [(1, True), (2, True), *((n, False) for n in range(3, 31))]


async def test_rows_that_stayed_outlive_a_load_of_everything_else(source: Database, make_target: MakeDatabase) -> None:
    source.execute(PEOPLE)
    target = make_target()
    kept = {"people": NOTED}
    replicated = keeping(source, target, **kept)
    await replicated.load()
    async with replicated.worker():
        source.execute("DELETE FROM people WHERE id = 1")
        await replicated.caught_up()
    await provision.teardown(replicated.config, lambda _: None, target="warehouse")
    source.execute("DELETE FROM people WHERE id = 2; INSERT INTO people VALUES (1, 'again'), (40, 'new')")
    target.execute("TRUNCATE words, plain")
    replicated.settings["bootstrap"] = {"modes": {"public.people": "incremental"}}
    await replicated.load()
    assert rows(target, "people") == [(1, True), (2, False), *((n, False) for n in range(3, 31)), (40, False)]
    async with replicated.worker():
        await replicated.resync("public.people")
        source.execute("DELETE FROM people WHERE id = 40; UPDATE people SET name = 'b' WHERE id = 1")
        await replicated.caught_up()
        assert rows(target, "people") == [(1, False), (2, True), *((n, False) for n in range(3, 31)), (40, True)]
        assert replicated.state("people") == "streaming"
