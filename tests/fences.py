"""A worker that is caught where its target transaction ends: at the fence, where the position moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg

from tests.database import Database
from tests.pipeline import Pipeline


@contextmanager
def fence_held(target: Database) -> Iterator[None]:
    """The worker applies its batch, and then waits at the end of the transaction, where the position moves."""
    with psycopg.connect(target.dsn) as holder:
        holder.execute("SELECT FROM cdc.target FOR UPDATE")
        yield
        holder.rollback()


@asynccontextmanager
async def held_at_its_commit(pipeline: Pipeline, target: Database, sql: str) -> AsyncIterator[None]:
    """The worker has applied ``sql``, which writes to ``log``, and waits where the position moves, until the end.

    It is held at the table first: an advance without rows that it was about to make would wait for the fence instead.
    """
    with psycopg.connect(target.dsn) as table:
        table.execute("LOCK TABLE log")
        pipeline.source.execute(sql)
        await pipeline.until(lambda: waits_for(target, "relation"), "the batch is at the table")
        with fence_held(target):
            table.rollback()
            await pipeline.until(lambda: waits_for(target, "transactionid"), "the batch is applied but for its end")
            yield


def waits_for(target: Database, locktype: str) -> bool:
    """Whether the worker waits for a lock of that type at the target."""
    return bool(
        target.fetchval(
            "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND locktype = %s"
            " AND application_name = 'cdc cdc' AND datname = current_database()",
            locktype,
        )
    )
