"""A whole pipeline, end to end: what it does when nothing is wrong, and when workers and targets come and go.

What is larger than all limits (a transaction, a target that stalls) and memory: see test_invariants.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg

from tests.conftest import MakeDatabase
from tests.database import Database
from tests.fences import fence_held
from tests.pipeline import Pipeline, Worker, follow, listed, owned

SLOT_FREE_WITHIN_S = 20.0
"""After SIGTERM: a platform kills after 30 seconds, and the next worker waits for the slot."""


async def test_every_target_gets_its_part_through_a_killed_worker(source: Database, make_target: MakeDatabase) -> None:
    source.execute(
        "CREATE TABLE campaigns (id int PRIMARY KEY, name text, secret text);"
        "INSERT INTO campaigns SELECT g, 'campaign ' || g, 'secret' FROM generate_series(1, 100) g;"
        "CREATE TABLE log (line text)"
    )
    internal, external, datamart = (make_target(name) for name in ("internal", "external", "datamart"))
    datamart.execute("CREATE SCHEMA maddo; CREATE TABLE maddo.campaigns (title text, campaign_id bigint)")
    async with Pipeline(
        source,
        {
            "internal": follow(internal),
            "external": listed(external, {"public.campaigns": ["id", "name"]}),
            "datamart": owned(
                datamart,
                {"public.campaigns": {"to": "maddo.campaigns", "columns": {"id": "campaign_id", "name": "title"}}},
            ),
        },
    ) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        source.execute("UPDATE campaigns SET name = upper(name) WHERE id < 10; DELETE FROM campaigns WHERE id = 50")
        source.execute("UPDATE campaigns SET id = 1000 + id WHERE id = 7; INSERT INTO log VALUES ('a'), ('a')")
        await pipeline.assert_caught_up_and_equal()
        await worker.kill()
        source.execute("INSERT INTO campaigns VALUES (5000, 'while nobody looked'); INSERT INTO log VALUES ('b')")
        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()
        assert external.fetchval("SELECT count(*) FROM information_schema.columns WHERE table_name = 'campaigns'") == 2


@asynccontextmanager
async def load_on(source: Database, *, writers: int = 3) -> AsyncIterator[None]:
    """Writers that insert, update and delete, some thousands of rows a second together."""

    async def write(number: int) -> None:
        async with source.session() as session:
            while True:
                await session.execute(
                    "WITH gone AS (DELETE FROM items WHERE id %% 3 = %s AND random() < 0.01), "
                    "changed AS (UPDATE items SET name = name || '.' WHERE id %% 3 = %s AND random() < 0.01) "
                    "INSERT INTO items (name) SELECT repeat('x', 200) FROM generate_series(1, 50)",
                    (number, number),
                )
                await session.execute("INSERT INTO log SELECT generate_series(1, 20)::text")
                await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as tasks:
        writing = [tasks.create_task(write(number)) for number in range(writers)]
        yield
        for task in writing:
            task.cancel()


ITEMS = "CREATE TABLE items (id bigserial PRIMARY KEY, name text); CREATE TABLE log (line text)"


async def slot_free_after_sigterm(pipeline: Pipeline, worker: Worker) -> float:
    """The seconds from SIGTERM until the slot is free; the process may need a little longer."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    worker.process.terminate()
    await pipeline.until(lambda: not pipeline.slot_is_active(), "the slot is released")
    took = loop.time() - started
    await worker.process.wait()
    assert worker.process.returncode == 0
    return took


