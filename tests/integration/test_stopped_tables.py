"""Tables that stop alone where that is tricky: several reasons in one batch, and another name at the source."""

from __future__ import annotations

from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow

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
