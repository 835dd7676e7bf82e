"""While the swap of a load waits for the tables, the new ones go on being streamed to, whatever a try has ended."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from cdc.bootstrap.progress import Silence
from cdc.bootstrap.run import Scope
from cdc.errors import TargetUnavailable
from cdc.lsn import Lsn
from cdc.service import loading
from cdc.target import swap_record
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow


async def test_after_a_try_that_fails_late_the_new_tables_are_streamed_to_while_a_report_holds_the_old(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute(
        "CREATE TABLE item (id int PRIMARY KEY, n int); INSERT INTO item SELECT n, n FROM generate_series(1, 9) n"
    )
    target = make_target()
    record, failed = swap_record.record, asyncio.Event()
    with psycopg.connect(target.dsn) as report:

        async def record_late(*arguments: Any, **named: Any) -> None:
            if not failed.is_set():
                failed.set()
                # The lane has ended for the swap by now. The report begins as soon as this try lets readers in.
                raise TargetUnavailable("the new tables were in use for too long")
            await record(*arguments, **named)

        monkeypatch.setattr("cdc.target.swap.record", record_late)
        async with Pipeline(source, {"internal": follow(target)}) as pipeline:
            await pipeline.load()
            await pipeline.start()
            load = asyncio.ensure_future(loading.bootstrap(pipeline.config, scope=Scope(anew=True), progress=Silence()))
            async with asyncio.timeout(60):
                await failed.wait()
                await asyncio.to_thread(report.execute, "LOCK TABLE item IN ACCESS SHARE MODE")
            source.execute("UPDATE item SET n = 0")
            goal = source.current_lsn()

            def has_come() -> bool:
                found = target.fetchval("SELECT position::text FROM cdc.target WHERE pipeline = 'cdc+'")
                return found is not None and Lsn.parse(found) >= goal

            await pipeline.until(has_come, "the new tables are streamed to")
            assert not load.done()
            report.rollback()
            await asyncio.wait_for(load, 60)
            await pipeline.assert_caught_up_and_equal()
