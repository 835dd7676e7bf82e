"""A resync that fails, or whose last answer is lost: no change is lost, no lack is hidden, and the target streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cdc.errors import TargetUnavailable, TerminalError
from cdc.service import resync_whole, stops
from cdc.service.health import Health
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.resync import Replicated

TABLES = """
CREATE TABLE words (word text PRIMARY KEY, meaning text);
INSERT INTO words VALUES ('a', '1'), ('b', '2');
CREATE TABLE other (id int PRIMARY KEY);
"""
END_SESSION = "SELECT pg_terminate_backend(backend_pid) FROM cdc.target"


async def until(condition: str, database: Database) -> None:
    async with asyncio.timeout(30):
        while not database.fetchval(condition):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def until_level(replicated: Replicated) -> None:
    """Wait until the table ``words`` streams where its target is."""
    of_words = "FROM cdc.target_table WHERE source_table = 'words'"
    await until(f"SELECT state = 'streaming' AND position IS NULL {of_words}", replicated.target)


@pytest.mark.parametrize("is_answered", [True, False])
async def test_what_went_by_while_a_table_was_read_whole_comes_also_when_the_session_ends_with_that(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch, is_answered: bool
) -> None:
    source.execute(TABLES)
    replicated = Replicated(source, make_target())
    await replicated.load()
    stage, replace = resync_whole._stage, resync_whole._replace

    async def staged(*args: Any) -> Any:
        rows = await stage(*args)
        source.execute("UPDATE words SET meaning = 'late' WHERE word = 'a'")
        await replicated.caught_up()  # the target goes on without the table
        return rows

    async def replaced(*args: Any) -> Any:
        monkeypatch.setattr(resync_whole, "_replace", replace)
        release, errand = args[0].delivery.release, args[0]
        if not is_answered:  # as if the connection had broken with the answer to the COMMIT
            monkeypatch.setattr(errand.delivery, "release", lambda table: None)
        done = await replace(*args)
        monkeypatch.setattr(errand.delivery, "release", release)
        replicated.target.execute(END_SESSION)
        if not is_answered:
            raise TargetUnavailable("the connection was lost")
        return done

    monkeypatch.setattr(resync_whole, "_stage", staged)
    monkeypatch.setattr(resync_whole, "_replace", replaced)
    async with replicated.worker():
        await replicated.resync("public.words")
        source.execute("INSERT INTO other VALUES (1)")
        await until_level(replicated)
        await replicated.assert_equal("words")


async def test_what_went_by_while_a_table_was_stopped_comes_also_when_the_session_ends_as_it_is_let_go_on(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stops, "RETRY_WAIT_S", (600.0, 600.0))
    source.execute(TABLES)
    replicated = Replicated(source, make_target(), include=["public.*"], on_error="quarantine_table")
    await replicated.load()
    target = replicated.target
    target.execute("ALTER TABLE words ADD CONSTRAINT not_late CHECK (meaning <> 'late')")
    async with replicated.worker():
        source.execute("UPDATE words SET meaning = 'late' WHERE word = 'a'")
        await until("SELECT state = 'stopped' FROM cdc.target_table WHERE source_table = 'words'", target)
        source.execute("INSERT INTO other VALUES (1)")
        await replicated.caught_up()  # the target goes on without the table
        # What a COMMIT leaves whose answer is lost.
        target.execute(
            "ALTER TABLE words DROP CONSTRAINT not_late;"
            " UPDATE cdc.target_table SET state = 'streaming', reason = NULL, stopped_at = NULL"
            f" WHERE source_table = 'words'; {END_SESSION}"
        )
        source.execute("INSERT INTO other VALUES (2)")
        await until_level(replicated)
        await replicated.assert_equal("words")


async def test_rows_that_the_target_refuses_end_the_request_and_not_the_session_of_the_target(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[object] = []
    monkeypatch.setattr(Health, "failed", lambda self, error, again_in_s=None: failed.append(error))
    source.execute(TABLES)
    target = make_target()
    target.execute("CREATE TABLE words (word text PRIMARY KEY, meaning text); CREATE TABLE other (id int PRIMARY KEY)")
    tables = {"public.words": ["word", "meaning"], "public.other": ["id"]}
    replicated = Replicated(source, target, schema="owned", tables=tables)
    await replicated.load()
    target.execute("DELETE FROM words WHERE word = 'b'; ALTER TABLE words ADD CHECK (meaning <> '2')")
    async with replicated.worker():
        with pytest.raises(TerminalError, match="words_meaning_check"):
            await replicated.resync("public.words")
        source.execute("UPDATE words SET meaning = 'new' WHERE word = 'a'")
        await until_level(replicated)
        await replicated.caught_up()
        assert target.fetch("SELECT * FROM words") == [("a", "new")]
        assert failed == []


async def test_a_table_whose_resync_fails_half_way_is_stopped_until_it_is_read_again(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE numbers (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY)")
    source.execute("INSERT INTO numbers SELECT n, 'v' FROM generate_series(1, 40) AS n")
    target = make_target()
    target.execute("CREATE TABLE numbers (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY)")
    tables = {"public.numbers": ["id", "v"], "public.other": ["id"]}
    replicated = Replicated(source, target, schema="owned", tables=tables)
    await replicated.load()
    target.execute("DELETE FROM numbers WHERE id = 7; ALTER TABLE numbers ADD CONSTRAINT no_seven CHECK (id <> 7)")
    stopped = "SELECT state, stopped_in_overlap, mend FROM cdc.target_table WHERE source_table = 'numbers'"
    mend = "cdc resync public.numbers --target warehouse"
    async with replicated.worker() as delivery:
        with pytest.raises(TerminalError, match="no_seven"):
            await replicated.resync("public.numbers")
        assert target.fetch(stopped) == [("stopped", True, mend)]
        assert [stop.error.sql for stop in delivery.stops.values()] == [mend]
        assert delivery.metrics._stopped == {"public.numbers": "resync"}
        source.execute("UPDATE numbers SET v = 'late' WHERE id IN (7, 8); INSERT INTO other VALUES (1)")
        await replicated.caught_up()
        target.execute(END_SESSION)
        source.execute("INSERT INTO other VALUES (2)")
        await replicated.caught_up()
        assert target.fetch(stopped) == [("stopped", True, mend)]
    async with replicated.worker() as delivery:
        source.execute("INSERT INTO other VALUES (3)")
        await replicated.caught_up()
        assert list(delivery.stops) == ["public.numbers"]
        assert delivery.metrics._stopped == {"public.numbers": "resync"}
        assert target.fetch(stopped) == [("stopped", True, mend)]
        assert target.fetchval("SELECT v FROM numbers WHERE id = 8") == "v"
        target.execute("ALTER TABLE numbers DROP CONSTRAINT no_seven")
        await replicated.resync("public.numbers", target="warehouse")
        await replicated.assert_equal("numbers")
        await replicated.assert_equal("other")
        assert delivery.stops == {}
        assert delivery.metrics._stopped == {}
        assert target.fetch(stopped) == [("streaming", False, None)]
