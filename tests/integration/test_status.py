"""`cdc status` reads the databases only, and says so when it cannot."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Callable
from uuid import UUID

import pytest
from rich.console import Console

from cdc.config import Config, for_asyncpg
from cdc.observe.status import NOT_SET_UP, UNREACHABLE
from cdc.service import state
from cdc.source import connection as source_connection
from cdc.source import heartbeat
from cdc.target import migrations, position, session
from tests.database import Database

MakeDatabase = Callable[..., Database]
NOWHERE = "postgresql://cdc:hunter2@127.0.0.1:1/nothing"


class Screen(io.StringIO):
    """What was shown, and an event once there are three pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.has_three_pictures = asyncio.Event()

    def write(self, text: str, /) -> int:
        written = super().write(text)
        if self.getvalue().count("pipeline cdc") >= 3:
            self.has_three_pictures.set()
        return written


def configuration(source: str, slot: str = "status_slot", **targets: str) -> Config:
    return Config.model_validate(
        {
            "source": {"dsn": source, "slot": slot},
            "targets": {name: {"dsn": dsn, "include": ["public.*"]} for name, dsn in targets.items()},
        }
    )


@pytest.fixture
def slot(source: Database) -> str:
    """A slot with a name that no other test uses, on a source with some WAL after it."""
    name = "status_" + source.name.replace("-", "_").lower()[-20:]
    source.create_slot(name)
    source.execute("CREATE TABLE accounts (id int PRIMARY KEY)")
    return name


async def beat(source: Database) -> heartbeat.Heartbeat:
    """Set the source up and write one heartbeat."""
    connection = await source_connection.connect(source.dsn, application_name="tests")
    async with connection:
        await heartbeat.ensure(connection, "cdc")
        return await heartbeat.beat(connection, "cdc")


async def load(target: Database, name: str, source: Database, beat: heartbeat.Heartbeat) -> None:
    """Leave the target as a worker would that has applied everything up to now, one table stopped before."""
    opened = await session.connect(for_asyncpg(target.dsn), application_name="tests", target=name)
    await migrations.migrate(opened)
    await position.register(opened, "cdc", name)
    await opened.close()
    target.execute(
        "UPDATE cdc.target SET state = 'streaming', position = %s, system_identifier = '1', timeline = 1, slot = 's',"
        " incarnation = %s, transactions = 7, heartbeat_at = %s - interval '3 seconds'",
        str(source.current_lsn()),
        UUID(int=1),
        beat.at,
    )
    target.execute(
        "INSERT INTO cdc.target_table (pipeline, source_schema, source_table, target_schema, target_table, state,"
        " position, reason, mend, inserted, updated, deleted) VALUES"
        " ('cdc', 'public', 'accounts', 'public', 'accounts', 'streaming', NULL, NULL, NULL, 5, 4, 3),"
        " ('cdc', 'public', 'users', 'public', 'users', 'stopped', '0/1', 'a column is missing', 'ALTER TABLE',"
        " 1, 0, 0),"
        " ('cdc', 'public', 'answers', 'public', 'answers', 'copying', NULL, NULL, NULL, 0, 0, 0)"
    )


async def test_status_shows_positions_lag_and_tables_while_no_worker_runs(
    source: Database, slot: str, make_target: MakeDatabase
) -> None:
    target = make_target("internal")
    await load(target, "internal", source, await beat(source))
    source.execute("INSERT INTO accounts SELECT generate_series(1, 1000)")
    status = await state.read(configuration(source.dsn, slot, internal=target.dsn))

    assert status.source.up
    assert [one.name for one in status.source.slots] == [slot]
    assert not status.source.slots[0].active
    assert status.source.slots[0].wal_status == "reserved"
    assert (status.source.slots[0].retained_bytes or 0) > 0
    assert status.source.heartbeat_age_s is not None
    assert not status.healthy

    (internal,) = status.targets
    assert internal.state == "streaming"
    assert internal.lag_s is not None
    assert 3.0 <= internal.lag_s < 60.0
    assert internal.lag_s == pytest.approx(status.source.heartbeat_age_s + 3.0)
    assert internal.lag_bytes is not None
    assert 1000 * 20 < internal.lag_bytes < 10_000_000
    assert (internal.transactions, internal.rows_applied) == (7, 13)

    accounts, answers, users = sorted(internal.tables, key=lambda table: table.source_name)
    assert (accounts.inserts, accounts.updates, accounts.deletes) == (5, 4, 3)
    assert accounts.position == internal.position
    assert (users.state, str(users.position), users.reason, users.mend) == (
        "stopped",
        "0/1",
        "a column is missing",
        "ALTER TABLE",
    )
    assert (users.lag_bytes or 0) > internal.lag_bytes
    assert (answers.state, answers.position, answers.lag_bytes) == ("copying", None, None)


