"""Lanes: a target that was loaded for itself has a lane of its own until it is where the others are, then shares it.

The slot of its own is what keeps WAL for it; it goes when the shared slot keeps what the target lacks, and not before.
Nobody loses a change, whenever the worker is killed.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator

import psycopg
import pytest

from cdc.config import for_asyncpg
from cdc.lsn import Lsn
from cdc.routing.router import route_of
from cdc.source import heartbeat
from cdc.source.connection import connect as connect_source
from cdc.source.replication import ReplicationConnection
from cdc.source.snapshot import exported_snapshot
from cdc.target import position, table_state
from cdc.target.history import History
from cdc.target.session import connect
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow
from tests.warm import ROOT

TABLES = """
CREATE TABLE answers (id int PRIMARY KEY, value text);
CREATE TABLE log (line text);
"""


def own_slot(pipeline: Pipeline, target: str) -> str:
    return f"{pipeline.slot}__{target}"


def slots(pipeline: Pipeline) -> set[str]:
    """The slots of the pipeline at the source."""
    return {
        name
        for (name,) in pipeline.source.fetch(
            "SELECT slot_name::text FROM pg_replication_slots WHERE starts_with(slot_name::text, %s)", pipeline.slot
        )
    }


async def add(pipeline: Pipeline, name: str, database: Database) -> None:
    """The target joins the configuration, as ``cdc setup`` leaves it."""
    pipeline.settings["targets"][name] = {"dsn": database.dsn, **follow(database).settings}
    pipeline.targets[name] = database
    pipeline.configure()
    await pipeline.setup()


async def load_alone(pipeline: Pipeline, name: str, *, state: str = "streaming") -> None:
    """What ``cdc bootstrap --target`` leaves: the rows of a snapshot, and the slot that begins with it."""
    config, database = pipeline.config, pipeline.targets[name]
    database.execute(TABLES)
    async with exported_snapshot(
        pipeline.source.dsn, own_slot(pipeline, name), temporary=False, application_name="tests", failover=False
    ) as snapshot:
        with psycopg.connect(pipeline.source.dsn) as source, psycopg.connect(database.dsn) as target:
            source.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            source.execute(f"SET TRANSACTION SNAPSHOT '{snapshot.name}'")
            for table in ("answers", "log"):
                with (
                    source.cursor().copy(f"COPY {table} TO STDOUT") as rows,
                    target.cursor().copy(f"COPY {table} FROM STDIN") as copy,
                ):
                    for row in rows:
                        copy.write(row)
    async with (
        await connect_source(pipeline.source.dsn, application_name="tests") as connection,
        await ReplicationConnection.open(pipeline.source.dsn, "tests") as walsender,
    ):
        beat = await heartbeat.read(connection, config.pipeline)
        system = await walsender.identify_system()
    assert beat is not None
    session = await connect(for_asyncpg(database.dsn), application_name="tests")
    fence = (await position.take(session, config.pipeline)).fence
    history = History(system.system_identifier, system.timeline, pipeline.slot, beat.incarnation)
    await position.record_history(session, config.pipeline, fence, history, snapshot.consistent_point, state=state)
    for table in ("answers", "log"):
        route = route_of(config.targets[name], "public", table)
        assert route is not None
        await table_state.mark_streaming(session, config.pipeline, route, consistent_from=snapshot.consistent_point)
    await session.close()


def write(source: Database, count: int) -> None:
    """A transaction for every number: rows that come, change and go, in a table with a key and in one without."""
    for number in range(count):
        source.execute(
            "INSERT INTO answers VALUES (%s, 'new') ON CONFLICT (id) DO UPDATE SET value = answers.value || '.'",
            number % 50,
        )
        source.execute("INSERT INTO log VALUES (%s)", f"line {number}")


@pytest.fixture
async def pipeline(source: Database, make_target: MakeDatabase) -> AsyncIterator[Pipeline]:
    """Two targets that stream, and a third one that is configured."""
    source.execute(TABLES)
    write(source, 30)
    async with Pipeline(source, {name: follow(make_target(name)) for name in ("internal", "external")}) as pipeline:
        await pipeline.load()
        await add(pipeline, "late", make_target("late"))
        yield pipeline


async def test_a_target_that_was_loaded_for_itself_has_a_lane_until_it_is_where_the_others_are(
    pipeline: Pipeline,
) -> None:
    source = pipeline.source
    worker = await pipeline.start(ready=False)
    await pipeline.caught_up(None, "internal", "external")
    await load_alone(pipeline, "late", state="loading")
    write(source, 20)
    await pipeline.logged("target has a lane of its own", deadline_s=20)
    await pipeline.caught_up(None, "internal", "external")
    assert not worker.events("target is in the shared lane")
    assert pipeline.position("late") is not None
    pipeline.targets["late"].execute("UPDATE cdc.target SET state = 'streaming'")
    await pipeline.logged("target is in the shared lane", deadline_s=30)
    assert slots(pipeline) == {pipeline.slot}
    write(source, 20)
    await pipeline.ready()
    await pipeline.assert_caught_up_and_equal()
    assert await worker.metric("cdc_slot_active", slot=own_slot(pipeline, "late")) == 0
    assert own_slot(pipeline, "late") not in (await worker.get("/metrics"))[1]
    lsn = source.current_lsn()
    await pipeline.until(lambda: pipeline.confirmed() >= lsn, "the shared slot goes on with all three")


async def test_a_slot_that_was_made_while_no_worker_ran_gives_its_target_a_lane(pipeline: Pipeline) -> None:
    await load_alone(pipeline, "late")
    write(pipeline.source, 40)
    worker = await pipeline.start()
    await pipeline.logged("target is in the shared lane")
    assert slots(pipeline) == {pipeline.slot}
    write(pipeline.source, 10)
    await pipeline.assert_caught_up_and_equal()
    started = [line["slot"] for line in worker.events("streaming")]
    assert started.count(own_slot(pipeline, "late")) == 1


_RUN_AND_DIE = """
import os, signal, sys
from cdc import cli
from cdc.service import lanes

