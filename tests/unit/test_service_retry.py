"""Trying again: which waits, when they begin anew, and how a stop ends them."""

from __future__ import annotations

import asyncio

import pytest

from cdc.errors import CdcError, SetupError, SlotInUse, TargetUnavailable
from cdc.service import retry
from cdc.service.retry import TERMINAL_WAIT_S, TRANSIENT_WAIT_S, Backoff, until_done


def test_waits_double_up_to_the_longest_and_are_jittered() -> None:
    backoff = Backoff()
    waits = [backoff.wait_s(TargetUnavailable("away")) for _ in range(12)]
    first, longest = TRANSIENT_WAIT_S
    for number, wait in enumerate(waits):
        ceiling = min(longest, first * 2**number)
        assert ceiling / 2 <= wait <= ceiling


def test_progress_makes_the_waits_begin_anew() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.wait_s(TargetUnavailable("away"))
    backoff.progressed()
    assert backoff.wait_s(TargetUnavailable("away")) <= TRANSIENT_WAIT_S[0]


def test_a_slot_in_use_is_asked_for_every_second() -> None:
    backoff = Backoff()
    assert all(0.25 <= backoff.wait_s(SlotInUse("another worker")) <= 1.0 for _ in range(20))


def test_what_a_person_has_to_mend_is_tried_again_slowly() -> None:
    assert Backoff().wait_s(SetupError("wrong password")) >= TERMINAL_WAIT_S[0] / 2


async def test_work_is_tried_until_it_succeeds_and_every_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "TRANSIENT_WAIT_S", (0.001, 0.002))
    told: list[tuple[str, float]] = []
    tries = 0

    async def work() -> str:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise TargetUnavailable(f"failure {tries}")
        return "done"

    def tell(error: CdcError, wait_s: float) -> None:
        told.append((str(error), wait_s))

    assert await until_done(work, backoff=Backoff(), on_failure=tell, stop=asyncio.Event()) == "done"
    assert [message for message, _ in told] == ["failure 1", "failure 2", "failure 3"]
    assert all(wait_s > 0 for _, wait_s in told)


async def test_a_stop_ends_a_long_wait_at_once() -> None:
    stop = asyncio.Event()

    async def work() -> None:
        raise SetupError("wrong password")

    async with asyncio.timeout(2):
        await until_done(work, backoff=Backoff(), on_failure=lambda *_: stop.set(), stop=stop)


async def test_a_bug_is_not_tried_again() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await until_done(work, backoff=Backoff(), on_failure=lambda *_: None, stop=asyncio.Event())
