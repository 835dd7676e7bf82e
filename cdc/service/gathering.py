"""When the socket of a stream is left alone for a moment, so that more comes at a time.

A walsender sends each change by itself, and as long as the kernel on our side is ready for more, each wakes us up: 8 µs
of the walsender's CPU for a change where we read at once, 4.4 where we read every 10 ms (and longer waits only make it
wait, too). So the socket gathers while every target is busy, and while so much comes that nobody is kept from anything
by a few milliseconds. Otherwise it is read at once: what a single transaction needs is not put off.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

GATHER_S = 0.01
"""How long the socket is left alone at most."""

HEAVY_BYTES = 64 * 1024
"""What comes in `GATHER_S` where much comes: 6 MB/s, some 40,000 rows. The source speaks like this while it has a
backlog, which is then longer than any wait here."""


class Gathering:
    """Of one stream: tell it what was received, and `wait` before the next time."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._bytes = 0
        self._since = time.monotonic()
        self._is_heavy = False

    def received(self, size_bytes: int) -> None:
        """So much has come."""
        self._bytes += size_bytes
        now = time.monotonic()
        if now - self._since >= GATHER_S:
            self._is_heavy = self._bytes >= HEAVY_BYTES * (now - self._since) / GATHER_S
            self._bytes, self._since = 0, now

    def ask(self) -> None:
        """A target that was busy wants more: `wait` ends, unless much comes."""
        self._asked.set()

    async def wait(self, *, is_busy: bool) -> None:
        """Leave the socket alone if every target ``is_busy``, or if much comes."""
        if self._is_heavy:
            await asyncio.sleep(GATHER_S)
        elif is_busy:
            self._asked.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._asked.wait()
