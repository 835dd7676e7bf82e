"""The invariants of the design, section 4, kept by a whole pipeline: each test fails when what keeps it goes.

Invariants that can be shown without a worker have more tests beside the code that keeps them:

- 1: test_target_position (rows and position in one round trip)
- 2: model/test_every_history_applies (after every batch), model/test_faults (read continuously, through faults)
- 3: test_target_session (a database that configures ``synchronous_commit = off``), unit/test_service_positions
- 4: test_target_position (fences)
- 5: unit/test_target_history (what position and source are compared by), test_source_replication (timelines)
- 6: test_source_publication, test_setup_teardown (row filters, column lists, DROP COLUMN, tables without identity)
- 7: test_bootstrap_live, unit/test_routing
- 8: unit/test_observe_logs, unit/test_errors, test_target_session
- 9: test_target_schema, test_setup_teardown, test_bootstrap_refusals
- 10: unit/test_service_queue
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from cdc.lsn import Lsn
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database
from tests.faults.proxy import Direction, Proxy
from tests.fences import fence_held, held_at_its_commit
from tests.pipeline import Pipeline, follow, listed, owned

TABLES = "CREATE TABLE items (id int PRIMARY KEY, name text); CREATE TABLE log (line text)"
"""``log`` has no key: what is applied twice is there twice."""

QUIET = {"heartbeat_interval_s": 3600, "lock_timeout_s": 0}
"""Nothing happens but what the test does, and who waits for a lock waits as long as the test wants."""

MARKER = "geheim-4711"
"""A value that must not be seen."""


def count(database: Database, table: str) -> int:
    found = database.fetchval(f"SELECT count(*) FROM {table}")
    assert isinstance(found, int)
    return found


def proxy_of(database: Database) -> Proxy:
    return Proxy("127.0.0.1", urlsplit(database.dsn).port or 0)


# --- 1


@pytest.mark.parametrize("session", ["ends with it", "outlives it"])
async def test_invariant_01_a_worker_killed_at_its_commit_leaves_rows_and_position_or_neither(
    source: Database, make_target: MakeDatabase, session: str
) -> None:
    source.execute(TABLES)
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}, worker=QUIET) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        both = "INSERT INTO items VALUES (1, 'one'); INSERT INTO log VALUES ('a')"
        async with held_at_its_commit(pipeline, target, both):
            before = pipeline.position("internal")
            assert (count(target, "items"), count(target, "log")) == (0, 0), "nobody sees what is not committed"
            await worker.kill()
            if session == "ends with it":
                target.execute(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'cdc cdc'"
                    " AND datname = current_database()"
                )
        if session == "ends with it":
            assert (count(target, "items"), count(target, "log"), pipeline.position("internal")) == (0, 0, before)
        else:
            await pipeline.until(lambda: count(target, "items") == 1, "its session commits what had been sent")
            assert (count(target, "log"), pipeline.position("internal") != before) == (1, True)
        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()


# --- 2


async def test_invariant_02_a_transaction_of_many_parts_is_never_seen_in_part(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    target = make_target()
    limits = {"max_batch_bytes": "64kB", "max_queue_bytes": "64kB"}
    async with Pipeline(source, {"internal": follow(target)}, worker=limits) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute(
            "INSERT INTO items SELECT g, repeat('x', 100) FROM generate_series(1, 20000) g;"
            "INSERT INTO log SELECT 'line ' || g FROM generate_series(1, 20000) g"
        )
        seen: set[tuple[int, int]] = set()
        goal = source.current_lsn()
        looks = 0
        while (pipeline.position("internal") or Lsn(0)) < goal:
            [(items, lines)] = target.fetch("SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM log)")
            seen.add((items, lines))
            looks += 1
            await asyncio.sleep(0.005)
        assert seen <= {(0, 0), (20000, 20000)}
        assert looks > 3
        await pipeline.assert_equal()


# --- 3


async def test_invariant_03_a_target_that_stands_still_holds_the_acknowledgement(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    internal, external = make_target("internal"), make_target("external")
    async with Pipeline(
        source,
        {"internal": follow(internal), "external": follow(external)},
        worker={"lock_timeout_s": 0, "status_interval_s": 0.1},
    ) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        with fence_held(external):
            source.execute("INSERT INTO log VALUES ('what external lacks')")
            await pipeline.caught_up(None, "internal")
            await _acknowledged_at_most(pipeline, "external")
            assert count(internal, "log") == 1
            await worker.kill()
            external.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'cdc cdc'"
                " AND datname = current_database()"
            )
        assert count(external, "log") == 0
        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()


async def test_invariant_03_an_idle_advance_is_stored_everywhere_before_it_is_acknowledged(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES + "; CREATE SCHEMA other; CREATE TABLE other.noise (n int)")
    internal, external = make_target("internal"), make_target("external")
    async with Pipeline(
        source,
        {"internal": follow(internal), "external": follow(external)},
        worker={**QUIET, "status_interval_s": 0.1},
    ) as pipeline:
        await pipeline.load()
        await pipeline.start()
        with fence_held(external):
            source.execute("INSERT INTO other.noise SELECT generate_series(1, 1000)")
            goal = source.current_lsn()
            await pipeline.caught_up(goal, "internal")
            await _acknowledged_at_most(pipeline, "external")
            assert pipeline.confirmed() < goal
        await pipeline.until(lambda: pipeline.confirmed() >= goal, "what both hold is acknowledged")
        confirmed = pipeline.confirmed()
        assert all((pipeline.position(name) or Lsn(0)) >= confirmed for name in pipeline.targets)


async def _acknowledged_at_most(pipeline: Pipeline, target: str) -> None:
    """For a second, in which the worker sends several status updates, the slot is told no more than the target has."""
    ends_at = time.monotonic() + 1
    while time.monotonic() < ends_at:
        held = pipeline.position(target)
        assert held is not None
        assert pipeline.confirmed() <= held
        await asyncio.sleep(0.05)


# --- 4


async def test_invariant_04_a_commit_without_an_answer_is_not_repeated(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    target = make_target()
    async with (
        proxy_of(target) as proxy,
        Pipeline(source, {"internal": follow(target, dsn=proxy.dsn(target.dsn))}, worker=QUIET) as pipeline,
    ):
        await pipeline.load()
        worker = await pipeline.start()
        async with held_at_its_commit(pipeline, target, "INSERT INTO log VALUES ('once')"):
            proxy.stall(Direction.TO_CLIENT)
        await pipeline.until(lambda: count(target, "log") == 1, "the target has committed")
        source.execute("INSERT INTO log VALUES ('another')")
        proxy.cut()
        proxy.resume()
        await pipeline.logged("target failed", worker)
        await pipeline.until(lambda: count(target, "log") > 1, "the worker goes on")
        await pipeline.assert_caught_up_and_equal()
        assert sorted(target.fetch("SELECT line FROM log")) == [("another",), ("once",)]


async def test_invariant_04_a_worker_that_hung_writes_nothing_once_another_has_taken_over(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}, worker=QUIET) as pipeline:
        await pipeline.load()
        old = await pipeline.start()
        async with held_at_its_commit(pipeline, target, "INSERT INTO log VALUES ('once')"):
            old_session = _owner(target)
            old.pause()
            source.execute(
                "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = %s",
                pipeline.slot,
            )
            await pipeline.start(ready=False)
            await pipeline.until(
                lambda: not target.fetch("SELECT FROM pg_stat_activity WHERE pid = %s", old_session),
                "the new one ends the session of the old one",
            )
        await pipeline.ready()
        assert _owner(target) != old_session
        old.resume()
        await pipeline.logged("no stream", old)
        source.execute("INSERT INTO log VALUES ('another')")
        await pipeline.until(lambda: count(target, "log") > 1, "the new one applies")
        await pipeline.assert_caught_up_and_equal()
        assert old.runs


def _owner(target: Database) -> int:
    pid = target.fetchval("SELECT backend_pid FROM cdc.target")
    assert isinstance(pid, int)
    return pid


# --- 5


async def test_invariant_05_a_slot_ahead_of_a_target_is_not_gone_on_from(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}, worker=QUIET) as pipeline:
        await pipeline.load()
        await (await pipeline.start()).kill()
        await pipeline.until(lambda: not pipeline.slot_is_active(), "the slot is free")
        source.execute("SELECT pg_drop_replication_slot(%s)", pipeline.slot)
        source.execute("INSERT INTO log VALUES ('in no slot')")
        source.create_slot(pipeline.slot)
        source.execute("INSERT INTO log VALUES ('in the new slot')")
        worker = await pipeline.start(ready=False)
        line = await pipeline.logged("target needs a resync", worker)
        assert "ahead of the target's position" in line["reason"]
        assert "cdc bootstrap" in line["reason"]
        assert count(target, "log") == 0
        seen = await pipeline.target_status("internal")
        assert (seen.state, "ahead of" in str(seen.last_error)) == ("needs resync", True)
        status, answer = await worker.get("/readyz")
        assert (status, "needs a resync" in answer) == (503, True)


async def test_invariant_05_a_slot_that_is_gone_is_never_made_again(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        await (await pipeline.start()).kill()
        await pipeline.until(lambda: not pipeline.slot_is_active(), "the slot is free")
        source.execute("SELECT pg_drop_replication_slot(%s)", pipeline.slot)
        worker = await pipeline.start(ready=False)
        line = await pipeline.logged("no stream", worker)
        assert "bootstrap" in line["reason"]
        assert source.fetch("SELECT FROM pg_replication_slots WHERE slot_name = %s", pipeline.slot) == []
        assert worker.runs


# --- 7


async def test_invariant_07_what_no_route_names_is_never_sent(source: Database, make_target: MakeDatabase) -> None:
    """Every byte that the worker sends to the target's server is read on its way."""
    source.execute(
        f"CREATE TABLE users (id int PRIMARY KEY, email text, name text, note text UNIQUE);"
        f"CREATE TABLE visits (who text, page text, email text); ALTER TABLE visits REPLICA IDENTITY FULL;"
        f"CREATE TABLE letters (id int PRIMARY KEY, body text);"
        f"INSERT INTO users VALUES (1, '{MARKER}', 'Jane', 'a'), (2, '{MARKER}', 'Joe', 'b')"
    )
    target = make_target("external")
    sent = bytearray()

    def keep(data: bytes) -> bytes:
        sent.extend(data)
        return data

    async with proxy_of(target) as proxy:
        proxy.damage(Direction.TO_SERVER, keep)
        tables = {"public.users": ["id", "name", "note"], "public.visits": ["who", "page"]}
        async with Pipeline(source, {"external": listed(target, tables, dsn=proxy.dsn(target.dsn))}) as pipeline:
            await pipeline.load()
            await pipeline.start()
            source.execute(f"INSERT INTO users VALUES (3, '{MARKER}', 'Jim', 'c'); INSERT INTO letters VALUES (1, 'x')")
            source.execute("UPDATE users SET name = upper(name); UPDATE users SET id = 30 WHERE id = 3")
            source.execute("UPDATE users SET note = 'x' WHERE id = 1; UPDATE users SET note = 'a' WHERE id = 2")
            source.execute(f"INSERT INTO visits VALUES ('Jane', '/', '{MARKER}'), ('Jane', '/', '{MARKER}2')")
            source.execute(f"UPDATE visits SET page = '/home' WHERE email = '{MARKER}2'")
            source.execute(f"DELETE FROM users WHERE id = 2; UPDATE letters SET body = '{MARKER}'")
            source.execute(f"ALTER TABLE users ADD COLUMN phone text DEFAULT '{MARKER}'")
            source.execute(f"INSERT INTO users VALUES (4, '{MARKER}', 'Jill', 'd', '{MARKER}')")
            await pipeline.assert_caught_up_and_equal()
    assert b"JANE" in sent
    assert MARKER.encode() not in sent
    assert [name for (name,) in target.fetch("SELECT relname FROM pg_class WHERE relname IN ('users', 'letters')")] == [
        "users"
    ]


