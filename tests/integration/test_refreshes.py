"""Materialized views of the enrichment, refreshed on schedule."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone

import pytest

from cdc.config import Config
from cdc.observe.metrics import Metrics
from cdc.service.refreshes import next_time, refresh_on_schedule, refresh_target
from cdc.target import migrations
from cdc.target.session import connect
from tests.bootstrap import until
from tests.conftest import MakeDatabase
from tests.database import Database


@pytest.mark.parametrize(
    ("schedule", "after", "due"),
    [
        ("10 5 * * *", datetime(2026, 5, 1, 5, 9, 59, tzinfo=UTC), datetime(2026, 5, 1, 5, 10, tzinfo=UTC)),
        ("10 5 * * *", datetime(2026, 5, 1, 5, 10, tzinfo=UTC), datetime(2026, 5, 2, 5, 10, tzinfo=UTC)),
        ("0 3 1 * *", datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 1, 3, tzinfo=UTC)),
        (
            "10 5 * * *",
            datetime(2026, 3, 29, 7, tzinfo=timezone(timedelta(hours=2))),
            datetime(2026, 3, 29, 5, 10, tzinfo=UTC),
        ),
    ],
)
def test_the_schedule_is_in_utc_and_a_time_is_due_once(schedule: str, after: datetime, due: datetime) -> None:
    assert next_time(schedule, after) == due


class Told:
    """Somebody who is notified."""

    def __init__(self) -> None:
        self.events: list[dict[str, object]] = []

    async def __call__(self, config: Config, event: Mapping[str, object]) -> None:
        self.events.append(dict(event))


class Watch:
    """A clock that jumps to the time that is waited for when the test lets it."""

    def __init__(self, now: datetime) -> None:
        self.present = now
        self.times: list[datetime] = []
        self.may_pass = asyncio.Semaphore(0)

    def now(self) -> datetime:
        return self.present

    async def wait_until(self, at: datetime) -> None:
        self.times.append(at)
        await self.may_pass.acquire()
        self.present = at


@pytest.fixture
async def target(make_target: MakeDatabase) -> Database:
    database = make_target()
    session = await connect(database.dsn, application_name="cdc test")
    await migrations.migrate(session)
    await session.close()
    database.execute(
        "INSERT INTO cdc.target (pipeline, target, state) VALUES ('cdc', 'internal', 'streaming');"
        "CREATE TABLE answers (id int); INSERT INTO answers VALUES (1), (2);"
        'CREATE MATERIALIZED VIEW "by-Day" AS SELECT id FROM answers; CREATE UNIQUE INDEX ON "by-Day" (id);'
        "CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n FROM answers;"
        "CREATE MATERIALIZED VIEW of_nobody AS SELECT count(*) AS n FROM answers;"
        "INSERT INTO cdc.enrichment (pipeline, file, digest, refreshes, applied_at) VALUES"
        " ('cdc', '20.sql', 'x', '{public.total}', now()),"
        " ('cdc', '10.sql', 'x', '{public.by-Day,public.total}', now()),"
        " ('cdc', '30.sql', 'x', '{public.of_nobody}', NULL)"
    )
    return database


def configured(target: Database) -> Config:
    return Config.model_validate(
        {
            "source": {"dsn": "postgresql://nowhere/source"},
            "targets": {"internal": {"dsn": target.dsn, "include": ["public.*"]}},
            "refresh": {"schedule": "10 5 * * *"},
        }
    )


async def test_views_are_refreshed_each_time_that_the_schedule_is_due(target: Database) -> None:
    stop, told, watch = asyncio.Event(), Told(), Watch(datetime(2026, 5, 1, tzinfo=UTC))
    metrics = Metrics("cdc")
    async with asyncio.TaskGroup() as group:
        group.create_task(refresh_on_schedule(configured(target), stop, told, metrics=metrics, clock=watch))
        for day, number in ((1, 3), (2, 4)):
            target.execute(f"INSERT INTO answers VALUES ({number})")
            watch.may_pass.release()
            await until(lambda day=day: len(told.events) == day)  # type: ignore[misc]  # a default binds it now
            assert target.fetch("SELECT n FROM total") == [(number,)]
            assert target.fetchval('SELECT count(*) FROM "by-Day"') == number
        stop.set()
    assert watch.times[:2] == [datetime(2026, 5, day, 5, 10, tzinfo=UTC) for day in (1, 2)]
    assert told.events[0] == {
        "target": "internal",
        "event": "refresh",
        "outcome": "done",
        "views": ["public.by-Day", "public.total"],
        "failed": [],
    }
    assert target.fetch("SELECT n FROM of_nobody") == [(2,)], "its file was not run to its end"
    assert 'cdc_refreshes_total{outcome="done",pipeline="cdc",target="internal"} 4.0' in metrics.render().decode()


async def test_a_view_with_a_unique_index_is_read_while_it_is_refreshed(target: Database) -> None:
    async with target.session(autocommit=False) as reader:
        await reader.execute('SELECT count(*) FROM "by-Day"')
        target.execute("DELETE FROM cdc.enrichment WHERE file = '20.sql'")
        target.execute("UPDATE cdc.enrichment SET refreshes = '{public.by-Day}'; INSERT INTO answers VALUES (3)")
        async with asyncio.timeout(5):
            await refresh_target(configured(target), "internal", Told(), Metrics("cdc"))
        assert target.fetchval('SELECT count(*) FROM "by-Day"') == 3
        await reader.rollback()


@pytest.mark.parametrize(
    "unfit",
    [
        'CREATE UNIQUE INDEX ON "by-Day" (id) WHERE id > 0',
        'CREATE UNIQUE INDEX ON "by-Day" ((id + 1))',
        'CREATE INDEX ON "by-Day" (id)',
        'CREATE UNIQUE INDEX ON "by-Day" (id); REFRESH MATERIALIZED VIEW "by-Day" WITH NO DATA',
    ],
)
async def test_a_view_that_cannot_be_read_meanwhile_is_refreshed_all_the_same(target: Database, unfit: str) -> None:
    target.execute('DROP INDEX "by-Day_id_idx"')
    target.execute(f"{unfit}; INSERT INTO answers VALUES (3)")
    told = Told()
    await refresh_target(configured(target), "internal", told, Metrics("cdc"))
    assert [event["outcome"] for event in told.events] == ["done"]
    assert target.fetchval('SELECT count(*) FROM "by-Day"') == 3


async def test_a_view_that_fails_stops_no_other_and_no_worker(target: Database) -> None:
    target.execute('DROP MATERIALIZED VIEW "by-Day"; INSERT INTO answers VALUES (3)')
    told, metrics = Told(), Metrics("cdc")
    await refresh_target(configured(target), "internal", told, metrics)
    assert [(event["outcome"], event["failed"]) for event in told.events] == [("failed", ["public.by-Day"])]
    assert target.fetch("SELECT n FROM total") == [(3,)]
    assert 'cdc_refreshes_total{outcome="failed",pipeline="cdc",target="internal"} 1.0' in metrics.render().decode()


async def test_a_target_that_is_not_set_up_is_counted_and_not_told_of(make_target: MakeDatabase) -> None:
    told, metrics = Told(), Metrics("cdc")
    await refresh_target(configured(make_target()), "internal", told, metrics)
    assert told.events == []
    assert 'cdc_refreshes_total{outcome="failed",pipeline="cdc",target="internal"} 1.0' in metrics.render().decode()


async def test_a_refresh_that_is_under_way_ends_with_the_worker(target: Database) -> None:
    target.execute("CREATE MATERIALIZED VIEW slow AS SELECT 1 FROM pg_sleep(60) WITH NO DATA")
    target.execute("UPDATE cdc.enrichment SET refreshes = '{public.slow}'")
    stop, told, watch = asyncio.Event(), Told(), Watch(datetime(2026, 5, 1, tzinfo=UTC))
    busy = "SELECT FROM pg_stat_activity WHERE query ~ '^REFRESH' AND state = 'active' AND datname = %s"
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(refresh_on_schedule(configured(target), stop, told, metrics=Metrics("cdc"), clock=watch))
        watch.may_pass.release()
        await until(lambda: target.fetch(busy, target.name))
        stop.set()
    await until(lambda: not target.fetch(busy, target.name))
    assert told.events == []
