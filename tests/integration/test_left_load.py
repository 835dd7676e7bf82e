"""A load beside that nobody goes on with: it is said, and it can be given up while everything else goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
from structlog.testing import capture_logs

from cdc.bootstrap.progress import Silence
from cdc.bootstrap.run import Scope
from cdc.errors import SetupError, SlotInUse
from cdc.observe.metrics import Metrics
from cdc.service import loading, provision, slot_watch
from cdc.service.slot_watch import SlotWatch
from cdc.source.connection import connect
from cdc.source.replication import ReplicationConnection
from cdc.source.slot import Slot, load_slot, read_slots
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.test_resync_beside import TABLES, run_until
from tests.pipeline import Pipeline, follow

REFERRING = "CREATE TABLE visits (id int PRIMARY KEY, visitor int REFERENCES users); INSERT INTO visits VALUES (1, 1)"


class Interrupted(Silence):
    """Ends a load right before its swap."""

    def step(self, kind: str, name: str | None, targets: Sequence[str]) -> None:
        if kind == "swap":
            raise SetupError("somebody pulled the plug")


@pytest.fixture
async def pipeline(source: Database, make_target: MakeDatabase) -> AsyncIterator[Pipeline]:
    """Two targets that a worker streams to, with foreign keys between their tables."""
    source.execute(TABLES)
    source.execute(REFERRING)
    async with Pipeline(source, {name: follow(make_target(name)) for name in ("internal", "external")}) as pipeline:
        pipeline.settings["bootstrap"] = {"foreign_keys": True}
        pipeline.configure()
        await pipeline.load()
        await pipeline.start()
        yield pipeline


def left(pipeline: Pipeline) -> str:
    return load_slot(pipeline.slot, "internal")


async def slots(pipeline: Pipeline) -> list[Slot]:
    async with await connect(pipeline.source.dsn, application_name="tests") as connection:
        return await read_slots(connection, pipeline.slot)


async def leave_load(pipeline: Pipeline) -> None:
    with pytest.raises(SetupError, match="pulled the plug"):
        await loading.bootstrap(pipeline.config, scope=Scope(targets=("internal",), anew=True), progress=Interrupted())


async def test_a_load_that_was_left_is_shown_and_can_be_given_up_while_the_worker_runs(pipeline: Pipeline) -> None:
    target = pipeline.targets["internal"]
    before = target.fetchval("SELECT 'lines'::regclass::oid")
    await leave_load(pipeline)
    assert {slot.name for slot in await slots(pipeline)} == {pipeline.slot, left(pipeline)}
    status, printed = await pipeline.cdc("status")
    shown = " ".join(printed.split())
    assert f"the slot {left(pipeline)} of what is loaded beside the tables of target internal is not in use" in shown
    assert "`cdc teardown --target internal --load`" in shown
    assert (await pipeline.target_status("external")).left_load is None

    status, printed = await pipeline.cdc("teardown", "--target", "internal", "--load", "--yes")

    assert status == 0, printed
    assert {slot.name for slot in await slots(pipeline)} == {pipeline.slot}
    assert target.fetchval("SELECT to_regnamespace('cdc_new_public')") is None
    assert target.fetch("SELECT pipeline, state FROM cdc.target") == [("cdc", "streaming")]
    assert target.fetch("SELECT DISTINCT pipeline FROM cdc.target_table") == [("cdc",)]
    assert target.fetchval("SELECT 'lines'::regclass::oid") == before
    assert (await pipeline.target_status("internal")).left_load is None
    status, printed = await pipeline.cdc("teardown", "--target", "internal", "--load", "--yes")
    assert (status, printed.strip()) == (0, "internal: nothing is being loaded beside its tables")
    pipeline.source.execute("INSERT INTO lines VALUES (0, 'goes on')")
    await pipeline.assert_caught_up_and_equal()

    await loading.bootstrap(pipeline.config, scope=Scope(targets=("internal",), anew=True), progress=Silence())
    assert target.fetchval("SELECT 'lines'::regclass::oid") != before
    await pipeline.assert_caught_up_and_equal()


async def test_a_table_that_was_being_built_for_a_resync_is_given_up_with_its_request(pipeline: Pipeline) -> None:
    target = pipeline.targets["internal"]
    await run_until(pipeline, "copied")
    for name in pipeline.targets:
        await provision.give_up_load(pipeline.config, lambda _: None, name)
    assert target.fetch("SELECT state, reason FROM cdc.resync") == [("failed", "it was given up (cdc teardown --load)")]
    assert target.fetch("SELECT pipeline FROM cdc.target") == [("cdc",)]
    assert {slot.name for slot in await slots(pipeline)} == {pipeline.slot}
    status, printed = await pipeline.cdc("resync", "public.lines", "--target", "internal")
    assert status == 0, printed
    await pipeline.assert_caught_up_and_equal()


async def test_a_load_that_streams_is_not_given_up(pipeline: Pipeline) -> None:
    await leave_load(pipeline)
    target = pipeline.targets["internal"]
    async with await ReplicationConnection.open(pipeline.source.dsn, "tests") as stream:
        await stream.start(left(pipeline), pipeline.config.source.publication_names, binary=True)
        with pytest.raises(SlotInUse, match="nothing was removed"):
            await provision.give_up_load(pipeline.config, lambda _: None, "internal")
    assert target.fetchval("SELECT to_regclass('cdc_new_public.lines') IS NOT NULL")
    assert target.fetchval("SELECT count(*) FROM cdc.target") == 2
    status, printed = await pipeline.cdc("teardown", "--load", "--yes")
    assert status == 2, printed


async def test_the_worker_says_of_a_load_that_was_left_how_much_it_keeps_and_says_it_again(
    source: Database,
) -> None:
    shared = source.name.replace("-", "_")
    source.execute(f"CREATE PUBLICATION {shared}")
    for name in (shared, load_slot(shared, "internal")):
        source.create_slot(name)
    async with await connect(source.dsn, application_name="tests") as connection:
        now = 1000.0
        watch = SlotWatch(shared, ["internal"], Metrics("cdc"), clock=lambda: now)

        async def said() -> list[str]:
            with capture_logs() as lines:
                watch.show(await read_slots(connection, shared))
            return [line["reason"] for line in lines if line["log_level"] == "warning"]

        assert await said() == [], "a load has just begun"
        now += slot_watch.UNUSED_S
        (reason,) = await said()
        assert f"the slot {load_slot(shared, 'internal')} " in reason
        assert "B of WAL" in reason
        assert "run the same `cdc bootstrap` or `cdc resync` again" in reason
        assert "`cdc teardown --target internal --load`" in reason
        now += 60
        assert await said() == []
        now += slot_watch.SAID_AGAIN_S
        assert len(await said()) == 1
        async with await ReplicationConnection.open(source.dsn, "tests") as stream:
            await stream.start(load_slot(shared, "internal"), [shared], binary=True)
            now += slot_watch.SAID_AGAIN_S
            assert await said() == [], "somebody goes on with it"
