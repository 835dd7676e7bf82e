"""Trying again: for ever, with waits that grow and are jittered, and that begin anew once there was progress.

The type of the error decides (`cdc.errors`): what is transient is tried again soon, what needs somebody to act is tried
again slowly. A worker never ends because a database is away: a platform that restarts what exits gives up after a dozen
times, and the operator who mends the database must not have to restart the worker, too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from cdc.errors import CdcError, SlotInUse, TargetLoading, TransientError

T = TypeVar("T")

TRANSIENT_WAIT_S = (0.25, 30.0)
"""First and longest wait after a transient error. A target that restarts is back in a second or two; the longest keeps
the number of attempts against a database that is down for an hour at about a hundred."""

SLOT_WAIT_S = (0.5, 1.0)
"""First and longest wait for a slot that another worker holds: deploys overlap, and who takes over must be there soon.
A try is one connection and one refusal."""

LOADING_WAIT_S = (0.5, 2.0)
"""First and longest wait for a target that a bootstrap is loading: when it is done, the target is to go on soon. A try
reads one row."""

TERMINAL_WAIT_S = (5.0, 300.0)
"""First and longest wait after an error that somebody has to mend: often enough that nobody waits long after
mending."""


@dataclass(slots=True)
class Backoff:
    """How often something failed since it last made progress. The owner calls `progressed`."""

    failures: int = 0

    def progressed(self) -> None:
        """Begin the waits anew."""
        self.failures = 0

    def wait_s(self, error: BaseException | None) -> float:
        """Seconds to wait before the next try: doubled by each failure, between half and all of it at random."""
        first, longest = _waits(error)
        ceiling: float = min(longest, first * 2 ** min(self.failures, 20))
        self.failures += 1
        return ceiling * random.uniform(0.5, 1.0)


def _waits(error: BaseException | None) -> tuple[float, float]:
    if isinstance(error, SlotInUse):
        return SLOT_WAIT_S
    if isinstance(error, TargetLoading):
        return LOADING_WAIT_S
    return TRANSIENT_WAIT_S if isinstance(error, TransientError) else TERMINAL_WAIT_S


async def until_done(
    work: Callable[[], Awaitable[T]],
    *,
    backoff: Backoff,
    on_failure: Callable[[CdcError, float], Awaitable[None] | None],
    stop: asyncio.Event,
) -> T | None:
    """Run ``work`` until it returns; after a `CdcError` wait and run it again. Returns `None` once ``stop`` is set.

    ``on_failure`` is told the error and the seconds until the next try.
    """

    async def sleep(seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            pass

    async def before_sleep(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, CdcError):
            told = on_failure(error, state.upcoming_sleep)
            if told is not None:
                await told

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(CdcError),
        wait=lambda state: backoff.wait_s(state.outcome.exception() if state.outcome else None),
        stop=lambda _state: stop.is_set(),
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
    try:
        async for attempt in retrying:
            if stop.is_set():
                return None
            with attempt:
                return await work()
    except CdcError:
        if not stop.is_set():
            raise
    return None
