"""``failover = true``: standbys keep the slots from PostgreSQL 17 on, also copied ones; before, it is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from cdc.bootstrap.progress import Silence
from cdc.config import SourceConfig
from cdc.errors import SetupError
from cdc.observe.finding import Finding, Severity
from cdc.service import loading
from cdc.source.check import check
from cdc.source.connection import Connection, connect
from cdc.source.replication import ReplicationConnection
from cdc.source.slot import lane_slot, read_slot
from cdc.source.snapshot import wait_until_free
from tests.conftest import MakeDatabase
from tests.database import Database, unique_name
from tests.pipeline import Pipeline, follow
from tests.servers import major

REFUSED = r"failover slots need PostgreSQL 17; .* is older: set failover = false"


@pytest.fixture
async def session(source: Database) -> AsyncIterator[Connection]:
    async with await connect(source.dsn, application_name="tests") as session:
        yield session


@pytest.fixture
def slot() -> str:
    return unique_name("slot").replace("-", "_")


async def failover(session: Connection, slot: str) -> bool | None:
    found = await read_slot(session, slot)
    assert found is not None
    return found.failover


async def finding(source: Database, slot: str) -> Finding:
    config = SourceConfig(dsn=SecretStr(source.dsn), slot=slot, failover=True)
    return next(one for one in await check(config, pipeline="cdc", routed=[]) if one.subject == "failover")


async def test_a_slot_is_created_with_failover_and_a_copy_of_it_gets_it_again(
    source: Database, session: Connection, slot: str
) -> None:
    async with await ReplicationConnection.open(source.dsn, slot) as walsender:
        if major(source) < 17:
            for ask in (walsender.create_slot(slot, failover=True), walsender.give_failover(slot)):
                with pytest.raises(SetupError, match=REFUSED):
                    await ask
            assert await read_slot(session, slot) is None
            return
        await walsender.create_slot(slot, failover=True)
        assert await failover(session, slot)
        copy = lane_slot(slot, "late")
        await session.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (slot, copy))
        assert not await failover(session, copy), "PostgreSQL's own way, and why it has to be given again"
        async with await ReplicationConnection.open(source.dsn, slot) as other:
            await other.start(copy, [slot])
            assert not await walsender.give_failover(copy), "it is in use"
        await wait_until_free(session, copy)
        assert not await walsender.give_failover(lane_slot(slot, "none")), "it is missing"
        assert await walsender.give_failover(copy)
        assert await failover(session, copy)
        assert not await walsender.give_failover(copy), "it has it"
        await walsender.start(copy, [slot])


async def test_check_says_what_failover_comes_to(source: Database, slot: str) -> None:
    before = await finding(source, slot)
    if major(source) < 17:
        assert before.severity is Severity.ERROR
        assert "failover slots need PostgreSQL 17" in before.message
        return
    assert (before.severity, "synchronized_standby_slots" in before.message) == (Severity.INFO, True)
    source.create_slot(slot)
    without = await finding(source, slot)
    assert (without.severity, "no standby keeps it" in without.message) == (Severity.WARNING, True)
    async with await ReplicationConnection.open(source.dsn, slot) as walsender:
        await walsender.give_failover(slot)
    assert (await finding(source, slot)).severity is Severity.INFO


async def test_the_worker_gives_failover_to_the_slots_that_lack_it(
    source: Database, make_target: MakeDatabase, session: Connection
) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY)")
    targets = {"internal": follow(make_target()), "other": follow(make_target("other"))}
    async with Pipeline(source, targets) as pipeline:
        if major(source) < 17:
            pipeline.settings["source"]["failover"] = True
            pipeline.configure()
            await pipeline.setup()
            with pytest.raises(SetupError, match=REFUSED):
                await loading.bootstrap(pipeline.config, progress=Silence())
            return
        await pipeline.load()
        assert await failover(session, pipeline.slot) is False
        pipeline.settings["source"]["failover"] = True
        pipeline.configure()
        worker = await pipeline.start()
        assert await failover(session, pipeline.slot)
        copy = lane_slot(pipeline.slot, "internal")
        source.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", pipeline.slot, copy)

        def given() -> bool:
            return copy in [line["slot"] for line in worker.events("standbys keep the slot from now on")]

        await pipeline.until(given, "the copy got it")
        source.execute("INSERT INTO items VALUES (1)")
        await pipeline.assert_caught_up_and_equal()