step = sys.argv.pop(1)
hold, drop, leave = lanes.Lane.hold, lanes.drop_lane_slot, lanes.Lanes._leave

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def held(lane):
    hold(lane)
    die()

async def ended(*_, **__):
    die()

async def dropped(*arguments, **named):
    await drop(*arguments, **named)
    die()

async def joined(self, target):
    await leave(self, target)
    die()

match step:
    case "held":
        lanes.Lane.hold = held
    case "ended":
        lanes.drop_lane_slot = ended
    case "dropped":
        lanes.drop_lane_slot = dropped
    case "joined":
        lanes.Lanes._leave = joined
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("step", ["held", "ended", "dropped", "joined"])
async def test_killed_between_two_steps_of_taking_a_target_back_nobody_loses_a_change(
    pipeline: Pipeline, step: str
) -> None:
    await load_alone(pipeline, "late")
    source = pipeline.source
    write(source, 20)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _RUN_AND_DIE, step, "--config", str(pipeline.file), "run", cwd=ROOT, stderr=DEVNULL
    )
    async with asyncio.timeout(60):
        while process.returncode is None:
            write(source, 1)
            await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=0.02)
    assert process.returncode == -signal.SIGKILL
    assert (own_slot(pipeline, "late") in slots(pipeline)) == (step in ("held", "ended"))
    write(source, 20)
    worker = await pipeline.start()
    await pipeline.until(lambda: slots(pipeline) == {pipeline.slot}, "it is taken back")
    write(source, 10)
    await pipeline.ready()
    await pipeline.assert_caught_up_and_equal()
    assert worker.events("target needs a resync") == []


async def test_killed_again_and_again_while_a_target_joins_nobody_loses_a_change(pipeline: Pipeline) -> None:
    await load_alone(pipeline, "late")
    for moment_s in (0.9, 1.3, 1.8):
        worker = await pipeline.start(ready=False)
        write(pipeline.source, 15)
        await asyncio.sleep(moment_s)  # some moment in the life of a process: there is nothing to wait for
        await worker.kill()
    await pipeline.start()
    await pipeline.until(lambda: slots(pipeline) == {pipeline.slot}, "it is taken back")
    await pipeline.assert_caught_up_and_equal()
    assert not any(worker.events("target needs a resync") for worker in pipeline.workers)


async def test_deploys_may_overlap_while_a_target_has_a_lane(pipeline: Pipeline) -> None:
    old = await pipeline.start(ready=False)
    await pipeline.caught_up(None, "internal", "external")
    await load_alone(pipeline, "late", state="loading")
    await pipeline.logged("target has a lane of its own", old, deadline_s=20)
    new = await pipeline.start(ready=False)
    write(pipeline.source, 20)
    await pipeline.logged("target has a lane of its own", new)
    pipeline.targets["late"].execute("UPDATE cdc.target SET state = 'streaming'")
    await old.terminate()
    await pipeline.until(lambda: slots(pipeline) == {pipeline.slot}, "it is taken back by one of the two")
    write(pipeline.source, 20)
    await pipeline.ready(new)
    await pipeline.assert_caught_up_and_equal()
    assert not any(worker.events("target needs a resync")[1:] for worker in pipeline.workers), "it was never loaded"


async def test_a_target_goes_to_a_lane_of_its_own_and_back_while_the_source_is_written_to(pipeline: Pipeline) -> None:
    worker = await pipeline.start(ready=False)
    await pipeline.caught_up(None, "internal", "external")
    pipeline.source.execute(
        "SELECT pg_copy_logical_replication_slot(%s, %s)", pipeline.slot, own_slot(pipeline, "internal")
    )

    def is_back() -> bool:
        write(pipeline.source, 1)
        return bool(worker.events("target is in the shared lane"))

    await pipeline.until(is_back, "it went, and came back")
    assert [line["target"] for line in worker.events("target has a lane of its own")] == ["internal"]
    assert slots(pipeline) == {pipeline.slot}
    await load_alone(pipeline, "late")
    await pipeline.assert_caught_up_and_equal()


