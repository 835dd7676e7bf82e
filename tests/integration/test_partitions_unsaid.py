"""What would leave wrong rows behind without a word in the stream.

A TRUNCATE while a table is read again, partitions without WAL, detached ones that go on being streamed, and new ones of
which only inserts are published.
"""

from __future__ import annotations

import asyncio

import pytest

from cdc.errors import TerminalError
from cdc.service import provision, resyncing
from cdc.target.resync_request import Request
from tests.bootstrap import until
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
    assert (0 in chunks[1:]) == (leaf == "events_rest"), "from the first on only where nothing tells what is merged"
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


async def test_an_unlogged_partition_arrives_when_it_is_logged_and_keeps_nothing_else_out(
    events: Replicated, capsys: pytest.CaptureFixture[str]
) -> None:
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
        with pytest.raises(
            TerminalError, match=r"public.events has partitions whose changes are not in the WAL \(.*_2\)"
        ):
            await events.resync("public.events")
        logged = "SELECT id, k, v FROM events WHERE k <> 22 ORDER BY 1, 2"
        assert events.target.fetch(logged) == source.fetch(logged)
        assert capsys.readouterr().out.count("its rows do not arrive") == 1
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


KEYLESS = """
    CREATE TABLE events (id int, k int, v text) PARTITION BY RANGE (k);
    CREATE TABLE events_0 PARTITION OF events (PRIMARY KEY (id, k)) FOR VALUES FROM (0) TO (10);
    INSERT INTO events SELECT n, 1, 'v' FROM generate_series(1, 5) n
"""


async def test_a_new_partition_of_which_only_inserts_are_published_is_told_until_its_updates_are(
    source: Database, make_target: MakeDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has a key, so that its rows could be told; but its root has none, and is published accordingly."""
    source.execute(KEYLESS)
    events = Replicated(source, make_target())
    events.settings["worker"]["partition_interval_s"] = 0.1
    await events.load()
    out: list[str] = []

    def said(part: str) -> bool:
        out.append(capsys.readouterr().out)
        return part in "".join(out)

    told: list[str] = []
    async with events.worker():
        source.execute(
            "CREATE TABLE events_1 PARTITION OF events (PRIMARY KEY (id, k)) FOR VALUES FROM (10) TO (20);"
            "INSERT INTO events VALUES (1, 11, 'v'), (2, 11, 'v')"
        )
        source.execute("UPDATE events SET v = 'new'; DELETE FROM events WHERE id = 2 AND k = 11")
        await until(lambda: said("only inserts and TRUNCATE of a new partition are published"))
        assert said("partition=public.events_1")
        assert said("cdc setup, then cdc resync public.events")
        # One that brings rows cannot be read before.
        source.execute(
            "CREATE TABLE events_2 (LIKE events, PRIMARY KEY (id, k)); INSERT INTO events_2 VALUES (1, 21, 'old');"
            "ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM (20) TO (30)"
        )
        await until(lambda: events.state("events") == "stopped")
        ((reason, mend),) = events.target.fetch("SELECT reason, mend FROM cdc.target_table")
        assert "does not publish public.events in full: run `cdc setup`" in reason
        assert mend == "cdc setup && cdc resync public.events --target warehouse"
        await provision.setup(events.config, told.append)
        assert [
            name for name in ("events", "events_0", "events_1") if f"deletes of public.{name} are" in str(told)
        ] == ["events_1"]
        assert "cdc resync public.events" in str(told)
        await events.resync("public.events")
        source.execute("UPDATE events SET v = 'newest'; DELETE FROM events WHERE id = 1 AND k = 21")
        await settled(events)
    told.clear()
    await provision.setup(events.config, told.append)
    assert not any("are published from now on" in one for one in told)