async def test_a_target_whose_slot_is_gone_needs_a_resync_also_before_a_worker_says_so(
    source: Database, slot: str, make_target: MakeDatabase
) -> None:
    target = make_target("internal")
    await load(target, "internal", source, await beat(source))
    source.execute("SELECT pg_drop_replication_slot(%s)", slot)
    status = await state.read(configuration(source.dsn, slot, internal=target.dsn))
    assert status.targets[0].state == "needs resync"
    assert f"has no slot {slot} any more" in (status.targets[0].last_error or "")


async def test_a_database_that_cannot_be_reached_is_shown_as_such_beside_the_others(
    source: Database, slot: str, make_target: MakeDatabase
) -> None:
    target = make_target("internal")
    await load(target, "internal", source, await beat(source))
    status = await state.read(configuration(source.dsn, slot, internal=target.dsn, external=NOWHERE))
    internal, external = status.targets
    assert internal.state == "streaming"
    assert external.state == UNREACHABLE
    assert "127.0.0.1:1" in (external.last_error or "")

    status = await state.read(configuration(NOWHERE, slot, internal=target.dsn))
    assert not status.source.up
    assert "127.0.0.1:1" in (status.source.error or "")
    (internal,) = status.targets
    assert internal.state == "streaming"
    assert (internal.lag_s, internal.lag_bytes) == (None, None)
    assert "hunter2" not in status.to_json()
    assert json.loads(status.to_json())["source"]["up"] is False


async def test_what_is_not_set_up_says_what_to_run(source: Database, make_target: MakeDatabase) -> None:
    target = make_target("internal")
    status = await state.read(configuration(source.dsn, internal=target.dsn))
    assert status.source.up
    assert status.source.slots == ()
    assert status.source.heartbeat_age_s is None
    assert status.targets[0].state == NOT_SET_UP
    assert status.targets[0].last_error == "run cdc setup"


async def test_an_observer_keeps_its_connections_and_replaces_lost_ones(
    source: Database, slot: str, make_target: MakeDatabase
) -> None:
    target = make_target("internal")
    await load(target, "internal", source, await beat(source))
    who = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name = 'cdc cdc status'"
    async with state.Observer(configuration(source.dsn, slot, internal=target.dsn)) as observer:
        await observer.look()
        before = [database.fetchval(who, database.name) for database in (source, target)]
        await observer.look()
        assert [database.fetchval(who, database.name) for database in (source, target)] == before
        for pid in before:
            source.execute("SELECT pg_terminate_backend(%s, 5000)", pid)
        status = await observer.look()
        assert status.source.up
        assert status.targets[0].state == "streaming"


async def test_watch_shows_rows_per_second_until_it_is_stopped(
    source: Database, slot: str, make_target: MakeDatabase
) -> None:
    target = make_target("internal")
    await load(target, "internal", source, await beat(source))
    screen = Screen()
    console = Console(file=screen, width=100)
    config = configuration(source.dsn, slot, internal=target.dsn)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        watching = group.create_task(state.watch(config, interval_s=0.05, console=console))
        await screen.has_three_pictures.wait()
        watching.cancel()
    rates = re.findall(r"internal +streaming +\S+ +\S+ s +\S+ \S+ +13 +(\S+) +7 +1/3", screen.getvalue())
    assert set(rates) == {"0"}
    assert screen.getvalue().count("rows/s") == len(rates) == screen.getvalue().count("pipeline cdc") - 1
    assert "public.users" in screen.getvalue()
    assert "public.accounts" not in screen.getvalue()


