"""``incremental``: how it is asked for, what stands against it, and how a table that kept its rows is mended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from cdc.bootstrap.again import Again
from cdc.bootstrap.run import Scope
from cdc.errors import SetupError
from tests.bootstrap import rows, states
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.incremental import (
    DELETED,
    STALE,
    bootstrap,
    differing,
    fill,
    kept,
    modes,
)
from tests.pipeline import Pipeline, Target, follow, owned


def other_key(source: Database, target: Database) -> None:
    target.execute("ALTER TABLE answers DROP CONSTRAINT answers_pkey, ADD PRIMARY KEY (n, id)")


def no_key(source: Database, target: Database) -> None:
    source.execute("ALTER TABLE answers DROP CONSTRAINT answers_pkey")


def duplicates(source: Database, target: Database) -> None:
    target.execute("ALTER TABLE answers DROP CONSTRAINT answers_pkey; INSERT INTO answers VALUES (1, '', 'twice', 1)")


def taken(source: Database, target: Database) -> None:
    target.execute("CREATE UNIQUE INDEX of_value ON answers (value)")
    target.execute("UPDATE answers SET value = 'value 10001' WHERE id = %s", STALE)


@pytest.mark.parametrize(
    ("act", "sentence", "sql"),
    [
        (
            other_key,
            r"needs a unique index there of just the columns that identify a row \(id\)",
            "CREATE UNIQUE INDEX",
        ),
        (no_key, "it has no key", None),
        (duplicates, "some have the same key, or none", None),
        (taken, r"one of them keeps out a row that is missing \(.*of_value.*cdc resync public\.answers", None),
    ],
)
async def test_what_stands_against_it_is_one_sentence_and_nothing_is_changed(
    source: Database,
    make_target: MakeDatabase,
    act: Callable[[Database, Database], None],
    sentence: str,
    sql: str | None,
) -> None:
    internal = make_target()
    fill(source, internal)
    act(source, internal)
    before = rows(internal, "answers")
    async with Pipeline(source, {"internal": follow(internal, "public.answers")}) as pipeline:
        modes(pipeline)
        with pytest.raises(SetupError, match=sentence) as refused:
            await bootstrap(pipeline)
        assert (refused.value.sql or "").startswith(sql or "")
        assert rows(internal, "answers") == before
        assert "public.answers" not in states(internal)
        assert "value 10001" not in str(refused.value)


async def test_several_tables_into_one_are_refused(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE answers (id int PRIMARY KEY); CREATE TABLE others (id int PRIMARY KEY)")
    mart = make_target("datamart")
    mart.execute("CREATE TABLE facts (id int PRIMARY KEY); INSERT INTO facts VALUES (1)")
    route = {"to": "public.facts", "columns": ["id"]}
    async with Pipeline(
        source, {"datamart": owned(mart, {"public.answers": route, "public.others": route})}
    ) as pipeline:
        modes(pipeline)
        with pytest.raises(
            SetupError, match=r"several tables of the source go into it \(public\.answers, public\.others\)"
        ):
            await bootstrap(pipeline)
        assert mart.fetch("TABLE facts") == [(1,)]


async def test_a_table_that_is_to_be_loaded_again_is_emptied_as_asked(
    source: Database, make_target: MakeDatabase
) -> None:
    internal = make_target()
    fill(source, internal)
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        modes(pipeline)
        await bootstrap(pipeline)
        await bootstrap(pipeline, scope=Scope(again=Again(("public.answers",))))
        await pipeline.assert_equal()


async def test_a_key_that_comes_back_although_it_stayed_stops_the_table_and_resync_mends_it(
    source: Database, make_target: MakeDatabase
) -> None:
    internal = make_target()
    fill(source, internal)
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        modes(pipeline)
        await bootstrap(pipeline)
        await pipeline.start()
        source.execute("INSERT INTO answers VALUES (%s, 'reused', 0, '')", DELETED)
        stopped = await pipeline.table_in_state("internal", "public.answers", "stopped")
        assert "brings a key that is already there" in (stopped.reason or "")
        status, output = await pipeline.cdc("resync", "public.answers")
        assert status == 0, output
        await pipeline.assert_caught_up_and_equal()


@pytest.mark.parametrize(
    "variables",
    [
        [("BACKUP_MODE", '{"answers": "incremental"}')],
        [("RESTORE_ANSWERS_AND_KES", "true"), ("RESTORE_ANSWERS_AND_KES_INCREMENTALLY", "true")],
    ],
)
async def test_the_old_tool_s_variables_ask_for_it(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch, variables: Sequence[tuple[str, str]]
) -> None:
    internal = make_target()
    fill(source, internal)
    source.execute('CREATE TABLE "knowledge-elements" (id int PRIMARY KEY)')
    for name, value in variables:
        monkeypatch.setenv(name, value)
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        for words in (["setup"], ["bootstrap", "--from", "live"]):
            status, output = await pipeline.cdc(*words)
            assert status == 0, output
        assert differing(source, internal) == 0
        assert kept(internal)[0] == (STALE, "stale", -1)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ('{"anwsers": "incremental"}', 'did you mean "public.answers"?'),
        ('{"answers": "incremntal"}', "did you mean incremental?"),
    ],
)
async def test_a_mistyped_table_or_mode_is_an_error(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch, value: str, sentence: str
) -> None:
    internal = make_target()
    fill(source, internal)
    before = rows(internal, "answers")
    targets: dict[str, Target] = {"internal": follow(internal)}
    async with Pipeline(source, targets) as pipeline:
        await pipeline.setup()
        monkeypatch.setenv("BACKUP_MODE", value)
        status, output = await pipeline.cdc("bootstrap", "--from", "live")
        assert status != 0
        assert sentence in " ".join(output.split())
        assert rows(internal, "answers") == before
