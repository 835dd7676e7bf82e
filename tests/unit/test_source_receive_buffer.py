"""The room that the kernel has for the stream: bounded for a near source, left alone for others."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cdc.source import receive_buffer
from cdc.source.receive_buffer import NEAR_S, RECEIVE_BUFFER_BYTES, bound_receive_buffer, round_trip_s

LINUX_DOUBLES = 2


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        yield client


def room(connection: socket.socket) -> int:
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def test_the_room_for_a_near_source_is_bounded(connection: socket.socket) -> None:
    measured = round_trip_s(connection)
    assert measured is not None
    assert 0 < measured < NEAR_S
    bound_receive_buffer(connection.fileno())
    assert room(connection) == LINUX_DOUBLES * RECEIVE_BUFFER_BYTES


@pytest.mark.parametrize("measured", [None, 0.002], ids=["unknown", "distant"])
def test_the_room_for_a_source_that_may_be_distant_is_left_alone(
    connection: socket.socket, measured: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = room(connection)
    monkeypatch.setattr(receive_buffer, "round_trip_s", lambda _: measured)
    bound_receive_buffer(connection.fileno())
    assert room(connection) == before


def test_a_system_that_measures_no_round_trip_is_left_alone(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "TCP_INFO")
    before = room(connection)
    bound_receive_buffer(connection.fileno())
    assert room(connection) == before


def test_a_socket_file_has_no_round_trip_and_stays_as_it_is() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = room(ours)
        bound_receive_buffer(ours.fileno())
        assert room(ours) == before


def test_a_connection_that_is_gone_is_no_error(connection: socket.socket) -> None:
    descriptor = connection.fileno()
    connection.close()
    bound_receive_buffer(descriptor)