async def test_watch_prints_one_json_object_a_line_when_asked(
    source: Database, slot: str, make_target: MakeDatabase
) -> None:
    class Lines(io.StringIO):
        has_two = asyncio.Event()

        def write(self, text: str, /) -> int:
            written = super().write(text)
            if self.getvalue().count("\n") >= 2:
                self.has_two.set()
            return written

    target = make_target("internal")
    await load(target, "internal", source, await beat(source))
    screen = Lines()
    config = configuration(source.dsn, slot, internal=target.dsn)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        console = Console(file=screen, width=80)
        watching = group.create_task(state.watch(config, interval_s=0.05, console=console, as_json=True))
        await screen.has_two.wait()
        watching.cancel()
    lines = [json.loads(line) for line in screen.getvalue().splitlines()]
    assert len(lines) >= 2
    assert all(len(line["targets"][0]["tables"]) == 3 for line in lines), "whole, not only what does not stream"


async def test_status_reads_while_the_target_is_locked_by_a_batch(
    source: Database, slot: str, make_target: MakeDatabase
) -> None:
    target = make_target("internal")
    await load(target, "internal", source, await beat(source))
    with target.transaction():
        target.execute("UPDATE cdc.target SET transactions = transactions + 1")
        status = await state.read(configuration(source.dsn, slot, internal=target.dsn))
    assert status.targets[0].transactions == 7


async def test_what_is_loaded_beside_a_target_and_what_serves_it_are_shown(
    source: Database, slot: str, make_target: MakeDatabase
) -> None:
    target = make_target("internal")
    await load(target, "internal", source, await beat(source))
    source.create_slot(f"{slot}__internal")
    target.execute(
        "INSERT INTO cdc.target (pipeline, target, state, position, system_identifier, timeline, slot, incarnation)"
        " SELECT 'cdc+', target, 'loading', '0/2', system_identifier, timeline, slot, incarnation FROM cdc.target"
    )
    target.execute(
        "INSERT INTO cdc.target_table (pipeline, source_schema, source_table, target_schema, target_table, state)"
        " VALUES ('cdc+', 'public', 'accounts', 'cdc_new_public', 'accounts', 'streaming'),"
        " ('cdc+', 'public', 'users', 'cdc_new_public', 'users', 'overlap')"
    )
    target.execute("UPDATE cdc.target SET cut_over_heartbeat = 5 WHERE pipeline = 'cdc'")
    status = await state.read(configuration(source.dsn, slot, internal=target.dsn))
    (internal,) = status.targets
    assert internal.beside is not None
    assert (internal.beside.state, str(internal.beside.position)) == ("loading", "0/2")
    assert (internal.beside.loaded, internal.beside.tables) == (1, 2)
    assert (internal.slot, internal.awaits_cut_over) == (f"{slot}__internal", True)
    assert len(internal.tables) == 3, "those beside are not mixed with the others"
    screen = io.StringIO()
    status.show(Console(file=screen, width=160))
    assert re.search(r"\+ loaded beside +loading +0/2 .* 1/2", screen.getvalue())
    assert "not exactly consistent yet" in screen.getvalue()
    assert f"{slot}__internal" in screen.getvalue()


async def test_a_target_with_a_slot_of_its_own_does_not_depend_on_the_shared_one(
    source: Database, slot: str, make_target: MakeDatabase
) -> None:
    target = make_target("internal")
    await load(target, "internal", source, await beat(source))
    source.create_slot(f"{slot}__internal")
    source.execute("SELECT pg_drop_replication_slot(%s)", slot)
    status = await state.read(configuration(source.dsn, slot, internal=target.dsn))
    assert status.targets[0].state == "streaming"
    assert not status.healthy
