"""The proxy does what a test asks of it: forwards, counts, cuts, stalls, delays, refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.database import Database
from tests.faults.proxy import Direction, Proxy


@pytest.fixture
async def echo() -> AsyncIterator[Proxy]:
    """A proxy before a server that sends back what it gets."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


async def connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def test_it_forwards_and_counts(echo: Proxy) -> None:
    reader, writer = await connect(echo)
    payload = bytes(range(256)) * 8192
    writer.write(payload)
    assert await reader.readexactly(len(payload)) == payload
    assert echo.bytes(Direction.TO_SERVER) == echo.bytes(Direction.TO_CLIENT) == len(payload)
    assert (echo.connections, echo.open_connections) == (1, 1)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_a_cut_resets_every_connection_and_lets_new_ones_in(echo: Proxy) -> None:
    ends = [await connect(echo) for _ in range(2)]
    for reader, writer in ends:
        writer.write(b"x")
        await reader.readexactly(1)
    assert echo.cut() == 2
    for reader, writer in ends:
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
    reader, writer = await connect(echo)
    writer.write(b"again")
    assert await reader.readexactly(5) == b"again"
    writer.close()


async def test_a_stall_holds_one_direction_and_closes_nothing(echo: Proxy) -> None:
    reader, writer = await connect(echo)
    echo.stall(Direction.TO_CLIENT)
    writer.write(b"held")
    await echo.wait_for_bytes(Direction.TO_SERVER, 3)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(4), 0.1)
    assert echo.open_connections == 1
    echo.resume()
    assert await reader.readexactly(4) == b"held"
    writer.close()


async def test_a_delay_adds_latency_and_keeps_the_order(echo: Proxy) -> None:
    reader, writer = await connect(echo)
    echo.delay(Direction.TO_SERVER, 60)
    echo.delay(Direction.TO_CLIENT, 40)
    loop = asyncio.get_running_loop()
    started = loop.time()
    for word in (b"one", b"two", b"six"):
        writer.write(word)
        await writer.drain()
    assert await reader.readexactly(9) == b"onetwosix"
    assert 0.09 <= loop.time() - started < 5
    writer.close()


async def test_a_refusal_lasts_until_it_is_lifted(echo: Proxy) -> None:
    echo.refuse()
    reader, writer = await connect(echo)
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    writer.close()
    echo.accept()
    reader, writer = await connect(echo)
    writer.write(b"in")
    assert await reader.readexactly(2) == b"in"
    writer.close()


async def test_a_client_of_a_server_that_is_away_is_reset() -> None:
    async with Proxy("127.0.0.1", 1) as proxy:
        reader, writer = await connect(proxy)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()


async def test_a_database_is_reached_through_it_and_lost_by_a_cut(source: Database) -> None:
    host, port = source.server.dsn().rpartition("@")[2].partition("/")[0].split(":")
    async with Proxy(host, int(port)) as proxy:
        connection = await asyncpg.connect(proxy.dsn(source.dsn), ssl=False)
        assert await connection.fetchval("SELECT current_database()") == source.name
        proxy.cut()
        with pytest.raises((asyncpg.ConnectionDoesNotExistError, asyncpg.InterfaceError, ConnectionError)):
            await connection.fetchval("SELECT 1")
        await connection.close()
