"""The byte pipe: what the source's COPY sends, chunk by chunk, unparsed.

psycopg's own COPY objects cost about 3.5 µs of CPU a row, because they return to the event loop for each CopyData
message and a server sends one message a row. Reading ``PGconn`` directly takes every message that has arrived in one
go: about 0.5 µs a row of 140 bytes, most of which is libpq's. No byte is looked at on the way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from psycopg import AsyncConnection, errors
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn

from cdc.bootstrap.pace import Pace
from cdc.source import waiting

CHUNK_BYTES = 64 * 1024
"""About what is handed on at once: large enough that the work per chunk is nothing, small enough to stay in the CPU's
cache from libpq's buffer to the target's socket (with four times as much a row costs half as much again)."""

READS = 4
"""How often what has arrived is taken before it is looked at. libpq takes 8 to 16 kB at a time and lets its buffer grow
only while that is full; a larger one means fewer returns to the event loop."""


async def read_copy(connection: AsyncConnection, statement: str, pace: Pace | None = None) -> AsyncIterator[bytes]:
    """Run ``COPY … TO STDOUT`` and yield its bytes in chunks of about ``CHUNK_BYTES``, no faster than ``pace``.

    The connection is in a transaction of the caller's. When this generator is not read to its end (the target refused
    the rows, a task was cancelled) the connection is left in the middle of the COPY and can only be closed. Raises
    psycopg's errors as the server sends them: the caller translates, because their text can quote values.
    """
    pgconn = connection.pgconn
    pgconn.send_query(statement.encode())
    await waiting.flush(pgconn)
    await _expect(pgconn, ExecStatus.COPY_OUT)
    held = bytearray()
    rows = 0  # a server sends one message a row
    while True:
        length, data = pgconn.get_copy_data(1)
        if length > 0:
            # Appended at once: a list of messages, to be joined, would spread them over memory.
            held += data
            rows += 1
            if len(held) >= CHUNK_BYTES:
                yield bytes(held)
                if pace is not None:
                    await pace.spend(rows)
                held.clear()
                rows = 0
        elif length == 0:
            await waiting.readable(pgconn)
            for _ in range(READS):
                pgconn.consume_input()
        else:
            break
    if held:
        yield bytes(held)
        if pace is not None:
            await pace.spend(rows)
    await _expect(pgconn, ExecStatus.COMMAND_OK)
    await waiting.result(pgconn)


async def _expect(pgconn: PGconn, status: ExecStatus) -> None:
    """Take the next result; raise psycopg's error for it when it is not what the protocol says comes here."""
    result = await waiting.result(pgconn)
    if result is None:
        raise errors.OperationalError("the source ended a COPY without a result")
    if result.status != status:
        while await waiting.result(pgconn) is not None:
            continue
        raise errors.error_from_result(result)
