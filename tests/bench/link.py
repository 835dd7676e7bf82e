"""A slow link: a program that forwards connections to a server and delays both directions, as distance does.

``python -m tests.bench.link PORT MILLISECONDS`` forwards to 127.0.0.1:PORT, prints the port on which it listens, and
ends with its standard input. Half of the milliseconds is added each way. `slow_link` starts it and ends it.

It limits no rate: what is on its way waits in a queue, each piece with the time at which it is due, and the sender is
held back only when `_ON_ITS_WAY_BYTES` are. The tests' own proxy (`tests.faults.proxy`) is for cutting, stalling and
damaging; it passed 0.2 to 0.4 GB/s, took 2 to 4 s of CPU for each GB, and its timers count whole milliseconds: 10 ms
became 11.4. In the same minutes, on a busy machine of two cores, this one passed 0.5 to 0.7 GB/s (three million rows of
ours a second) for 1 s of CPU each GB, and 10 ms became 10.4: a thread sleeps more exactly than an event loop. It is a
process of its own, so that whoever watches the measurement does not delay it.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from threading import Condition, Thread

import psycopg

from cdc.errors import SetupError

_PIECE_BYTES = 1 << 18

_ON_ITS_WAY_BYTES = 64 << 20
"""64 MiB within 5 ms are 13 GB/s: never the limit."""

_PINGS = 50


class _Way:
    """One direction of one connection: what was read, and when it is due at the other end."""

    def __init__(self, source: socket.socket, destination: socket.socket, delay_s: float) -> None:
        self._source, self._destination, self._delay_s = source, destination, delay_s
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._over = False
        self._changed = Condition()

    def run(self) -> None:
        """Forward until either end closes; the end is forwarded, late like everything."""
        reading = Thread(target=self._read, daemon=True)
        reading.start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces)
                due, data = self._pieces.popleft()
                self._size -= len(data)
                self._changed.notify()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if not data:
                    self._destination.shutdown(socket.SHUT_WR)
                    break
                self._destination.sendall(data)
            except OSError:
                with contextlib.suppress(OSError):
                    self._source.shutdown(socket.SHUT_RD)
                break
        with self._changed:
            self._over = True
            self._changed.notify()
        reading.join()

    def _read(self) -> None:
        while True:
            try:
                data = self._source.recv(_PIECE_BYTES)
            except OSError:
                data = b""
            with self._changed:
                self._pieces.append((time.monotonic() + self._delay_s, data))
                self._size += len(data)
                self._changed.notify()
                if not data:
                    return
                self._changed.wait_for(lambda: self._over or self._size < _ON_ITS_WAY_BYTES)


@contextmanager
def slow_link(port: int, milliseconds: float) -> Iterator[int]:
    """Delay connections to a port of 127.0.0.1; yields the port to connect to instead. Ends with the context."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.link", str(port), str(milliseconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SetupError("the slow link did not start")
        yield int(line)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def round_trip_ms(dsn: str) -> float:
    """How long the shortest query takes, in milliseconds: the median of some."""
    times = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(_PINGS):
            started = time.perf_counter()
            connection.execute("SELECT")
            times.append((time.perf_counter() - started) * 1000)
    return median(times)


def main(port: int, milliseconds: float) -> None:
    """Forward until standard input ends."""
    listening = socket.create_server(("127.0.0.1", 0))
    Thread(target=_accept, args=(listening, port, milliseconds / 2000), daemon=True).start()
    print(listening.getsockname()[1], flush=True)
    sys.stdin.read()


def _accept(listening: socket.socket, port: int, delay_s: float) -> None:
    while True:
        client, _ = listening.accept()
        Thread(target=_serve, args=(client, port, delay_s), daemon=True).start()


def _serve(client: socket.socket, port: int, delay_s: float) -> None:
    with client:
        try:
            server = socket.create_connection(("127.0.0.1", port))
        except OSError:
            return
        with server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = Thread(target=_Way(server, client, delay_s).run, daemon=True)
            back.start()
            _Way(client, server, delay_s).run()
            back.join()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
