"""Partitioned tables with the worker as the process that it is: several targets, commands, and a kill."""

from __future__ import annotations

from cdc.bootstrap.again import Again
from cdc.bootstrap.progress import Silence
from cdc.bootstrap.run import Scope
from cdc.service import loading
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow, owned

EVENTS = """
    CREATE TABLE events (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
    CREATE TABLE events_0 PARTITION OF events FOR VALUES FROM (0) TO (10);
    CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (10) TO (20);
    CREATE TABLE other (id int PRIMARY KEY, v text);
    INSERT INTO events SELECT n, k, 'v' FROM generate_series(1, 500) n, unnest('{1,11}'::int[]) k;
"""
BY_LIST = """
    CREATE TABLE log ("key" int, text text, number int, PRIMARY KEY (number, "key")) PARTITION BY LIST ("key");
    CREATE TABLE log_1 PARTITION OF log FOR VALUES IN (1, 2, 3);
    CREATE TABLE log_rest PARTITION OF log DEFAULT;
"""


async def test_targets_that_want_the_whole_or_a_part_and_a_kill(source: Database, make_target: MakeDatabase) -> None:
    source.execute(EVENTS)
    part, theirs = make_target("part"), make_target("theirs")
    theirs.execute(BY_LIST)
    columns = {"id": "number", "k": "key", "v": "text"}
    targets = {
        "whole": follow(make_target("whole"), "public.events", "public.other"),
        "part": follow(part, "public.events_1"),
        "theirs": owned(theirs, {"public.events": {"to": "public.log", "columns": columns}}),
    }
    async with Pipeline(source, targets, worker={"partition_interval_s": 0.2}) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        source.execute(
            "UPDATE events SET v = 'new' WHERE id < 50; UPDATE events SET k = k + 10, id = -id WHERE id = 60"
            " AND k = 1; INSERT INTO other VALUES (1, 'x')"
        )
        await pipeline.assert_caught_up_and_equal()
        await worker.kill()
        source.execute(
            "CREATE TABLE events_2 (LIKE events INCLUDING ALL); INSERT INTO events_2 SELECT n, 22, 'old'"
            " FROM generate_series(1, 2000) n; ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM"
            " (20) TO (30)"
        )
        source.execute("UPDATE events SET v = 'later' WHERE id < 9")
        worker = await pipeline.start(ready=False)
        await pipeline.logged("resync", worker)
        await worker.kill()
        source.execute("TRUNCATE events_0; INSERT INTO events VALUES (1, 2, 'after the kill')")
        await pipeline.start()

        async def is_equal() -> bool:
            return not await pipeline.differences()

        await pipeline.until(is_equal, "the rows of the attached partition are everywhere")
        assert part.fetchval("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'events%%'") == 1
        status = await pipeline.target_status("whole")
        assert sorted(table.source_name for table in status.tables) == ["public.events", "public.other"]
        source.execute("ALTER TABLE events DETACH PARTITION events_2")
        await pipeline.until(is_equal, "the rows of the detached partition are gone")


async def test_it_is_loaded_again_as_any_table(source: Database, make_target: MakeDatabase) -> None:
    source.execute(EVENTS)
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}, worker={"partition_interval_s": 0.2}) as pipeline:
        await pipeline.load()
        target.execute("DELETE FROM events WHERE id % 3 = 0")
        await loading.bootstrap(pipeline.config, progress=Silence(), scope=Scope(again=Again(("public.events",))))
        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()
        target.execute("DELETE FROM events WHERE id % 4 = 0; UPDATE events SET v = 'wrong' WHERE id = 3")
        status, said = await pipeline.cdc("resync", "public.events")
        assert status == 0, said
        source.execute("UPDATE events SET v = 'strict' WHERE id = 4")
        await pipeline.assert_caught_up_and_equal()
        status, said = await pipeline.cdc("bootstrap", "--from", "live", "--anew")
        assert status == 0, said
        source.execute("TRUNCATE events_1; UPDATE events SET v = 'swapped', k = k + 1")
        source.execute(
            "CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (20) TO (30);"
            "INSERT INTO events VALUES (1, 21, 'x'); TRUNCATE events"
        )
        source.execute("INSERT INTO events VALUES (1, 21, 'x')")
        await pipeline.assert_caught_up_and_equal()
        held = target.fetchval("SELECT count(*) FROM cdc.target_table, jsonb_object_keys(partitions)")
        assert held == 3
        assert target.fetchval("SELECT count(*) FROM cdc.resync WHERE by_itself") == 0


async def test_partitions_that_were_loaded_one_by_one_go_on_until_their_root_is(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(EVENTS)
    target = make_target()
    async with Pipeline(source, {"internal": follow(target, "public.events_?")}) as pipeline:
        await pipeline.load()
        pipeline.settings["targets"]["internal"]["include"] = ["public.*"]
        pipeline.configure()
        await pipeline.start()
        source.execute("UPDATE events SET v = 'as before' WHERE id < 20")
        await pipeline.caught_up()
        assert target.fetchval("SELECT count(*) FROM events_1 WHERE v = 'as before'") == 19
        await pipeline.worker.terminate()
        await pipeline.load()
        await pipeline.start()
        source.execute("UPDATE events SET v = 'as a whole' WHERE id < 30")
        await pipeline.assert_caught_up_and_equal()
        loaded = target.fetch("SELECT source_table FROM cdc.target_table ORDER BY 1")
        assert loaded == [("events",), ("other",)]
        assert target.fetchval("SELECT count(*) FROM events_1 WHERE v = 'as a whole'") == 0
