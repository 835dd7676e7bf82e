"""The reading half of a lane: messages in, whole transactions into every delivery's queue, as long as there is room.

Transactions are handed over at once where a target has nothing to do. While all of them are busy, what is whole stays
in the accumulator, where many small transactions become one block, until a target asks for it or it has grown enough.
So blocks grow under load, and nothing waits without need. For the same reason the socket is left to gather for a moment
(`cdc.service.gathering`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing

from cdc.changes.accumulator import UnknownTypes
from cdc.changes.packed_accumulator import accumulator_for
from cdc.changes.spool import SpoolSpace
from cdc.changes.streamed import StreamedTransactions
from cdc.config import WorkerConfig
from cdc.observe.metrics import LaneMetrics
from cdc.pgoutput.framing import Keepalive
from cdc.pgoutput.packed import size_bytes
from cdc.service.acknowledgement import Acknowledgement
from cdc.service.delivery import Delivery
from cdc.service.disk_work import next_piece
from cdc.service.gathering import Gathering
from cdc.service.partition_watch import PartitionWatch
from cdc.source.connection import Connection
from cdc.source.replication import ReplicationConnection


async def receive(
    stream: ReplicationConnection,
    catalog: Connection,
    deliveries: Sequence[Delivery],
    *,
    acknowledgement: Acknowledgement,
    answer: Callable[[], None],
    partitions: PartitionWatch,
    spool: SpoolSpace | None,
    metrics: LaneMetrics,
    settings: WorkerConfig,
) -> None:
    """Read the stream for ever, and note in ``acknowledgement`` how much has come.

    ``spool`` is where the parts of large transactions are kept that come before their commit; `None` where none do.
    What is there when this ends is forgotten: the slot sends it again.

    ``catalog`` is asked about types and relations that the stream has not met; ``answer`` is called when the source
    wants to hear of us. ``partitions`` knows when relations have become partitions, or none any more.
    """
    accumulator = accumulator_for(part_bytes=settings.max_batch_bytes, with_roots=True)
    gathering = Gathering()

    def hand_over() -> None:
        for part in accumulator.take():
            if part.packed is not None:
                part.packed.block.is_shared = len(deliveries) > 1
            acknowledgement.receive(part.end_lsn or part.commit_lsn)
            for delivery in deliveries:
                delivery.offer(part)

    def pull() -> None:
        gathering.ask()
        hand_over()

    for delivery in deliveries:
        delivery.queue.pull = pull
    with closing(StreamedTransactions(spool)) as streamed:
        metrics.spool(size_bytes=lambda: streamed.spooled_bytes, transactions=lambda: streamed.transactions)
        while True:
            messages, keepalives = await stream.receive()
            await partitions.place_again(catalog, accumulator)
            size = size_bytes(messages)
            metrics.received(messages=len(messages), size_bytes=size)
            gathering.received(size)
            steps = streamed.feed(messages)
            while (piece := await next_piece(steps)) is not None:
                while piece:
                    try:
                        accumulator.feed(piece)
                        break
                    except UnknownTypes as unknown:
                        piece = await partitions.learn(catalog, accumulator, unknown)
                if accumulator.is_due or any(delivery.queue.is_hungry for delivery in deliveries):
                    hand_over()
                    await _wait_for_room(deliveries, settings.detach_after_s)
            is_idle = bool(keepalives) and not accumulator.in_transaction
            if is_idle:
                hand_over()
                await _wait_for_room(deliveries, settings.detach_after_s)
            if any(keepalive.reply_requested for keepalive in keepalives):
                answer()
            if is_idle:
                _note(keepalives, deliveries, acknowledgement)
            if not stream.has_more:
                is_busy = bool(deliveries) and not any(delivery.queue.is_hungry for delivery in deliveries)
                await gathering.wait(is_busy=is_busy)


def _note(keepalives: Sequence[Keepalive], deliveries: Sequence[Delivery], acknowledgement: Acknowledgement) -> None:
    """With no transaction open, everything committed before a keepalive's LSN has been received (hazard 3).

    Transactions that are streamed before their commit are none of these: they commit after it, wherever they began. The
    slot keeps the WAL from the beginning of the oldest one on by itself (``restart_lsn``), whatever it is told.
    """
    for keepalive in keepalives:
        acknowledgement.receive(keepalive.end_lsn)
    for delivery in deliveries:
        delivery.queue.note(acknowledgement.received)


async def _wait_for_room(deliveries: Sequence[Delivery], detach_after_s: float) -> None:
    """Back-pressure: pause while a queue is full; go on without a target that has stalled for too long."""
    for delivery in deliveries:
        if not delivery.queue.full:
            continue
        # A target that is stopped waits for a person: the others do not wait with it.
        patience_s = 0.0 if delivery.health.state == "stopped" else detach_after_s
        try:
            async with asyncio.timeout(patience_s):
                await delivery.queue.wait_for_room()
        except TimeoutError:
            delivery.set_aside(f"its queue has been full for {patience_s:g} s")
