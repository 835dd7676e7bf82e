"""How fast rows may be read from the source at most."""

from __future__ import annotations

import asyncio
import time


class Pace:
    """A number of rows a second that all who share it stay under, together, from now on.

    Who was slower does not catch up: the source never gets more than the rate, over any longer time.
    """

    def __init__(self, rows_per_second: int) -> None:
        self._seconds_per_row = 1 / rows_per_second
        self._free_at = time.monotonic()

    async def spend(self, rows: int) -> None:
        """Wait until these rows, which have been read, are paid for."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + rows * self._seconds_per_row
        await asyncio.sleep(self._free_at - now)