async def test_sigterm_under_load_confirms_what_is_durable_and_releases_the_slot(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(ITEMS)
    internal, external = make_target("internal"), make_target("external")
    async with Pipeline(source, {"internal": follow(internal), "external": follow(external)}) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        async with load_on(source):
            goal = source.current_lsn()
            await pipeline.caught_up(goal)
            assert await slot_free_after_sigterm(pipeline, worker) < SLOT_FREE_WITHIN_S
            # Told at the very end: the next worker reads nothing again that both targets hold.
            held = min(position for name in pipeline.targets if (position := pipeline.position(name)) is not None)
            assert pipeline.confirmed() == held >= goal
            await pipeline.start()
            await pipeline.caught_up()
        await pipeline.assert_caught_up_and_equal()


async def test_sigterm_does_not_wait_for_a_target_that_hangs(source: Database, make_target: MakeDatabase) -> None:
    source.execute(ITEMS)
    internal, external = make_target("internal"), make_target("external")
    async with Pipeline(
        source, {"internal": follow(internal), "external": follow(external)}, worker={"lock_timeout_s": 0}
    ) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        with fence_held(external):
            source.execute("INSERT INTO items (name) VALUES ('x'); INSERT INTO log VALUES ('y')")
            await pipeline.caught_up(None, "internal")
            assert await slot_free_after_sigterm(pipeline, worker) < SLOT_FREE_WITHIN_S
            assert external.fetchval("SELECT count(*) FROM log") == 0
        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()


async def test_hazard_05_a_second_worker_waits_for_the_slot_and_takes_over(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(ITEMS)
    internal = make_target()
    async with Pipeline(source, {"internal": follow(internal)}) as pipeline:
        await pipeline.load()
        first = await pipeline.start()
        async with load_on(source, writers=1):
            second = await pipeline.start(ready=False)
            line = await pipeline.logged("no stream", second)
            assert "in use" in line["reason"]
            assert line["level"] == "info", "a deploy is no trouble"
            fence = internal.fetchval("SELECT fence FROM cdc.target")
            status, answer = await second.get("/readyz")
            assert (status, "in use" in answer) == (503, True)
            assert (await second.get("/healthz"))[0] == 200
            await pipeline.caught_up()
            assert internal.fetchval("SELECT fence FROM cdc.target") == fence, "who waits takes nothing"
            assert (await first.get("/readyz"))[0] == 200
            await first.terminate(timeout_s=SLOT_FREE_WITHIN_S)
            await pipeline.ready(second)
            await pipeline.caught_up()
        await pipeline.assert_caught_up_and_equal()


async def test_a_target_that_hangs_is_set_aside_and_catches_up_when_it_is_back(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(ITEMS)
    internal, external = make_target("internal"), make_target("external")
    limits = {"max_batch_bytes": "64kB", "max_queue_bytes": "64kB", "detach_after_s": 1, "lock_timeout_s": 0}
    async with Pipeline(
        source, {"internal": follow(internal), "external": follow(external)}, worker=limits
    ) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        with fence_held(external):
            for _ in range(20):
                source.execute("INSERT INTO items (name) SELECT repeat('x', 100) FROM generate_series(1, 200)")
            await pipeline.caught_up(None, "internal")
            line = await pipeline.logged("target set aside; the others go on, the slot keeps its WAL", worker)
            assert line["target"] == "external"
            assert external.fetchval("SELECT count(*) FROM items") == 0
            assert pipeline.confirmed() <= (pipeline.position("external") or 0)
        await pipeline.assert_caught_up_and_equal()
        assert worker.runs
        await pipeline.ready(worker)


async def test_a_target_that_is_down_from_the_start_keeps_nobody_waiting_and_loses_nothing(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(ITEMS)
    internal, external = make_target("internal"), make_target("external")
    async with Pipeline(source, {"internal": follow(internal), "external": follow(external)}) as pipeline:
        await pipeline.load()
        before = pipeline.position("external")
        with _connections_refused(external):
            worker = await pipeline.start(ready=False)
            source.execute("INSERT INTO items (name) VALUES ('one'), ('two')")
            await pipeline.until(lambda: internal.fetchval("SELECT count(*) FROM items") == 2, "internal goes on")
            line = await pipeline.logged("target failed", worker)
            assert (line["target"], await worker.metric("cdc_target_up", target="external")) == ("external", 0)
            assert before is not None
            assert pipeline.confirmed() <= before
        await pipeline.assert_caught_up_and_equal()


@contextmanager
def _connections_refused(database: Database) -> Iterator[None]:
    with psycopg.connect(database.server.dsn(), autocommit=True) as administrator:
        database.close()
        administrator.execute(f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS false'.encode())
        try:
            yield
        finally:
            administrator.execute(f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS true'.encode())


async def test_two_pipelines_share_a_source_and_a_target(source: Database, make_target: MakeDatabase) -> None:
    """Each has a slot, publications and positions of its own, and neither fences the other."""
    source.execute(ITEMS)
    target = make_target()
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(Pipeline(source, {"internal": follow(target, "public.items")}))
        other = await stack.enter_async_context(Pipeline(source, {"internal": follow(target, "public.log")}))
        other.settings["pipeline"] = "other"
        other.configure()
        for pipeline in (one, other):
            await pipeline.load()
            await pipeline.start()
        source.execute("INSERT INTO items (name) VALUES ('x'); INSERT INTO log VALUES ('y'), ('y')")
        await one.until(lambda: target.fetchval("SELECT count(*) FROM log") == 2, "the other one applies")
        await one.until(lambda: target.fetchval("SELECT count(*) FROM items") == 1, "the one applies")
        fences = target.fetch("SELECT pipeline, fence FROM cdc.target ORDER BY 1")
        await asyncio.sleep(1)
        assert target.fetch("SELECT pipeline, fence FROM cdc.target ORDER BY 1") == fences
        assert all(not pipeline.worker.events("target failed") for pipeline in (one, other))


async def test_an_idle_worker_shows_an_empty_queue(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with Pipeline(source, {"internal": follow(make_target("internal"))}) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        source.execute("INSERT INTO a SELECT generate_series(1, 100)")
        await pipeline.caught_up()

        async def is_empty() -> bool:
            return await worker.metric("cdc_queue_bytes", target="internal") == 0

        await pipeline.until(is_empty, "the queue is shown as empty")