# --- 8


async def test_invariant_08_the_statement_log_of_a_target_holds_no_value(
    source: Database, make_target: MakeDatabase, own_server: MakeServer
) -> None:
    """Also on the strict path, for partial updates, and for tables without a key."""
    there = own_server(side="target", log_statement="all", log_min_duration_statement=0, log_parameter_max_length=-1)
    source.execute(
        "CREATE TABLE items (id int PRIMARY KEY, name text, big text);"
        "ALTER TABLE items ALTER big SET STORAGE EXTERNAL;"
        "CREATE TABLE bag (a text, b text); ALTER TABLE bag REPLICA IDENTITY FULL;"
        "CREATE TABLE slugs (id int PRIMARY KEY, slug text, CONSTRAINT u UNIQUE (slug) DEFERRABLE);"
    )
    target = make_target(server=there)
    target.execute(
        "CREATE TABLE items (big text, name text, id int PRIMARY KEY); CREATE TABLE bag (b text, a text);"
        "CREATE TABLE slugs (id int, slug text)"
    )
    routes = {"public.items": ["id", "name", "big"], "public.bag": ["a", "b"], "public.slugs": ["id", "slug"]}
    async with Pipeline(source, {"datamart": owned(target, routes)}) as pipeline:
        pipeline.settings["logs"]["level"] = "debug"
        pipeline.configure()
        await pipeline.load()
        worker = await pipeline.start()
        source.execute(f"INSERT INTO items SELECT g, '{MARKER}', repeat('{MARKER}', 1000) FROM generate_series(1, 9) g")
        source.execute(f"UPDATE items SET name = '{MARKER}+' WHERE id < 5; UPDATE items SET id = 90 WHERE id = 9")
        source.execute(f"DELETE FROM items WHERE id = 7; INSERT INTO bag VALUES ('{MARKER}', 'x'), ('{MARKER}', 'x')")
        source.execute(f"UPDATE bag SET b = '{MARKER}' WHERE ctid = '(0,1)'; DELETE FROM bag WHERE ctid = '(0,2)'")
        source.execute(f"INSERT INTO slugs VALUES (1, '{MARKER}1'), (2, '{MARKER}2')")
        source.execute(f"UPDATE slugs SET slug = CASE id WHEN 1 THEN '{MARKER}2' ELSE '{MARKER}1' END")
        await pipeline.assert_caught_up_and_equal()
        log = "\n".join(line for line in there.log_text().splitlines() if " tests " not in line)
        assert "COPY" in log
        assert MARKER not in log
        assert MARKER not in worker.log_text()


