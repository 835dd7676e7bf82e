"""Logical messages in the stream, those of other programs among them, whoever writes how many of them."""

from __future__ import annotations

from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow


async def test_invariant_10_a_transaction_of_many_messages_passes_in_bounded_memory(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY)")
    limits = {"max_batch_bytes": "1MB", "max_queue_bytes": "2MB"}
    async with Pipeline(source, {"internal": follow(make_target())}, worker=limits) as pipeline:
        await pipeline.load()
        worker = await pipeline.start(fresh=True)
        before = worker.rss_bytes()
        source.execute(
            "INSERT INTO items VALUES (1); "
            "SELECT pg_logical_emit_message(true, 'theirs', repeat('x', 100000)) FROM generate_series(1, 1000); "
            "SELECT pg_logical_emit_message(true, 'cdc.test', repeat('x', 100)) FROM generate_series(1, 200000); "
            "INSERT INTO items VALUES (2)"
        )
        await pipeline.caught_up()
        assert worker.peak_rss_bytes() - before < 32 * 1024 * 1024
        assert pipeline.targets["internal"].fetchval("SELECT count(*) FROM items") == 2
