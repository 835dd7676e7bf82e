"""ATTACH, DETACH and DROP of partitions, of which the source streams nothing: what they bring and take follows.

The worker's lane runs in the test's own process (`tests.resync`), or does not run while it happens.
"""

from __future__ import annotations

import asyncio

import pytest

from cdc.bootstrap.again import Again
from cdc.bootstrap.progress import Silence
from cdc.bootstrap.run import Scope
from cdc.service import loading, resyncing
from cdc.target.resync_request import Request
from tests.bootstrap import until
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.resync import Replicated

EVENTS = """
    CREATE TABLE events (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
    CREATE TABLE events_0 PARTITION OF events FOR VALUES FROM (0) TO (10);
    CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (10) TO (20);
    CREATE TABLE events_rest PARTITION OF events DEFAULT;
    INSERT INTO events SELECT n, k, 'v' FROM generate_series(1, 20) n, unnest('{1,11,101}'::int[]) k;
"""
FILLED = (
    "CREATE TABLE {0} (v text, k int, id int, PRIMARY KEY (id, k));"
    "INSERT INTO {0} SELECT 'old', {1}, n FROM generate_series(1, 30) n"
)


@pytest.fixture(autouse=True)
def _polls_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resyncing, "POLL_S", 0.05)


@pytest.fixture
async def events(source: Database, make_target: MakeDatabase) -> Replicated:
    """A partitioned table, loaded; nothing streams yet."""
    source.execute(EVENTS)
    made = Replicated(source, make_target())
    made.settings["worker"]["partition_interval_s"] = 0.1
    await made.load()
    return made


def marks(replicated: Replicated) -> tuple[set[object], set[object]]:
    """The leaves that the target says it holds, and those that the source has: oid and mark of the ATTACH."""
    held = replicated.target.fetch(
        "SELECT leaf.key::int, leaf.value ->> 2 FROM cdc.target_table, jsonb_each(partitions) leaf"
        " WHERE source_table = 'events'"
    )
    there = replicated.source.fetch(
        "SELECT inhrelid::int, xmin || '/' FROM pg_inherits WHERE inhparent = 'events'::regclass"
    )
    return set(held), set(there)


async def settled(replicated: Replicated) -> None:
    """The target knows the partitions of now, nothing is being read again, and the rows are the source's."""

    def is_settled() -> bool:
        held, there = marks(replicated)
        is_open = replicated.target.fetchval("SELECT count(*) FROM cdc.resync WHERE finished_at IS NULL")
        return held == there and not is_open and replicated.state("events") == "streaming"

    await replicated.caught_up()
    await until(is_settled)
    await replicated.assert_equal("events")


def requests(replicated: Replicated) -> list[tuple[str, bool, int]]:
    """State, whether only a part was read, and the rows that were, of every request."""
    return replicated.target.fetch("SELECT state, within IS NOT NULL, row_count FROM cdc.resync ORDER BY request")


async def test_a_partitioned_table_is_one_table(events: Replicated) -> None:
    source, target = events.source, events.target
    assert source.fetch("SELECT pubname, tablename FROM pg_publication_tables ORDER BY 2") == [
        (events.config.source.publication, name) for name in ("events_0", "events_1", "events_rest")
    ]
    assert target.fetch("SELECT source_table, state FROM cdc.target_table") == [("events", "streaming")]
    assert target.fetch(
        "SELECT relname, relkind::text FROM pg_class WHERE relname LIKE 'events%' AND relkind IN ('r', 'p')"
    ) == [("events", "r")]
    async with events.worker():
        source.execute("UPDATE events SET v = 'new', k = k + 1 WHERE id < 5; DELETE FROM events WHERE id = 6")
        source.execute("UPDATE events SET k = k + 200 WHERE id = 7; TRUNCATE events_1")
        source.execute("INSERT INTO events VALUES (1, 12, 'after')")
        await events.assert_equal("events")
    assert requests(events) == []


async def test_a_partition_that_is_created_costs_nothing(events: Replicated) -> None:
    source = events.source
    async with events.worker():
        source.execute("CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (20) TO (30)")
        source.execute("INSERT INTO events VALUES (1, 21, 'at once')")
        source.execute(
            "BEGIN; CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM (30) TO (40);"
            "INSERT INTO events VALUES (1, 31, 'at once'); COMMIT"
        )
        await settled(events)
        source.execute(
            "CREATE TABLE events_4 (LIKE events INCLUDING ALL);"
            "ALTER TABLE events ATTACH PARTITION events_4 FOR VALUES FROM (40) TO (50)"
        )
        await settled(events)
        source.execute("UPDATE events SET k = 41 WHERE k = 31; TRUNCATE events_2")
        await settled(events)
    assert [request for request in requests(events) if request[2]] == []


