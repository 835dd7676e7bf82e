"""Work for somebody else between two batches, in the session that owns the target.

Whatever changes a target besides applying (tables that are left out, chunks of a table that is read again) has to hold
its fence, and must not meet a batch half-way. Only the delivery's own task has both: it answers requests when one batch
is durable and the next has not begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cdc.errors import CdcError, TerminalError
from cdc.service.owned_target import OwnedTarget

T = TypeVar("T")


class Requests:
    """What waits to be done between two batches, in the order in which it was asked for."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[OwnedTarget], Awaitable[None]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, work: Callable[[OwnedTarget], Awaitable[T]]) -> asyncio.Future[T]:
        """Have ``work`` done, once; what it returns or raises comes as the result."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def answer(owned: OwnedTarget) -> None:
            if result.done():  # whoever asked does not wait any more
                return
            try:
                done = await work(owned)
            except BaseException as error:
                if not result.done():
                    if isinstance(error, CdcError):
                        result.set_exception(error)
                    else:
                        result.cancel()
                if not (isinstance(error, TerminalError) and owned.session.is_idle):
                    raise
                return  # what cannot be done is the trouble of whoever asked for it, not the target's
            if not result.done():
                result.set_result(done)

        self._waiting.append(answer)
        return result

    async def answer(self, owned: OwnedTarget) -> None:
        """Do what waits.

        An error ends it, because what the session holds is not known then: the target is taken anew. Not so when the
        work is one that cannot be done (`TerminalError`) and all of it was rolled back. Work changes what is in memory
        only after what is durable, so nothing of it is left.
        """
        while self._waiting:
            await self._waiting.popleft()(owned)
