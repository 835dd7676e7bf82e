"""Waiting for libpq's socket, and for what comes through it, without blocking the event loop.

For those who drive a ``PGconn`` themselves because psycopg's own way costs too much for each message: the stream and
the copies. At most one task may wait for reading and one for writing on a connection.
"""

from __future__ import annotations

import asyncio

from psycopg.pq.abc import PGconn, PGresult


async def readable(pgconn: PGconn) -> None:
    """Wait until something has arrived; ``consume_input`` takes it."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    socket = pgconn.socket
    loop.add_reader(socket, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(socket)


async def writable(pgconn: PGconn) -> None:
    """Wait until the kernel takes more."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    socket = pgconn.socket
    loop.add_writer(socket, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(socket)


async def flush(pgconn: PGconn) -> None:
    """Hand everything that waits in libpq's buffer to the kernel."""
    while pgconn.flush():
        await writable(pgconn)


async def result(pgconn: PGconn) -> PGresult | None:
    """The next result; `None` when the statement has ended."""
    while pgconn.is_busy():
        await readable(pgconn)
        pgconn.consume_input()
    return pgconn.get_result()


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
