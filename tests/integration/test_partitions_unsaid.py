"""What would leave wrong rows behind without a word in the stream.

A TRUNCATE while a table is read again, partitions without WAL, detached ones that go on being streamed, and new ones of
which only inserts are published.
"""

from __future__ import annotations

import asyncio

import pytest

from cdc.service import provision, resyncing
from cdc.target.resync_request import Request
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.test_partitions_move import EVENTS, events, settled
from tests.resync import Replicated

__all__ = ["events"]


@pytest.fixture(autouse=True)
def _polls_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resyncing, "POLL_S", 0.05)


@pytest.mark.parametrize("leaf", ["events_0", "events_rest"], ids=["told by its bound", "told by nothing"])
async def test_a_leaf_that_is_truncated_after_a_chunk_was_merged_leaves_nothing(events: Replicated, leaf: str) -> None:
    source, target = events.source, events.target
    chunks: list[int] = []

    async def disturb(request: Request) -> None:
        chunks.append(request.chunk_count)
        if chunks.count(4) == 1 and request.chunk_count == 4:
            source.execute(f"TRUNCATE {leaf}")

    async with events.worker(before_mark=disturb, most_rows=10):
        await events.resync("public.events")
        await settled(events)
    assert chunks.count(4) > 1, "the chunk that was staged was read again"
    assert target.fetchval("SELECT count(*) FROM events") == 40


async def test_a_truncate_of_what_was_merged_is_not_forgotten_by_a_kill(events: Replicated) -> None:
    source = events.source
    reached = asyncio.Event()

    async def truncate(request: Request) -> None:
        if request.chunk_count == 4:
            source.execute("TRUNCATE events_rest")
            reached.set()
            await asyncio.Event().wait()

    asked = asyncio.create_task(events.resync("public.events"))
    async with events.worker(before_mark=truncate, most_rows=10):
        await asyncio.wait_for(reached.wait(), 30)
        await events.caught_up()
    async with events.worker(most_rows=10):
        await asked
        await settled(events)


async def test_an_unlogged_partition_arrives_when_it_is_logged_and_keeps_nothing_else_out(events: Replicated) -> None:
    source = events.source
    said: list[str] = []
    members = "SELECT tablename FROM pg_publication_tables ORDER BY 1"
    async with events.worker():
        source.execute(
            "CREATE UNLOGGED TABLE events_2 PARTITION OF events FOR VALUES FROM (20) TO (30);"
            "INSERT INTO events SELECT n, 22, 'without WAL' FROM generate_series(1, 5) n"
        )
        before = source.fetch(members)
        await provision.setup(events.config, said.append)
        assert source.fetch(members) == before, said
        assert ("events_0",) in before
        source.execute("UPDATE events SET v = 'goes on' WHERE k = 1; DELETE FROM events WHERE id = 3")
        await events.caught_up()
        logged = "SELECT id, k, v FROM events WHERE k <> 22 ORDER BY 1, 2"
        assert events.target.fetch(logged) == source.fetch(logged)
        source.execute("ALTER TABLE events_2 SET LOGGED; INSERT INTO events VALUES (100, 22, 'later')")
        await settled(events)
    assert events.target.fetchval("SELECT count(*) FROM events WHERE v = 'without WAL'") == 4


async def test_a_detached_partition_that_is_published_by_itself_leaves_nothing(
    source: Database, make_target: MakeDatabase
) -> None:
    """Its changes come under its own name, and none of them says that they are not of the table any more."""
    source.execute(EVENTS)
    source.execute("CREATE PUBLICATION theirs FOR ALL TABLES")
    events = Replicated(source, make_target(), include=["public.events"])
    events.settings["source"] |= {"manage_publications": False, "publications": ["theirs"]}
    events.settings["worker"]["partition_interval_s"] = 0.1
    await events.load()
    source.execute(
        "ALTER TABLE events DETACH PARTITION events_1; UPDATE events_1 SET k = k + 100 WHERE id < 5;"
        "INSERT INTO events_1 VALUES (7000, 5, 'not of events')"
    )
    async with events.worker():
        await settled(events)
    assert events.target.fetchval("SELECT count(*) FROM events") == 40
