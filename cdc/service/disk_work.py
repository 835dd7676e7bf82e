"""Waiting for the disk beside the event loop: what `cdc.changes.streamed` asks for between two pieces of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from cdc.changes.streamed import Steps


async def next_piece(steps: Steps) -> Sequence[bytes] | None:
    """The next messages, or `None` when there are no more. Work that comes before them is done in a thread.

    Raises what the steps and their work raise.
    """
    answer: bytes | None = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration:
            return None
        if not callable(step):
            return step
        answer = await _in_thread(step)


async def _in_thread(work: Callable[[], bytes | None]) -> bytes | None:
    # A thread cannot be cancelled, and whoever is cancelled here closes its files next: a number that is given out
    # again meanwhile would be somebody else's connection. So it is waited for, for as long as one block takes.
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    finally:
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # said to nobody, where we were cancelled