@pytest.mark.parametrize("runs", [True, False], ids=["running", "down"])
async def test_what_attach_brings_and_detach_takes_follows(events: Replicated, runs: bool) -> None:
    source = events.source

    async def do(*statements: str, rows: int) -> None:
        before = len(requests(events))
        if runs:
            async with events.worker():
                await events.caught_up()
                for statement in statements:
                    source.execute(statement)
                await settled(events)
        else:
            for statement in statements:
                source.execute(statement)
            async with events.worker():
                await settled(events)
        new = requests(events)[before:]
        assert new, statements
        assert {(state, part) for state, part, _ in new} == {("done", True)}, new
        assert new[-1][2] == rows

    await do(
        FILLED.format("events_2", 22),
        "ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM (20) TO (30)",
        "UPDATE events SET v = 'after' WHERE id < 5; DELETE FROM events WHERE id = 30;"
        "UPDATE events SET k = 23 WHERE id = 9 AND k = 22",
        "INSERT INTO events VALUES (99, 22, 'after')",
        rows=30,
    )
    await do("ALTER TABLE events DETACH PARTITION events_1", rows=0)
    await do(
        "UPDATE events_1 SET v = 'changed outside' WHERE id < 3; DELETE FROM events_1 WHERE id = 4",
        "ALTER TABLE events ATTACH PARTITION events_1 FOR VALUES FROM (10) TO (20)",
        rows=19,
    )
    await do(
        "ALTER TABLE events DETACH PARTITION events_2",
        "UPDATE events_2 SET v = 'changed outside' WHERE id < 3",
        "ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM (20) TO (30)",
        rows=30,
    )
    # The rows of after a DROP have the keys of those of before: the table stops, and then has to catch up.
    await do(
        "DROP TABLE events_0",
        "INSERT INTO events VALUES (1, 1, 'in the default partition'), (2, 1, 'in the default partition')",
        "UPDATE events SET v = 'elsewhere' WHERE k = 101 AND id < 4",
        rows=2,
    )
    source.execute("DROP TABLE events_rest")
    async with events.worker():
        await settled(events)
    assert requests(events)[-1][1] is False  # nothing tells what a default partition held


async def test_detach_concurrently(source: Database, make_target: MakeDatabase) -> None:
    """Not allowed where there is a default partition."""
    source.execute(
        EVENTS.replace(
            "CREATE TABLE events_rest PARTITION OF events DEFAULT;",
            "CREATE TABLE events_9 PARTITION OF events FOR VALUES FROM (100) TO (200);",
        )
    )
    events = Replicated(source, make_target())
    events.settings["worker"]["partition_interval_s"] = 0.1
    await events.load()
    async with events.worker():
        source.execute("ALTER TABLE events DETACH PARTITION events_1 CONCURRENTLY")
        await settled(events)
        source.execute("INSERT INTO events VALUES (50, 5, 'goes on')")
        await settled(events)
    assert requests(events) == [("done", True, 0)]


async def test_a_partition_that_moves_to_another_table(events: Replicated) -> None:
    source = events.source
    source.execute("CREATE TABLE archive (LIKE events INCLUDING ALL) PARTITION BY RANGE (k)")
    await events.load()
    async with events.worker():
        source.execute("UPDATE events SET v = 'known to the stream' WHERE k = 11")
        await events.caught_up()
        source.execute(
            "BEGIN; ALTER TABLE events DETACH PARTITION events_1;"
            "ALTER TABLE archive ATTACH PARTITION events_1 FOR VALUES FROM (10) TO (20); COMMIT"
        )
        source.execute("UPDATE archive SET v = 'archived' WHERE id < 10; INSERT INTO archive VALUES (77, 17, 'x')")
        await settled(events)
        await until(lambda: events.rows(events.target, "archive") == events.rows(source, "archive"))
        source.execute("UPDATE archive SET v = 'again' WHERE id < 10")
        await events.assert_equal("archive")
        await settled(events)


