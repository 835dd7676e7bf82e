"""Tables that stop alone where that is tricky: several reasons in one batch, and another name at the source."""

from __future__ import annotations

import asyncio

import pytest

from cdc.service import ending
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow
from tests.resync import Replicated

TABLES = """
CREATE TABLE a (id int PRIMARY KEY, v int); INSERT INTO a VALUES (1, 1), (2, 2);
CREATE TABLE b (id int PRIMARY KEY, v int)
"""


async def test_a_table_that_is_refused_before_the_place_where_its_shape_stopped_fitting_stops_there(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    target = make_target("internal")
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        await pipeline.caught_up()
        await worker.kill()
        target.execute("DELETE FROM a WHERE id = 1")  # source and target differ
        source.execute("UPDATE a SET v = 9 WHERE id = 1")
        source.execute("ALTER TABLE a ADD COLUMN n int")
        source.execute("INSERT INTO a VALUES (3, 3, 3)")
        source.execute("INSERT INTO b VALUES (1, 1)")
        await pipeline.start()
        await pipeline.caught_up()
        assert target.fetch("SELECT * FROM b") == [(1, 1)]
        stopped = await pipeline.table_in_state("internal", "public.a", "stopped")
        assert stopped.reason
        assert "finds no row" in stopped.reason


async def test_a_table_that_gets_another_name_at_the_source_stops_and_says_so(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    target = make_target("internal")
    async with Pipeline(source, {"internal": follow(target, "public.a", "public.b")}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        await pipeline.caught_up()
        source.execute("ALTER TABLE a RENAME TO former")
        source.execute("INSERT INTO former VALUES (3, 3)")
        source.execute("INSERT INTO b VALUES (1, 1)")
        await pipeline.caught_up()
        assert target.fetch("SELECT * FROM b") == [(1, 1)]
        stopped = await pipeline.table_in_state("internal", "public.a", "stopped")
        assert stopped.reason
        assert "public.a is called public.former now" in stopped.reason


async def test_a_table_that_takes_the_name_of_another_stops_and_says_so(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    target = make_target("internal")
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        await pipeline.caught_up()
        await worker.kill()
        source.execute("DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY, v int); INSERT INTO a VALUES (7, 7)")
        await pipeline.setup()
        source.execute("INSERT INTO a VALUES (8, 8)")
        await pipeline.start()
        await pipeline.caught_up()
        stopped = await pipeline.table_in_state("internal", "public.a", "stopped")
        assert stopped.reason
        assert "another table has taken the name public.a" in stopped.reason
        assert target.fetchval("SELECT count(*) FROM a") == 2


async def test_counters_outlive_a_stream_that_starts_anew_for_a_stopped_table(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "COUNTERS_EVERY_S", 3600)
    source.execute("CREATE TABLE stops (id int PRIMARY KEY); CREATE TABLE others (id int PRIMARY KEY, v int)")
    pipeline = Replicated(source, make_target())
    await pipeline.load()
    async with pipeline.worker():
        source.execute("ALTER TABLE stops ADD COLUMN v int; INSERT INTO stops VALUES (1, 1)")
        source.execute(
            "INSERT INTO others SELECT n, n FROM generate_series(1, 5) n; UPDATE others SET v = 0 WHERE id < 4"
        )
        source.execute("DELETE FROM others WHERE id = 5")
        await pipeline.assert_equal("others")
        pipeline.target.execute("ALTER TABLE stops ADD COLUMN v int")
        async with asyncio.timeout(30):
            while not pipeline.rows(pipeline.target, "stops"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    counted = "SELECT source_table, inserted, updated, deleted FROM cdc.target_table ORDER BY 1"
    assert pipeline.target.fetch(counted) == [("others", 5, 3, 1), ("stops", 1, 0, 0)]
