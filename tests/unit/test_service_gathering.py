"""How the reader of a stream lets changes gather."""

from __future__ import annotations

import asyncio
import time

import pytest

from cdc.service import gathering
from cdc.service.gathering import HEAVY_BYTES, Gathering

PATIENCE_S = 5.0


async def test_while_targets_are_busy_the_socket_gathers_for_a_moment_and_no_longer() -> None:
    paused = Gathering()
    paused.ask()  # who asked before got what there was
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        await paused.wait(is_busy=True)
    assert time.monotonic() - began >= gathering.GATHER_S / 2


async def test_a_target_that_asks_ends_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "GATHER_S", 60)
    paused = Gathering()
    waiting = asyncio.ensure_future(paused.wait(is_busy=True))
    await asyncio.sleep(0)
    paused.ask()
    async with asyncio.timeout(PATIENCE_S):
        await waiting


async def test_where_a_target_waits_and_little_comes_the_socket_is_read_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paused = Gathering()
    await asyncio.sleep(gathering.GATHER_S)
    paused.received(HEAVY_BYTES // 2)
    monkeypatch.setattr(gathering, "GATHER_S", 60)
    async with asyncio.timeout(PATIENCE_S):
        await paused.wait(is_busy=False)


async def test_where_much_comes_the_socket_gathers_whoever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    paused = Gathering()
    await asyncio.sleep(gathering.GATHER_S)
    paused.received(1000 * HEAVY_BYTES)
    monkeypatch.setattr(gathering, "GATHER_S", 60)
    waiting = asyncio.ensure_future(paused.wait(is_busy=False))
    await asyncio.sleep(0)
    paused.ask()
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    waiting.cancel()


async def test_what_was_much_is_forgotten_when_little_comes() -> None:
    paused = Gathering()
    await asyncio.sleep(gathering.GATHER_S)
    paused.received(1000 * HEAVY_BYTES)
    await asyncio.sleep(gathering.GATHER_S)
    paused.received(1)
    began = time.monotonic()
    await paused.wait(is_busy=False)
    assert time.monotonic() - began < gathering.GATHER_S
