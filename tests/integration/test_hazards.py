"""The hazards of the design, section 9, met by a whole pipeline: each test is named after the hazard that it meets.

Hazards whose meeting can be shown without a worker have their tests beside the code that meets them:

- 1: test_source_publication, test_source_catalog, test_source_check, test_setup_teardown
- 2: test_source_check (a disk that nothing protects); here: what `cdc status` says
- 4: test_source_replication (a reader that does not read); here: a batch that takes long
- 5: test_source_replication, test_pipeline (workers that overlap)
- 6, 7, 9, 17: test_apply_kinds (and 7 in unit/test_identifiers)
- 12: test_pgoutput_live (transactions that are streamed); here: parts that abort
- 15: unit/test_accumulator; here: a catalog that has gone on
- 16: test_target_session; here: a report, a TRUNCATE, and those who come after
- 21: test_source_heartbeat, test_status
- 22: test_bootstrap_live (what is written during the copy is either copied or streamed)
- 23: test_bootstrap_live
- 24: test_source_publication, test_source_replication; here: a slot that lags while the configuration changes
- 25: test_source_catalog, test_source_replication; here: a worker that goes on
- 26: test_source_snapshot
- 27: test_source_publication; here: a table that leaves the configuration

14 (defaults of added columns) and 19 (a script that empties a table) come with the issues that follow DDL and that hold
changes back.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

from cdc.lsn import Lsn
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database
from tests.faults.proxy import Proxy
from tests.pipeline import Pipeline, follow, owned


def port_of(database: Database) -> int:
    port = urlsplit(database.dsn).port
    assert port is not None
    return port


def walsender(pipeline: Pipeline) -> int:
    """The process at the source that streams to the worker."""
    pid = pipeline.source.fetchval("SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", pipeline.slot)
    assert isinstance(pid, int)
    return pid


async def test_hazard_02_status_shows_what_a_slot_that_nobody_reads_retains(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, value text)")
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        source.execute("INSERT INTO items SELECT n, repeat('x', 1000) FROM generate_series(1, 3000) AS n")

        slot = (await pipeline.status()).source.slots[0]
        assert not slot.active
        assert slot.retained_bytes is not None
        assert slot.retained_bytes > 3_000_000

        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()
        await pipeline.until(lambda: pipeline.confirmed() > Lsn(0), "the slot has been told")
        assert (await pipeline.status()).source.slots[0].active


async def test_hazard_03_a_slot_that_only_sees_keepalives_advances(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY); CREATE TABLE of_nobody (value text)")
    target = make_target()
    async with Pipeline(
        source, {"internal": follow(target, "public.items")}, worker={"heartbeat_interval_s": 3600}
    ) as pipeline:
        await pipeline.load()
        await pipeline.start()
        for _ in range(3):
            source.execute("INSERT INTO of_nobody SELECT repeat('x', 1000) FROM generate_series(1, 1000) AS n")
            written = source.current_lsn()
            await pipeline.until(lambda lsn=written: pipeline.confirmed() >= lsn, "the slot follows", deadline_s=20)
            position = pipeline.position("internal")
            assert position is not None
            assert position >= pipeline.confirmed(), "stored in the target before it was acknowledged"


async def test_hazard_04_a_long_batch_does_not_end_the_stream(
    own_server: MakeServer, make_database: MakeDatabase, make_target: MakeDatabase
) -> None:
    source = make_database("source", server=own_server(wal_sender_timeout="2s"))
    source.execute("CREATE TABLE items (id int PRIMARY KEY)")
    target = make_target()
    worker = {"lock_timeout_s": 0, "status_interval_s": 0.5}
    async with Pipeline(source, {"internal": follow(target)}, worker=worker) as pipeline:
        await pipeline.load()
        await pipeline.start()
        before = walsender(pipeline)
        with target.transaction():
            target.execute("LOCK TABLE items")
            source.execute("INSERT INTO items VALUES (1)")
            await asyncio.sleep(5)
            assert walsender(pipeline) == before

        await pipeline.assert_caught_up_and_equal()
        assert walsender(pipeline) == before
        assert not pipeline.worker.events("no stream")


async def test_hazard_08_types_of_users_have_other_oids_on_a_target(
    source: Database, make_target: MakeDatabase
) -> None:
    target = make_target()
    target.execute("CREATE TYPE before_us AS ENUM ('a'); CREATE TYPE other AS (x int, y int)")
    source.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN age AS int CHECK (VALUE > 0);"
        "CREATE TYPE pair AS (x int, mood mood);"
        "CREATE TABLE people (id int PRIMARY KEY, mood mood, age age);"
        "CREATE TABLE places (id int PRIMARY KEY, at pair, moods mood[]);"
        "INSERT INTO people VALUES (1, 'sad', 30); INSERT INTO places VALUES (1, (1, 'sad'), '{glad}')"
    )
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute(
            "INSERT INTO people VALUES (2, 'glad', 40); UPDATE people SET mood = 'glad', age = 31 WHERE id = 1"
        )
        source.execute("DELETE FROM people WHERE id = 2; INSERT INTO people VALUES (3, NULL, NULL)")
        source.execute("INSERT INTO places VALUES (2, (1, 'glad'), '{sad,NULL}'); UPDATE places SET at = (2, NULL)")
        source.execute("INSERT INTO places VALUES (3, NULL, '{}'); DELETE FROM places WHERE id = 1")
        await pipeline.assert_caught_up_and_equal()


async def test_hazard_10_a_state_that_the_source_never_had_is_not_rejected(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(
        "CREATE TABLE ranks (id int PRIMARY KEY, rank int UNIQUE, grp int, active bool);"
        "CREATE UNIQUE INDEX one_active ON ranks (grp) WHERE active;"
        "INSERT INTO ranks SELECT n, n, 0, n = 1 FROM generate_series(1, 10) AS n"
    )
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        assert target.fetchval("SELECT count(*) FROM pg_index WHERE indrelid = 'ranks'::regclass AND indisunique") == 3
        await pipeline.start()
        for first, second in ((1, 2), (2, 1), (1, 10), (10, 5)):
            with source.transaction():
                source.execute("UPDATE ranks SET active = false WHERE id = %s", first)
                source.execute("UPDATE ranks SET active = true WHERE id = %s", second)
            with source.transaction():
                mine, theirs = (source.fetchval("SELECT rank FROM ranks WHERE id = %s", n) for n in (first, second))
                source.execute("UPDATE ranks SET rank = 0 WHERE id = %s", first)
                source.execute("UPDATE ranks SET rank = %s WHERE id = %s", mine, second)
                source.execute("UPDATE ranks SET rank = %s WHERE id = %s", theirs, first)
        with source.transaction():
            source.execute("DELETE FROM ranks WHERE id = 3; INSERT INTO ranks VALUES (11, 3, 0, false)")
            source.execute("UPDATE ranks SET id = 3 WHERE id = 11")
        await pipeline.assert_caught_up_and_equal()


def key_moves(table: str) -> str:
    """What a migration from int to bigint ends with: two columns swap their names, and the key goes along."""
    return f"""
    ALTER TABLE {table} DROP CONSTRAINT {table}_pkey;
    ALTER TABLE {table} RENAME COLUMN id TO old_id;
    ALTER TABLE {table} RENAME COLUMN new_id TO id;
    ALTER TABLE {table} ALTER COLUMN old_id DROP NOT NULL;
    ALTER TABLE {table} ADD PRIMARY KEY (id);
    """


async def test_hazard_11_a_primary_key_that_moves_to_another_column_in_mid_stream(
    source: Database, make_target: MakeDatabase
) -> None:
    for table in ("answers", "scores"):
        source.execute(
            f"CREATE TABLE {table} (id int PRIMARY KEY, new_id bigint NOT NULL, value text);"
            f"INSERT INTO {table} SELECT n, n, 'value' FROM generate_series(1, 20) AS n"
        )
    internal, datamart = make_target("internal"), make_target("datamart")
    datamart.execute("CREATE TABLE scores (value text, id bigint)")
    targets = {
        "internal": follow(internal, "public.answers"),
        "datamart": owned(datamart, {"public.scores": ["id", "value"]}),
    }
    async with Pipeline(source, targets) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("UPDATE answers SET value = 'before' WHERE id <= 5")
        with source.transaction():
            source.execute("UPDATE scores SET value = 'before' WHERE id <= 5; DELETE FROM scores WHERE id = 6")
            source.execute("INSERT INTO scores VALUES (21, 21, 'before')")
            for table in ("answers", "scores"):
                source.execute(key_moves(table))
                source.execute(f"UPDATE {table} SET value = 'after' WHERE id IN (1, 7, 21)")
                source.execute(f"DELETE FROM {table} WHERE id = 8")
                source.execute(f"INSERT INTO {table} VALUES (NULL, 5000000000, 'after')")
        for table in ("answers", "scores"):
            source.execute(f"UPDATE {table} SET id = id + 100 WHERE id IN (2, 9)")
        await pipeline.caught_up()
        state = await pipeline.table_in_state("internal", "public.answers", "stopped")
        assert "old_id" in (state.reason or "")
        # Nobody but the operator knows that the column which is called id now holds the same values.
        state = await pipeline.table_in_state("datamart", "public.scores", "stopped")
        assert state.mend == "cdc resync public.scores --target datamart"
        status, said = await pipeline.cdc("resync", "public.scores", "--target", "datamart")
        assert status == 0, said
        expected = source.fetch("SELECT value, id FROM scores ORDER BY id")
        assert datamart.fetch("SELECT value, id FROM scores ORDER BY id") == expected

        internal.execute(key_moves("answers"))

        await pipeline.table_in_state("internal", "public.answers", "streaming")
        await pipeline.assert_caught_up_and_equal()


async def test_hazard_12_rows_of_a_subtransaction_that_aborted_never_arrive(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, value text); INSERT INTO items VALUES (1, 'first')")
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        with source.transaction():
            source.execute("INSERT INTO items VALUES (2, 'kept')")
            source.execute("SAVEPOINT a")
            source.execute("INSERT INTO items VALUES (3, 'aborted'); UPDATE items SET value = 'aborted' WHERE id <= 2")
            source.execute("SAVEPOINT b")
            source.execute("DELETE FROM items")
            source.execute("ROLLBACK TO SAVEPOINT b")
            source.execute("TRUNCATE items")
            source.execute("ROLLBACK TO SAVEPOINT a")
            source.execute("INSERT INTO items VALUES (3, 'instead'); SAVEPOINT c; UPDATE items SET id = 4 WHERE id = 3")
            source.execute("RELEASE SAVEPOINT c")
        await pipeline.assert_caught_up_and_equal()


async def test_hazard_13_an_unknown_label_stops_its_table_until_it_is_added(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE people (id int PRIMARY KEY, mood mood);"
        "CREATE TABLE others (id int PRIMARY KEY); INSERT INTO people VALUES (1, 'sad')"
    )
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("ALTER TYPE mood ADD VALUE 'so-so' AFTER 'sad'")
        with source.transaction():
            source.execute("INSERT INTO people VALUES (2, 'glad'), (3, 'so-so'); INSERT INTO others VALUES (1)")
        state = await pipeline.table_in_state("internal", "public.people", "stopped")
        assert "has a label that an enum type does not have at the target (SQLSTATE 22P02" in (state.reason or "")
        assert "; its enum columns: mood (public.mood)." in (state.reason or "")
        assert "Its rows are known by id." in (state.reason or "")
        assert state.sqlstate == "22P02"
        assert (state.mend or "").startswith("ALTER TYPE public.mood ADD VALUE")
        source.execute("UPDATE people SET mood = 'glad' WHERE id = 1; INSERT INTO others VALUES (2)")
        await pipeline.caught_up()
        await pipeline.assert_equal(leave_out=["public.people"])
        assert "so-so" not in pipeline.worker.log_text() + (await pipeline.status()).to_json()

        target.execute("ALTER TYPE mood ADD VALUE 'so-so' AFTER 'sad'")

        await pipeline.table_in_state("internal", "public.people", "streaming")
        await pipeline.assert_caught_up_and_equal()


async def test_hazard_15_a_change_means_what_it_meant_when_it_was_made(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'glad');"
        "CREATE TABLE items (id int PRIMARY KEY, a int, mood mood, b int, c text);"
        "INSERT INTO items VALUES (1, 10, 'sad', 20, 'c')"
    )
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        source.execute("INSERT INTO items VALUES (2, 11, 'glad', 21, 'c'); UPDATE items SET a = 12 WHERE id = 1")
        source.execute("ALTER TABLE items DROP COLUMN mood; DROP TYPE mood")
        source.execute("INSERT INTO items VALUES (3, 13, 23, 'c'); UPDATE items SET b = 24 WHERE id = 2")
        source.execute("ALTER TABLE items DROP COLUMN a; INSERT INTO items VALUES (4, 25, 'c')")
        source.execute("ALTER TABLE items ADD COLUMN a int; INSERT INTO items VALUES (5, 26, 'c', 15)")
        worker = await pipeline.start()
        await pipeline.caught_up()

        assert target.fetch("SELECT id, a, mood::text, b, c FROM items ORDER BY id") == [
            (1, 12, "sad", 20, "c"),
            (2, 11, "glad", 24, "c"),
            (3, 13, None, 23, "c"),
            (4, None, None, 25, "c"),
        ], "until a name means another column, whose values the first rows do not have"
        (stopped,) = worker.events("table stopped")
        assert "under a there are the values of one that is gone, whose name another one has" in stopped["reason"]


async def test_hazard_16_a_truncate_that_waits_for_a_report_holds_up_nobody(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items VALUES (1)")
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}, worker={"lock_timeout_s": 0.3}) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        async with target.session(autocommit=False) as report, target.session() as dashboard:
            await report.execute("SELECT * FROM items")
            source.execute("TRUNCATE items; INSERT INTO items VALUES (2)")
            longest = 0.0
            while len(worker.events("target failed")) < 3:
                begun = time.monotonic()
                await dashboard.execute("SELECT * FROM items")
                longest = max(longest, time.monotonic() - begun)
                await asyncio.sleep(0.02)
            assert longest < 2, "who comes after us waits for our lock_timeout at most"
            reason = worker.events("target failed")[-1]["reason"]
            assert "a lock was not granted in time, somebody else holds it" in reason
        await pipeline.assert_caught_up_and_equal()


async def test_hazard_18_ddl_on_a_target_does_not_disturb_what_is_applied(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, value varchar(20), n int)")
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        key = 0
        for ddl in (
            "CREATE INDEX ON items (value)",
            "ALTER TABLE items ADD COLUMN extra timestamptz DEFAULT clock_timestamp()",
            "ALTER TABLE items ALTER COLUMN value TYPE varchar(40)",
            "ALTER TABLE items ALTER COLUMN value TYPE text",
            "ALTER TABLE items DROP COLUMN extra",
            "ALTER TABLE items DROP CONSTRAINT items_pkey; CREATE UNIQUE INDEX ON items (id)",
            "ALTER TABLE items RENAME TO elsewhere; CREATE TABLE items (n int, id int PRIMARY KEY, value text);"
            "INSERT INTO items SELECT n, id, value FROM elsewhere; DROP TABLE elsewhere",
        ):
            target.execute(ddl)
            key += 10
            source.execute("INSERT INTO items SELECT %s + g, 'new', g FROM generate_series(0, 9) AS g", key)
            source.execute("UPDATE items SET value = 'changed', n = n + 1 WHERE id %% 10 = 3 AND id < %s", key + 10)
            source.execute("DELETE FROM items WHERE id = %s", key + 5)
            await pipeline.assert_caught_up_and_equal()
        assert not pipeline.worker.events("table stopped")


async def test_hazard_20_connections_that_a_proxy_closes_are_opened_again(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY)")
    target = make_target()
    async with (
        Proxy("127.0.0.1", port_of(source)) as before,
        Proxy("127.0.0.1", port_of(target)) as behind,
    ):
        targets = {"internal": follow(target, dsn=behind.dsn(target.dsn))}
        async with Pipeline(source, targets, source_dsn=before.dsn(source.dsn)) as pipeline:
            await pipeline.load()
            worker = await pipeline.start()
            for number, proxies in enumerate([(before,), (behind,), (before, behind)]):
                for proxy in proxies:
                    assert proxy.cut() > 0
                source.execute("INSERT INTO items VALUES (%s)", number)
                await pipeline.assert_caught_up_and_equal()
            assert worker.runs
            idle = target.fetch(
                "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'cdc cdc'"
            )
            assert len(idle) == 1, "none is left behind"


async def test_hazard_24_a_slot_that_lags_survives_a_setup_that_changes_the_publications(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int)")
    target = make_target()
    async with Pipeline(source, {"internal": follow(target, "public.a", "public.c")}) as pipeline:
        await pipeline.load()
        source.execute("INSERT INTO a VALUES (1); INSERT INTO c VALUES (1)")
        pipeline.settings["targets"]["internal"]["include"] = ["public.*"]
        pipeline.configure()
        source.execute("ALTER TABLE c ADD PRIMARY KEY (id)")
        await pipeline.load()
        source.execute("INSERT INTO b VALUES (1); INSERT INTO a VALUES (2); UPDATE c SET id = 2")
        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()


async def test_hazard_25_a_worker_goes_on_with_text_values_where_some_value_has_no_binary_form(
    source: Database, make_target: MakeDatabase
) -> None:
    target = make_target()
    for database in (source, target):
        # What text means must not depend on them; sessions that are open already, the test's own, do not see them.
        for setting in (
            *("DateStyle = 'SQL, DMY'", "IntervalStyle = 'iso_8601'", "extra_float_digits = -3", "array_nulls = off"),
            *("bytea_output = 'escape'", "TimeZone = 'Asia/Kathmandu'", "quote_all_identifiers = on"),
        ):
            database.execute(f'ALTER DATABASE "{database.name}" SET {setting}')
    source.execute(
        "CREATE TABLE plain (id int PRIMARY KEY, at timestamptz, data jsonb, raw bytea, span interval, x float8,"
        " n int[])"
    )
    source.execute("CREATE TABLE rights (id int PRIMARY KEY, acl aclitem[])")
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute(
            "INSERT INTO plain VALUES (1, now(), '{\"a\": [1]}', '\\x00ff', '-1 d 2 h', 1/3::float8, '{1,NULL}')"
        )
        source.execute("INSERT INTO rights VALUES (1, '{postgres=r/postgres}')")
        source.execute("INSERT INTO plain VALUES (2, 'infinity', NULL, ''); UPDATE plain SET data = '[]' WHERE id = 1")
        await pipeline.logged("stream starts anew with text values")
        await pipeline.assert_caught_up_and_equal()
        assert not pipeline.worker.events("no stream")


async def test_hazard_27_a_table_that_left_the_configuration_keeps_its_rows_and_gets_no_more(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)")
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (2)")
        await pipeline.assert_caught_up_and_equal()
        await pipeline.worker.terminate()
        pipeline.settings["targets"]["internal"]["exclude"] = ["public.b"]
        pipeline.configure()
        source.execute("INSERT INTO b VALUES (3)")
        await pipeline.setup()
        await pipeline.start()
        source.execute("INSERT INTO a VALUES (2); INSERT INTO b VALUES (4)")
        await pipeline.assert_caught_up_and_equal()

        assert target.fetch("SELECT id FROM b ORDER BY id") == [(1,), (2,)]
        assert (
            source.fetchval(
                "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'b' AND pubname = %s", pipeline.slot
            )
            == 0
        )
