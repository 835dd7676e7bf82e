"""How late a target is, in seconds, without comparing two clocks.

The worker writes heartbeats at the source and remembers when, on its own monotonic clock. When a target has committed
the transaction of heartbeat n, the seconds between the two are the time from the source's commit to the target's,
measured by one clock (hazard 21). Who has no worker's memory (``cdc status``) compares the source's ``now()`` with the
time that the source wrote into the heartbeat: one clock again.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from datetime import datetime, timedelta

import structlog

from cdc.changes.transaction import Part
from cdc.errors import CdcError, ProtocolError
from cdc.observe.metrics import LaneMetrics
from cdc.service.retry import Backoff, until_done
from cdc.source.connection import connect
from cdc.source.heartbeat import PREFIX, Heartbeat, beat, parse

_log = structlog.get_logger(__name__)

REMEMBERED = 4096
"""Heartbeats kept to be recognised: at one a second an hour, which is longer than any lag that is read in seconds."""


class Heartbeats:
    """The heartbeats that this worker has written, and when. Who writes them holds ``turn``."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self._written: OrderedDict[int, float] = OrderedDict()
        self._source_epoch: datetime | None = None

    def remember(self, count: int, at: float) -> None:
        """Heartbeat ``count`` was committed at ``at``, on the monotonic clock."""
        self._written[count] = at
        while len(self._written) > REMEMBERED:
            self._written.popitem(last=False)

    def synchronise(self, source_now: datetime) -> None:
        """The source's clock shows ``source_now`` at this moment."""
        self._source_epoch = source_now - timedelta(seconds=time.monotonic())

    def age_by_source_s(self, at: datetime) -> float | None:
        """Seconds since ``at`` by the source's clock, as good as its last reading; `None` before it was read."""
        if self._source_epoch is None:
            return None
        return (self._source_epoch + timedelta(seconds=time.monotonic()) - at).total_seconds()

    def age_s(self, count: int) -> float | None:
        """Seconds since heartbeat ``count`` was committed; `None` when another worker wrote it."""
        at = self._written.get(count)
        return None if at is None else time.monotonic() - at


def heartbeat_in(part: Part, pipeline: str) -> Heartbeat | None:
    """The last heartbeat of this pipeline that the part holds."""
    for mark in reversed(part.marks):
        if mark.prefix == PREFIX:
            try:
                found = parse(mark.content)
            except ProtocolError as error:
                # Anybody at the source may emit a message with this prefix: it is no heartbeat, and no more.
                _log.warning("not a heartbeat", reason=str(error), lsn=str(mark.lsn))
                continue
            if found.pipeline == pipeline:
                return found
    return None


async def write_heartbeats(
    dsn: str, *, pipeline: str, application_name: str, interval_s: float, heartbeats: Heartbeats, metrics: LaneMetrics
) -> None:
    """Write a heartbeat every ``interval_s`` seconds, for ever; a source that is away is tried again.

    Of the lanes of one process that call this at the same time, one writes, and another one when that ends. A heartbeat
    that fails harms nothing but the measurement, so no error leaves this function.
    """
    backoff = Backoff()

    async def write() -> None:
        async with await connect(dsn, application_name=application_name) as connection:
            while True:
                heartbeat = await beat(connection, pipeline)
                heartbeats.remember(heartbeat.count, time.monotonic())
                metrics.heartbeat_written()
                backoff.progressed()
                await asyncio.sleep(interval_s)

    def tell(error: CdcError, wait_s: float) -> None:
        metrics.error(error)
        _log.warning("heartbeat failed", reason=str(error), sql=error.sql, again_in_s=round(wait_s, 1))

    async with heartbeats.turn:
        await until_done(write, backoff=backoff, on_failure=tell, stop=asyncio.Event())
