"""`cdc resync`: which way a table is read again, and what an operator sees."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cdc.errors import ConfigurationError, TerminalError
from cdc.service import resync as asking
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database
from tests.pipeline import Pipeline, follow
from tests.resync import Following, Replicated

BY_NAME = """
CREATE TABLE words (word text PRIMARY KEY, meaning text);
INSERT INTO words VALUES ('a', '1'), ('b', '2'), ('c', '3');
"""


async def test_a_key_whose_order_may_differ_is_read_whole(source: Database, make_target: MakeDatabase) -> None:
    source.execute(BY_NAME)
    replicated = Replicated(source, make_target())
    await replicated.load()
    replicated.target.execute("UPDATE words SET meaning = 'wrong' WHERE word = 'b'; DELETE FROM words WHERE word = 'c'")
    replicated.target.execute("INSERT INTO words VALUES ('d', 'too many')")
    async with replicated.worker():
        source.execute("UPDATE words SET meaning = 'new' WHERE word = 'a'")
        (outcome,), _ = await replicated.resync("public.words")
        assert (outcome.way, outcome.rows) == ("whole", 3)
        source.execute("UPDATE words SET meaning = 'newer'; INSERT INTO words VALUES ('e', '5')")
        await replicated.assert_equal("words")
        assert replicated.state("words") == "streaming"


OWNED = """
CREATE TABLE places (id int PRIMARY KEY, seat int UNIQUE);
INSERT INTO places SELECT n, n FROM generate_series(1, 9) n;
"""


async def test_an_owned_table_with_other_unique_values_is_read_whole_also_when_they_have_moved(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(OWNED)
    target = make_target()
    target.execute("CREATE TABLE places (id bigint PRIMARY KEY, seat int UNIQUE)")
    replicated = Replicated(source, target, schema="owned", tables={"public.places": ["id", "seat"]})
    await replicated.load()
    target.execute(
        "DELETE FROM places WHERE id IN (1, 2, 3); INSERT INTO places VALUES (1, 2), (2, 3), (3, 1), (50, 50)"
    )
    async with replicated.worker():
        (outcome,), _ = await replicated.resync("public.places", target="warehouse")
        assert outcome.way == "whole"
        source.execute("INSERT INTO places VALUES (50, 50)")
        await replicated.caught_up()
        assert target.fetch("SELECT id, seat FROM places ORDER BY 1") == source.fetch("SELECT * FROM places ORDER BY 1")


async def test_a_table_that_cannot_be_read_again_is_refused_with_the_command_that_can(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE lines (text text)")
    target = make_target()
    target.execute("CREATE TABLE lines (text text)")
    replicated = Replicated(source, target, schema="owned", tables={"public.lines": ["text"]})
    await replicated.load()
    async with replicated.worker():
        with pytest.raises(TerminalError, match="nothing identifies its rows") as refused:
            await replicated.resync("public.lines")
        assert refused.value.sql == "cdc bootstrap --from live --again public.lines --target warehouse"
        source.execute("INSERT INTO lines VALUES ('goes on')")
        await replicated.assert_equal("lines")


async def test_a_table_with_unique_indexes_that_is_large_is_built_beside_by_the_command_itself(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(OWNED)
    replicated = Replicated(source, make_target())
    await replicated.load()
    built: list[tuple[str, str]] = []

    async def rebuild(target: str, table: str, count: Callable[[int], None]) -> None:
        built.append((target, table))

    async with replicated.worker(whole_bytes=1):
        (outcome,), said = await replicated.resync("public.places", rebuild=rebuild)
    assert built == [("warehouse", "public.places")]
    assert outcome.way == "shadow"
    assert any("built beside" in line and "unique index" in line for line in said)


async def test_what_is_not_configured_is_refused_at_once(source: Database, make_target: MakeDatabase) -> None:
    replicated = Replicated(source, make_target(), columns="listed", tables={"public.orders": ["id"]})
    for table, target in (("public.order", None), ("orders", None), ("public.orders", "elsewhere")):
        with pytest.raises(ConfigurationError):
            await replicated.resync(table, target=target)


async def test_a_request_waits_for_a_worker_and_two_for_one_table_are_one(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "UNSERVED_S", 0.1)
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    replicated = Replicated(source, make_target())
    await replicated.load()
    said: list[Following] = [Following(), Following()]
    first, second = (asyncio.ensure_future(asking.resync(replicated.config, "public.t", follower=one)) for one in said)
    async with asyncio.timeout(30):
        while not all(any("does `cdc run` run?" in line for line in one.said) for one in said):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    second.cancel()  # Ctrl-C leaves the request
    async with replicated.worker():
        (outcome,) = await first
    assert outcome.rows == 1
    assert replicated.target.fetchval("SELECT count(*) FROM cdc.resync") == 1


async def test_the_pace_is_kept(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT n FROM generate_series(1, 100) n")
    replicated = Replicated(source, make_target())
    await replicated.load()
    chunks: list[float] = []

    async def note(_: Any) -> None:
        chunks.append(asyncio.get_running_loop().time())

    async with replicated.worker(note):
        await replicated.resync("public.t", max_rows_per_second=40)
    assert len(chunks) == 3
    assert chunks[-1] - chunks[0] >= 80 / 40 - 0.1


async def test_invariant_08_no_key_is_in_the_statement_log_of_a_target(
    source: Database, own_server: MakeServer, make_database: MakeDatabase
) -> None:
    source.execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
    source.execute("ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
    source.execute("INSERT INTO t SELECT 7700000000 + n, repeat('v', 3000) FROM generate_series(1, 30) n")
    server = own_server(side="target", log_statement="all", log_min_duration_statement=0)
    replicated = Replicated(source, make_database("target", server=server))
    await replicated.load()
    replicated.target.execute("DELETE FROM t WHERE id % 3 = 0")

    async def act(_: Any) -> None:
        source.execute("UPDATE t SET id = id - 1000 WHERE id = (SELECT max(id) FROM t)")

    async with replicated.worker(act, most_rows=10):
        await replicated.resync("public.t")
        await replicated.assert_equal("t")
    log = server.log_text()
    assert "resync_1_again" in log
    assert "77000000" not in log


async def test_a_worker_that_is_killed_goes_on_with_the_next_chunk(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.execute("INSERT INTO t SELECT n, 'v' FROM generate_series(1, 300) n")
    async with Pipeline(source, {"warehouse": follow(make_target())}) as pipeline:
        await pipeline.load()
        target = pipeline.targets["warehouse"]
        target.execute("UPDATE t SET v = 'wrong'; DELETE FROM t WHERE id % 2 = 0")
        await pipeline.start()
        following = Following()
        done = asyncio.ensure_future(
            asking.resync(pipeline.config, "public.t", max_rows_per_second=60, follower=following)
        )
        for merged in (60, 180):
            await pipeline.until(
                lambda merged=merged: (target.fetchval("SELECT max(row_count) FROM cdc.resync") or 0) >= merged,
                "some chunks are merged",
            )
            await pipeline.worker.kill()
            source.execute("UPDATE t SET v = 'while it was dead' WHERE id % 50 = 0")
            await pipeline.start()
        (outcome,) = await done
        assert outcome.rows == 300  # no chunk was read twice
        await pipeline.assert_caught_up_and_equal()
        assert target.fetch("SELECT state FROM cdc.target_table") == [("streaming",)]