async def test_a_target_with_a_stopped_table_keeps_its_lane_because_the_table_needs_what_its_slot_has(
    pipeline: Pipeline,
) -> None:
    await load_alone(pipeline, "late", state="loading")
    source, late = pipeline.source, pipeline.targets["late"]
    late.execute("ALTER TABLE answers ADD CONSTRAINT short CHECK (length(value) < 5) NOT VALID")
    pipeline.settings["targets"]["late"]["on_error"] = "quarantine_table"
    pipeline.configure()
    await pipeline.start(ready=False)
    source.execute("UPDATE answers SET value = 'much longer' WHERE id = 1")
    goal = source.current_lsn()
    await pipeline.until(lambda: pipeline.confirmed() >= goal, "the others' slot has moved on")
    late.execute("UPDATE cdc.target SET state = 'streaming'")
    await pipeline.table_in_state("late", "public.answers", "stopped")
    write(source, 20)
    await pipeline.caught_up()
    assert own_slot(pipeline, "late") in slots(pipeline)
    late.execute("ALTER TABLE answers DROP CONSTRAINT short")
    await pipeline.until(lambda: slots(pipeline) == {pipeline.slot}, "it is taken back")
    await pipeline.assert_caught_up_and_equal()


async def test_a_lane_whose_slot_somebody_dropped_ends_and_its_target_shares_the_other(pipeline: Pipeline) -> None:
    await pipeline.start(ready=False)
    await pipeline.caught_up(None, "internal", "external")
    await load_alone(pipeline, "late", state="loading")
    await pipeline.logged("target has a lane of its own", deadline_s=20)
    pipeline.targets["late"].execute("UPDATE cdc.target SET position = %s", str(pipeline.source.current_lsn()))

    def dropped() -> bool:
        try:
            pipeline.source.execute("SELECT pg_drop_replication_slot(%s)", own_slot(pipeline, "late"))
        except psycopg.errors.ObjectInUse:
            return False
        return True

    await pipeline.until(dropped, "the slot is free for a moment")
    await pipeline.logged("target is in the shared lane", deadline_s=20)


async def test_a_slot_that_no_target_needs_is_named_once(pipeline: Pipeline) -> None:
    for name in ("nobody", "internal__new"):
        pipeline.source.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", own_slot(pipeline, name))
    worker = await pipeline.start(ready=False)
    said = await pipeline.logged("the source has a slot that no target of this configuration needs; it keeps WAL")
    assert said["slot"] == own_slot(pipeline, "nobody")
    await pipeline.caught_up(None, "internal", "external")
    text = (await worker.get("/metrics"))[1]
    assert own_slot(pipeline, "internal__new") in text
    assert len(worker.events("the source has a slot that no target of this configuration needs; it keeps WAL")) == 1


async def test_a_lane_that_can_serve_nobody_leaves_its_slot_to_the_bootstrap(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        pipeline.targets["internal"].execute("UPDATE cdc.target SET state = 'loading'")
        fence = pipeline.targets["internal"].fetchval("SELECT fence FROM cdc.target")
        worker = await pipeline.start(ready=False)
        await pipeline.logged("no stream")
        await pipeline.until(lambda: not pipeline.slot_is_active(), "the slot is free")
        status, body = await worker.get("/readyz")
        assert (status, "being loaded by `cdc bootstrap`" in body) == (503, True)
        confirmed = pipeline.confirmed()
        write(source, 10)
        assert pipeline.targets["internal"].fetchval("SELECT fence FROM cdc.target") == fence
        assert pipeline.confirmed() == confirmed
        pipeline.targets["internal"].execute("UPDATE cdc.target SET state = 'streaming'")
        await pipeline.ready()
        await pipeline.assert_caught_up_and_equal()
        assert worker.events("target failed") == []


async def test_a_target_that_is_loaded_holds_nobody_up_and_what_it_needs_is_kept(pipeline: Pipeline) -> None:
    source, external = pipeline.source, pipeline.targets["external"]
    external.execute("UPDATE cdc.target SET state = 'loading'")
    stood_at = pipeline.position("external") or Lsn(0)
    await pipeline.start(ready=False)
    write(source, 20)
    await pipeline.caught_up(None, "internal")
    assert pipeline.position("external") == stood_at
    assert pipeline.confirmed() <= stood_at
    external.execute("UPDATE cdc.target SET state = 'streaming'")
    await pipeline.caught_up(None, "external")
    pipeline.targets["late"].execute(TABLES)
    assert all(table.startswith("late") for table in await pipeline.differences())
