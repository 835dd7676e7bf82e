"""A whole pipeline, end to end: what it does when nothing is wrong, and when the worker comes and goes."""

from __future__ import annotations

from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow, listed, owned


async def test_every_target_gets_its_part_through_a_killed_worker(source: Database, make_target: MakeDatabase) -> None:
    source.execute(
        "CREATE TABLE campaigns (id int PRIMARY KEY, name text, secret text);"
        "INSERT INTO campaigns SELECT g, 'campaign ' || g, 'secret' FROM generate_series(1, 100) g;"
        "CREATE TABLE log (line text)"
    )
    internal, external, datamart = (make_target(name) for name in ("internal", "external", "datamart"))
    datamart.execute("CREATE SCHEMA maddo; CREATE TABLE maddo.campaigns (title text, campaign_id bigint)")
    async with Pipeline(
        source,
        {
            "internal": follow(internal),
            "external": listed(external, {"public.campaigns": ["id", "name"]}),
            "datamart": owned(
                datamart,
                {"public.campaigns": {"to": "maddo.campaigns", "columns": {"id": "campaign_id", "name": "title"}}},
            ),
        },
    ) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        source.execute("UPDATE campaigns SET name = upper(name) WHERE id < 10; DELETE FROM campaigns WHERE id = 50")
        source.execute("UPDATE campaigns SET id = 1000 + id WHERE id = 7; INSERT INTO log VALUES ('a'), ('a')")
        await pipeline.assert_caught_up_and_equal()
        await worker.kill()
        source.execute("INSERT INTO campaigns VALUES (5000, 'while nobody looked'); INSERT INTO log VALUES ('b')")
        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()
        assert external.fetchval("SELECT count(*) FROM information_schema.columns WHERE table_name = 'campaigns'") == 2
