"""The queue of one target: order, limits, and what wakes whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cdc.changes.transaction import Part
from cdc.lsn import Lsn
from cdc.service.queue import PartQueue


def part(number: int, size: int = 10, *, first: bool = True, last: bool = True) -> Part:
    return Part(number, Lsn(number), 0, is_first=first, end_lsn=Lsn(number + 1) if last else None, size=size)


def test_whole_transactions_are_taken_together_up_to_the_limit() -> None:
    queue = PartQueue(1000)
    for number in range(5):
        queue.put(part(number))
    assert [taken.xid for taken in queue.take(30)] == [0, 1, 2]
    assert [taken.xid for taken in queue.take(30)] == [3, 4]
    assert queue.size == 0


def test_a_transaction_larger_than_the_limit_is_taken_all_the_same() -> None:
    queue = PartQueue(1000)
    queue.put(part(1, size=500))
    assert [taken.xid for taken in queue.take(30)] == [1]


def test_a_large_transaction_comes_alone_and_part_by_part() -> None:
    queue = PartQueue(1000)
    queue.put(part(1))
    queue.put(part(2, last=False))
    queue.put(part(2, first=False, last=False))
    queue.put(part(2, first=False))
    queue.put(part(3))
    taken = [[p.xid for p in queue.take(100)] for _ in range(5)]
    assert taken == [[1], [2], [2], [2], [3]]


def test_what_is_put_back_comes_first_again() -> None:
    queue = PartQueue(1000)
    for number in range(4):
        queue.put(part(number))
    taken = queue.take(30)
    queue.put_back(taken[1:])
    assert [p.xid for p in queue.take(100)] == [1, 2, 3]


async def test_a_full_queue_has_room_again_once_something_is_taken() -> None:
    queue = PartQueue(20)
    queue.put(part(1))
    await queue.wait_for_room()
    queue.put(part(2))
    assert queue.full
    waiting = asyncio.ensure_future(queue.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.take(10)
    await waiting


async def test_news_arrive_as_a_part_as_a_note_and_as_the_end() -> None:
    queue = PartQueue(20)
    events: list[Callable[[], None]] = [lambda: queue.put(part(1)), lambda: queue.note(Lsn(9)), queue.close]
    for event in events:
        queue.clear()
        waiting = asyncio.ensure_future(queue.wait_for_news())
        await asyncio.sleep(0)
        assert not waiting.done()
        event()
        await waiting


async def test_waiting_for_news_ends_after_its_time() -> None:
    await PartQueue(20).wait_for_news(0.001)


def test_the_stream_is_known_to_be_empty_only_when_nothing_waits() -> None:
    queue = PartQueue(20)
    queue.note(Lsn(7))
    assert queue.idle_at == Lsn(7)
    queue.put(part(8))
    assert queue.idle_at is None


async def test_a_target_with_nothing_to_do_asks_for_what_the_lane_keeps_together() -> None:
    queue = PartQueue(100)
    kept = [part(1)]

    def pull() -> None:
        while kept:
            queue.put(kept.pop())

    queue.pull = pull
    await queue.wait_for_news()
    assert [taken.xid for taken in queue.take(100)] == [1]
    waiting = asyncio.ensure_future(queue.wait_for_news())
    await asyncio.sleep(0)
    assert queue.is_hungry
    queue.put(part(2))
    await waiting
    assert not queue.is_hungry


async def test_what_a_pull_only_notes_is_news_all_the_same() -> None:
    queue = PartQueue(100)
    queue.pull = lambda: queue.note(Lsn(7))
    async with asyncio.timeout(5):
        await queue.wait_for_news()
    assert queue.idle_at == Lsn(7)
