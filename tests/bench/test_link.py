"""A slow link delays by what it is told, keeps every byte in order, and is no bottleneck."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from threading import Thread

import pytest

from tests.bench.link import slow_link


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets; its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            Thread(target=_send_back, args=(client,), daemon=True).start()

    thread = Thread(target=serve, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def _send_back(client: socket.socket) -> None:
    with client:
        while data := client.recv(1 << 18):
            client.sendall(data)
        client.shutdown(socket.SHUT_WR)


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size and (data := connection.recv(min(size, 1 << 18))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def test_a_round_trip_takes_the_added_time(echo: int) -> None:
    with slow_link(echo, 40) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        started = time.monotonic()
        connection.sendall(b"ping")
        assert _receive(connection, 4) == b"ping"
        assert 0.04 <= time.monotonic() - started < 5


def test_a_delay_does_not_limit_the_rate(echo: int) -> None:
    # Were each piece of 256 KiB delayed by itself, these 16 MiB would take 64 s there and 64 s back.
    data = bytes(range(256)) * (16 << 12)
    with slow_link(echo, 2000) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        started = time.monotonic()
        sending = Thread(target=connection.sendall, args=(data,))
        sending.start()
        assert _receive(connection, len(data)) == data
        sending.join()
        assert 2 <= time.monotonic() - started < 40


def test_the_end_of_a_connection_arrives(echo: int) -> None:
    with slow_link(echo, 10) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"last")
        connection.shutdown(socket.SHUT_WR)
        assert _receive(connection, 100) == b"last"


def test_a_server_that_is_away_closes_the_connection() -> None:
    with slow_link(1, 10) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        assert connection.recv(1) == b""
