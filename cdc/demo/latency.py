"""How long a row takes from the source's commit to the target's, by the servers' own records of both.

All servers of the demo run with ``track_commit_timestamp``, on one machine and so by one clock. A row of
``passage-events`` is written once, at the source in a transaction of its own, and is never touched again: its ``xmin``
is the transaction that brought it, on either side, and the difference of the two commit times is its latency. No
sample is lost between two looks, nothing has to be polled, and every row counts, also those that were committed while
the worker was dead. (A server notes the time as its commit begins; on both sides the row is visible once the WAL of
that commit is on disk.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

from cdc.identifiers import quote, quote_qualified

TABLE = "public.passage-events"
"""The table at the source; every target asks for its ``id``."""

Period = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in seconds; `None` where there is no row.

    ``undisturbed_p99_s`` leaves out the rows that were committed between the worker's death and the moment when every
    target had caught up again.
    """

    rows: int
    p50_s: float | None
    p99_s: float | None
    undisturbed_p99_s: float | None


async def measure(
    source: str, target: str, schema: str, table: str, *, measured: Period, disturbed: Sequence[Period]
) -> Latency:
    """The latency into one target of the rows that the source committed in the period ``measured``.

    ``schema`` and ``table`` name the target's table.
    """
    of_schema, _, of_table = TABLE.partition(".")
    committed = await _commit_times(source, of_schema, of_table)
    applied = await _commit_times(target, schema, table)
    begin, end = measured
    samples = [
        ((applied[row] - at).total_seconds(), any(start <= at <= stop for start, stop in disturbed))
        for row, at in committed.items()
        if begin <= at <= end and row in applied
    ]
    waited = [seconds for seconds, _ in samples]
    undisturbed = [seconds for seconds, is_disturbed in samples if not is_disturbed]
    return Latency(len(samples), percentile(waited, 50), percentile(waited, 99), percentile(undisturbed, 99))


def percentile(samples: Sequence[float], percent: float) -> float | None:
    """The smallest sample that so many percent of them do not exceed; `None` of none."""
    if not samples:
        return None
    return sorted(samples)[max(0, math.ceil(len(samples) * percent / 100) - 1)]


async def now(dsn: str) -> datetime:
    """The server's time."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
        assert row is not None
        found: datetime = row[0]
        return found


async def _commit_times(dsn: str, schema: str, table: str) -> dict[int, datetime]:
    sql = f"SELECT {quote('id')}, pg_xact_commit_timestamp(xmin) FROM {quote_qualified(schema, table)}"
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(sql.encode())
        return {row: at for row, at in await cursor.fetchall() if at is not None}