async def test_invariant_08_a_rejected_row_is_described_without_its_values(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TYPE mood AS ENUM ('happy'); CREATE TABLE items (id int PRIMARY KEY, name text, mood mood)")
    target = make_target()
    target.execute(
        "CREATE TYPE mood AS ENUM ('happy');"
        "CREATE TABLE items (id int PRIMARY KEY, mood mood, name text CONSTRAINT no_secrets CHECK (name !~ '4711'))"
    )
    tables = {"public.items": ["id", "name", "mood"]}
    async with Pipeline(source, {"datamart": owned(target, tables, on_error="quarantine_table")}) as pipeline:
        pipeline.settings["logs"]["level"] = "debug"
        pipeline.configure()
        await pipeline.load()
        worker = await pipeline.start()
        source.execute(f"INSERT INTO items VALUES (1, '{MARKER}', 'happy')")
        table = await pipeline.table_in_state("datamart", "public.items", "stopped")
        assert "no_secrets" in str(table.reason)
        stored = target.fetch("SELECT t::text, u::text FROM cdc.target t, cdc.target_table u")
        everything = [worker.log_text(), (await pipeline.status()).to_json(), str(stored)]
        everything += [(await worker.get(path))[1] for path in ("/metrics", "/readyz", "/healthz")]
        everything += [(await pipeline.cdc(*words))[1] for words in (("status",), ("check",))]
        for text in everything:
            assert MARKER not in text
        secret = re.compile("postgresql://[^ ]*:[^ ]*@")
        assert not any(secret.search(text) for text in everything)


# --- 9


async def test_invariant_09_what_others_made_in_a_target_outlives_everything(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        target.execute(
            "CREATE TABLE mine (id int); CREATE INDEX mine_too ON items (name);"
            "ALTER TABLE items ADD COLUMN also_mine text DEFAULT 'kept';"
            "CREATE VIEW view_of_mine AS SELECT id, also_mine FROM items"
        )
        worker = await pipeline.start()
        source.execute("INSERT INTO items SELECT g, 'x' FROM generate_series(1, 3) g; UPDATE items SET name = 'y'")
        await pipeline.assert_caught_up_and_equal()
        source.execute("TRUNCATE items; INSERT INTO items VALUES (1, 'z')")
        source.execute("DROP TABLE log")
        await pipeline.caught_up()
        await worker.terminate()
        status, output = await pipeline.cdc("teardown", "--yes")
        assert status == 0, output
        assert target.fetch("SELECT * FROM view_of_mine") == [(1, "kept")]
        assert (
            target.fetchval("SELECT count(*) FROM pg_class WHERE relname IN ('mine', 'mine_too', 'items', 'log')") == 4
        )
        assert target.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = 'cdc'") == 0


# --- 10

_MB = 1024 * 1024

ROOM_BYTES = 48 * _MB
"""What the worker may need beyond what it starts with: three times the queue and the batch of two targets, and some."""

LARGE = "INSERT INTO items SELECT g, repeat(md5(g::text), 32) FROM generate_series({}, {}) g"
"""A kilobyte a row."""


async def test_invariant_10_a_transaction_larger_than_all_limits_passes_in_bounded_memory(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    async with _with_little_memory(source, make_target) as pipeline:
        worker = await pipeline.start(fresh=True)
        before = worker.rss_bytes()
        source.execute(LARGE.format(1, 100_000))
        await pipeline.caught_up()
        assert worker.peak_rss_bytes() - before < ROOM_BYTES
        for target in pipeline.targets.values():
            assert count(target, "items") == 100_000


async def test_invariant_10_a_target_that_stalls_takes_bounded_memory(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    async with _with_little_memory(source, make_target) as pipeline:
        worker = await pipeline.start(fresh=True)
        before = worker.rss_bytes()
        with fence_held(pipeline.targets["external"]):
            for start in range(0, 100_000, 500):
                source.execute(LARGE.format(start, start + 499))
            await pipeline.caught_up(None, "internal")
            assert worker.peak_rss_bytes() - before < ROOM_BYTES
            assert count(pipeline.targets["internal"], "items") == 100_000
            assert count(pipeline.targets["external"], "items") < 100_000
        await pipeline.caught_up()
        assert count(pipeline.targets["external"], "items") == 100_000
        assert worker.peak_rss_bytes() - before < ROOM_BYTES


@asynccontextmanager
async def _with_little_memory(source: Database, make_target: MakeDatabase) -> AsyncIterator[Pipeline]:
    """Two loaded targets, whose worker may hold 2 MB for each, and waits a second for one that is full."""
    limits = {"max_batch_bytes": "1MB", "max_queue_bytes": "2MB", "detach_after_s": 1, "lock_timeout_s": 0}
    targets = {name: follow(make_target(name)) for name in ("internal", "external")}
    async with Pipeline(source, targets, worker=limits) as pipeline:
        await pipeline.load()
        yield pipeline
