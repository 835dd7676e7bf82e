"""The cut-over: where in the stream a target that was restored from a backup becomes exactly consistent.

Up to there its tables are in overlap, because a change may be in their rows already; from the next batch on they are
strict. What happens is in one target transaction: position, LSN and time of the cut-over, and the tables' states.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from cdc.changes.spool import SpoolSpace
from cdc.config import Config
from cdc.lsn import Lsn
from cdc.observe.metrics import Metrics
from cdc.routing.target_routes import TargetRoutes
from cdc.service.delivery import Delivery
from cdc.service.heartbeats import Heartbeats
from cdc.service.lane import Lane
from cdc.source import heartbeat
from cdc.source.connection import connect as connect_source
from cdc.source.replication import ReplicationConnection
from cdc.target import position, table_state
from cdc.target.generation import generation_key
from cdc.target.history import History
from cdc.target.session import connect
from cdc.target.table_state import mark_overlap
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow

TABLES = "CREATE TABLE answers (id int PRIMARY KEY, value text); CREATE TABLE others (id int PRIMARY KEY, value text);"


@dataclass
class Load:
    """A target whose tables are in overlap, and the lane of the bootstrap that loads it, in this process."""

    pipeline: Pipeline
    config: Config
    source: Database
    target: Database
    key: str
    delivery: Delivery

    async def beat(self) -> int:
        """Commit a heartbeat; its number."""
        async with await connect_source(self.source.dsn, application_name="tests") as connection:
            return (await heartbeat.beat(connection, self.config.pipeline)).count

    def states(self) -> dict[str, str]:
        return dict(self.target.fetch("SELECT source_table, state FROM cdc.target_table WHERE pipeline = %s", self.key))

    def row(self) -> tuple[str, str | None, datetime | None, int | None]:
        """Position, LSN and time of the cut-over, and the heartbeat that is waited for."""
        ((held, at, time, awaited),) = self.target.fetch(
            "SELECT position::text, consistent_at::text, consistent_time, cut_over_heartbeat"
            " FROM cdc.target WHERE pipeline = %s",
            self.key,
        )
        return held, at, time, awaited

    @asynccontextmanager
    async def streaming(self) -> AsyncIterator[Lane]:
        stop = asyncio.Event()
        lane = Lane(
            self.config,
            [self.delivery],
            spool=SpoolSpace(0),
            heartbeats=Heartbeats(),
            metrics=Metrics("cdc").lane(),
            stop=stop,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lane.run())
            try:
                yield lane
            finally:
                stop.set()

    async def holds(self, lsn: Lsn | None = None) -> None:
        goal = lsn or self.source.current_lsn()
        async with asyncio.timeout(30):
            while self.delivery.position is None or self.delivery.position < goal:
                await self.delivery.changed()


@asynccontextmanager
async def loading(source: Database, target: Database, *, key: str = "cdc", **worker: object) -> AsyncIterator[Load]:
    """A backup has been restored, whose rows are those of now; the slot began before it, and heartbeats are rare."""
    source.execute(TABLES)
    settings = {"heartbeat_interval_s": 3600, **worker}
    async with Pipeline(source, {"internal": follow(target)}, worker=settings) as pipeline:
        await pipeline.setup()
        config = pipeline.config
        source.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", pipeline.slot)
        start = pipeline.confirmed()
        source.execute("INSERT INTO answers VALUES (1, 'in the backup'), (2, 'too')")
        target.execute(TABLES + "INSERT INTO answers VALUES (1, 'in the backup'), (2, 'too')")
        async with (
            await connect_source(source.dsn, application_name="tests") as connection,
            await ReplicationConnection.open(source.dsn, "tests") as walsender,
        ):
            beat = await heartbeat.beat(connection, config.pipeline)
            system = await walsender.identify_system()
        session = await connect(target.dsn, application_name="tests")
        await position.register(session, key, "internal")
        fence = (await position.take(session, key)).fence
        history = History(system.system_identifier, system.timeline, pipeline.slot, beat.incarnation)
        await position.record_history(session, key, fence, history, start)
        routes = TargetRoutes(config.targets["internal"])
        for table in ("answers", "others"):
            route = routes.route_of("public", table)
            assert route is not None
            await mark_overlap(session, key, route, source_filenode=7)
        # One has been found in the backup; the lane itself writes the next one when its stream begins.
        await position.record_cut_over(session, key, fence, beat.count + 3)
        await session.close()
        delivery = Delivery(
            "internal",
            config,
            key=key,
            routes=routes,
            loads=True,
            metrics=Metrics("cdc").target("internal"),
            heartbeats=Heartbeats(),
        )
        yield Load(pipeline, config, source, target, key, delivery)


@pytest.fixture
def target(make_target: MakeDatabase) -> Database:
    return make_target("internal")


async def test_what_the_backup_holds_already_does_no_harm_before_the_cut_over(
    source: Database, target: Database
) -> None:
    async with loading(source, target) as load, load.streaming():
        await load.holds()
        assert target.fetch("SELECT * FROM answers ORDER BY id") == [(1, "in the backup"), (2, "too")]
        assert load.states() == {"answers": "overlap", "others": "overlap"}
        assert (load.delivery.consistent_at, load.row()[1]) == (None, None)
        assert target.fetchval("SELECT state FROM cdc.target") == "loading"


async def test_a_batch_ends_with_the_heartbeat_that_makes_the_target_exactly_consistent(
    source: Database, target: Database
) -> None:
    async with loading(source, target) as load:
        # All of it is there before the stream begins, so that it could be one batch.
        await load.beat()
        await load.beat()
        before = datetime.now(UTC)
        await load.beat()
        cut_over = source.current_lsn()
        source.execute("INSERT INTO others VALUES (1, 'after')")
        async with load.streaming():
            await load.holds()
        held, at, time, awaited = load.row()
        assert at is not None
        assert Lsn.parse(at) <= cut_over < Lsn.parse(held)
        assert time is not None
        assert abs((time - before).total_seconds()) < 30
        assert awaited is None
        assert (load.delivery.consistent_at, load.delivery.consistent_time) == (Lsn.parse(at), time)
        assert load.states() == {"answers": "streaming", "others": "streaming"}
        assert target.fetchval("SELECT source_filenode FROM cdc.target_table WHERE source_table = 'others'") == 7


async def test_after_the_cut_over_a_change_that_does_not_fit_stops_its_table(
    source: Database, target: Database
) -> None:
    async with loading(source, target) as load, load.streaming():
        target.execute("DELETE FROM answers WHERE id = 2")
        source.execute("UPDATE answers SET value = 'upserted' WHERE id = 2")
        await load.holds()
        assert target.fetchval("SELECT value FROM answers WHERE id = 2") == "upserted"
        for _ in range(3):
            await load.beat()
        async with asyncio.timeout(30):
            while load.delivery.consistent_at is None:
                await load.delivery.changed()
        target.execute("DELETE FROM answers WHERE id = 2")
        source.execute("UPDATE answers SET value = 'refused' WHERE id = 2")
        await load.holds()
        assert list(load.delivery.stops) == ["public.answers"]
        assert target.fetchval("SELECT count(*) FROM answers") == 1


async def test_the_cut_over_can_come_with_a_large_transaction(source: Database, target: Database) -> None:
    async with loading(source, target, max_batch_bytes=65536) as load:
        await load.beat()
        await load.beat()
        with source.connection().transaction():
            source.execute("INSERT INTO others SELECT n, repeat('x', 100) FROM generate_series(1, 3000) AS n")
            source.execute(
                "WITH beat AS (UPDATE cdc.heartbeat SET count = count + 1, at = now() RETURNING pipeline, count, at,"
                " incarnation) SELECT pg_logical_emit_message(true, 'cdc.heartbeat', row_to_json(beat)::text) FROM beat"
            )
            source.execute("INSERT INTO others SELECT n, repeat('x', 100) FROM generate_series(3001, 6000) AS n")
        end = source.current_lsn()
        source.execute("DELETE FROM others WHERE id = 6000")
        async with load.streaming():
            await load.holds()
        assert Lsn.parse(load.row()[1] or "0/0") == load.delivery.consistent_at
        assert (load.delivery.consistent_at or Lsn(0)) <= end
        assert target.fetchval("SELECT count(*) FROM others") == 5999


async def test_a_heartbeat_of_another_life_of_the_source_cuts_nothing_over(source: Database, target: Database) -> None:
    async with loading(source, target) as load, load.streaming():
        source.execute(
            "SELECT pg_logical_emit_message(true, 'cdc.heartbeat', %s)",
            '{"pipeline": "cdc", "count": 999, "at": "2026-05-01T12:00:00+00:00",'
            ' "incarnation": "00000000-0000-0000-0000-000000000000"}',
        )
        await load.holds()
        assert load.delivery.consistent_at is None
        assert load.states() == {"answers": "overlap", "others": "overlap"}


async def test_a_table_that_stopped_in_overlap_is_given_up_at_the_cut_over(source: Database, target: Database) -> None:
    async with loading(source, target) as load, load.streaming():
        target.execute("ALTER TABLE others DROP COLUMN value")
        source.execute("INSERT INTO others VALUES (1, 'no place for it')")
        await load.holds()
        assert load.states()["others"] == "stopped"
        stop = load.delivery.stops["public.others"]
        assert stop.relation is not None
        assert load.delivery.acknowledgeable is not None
        assert load.delivery.acknowledgeable < (load.delivery.position or Lsn(0))
        for _ in range(3):
            await load.beat()
        await load.holds()
        assert load.states() == {"answers": "streaming", "others": "copying"}
        assert load.delivery.stops == {}
        assert load.delivery.acknowledgeable == load.delivery.position


async def test_a_table_that_stopped_in_overlap_goes_on_in_overlap(source: Database, target: Database) -> None:
    async with loading(source, target) as load, load.streaming():
        target.execute("ALTER TABLE answers DROP COLUMN value")
        source.execute("INSERT INTO answers VALUES (3, 'three')")
        await load.holds()
        assert load.states()["answers"] == "stopped"
        target.execute("ALTER TABLE answers ADD COLUMN value text")
        target.execute("INSERT INTO answers VALUES (3, 'the backup held it already')")
        async with asyncio.timeout(30):
            while load.delivery.stops or load.delivery.acknowledgeable != load.delivery.position:
                await load.delivery.changed()
        await load.holds()
        assert load.states()["answers"] == "overlap"
        assert target.fetchval("SELECT value FROM answers WHERE id = 3") == "three"


async def test_a_table_is_left_out_while_the_lane_runs_and_holds_nothing_up(source: Database, target: Database) -> None:
    async with loading(source, target) as load, load.streaming():
        await load.holds()
        await load.delivery.give_up(["public.others"])
        assert load.states() == {"answers": "overlap", "others": "copying"}
        source.execute("INSERT INTO others VALUES (1, 'left out'); INSERT INTO answers VALUES (3, 'three')")
        await load.holds()
        assert target.fetchval("SELECT count(*) FROM others") == 0
        assert target.fetchval("SELECT count(*) FROM answers") == 3
        assert load.delivery.acknowledgeable == load.delivery.position


async def test_a_generation_beside_is_loaded_by_heartbeats_of_its_pipeline(source: Database, target: Database) -> None:
    key = generation_key("cdc")
    async with loading(source, target, key=key) as load, load.streaming():
        for _ in range(3):
            await load.beat()
        async with asyncio.timeout(30):
            while load.delivery.consistent_at is None:
                await load.delivery.changed()
        assert load.states() == {"answers": "streaming", "others": "streaming"}
        session = await connect(target.dsn, application_name="tests")
        assert (await table_state.read(session, "cdc")) == []
        state = await position.read(session, "cdc")
        assert state is not None
        assert (state.state, state.position) == ("new", None)
        await session.close()


async def test_what_the_bootstrap_asks_for_between_two_batches_is_done_by_the_owner(
    source: Database, target: Database
) -> None:
    async with loading(source, target) as load, load.streaming():
        assert await load.delivery.between_batches(_position) == load.delivery.position


async def _position(owned: object) -> Lsn:
    found = getattr(owned, "position", None)
    assert isinstance(found, Lsn)
    return found
