"""The two clocks of the source: its time, and the end of its WAL. Every lag is counted against one of them."""

from __future__ import annotations

from datetime import datetime

from cdc import statements
from cdc.errors import SourceUnavailable
from cdc.lsn import Lsn
from cdc.source.connection import Connection, source_errors


async def read_clock(connection: Connection) -> tuple[datetime, Lsn]:
    """The source's time, and the LSN up to which it has written WAL (a standby: has replayed)."""
    with source_errors("say where its WAL ends"):
        cursor = await connection.execute(statements.load("source", "clock"))
        row = await cursor.fetchone()
    if row is None:
        raise SourceUnavailable("the source does not say where its WAL ends")
    now, wal_position = row
    return now, wal_position