async def test_partitions_that_change_while_the_table_is_read_again(events: Replicated) -> None:
    source = events.source
    statements = iter(
        [
            FILLED.format("events_3", 33)
            + "; ALTER TABLE events ATTACH PARTITION events_3 FOR VALUES FROM (30) TO (40)",
            "ALTER TABLE events DETACH PARTITION events_1; UPDATE events_1 SET v = 'x'",
            "TRUNCATE events_0; INSERT INTO events VALUES (2, 2, 'after the truncate')",
            "CREATE TABLE events_5 PARTITION OF events FOR VALUES FROM (50) TO (60);"
            "INSERT INTO events VALUES (5, 55, 'x')",
        ]
    )

    async def disturb(_: Request) -> None:
        statement = next(statements, None)
        if statement is not None:
            source.execute(statement)

    source.execute(FILLED.format("events_2", 22))
    source.execute("ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM (20) TO (30)")
    async with events.worker(before_mark=disturb, most_rows=10):
        await settled(events)
        assert next(statements, None) is None
        source.execute("UPDATE events SET v = 'strict again'")
        await settled(events)


async def test_a_truncated_leaf_that_nothing_tells_is_read_again_by_itself(events: Replicated) -> None:
    source = events.source
    async with events.worker():
        source.execute(
            "TRUNCATE events_rest; INSERT INTO events VALUES (1, 101, 'after'), (2, 3, 'as before')"
            " ON CONFLICT DO NOTHING"
        )
        source.execute("UPDATE events SET v = 'later' WHERE id = 3")
        await settled(events)
    assert [state for state, _, _ in requests(events)] == ["done"]


async def test_a_kill_while_partitions_are_read_again(events: Replicated) -> None:
    source = events.source
    reached = asyncio.Event()

    async def hang(_: Request) -> None:
        reached.set()
        await asyncio.Event().wait()

    source.execute(FILLED.format("events_2", 22))
    source.execute("ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM (20) TO (30)")
    async with events.worker(before_mark=hang):
        await asyncio.wait_for(reached.wait(), 30)
    source.execute(
        "UPDATE events SET v = 'while nobody runs' WHERE id < 10; ALTER TABLE events DETACH PARTITION events_0"
    )
    async with events.worker():
        await settled(events)


async def test_what_cannot_be_read_while_all_streams_stops_and_says_what_can(
    source: Database, make_target: MakeDatabase
) -> None:
    """A table without a key, which somebody else owns: nothing tells a row that is there from one that came."""
    source.execute(
        "CREATE TABLE events (k int, v text) PARTITION BY RANGE (k);"
        "CREATE TABLE events_0 PARTITION OF events FOR VALUES FROM (0) TO (10); INSERT INTO events VALUES (1, 'v')"
    )
    target = make_target()
    target.execute("CREATE TABLE events (k int, v text)")
    events = Replicated(source, target, schema="owned", tables={"public.events": ["k", "v"]})
    events.settings["worker"]["partition_interval_s"] = 0.1
    await events.load()
    async with events.worker():
        source.execute("CREATE TABLE events_1 (LIKE events)")
        source.execute("ALTER TABLE events ATTACH PARTITION events_1 FOR VALUES FROM (10) TO (20)")
        await settled(events)
        source.execute("INSERT INTO events VALUES (11, 'into one that was attached empty')")
        await settled(events)
        source.execute("CREATE TABLE events_2 AS SELECT 21 AS k, 'old' AS v")
        source.execute("ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM (20) TO (30)")
        source.execute("INSERT INTO events VALUES (22, 'new')")
        await until(lambda: events.state("events") == "stopped" and requests(events)[-1][0] == "failed")
        seen = len(requests(events))
        (stopped,) = target.fetch("SELECT reason, mend FROM cdc.target_table")
        assert "it was to be read again, and that failed" in stopped[0]
        assert stopped[1] == "cdc bootstrap --from live --again public.events --target warehouse"
        await events.caught_up()
    assert len(requests(events)) == seen
    await loading.bootstrap(events.config, progress=Silence(), scope=Scope(again=Again(("public.events",))))
    async with events.worker():
        source.execute("INSERT INTO events VALUES (23, 'goes on')")
        await settled(events)


async def test_a_partition_that_the_configuration_excludes_stops_its_table(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(EVENTS)
    events = Replicated(source, make_target(), include=["public.*"], exclude=["public.*secret"])
    await events.load()
    async with events.worker():
        source.execute("CREATE TABLE events_secret PARTITION OF events FOR VALUES FROM (20) TO (30)")
        source.execute("INSERT INTO events VALUES (1, 21, 'not for everybody')")
        await until(lambda: events.state("events") == "stopped")
    assert "a partitioned table goes as a whole" in events.target.fetchval("SELECT reason FROM cdc.target_table")
    assert events.target.fetchval("SELECT count(*) FROM events WHERE k = 21") == 0
