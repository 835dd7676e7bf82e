"""The SQL files of a target, run once its tables are complete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from cdc.bootstrap.enrichment import enrich, enrich_all
from cdc.config import Config
from cdc.errors import SetupError
from cdc.target import migrations
from cdc.target.run_record import begin_run
from cdc.target.session import Session, connect
from tests.bootstrap import make_config, until
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow

SHIPPED = Path(__file__).resolve().parents[2] / "sql" / "enrich"


class Desk:
    """A loaded target called internal, and a directory for its files."""

    def __init__(self, source: Database, target: Database, directory: Path) -> None:
        self.target = target
        self.files = directory / "internal"
        self.files.mkdir()
        plain = make_config(source, {"internal": {"dsn": target.dsn, "include": ["public.*"]}})
        self.config = self.reading(plain, directory)
        self.said: list[str] = []

    @staticmethod
    def reading(config: Config, directory: Path) -> Config:
        return config.model_copy(update={"bootstrap": config.bootstrap.model_copy(update={"enrichment": directory})})

    def write(self, name: str, text: str) -> None:
        (self.files / name).write_text(text)

    async def run(self) -> list[str]:
        self.said.clear()
        return await enrich(
            self.config, "internal", "cdc", application_name="cdc test", record=None, say=self.said.append
        )

    def done(self) -> list[str]:
        return [
            name
            for (name,) in self.target.fetch("SELECT file FROM cdc.enrichment WHERE applied_at IS NOT NULL ORDER BY 1")
        ]


@pytest.fixture
async def desk(source: Database, make_target: MakeDatabase, tmp_path: Path) -> Desk:
    target = make_target()
    session = await connect(target.dsn, application_name="cdc test")
    await migrations.migrate(session)
    await session.close()
    target.execute("INSERT INTO cdc.target (pipeline, target, state) VALUES ('cdc', 'internal', 'streaming')")
    target.execute('CREATE TABLE answers (id int PRIMARY KEY, at timestamptz, "challengeId" text)')
    target.execute("INSERT INTO answers SELECT g, now(), 'rec' || g FROM generate_series(1, 1000) g")
    return Desk(source, target, tmp_path)


async def test_each_file_is_run_once_in_the_order_of_names(desk: Desk) -> None:
    desk.write("20.sql", "INSERT INTO log VALUES (20), (21); -- the end\n")
    desk.write("10.sql", "CREATE TABLE log (n int); INSERT INTO log VALUES (10);")
    assert await desk.run() == []
    assert await desk.run() == []
    assert desk.target.fetch("SELECT n FROM log") == [(10,), (20,), (21,)]
    assert desk.done() == ["10.sql", "20.sql"]


async def test_a_file_that_fails_is_named_without_values_and_stops_no_other(desk: Desk) -> None:
    desk.write("10.sql", "CREATE TABLE log (n int PRIMARY KEY); INSERT INTO log VALUES (4711), (4711); SELECT 1;")
    desk.write("20.sql", "CREATE VIEW twenty AS SELECT 20 AS n")
    (warning,) = await desk.run()
    assert "10.sql of its enrichment could not be run, `cdc enrich` tries it again" in warning
    assert "running statement 2 of 10.sql failed" in warning
    assert "SQLSTATE 23505" in warning
    assert "4711" not in warning
    assert desk.done() == ["20.sql"]
    # Mended: what was done is not done again.
    desk.write(
        "10.sql", "CREATE TABLE log (n int PRIMARY KEY); INSERT INTO log VALUES (1), (2); INSERT INTO log VALUES (3);"
    )
    assert await enrich_all(desk.config, None, desk.said.append) == []
    assert desk.target.fetch("SELECT n FROM log") == [(1,), (2,), (3,)]
    assert desk.done() == ["10.sql", "20.sql"]


async def test_a_file_that_has_changed_since_it_was_run_is_named_and_not_run_again(desk: Desk) -> None:
    desk.write("10.sql", "CREATE TABLE log (n int)")
    assert await desk.run() == []
    desk.write("10.sql", "DROP TABLE log")
    (warning,) = await desk.run()
    assert "10.sql of its enrichment has changed since it was run" in warning
    assert desk.target.fetch("SELECT n FROM log") == []


async def test_a_file_waits_for_the_tables_that_it_needs(desk: Desk) -> None:
    desk.write("10.sql", '-- needs: public.answers, later-on\nCREATE TABLE log AS SELECT * FROM "later-on"')
    assert await desk.run() == []
    assert desk.said == [
        "target internal: 10.sql of its enrichment is left out: it needs public.later-on, which is not there"
    ]
    desk.target.execute('CREATE TABLE "later-on" (n int)')
    assert await desk.run() == []
    assert desk.done() == ["10.sql"]


async def test_a_file_that_is_a_transaction_is_run_as_a_whole_or_not_at_all(desk: Desk) -> None:
    desk.write(
        "10.sql", "-- cdc: transaction\nCREATE TABLE log (n int PRIMARY KEY); INSERT INTO log VALUES (1); SELECT 1/0;"
    )
    (warning,) = await desk.run()
    assert "SQLSTATE 22012" in warning
    assert desk.target.fetchval("SELECT to_regclass('log')") is None
    desk.write("10.sql", "-- cdc: transaction\nCREATE TABLE log (n int PRIMARY KEY); INSERT INTO log VALUES (1);")
    assert await desk.run() == []
    assert desk.target.fetch("SELECT n FROM log") == [(1,)]


async def test_what_cannot_run_in_a_transaction_is_run_alone(desk: Desk) -> None:
    desk.write(
        "10.sql",
        'CREATE INDEX CONCURRENTLY by_challenge ON answers ("challengeId"); VACUUM ANALYZE answers;'
        "CREATE PROCEDURE p() LANGUAGE plpgsql AS 'BEGIN INSERT INTO answers VALUES (0); COMMIT; END'; CALL p()",
    )
    assert await desk.run() == []
    assert desk.target.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_challenge'::regclass")
    assert desk.target.fetchval("SELECT count(*) FROM answers WHERE id = 0") == 1


async def test_an_index_that_failed_leaves_nothing_behind_and_is_built_when_the_file_is_run_again(desk: Desk) -> None:
    desk.target.execute("INSERT INTO answers VALUES (-1, NULL, 'rec1')")
    desk.write("10.sql", 'CREATE UNIQUE INDEX CONCURRENTLY once ON public.answers ("challengeId")')
    (warning,) = await desk.run()
    assert "SQLSTATE 23505" in warning
    assert desk.target.fetchval("SELECT to_regclass('once')") is None
    # What an interrupted run leaves.
    desk.target.execute('DELETE FROM answers WHERE id = -1; CREATE UNIQUE INDEX once ON answers ("challengeId")')
    desk.target.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'once'::regclass")
    assert await desk.run() == []
    assert desk.target.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'once'::regclass")


async def test_settings_of_a_file_hold_in_it_alone_also_when_it_goes_on(desk: Desk) -> None:
    desk.write("10.sql", "SET search_path = elsewhere; SELECT 1/(SELECT count(*) FROM answers); CREATE TABLE t (n int)")
    desk.write("20.sql", "CREATE TABLE t (n int)")
    desk.target.execute("CREATE SCHEMA elsewhere")
    assert len(await desk.run()) == 1
    assert desk.target.fetchval("SELECT to_regclass('public.t')") is not None
    desk.target.execute("CREATE TABLE elsewhere.answers AS SELECT 1")
    assert await desk.run() == []
    assert desk.target.fetchval("SELECT to_regclass('elsewhere.t')") is not None


async def test_a_statement_that_waits_for_a_lock_gives_up_and_is_tried_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc.target.session.LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr(connect, "__kwdefaults__", {**(connect.__kwdefaults__ or {}), "lock_timeout_ms": 100})
    desk.write("10.sql", "ALTER TABLE answers ADD COLUMN mine int")
    waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ '^ALTER TABLE' AND datname = %s"
    async with desk.target.session(autocommit=False) as report, asyncio.TaskGroup() as group:
        await report.execute("SELECT count(*) FROM answers")
        running = group.create_task(desk.run())
        for _ in range(2):
            await until(lambda: desk.target.fetch(waits, desk.target.name))
            await until(lambda: not desk.target.fetch(waits, desk.target.name))
        await report.rollback()
    assert running.result() == []
    assert desk.target.fetchval("SELECT count(*) FROM pg_attribute WHERE attname = 'mine'") == 1


async def test_two_runs_at_once_run_each_file_once(desk: Desk) -> None:
    desk.write("10.sql", "CREATE TABLE log (n int); SELECT pg_sleep(0.5); INSERT INTO log VALUES (1)")
    assert list(await asyncio.gather(desk.run(), desk.run())) == [[], []]
    assert desk.target.fetch("SELECT n FROM log") == [(1,)]


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE made AS SELECT FROM pg_sleep(2)", "CREATE INDEX CONCURRENTLY made ON answers (slow(id))"],
)
async def test_a_statement_whose_connection_was_cut_is_done_once(desk: Desk, statement: str) -> None:
    desk.target.execute(
        "CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_catalog.pg_sleep(0.001); RETURN $1; END'"
    )
    desk.write("10.sql", f"{statement}; CREATE TABLE log AS SELECT 1 AS n")
    await cut_off(
        desk,
        lambda: desk.target.fetch(
            "SELECT FROM pg_stat_activity WHERE query ~ 'made' AND state = 'active' AND pid <> pg_backend_pid()"
        ),
    )
    assert desk.done() == ["10.sql"]
    assert desk.target.fetch("SELECT n FROM log") == [(1,)]
    assert desk.target.fetchval("SELECT to_regclass('made')") is not None


async def test_a_commit_that_got_no_answer_is_not_repeated(desk: Desk) -> None:
    desk.target.execute(
        "CREATE TABLE log (n int);"
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_catalog.pg_sleep(1); RETURN NULL; END';"
        "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON log INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    desk.write("10.sql", "INSERT INTO log VALUES (1)")
    commits = "SELECT FROM pg_stat_activity WHERE query ~ '^COMMIT' AND state = 'active' AND datname = %s"
    await cut_off(desk, lambda: desk.target.fetch(commits, desk.target.name))
    assert desk.target.fetch("SELECT n FROM log") == [(1,)]
    assert desk.done() == ["10.sql"]


async def cut_off(desk: Desk, is_busy: Callable[[], object]) -> None:
    """Run the files through a proxy that is cut while ``is_busy``."""
    from urllib.parse import urlsplit

    from tests.faults.proxy import Proxy

    async with Proxy("127.0.0.1", urlsplit(desk.target.dsn).port or 0) as proxy:
        config = make_config(desk.target, {"internal": {"dsn": proxy.dsn(desk.target.dsn), "include": ["public.*"]}})
        config = Desk.reading(config, desk.files.parent)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(
                enrich(config, "internal", "cdc", application_name="cdc test", record=None, say=desk.said.append)
            )
            await until(is_busy)
            assert proxy.cut() > 0
        assert running.result() == []


async def test_the_record_of_the_run_says_how_long_each_file_took(desk: Desk) -> None:
    desk.write("10.sql", "SELECT 1")
    session = await connect(desk.target.dsn, application_name="cdc test")

    async def ready() -> Session:
        return session

    record = await begin_run(ready, "cdc", "internal", "backup")
    await enrich(desk.config, "internal", "cdc", application_name="cdc test", record=record, say=desk.said.append)
    await session.close()
    assert desk.target.fetch("SELECT kind, object FROM cdc.bootstrap_step WHERE finished_at IS NOT NULL") == [
        ("enrichment", "10.sql")
    ]
    assert desk.said == ["target internal: 10.sql of its enrichment is done"]


async def test_a_target_that_was_never_loaded_is_not_enriched(desk: Desk) -> None:
    desk.write("10.sql", "CREATE TABLE log (n int)")
    desk.target.execute("UPDATE cdc.target SET state = 'loading'")
    with pytest.raises(SetupError, match="target internal is not loaded yet"):
        await enrich_all(desk.config, ["internal"], desk.said.append)


async def test_the_shipped_files_serve_pix_and_hurt_nobody_else(desk: Desk) -> None:
    desk.config = Desk.reading(desk.config, SHIPPED)
    assert await desk.run() == []
    assert len(desk.said) == 4
    desk.target.execute(
        'CREATE TABLE "knowledge-elements" (id int, "createdAt" timestamptz);'
        'CREATE TABLE "organization-learners" (id int);'
        'CREATE TABLE users (id int, "createdAt" timestamptz)'
    )
    assert await desk.run() == []
    assert len(desk.done()) == 4
    day = "SELECT indexdef FROM pg_indexes WHERE indexname = 'knowledge-elements_createdAt_day'"
    assert """(("createdAt" AT TIME ZONE 'UTC+1'::text))::date) DESC""" in desk.target.fetchval(day)
    assert desk.target.fetch('SELECT * FROM "schooling-registrations"') == []


async def test_the_command_says_by_its_status_whether_all_was_run(
    source: Database, make_target: MakeDatabase, tmp_path: Path
) -> None:
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        pipeline.settings["bootstrap"] = {"enrichment": str(tmp_path)}
        pipeline.configure()
        file = tmp_path / "internal" / "10.sql"
        file.parent.mkdir()
        file.write_text("SELECT 1 / (SELECT count(*) FROM users)")
        status, printed = await pipeline.cdc("enrich")
        assert status == 1
        assert "warning: target internal: 10.sql of its enrichment could not be run" in " ".join(printed.split())
        file.write_text("SELECT count(*) FROM users")
        status, printed = await pipeline.cdc("enrich")
        assert (status, "10.sql of its enrichment is done" in " ".join(printed.split())) == (0, True)
