"""What a bootstrap refuses, before it has changed anything."""

from __future__ import annotations

import pytest

from cdc.bootstrap.progress import Silence
from cdc.errors import ResyncNeeded, SetupError, SlotInUse
from cdc.service import loading
from cdc.source.replication import ReplicationConnection
from tests.bootstrap import follow, make_config, rows, set_up
from tests.conftest import MakeDatabase
from tests.database import Database


async def test_a_slot_that_vanished_is_never_silently_replaced(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    config = make_config(source, {"internal": follow(make_target())})
    await set_up(config)
    await loading.bootstrap(config, progress=Silence())
    source.fetch("SELECT pg_drop_replication_slot(%s)", config.source.slot)
    with pytest.raises(ResyncNeeded, match=r"does not exist at the source any more.*cdc teardown"):
        await loading.bootstrap(config, progress=Silence())


async def test_a_running_worker_is_left_alone(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    await loading.bootstrap(config, progress=Silence())
    fence = internal.fetchval("SELECT fence FROM cdc.target")
    async with await ReplicationConnection.open(source.dsn, "worker") as worker:
        await worker.start(config.source.slot, config.source.publication_names)
        await loading.bootstrap(config, progress=Silence())  # nothing is left to load: no harm in asking
        source.execute("CREATE TABLE b (id int PRIMARY KEY)")
        await set_up(config)
        with pytest.raises(SlotInUse, match="stop the worker"):
            await loading.bootstrap(config, progress=Silence())
    assert internal.fetchval("SELECT fence FROM cdc.target") == fence


async def test_rows_that_are_not_ours_are_never_touched(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    internal = make_target()
    internal.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (42)")
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    with pytest.raises(SetupError, match=r"public\.a of target internal.*--from none") as refused:
        await loading.bootstrap(config, progress=Silence())
    assert 'TRUNCATE "public"."a"' in (refused.value.sql or "")
    assert rows(internal, "a") == [("(42)",)]
    assert source.fetch("SELECT FROM pg_replication_slots WHERE slot_name = %s", config.source.slot) == []


async def test_everything_that_cannot_be_written_is_said_at_once_and_before_anything_happens(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY, name text); CREATE TABLE b (id int PRIMARY KEY)")
    internal, datamart = make_target("internal"), make_target("datamart")
    internal.execute("CREATE TABLE a (id int PRIMARY KEY)")
    owned = {"to": "maddo.b", "columns": ["id"]}
    config = make_config(
        source,
        {
            "internal": follow(internal),
            "datamart": {"dsn": datamart.dsn, "schema": "owned", "tables": {"public.b": owned}},
        },
    )
    await set_up(config)
    with pytest.raises(SetupError) as refused:
        await loading.bootstrap(config, progress=Silence())
    assert "lacks columns: name" in str(refused.value)
    assert "maddo.b (from public.b): the table does not exist" in str(refused.value)
    assert 'ADD COLUMN "name" text' in (refused.value.sql or "")
    assert source.fetch("SELECT FROM pg_replication_slots WHERE slot_name = %s", config.source.slot) == []


async def test_before_setup_the_message_says_so(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    config = make_config(source, {"internal": follow(make_target())})
    with pytest.raises(SetupError, match="run `cdc setup` first"):
        await loading.bootstrap(config, progress=Silence())
