"""How the reader of a stream lets changes gather."""

from __future__ import annotations

import asyncio

import pytest

from cdc.service import receiving


async def test_the_socket_gathers_for_a_moment_and_no_longer() -> None:
    asked = asyncio.Event()
    asked.set()  # who asked before got what there was
    async with asyncio.timeout(5):
        await receiving.gather(asked)
    assert not asked.is_set()


async def test_a_target_that_asks_ends_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "GATHER_S", 60)
    asked = asyncio.Event()
    waiting = asyncio.ensure_future(receiving.gather(asked))
    await asyncio.sleep(0)
    asked.set()
    async with asyncio.timeout(5):
        await waiting
