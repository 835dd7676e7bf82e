"""A TCP proxy of our own, between the code under test and a server, that tests can cut, stall, delay, damage and count.

::

    async with Proxy("127.0.0.1", port) as proxy:
        dsn = proxy.dsn(database.dsn)
        proxy.stall(Direction.TO_SERVER)     # what the client sends stays here, nothing is closed
        proxy.resume()
        proxy.delay(Direction.TO_CLIENT, 50) # every piece of data arrives 50 ms later, order kept
        proxy.cut()                          # every connection is reset
        proxy.refuse()                       # and new ones are, too, until proxy.accept()
    proxy.damage(Direction.TO_CLIENT, f) # f(data) arrives instead of data, until proxy.damage(…, None)

What was delayed keeps its pace: a delay adds latency, it does not limit the rate. A stall fills the buffers of both
sides, as a stalled network does: the sender notices nothing until its buffer is full.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

_PIECE = 65536

# How much delayed data is held at once, in pieces, before the proxy stops reading.
_HELD_PIECES = 256


class Direction(StrEnum):
    """Which way data flows."""

    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"


class _Way:
    """One direction of all connections: whether it flows, how late, and how much has passed."""

    def __init__(self) -> None:
        self.flows = asyncio.Event()
        self.flows.set()
        self.delay_s = 0.0
        self.damage: Callable[[bytes], bytes] | None = None
        self.bytes = 0
        self.passed = asyncio.Condition()


class _Connection:
    """One connection of a client and the one to the server that it stands for."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.writers = (client, server)

    def reset(self) -> None:
        """Close both ends at once, unsent data thrown away, so that both sides see a reset and not an orderly end."""
        for writer in self.writers:
            _reset(writer)


class Proxy:
    """Forwards connections from a free port of 127.0.0.1 to ``host``:``port``; ``port`` of its own once entered.

    ``connections`` counts those accepted since the start, ``open_connections`` the living ones.
    """

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._ways = {direction: _Way() for direction in Direction}
        self._open: set[_Connection] = set()
        self._refuses = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def dsn(self, dsn: str) -> str:
        """The same URL, by way of this proxy."""
        parts = urlsplit(dsn)
        user = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{self.port}" if user else f"127.0.0.1:{self.port}"))

    def cut(self) -> int:
        """Reset every connection; new ones are still accepted. Returns how many there were."""
        cut = list(self._open)
        for connection in cut:
            connection.reset()
        return len(cut)

    def refuse(self) -> None:
        """Reset every connection, and each new one as soon as it comes."""
        self._refuses = True
        self.cut()

    def accept(self) -> None:
        """Let new connections through again."""
        self._refuses = False

    def stall(self, *directions: Direction) -> None:
        """Stop forwarding, in both directions or the named ones; connections stay open."""
        for direction in directions or tuple(Direction):
            self._ways[direction].flows.clear()

    def resume(self, *directions: Direction) -> None:
        """Forward again, beginning with what was held."""
        for direction in directions or tuple(Direction):
            self._ways[direction].flows.set()

    def delay(self, direction: Direction, milliseconds: float) -> None:
        """Make everything that is read from now on arrive later by this much."""
        self._ways[direction].delay_s = milliseconds / 1000

    def damage(self, direction: Direction, change: Callable[[bytes], bytes] | None) -> None:
        """Pass everything that is read from now on through a function; `None` leaves it as it is."""
        self._ways[direction].damage = change

    def bytes(self, direction: Direction) -> int:
        """How many bytes have been forwarded this way."""
        return self._ways[direction].bytes

    async def wait_for_bytes(self, direction: Direction, more_than: int) -> None:
        """Wait until more than so many bytes have been forwarded this way, to cut in the middle of something."""
        way = self._ways[direction]
        async with way.passed:
            await way.passed.wait_for(lambda: way.bytes > more_than)

    @property
    def open_connections(self) -> int:
        """How many connections live now."""
        return len(self._open)

    async def _serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            self.connections += 1
            if self._refuses:
                _reset(client)
                return
            try:
                server_reader, server = await asyncio.open_connection(*self._upstream)
            except OSError:
                _reset(client)
                return
            await self._forward(_Connection(client, server), client_reader, server_reader)
        except asyncio.CancelledError:
            # Only `__aexit__` cancels us; a cancelled task would be reported by asyncio's streams as a mistake.
            _reset(client)
        finally:
            self._tasks.discard(task)

    async def _forward(
        self, connection: _Connection, client_reader: asyncio.StreamReader, server_reader: asyncio.StreamReader
    ) -> None:
        client, server = connection.writers
        self._open.add(connection)
        try:
            if self._refuses:
                return
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(client_reader, server, self._ways[Direction.TO_SERVER]))
                group.create_task(_pump(server_reader, client, self._ways[Direction.TO_CLIENT]))
        except* OSError:
            # One side is gone; the other learns it by the reset below.
            pass
        finally:
            self._open.discard(connection)
            connection.reset()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: _Way) -> None:
    """Forward one direction of one connection until its end, which is forwarded, too."""
    held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_HELD_PIECES)
    loop = asyncio.get_running_loop()

    async def receive() -> None:
        while True:
            data = await reader.read(_PIECE)
            if way.damage is not None:
                data = way.damage(data)
            await held.put((loop.time() + way.delay_s, data))
            if not data:
                return

    async def send() -> None:
        while True:
            due, data = await held.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            await way.flows.wait()
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
            way.bytes += len(data)
            async with way.passed:
                way.passed.notify_all()

    async with asyncio.TaskGroup() as group:
        group.create_task(receive())
        group.create_task(send())


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset: the socket lingers for no time."""
    peer = writer.get_extra_info("socket")
    if peer is not None and not writer.transport.is_closing():
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
