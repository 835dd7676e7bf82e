"""How a lane asks for its stream: binary or text values, large transactions before or after their commit.

A stream begins with the better way, and ends where that fails; the next one then gets by without it:

- A value without a binary form (hazard 25): text values from then on.
- A spool that is full, or whose disk refuses: large transactions come after their commit, as protocol 1 has them. They
  are then kept at the source's disk until they commit, and applied piece by piece as they arrive. This lasts until all
  transactions that were in the spool have ended and are durable everywhere, or they would fill it again; the stream
  after that, whatever it begins for, has large transactions before their commit again. No stream is ended for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from cdc import statements
from cdc.changes.spool import SpoolSpace, SpoolUnusable
from cdc.lsn import Lsn
from cdc.observe.metrics import LaneMetrics
from cdc.source.clock import read_clock
from cdc.source.connection import Connection, source_errors
from cdc.source.replication import BinaryRefused, ReplicationConnection

_log = structlog.get_logger(__name__)


class StreamOptions:
    """The options of a lane's next stream. ``space`` is where large transactions are kept until they commit."""

    def __init__(self, space: SpoolSpace, metrics: LaneMetrics) -> None:
        self._space = space
        self._metrics = metrics
        self._binary = True
        self._streaming = space.limit_bytes > 0
        self._unfinished: frozenset[int] = frozenset()
        self._ended_by: Lsn | None = None
        metrics.spool_fallback(False)

    @property
    def spool(self) -> SpoolSpace | None:
        """Where what comes before its commit is kept; `None` where nothing does."""
        return self._space if self._streaming else None

    async def start(self, stream: ReplicationConnection, slot: str, publications: Sequence[str]) -> None:
        """Begin to stream. Raises what `ReplicationConnection.start` raises."""
        await stream.start(slot, publications, binary=self._binary, streaming=self._streaming)

    def change(self, why: BinaryRefused | SpoolUnusable) -> None:
        """Do without what has failed, from the next stream on."""
        if isinstance(why, BinaryRefused):
            self._binary = False
            _log.warning("stream starts anew with text values", reason=str(why))
        else:
            self._streaming = False
            self._unfinished, self._ended_by = why.xids, None
            self._metrics.spool_fallback(True)
            _log.warning("stream starts anew; large transactions come after their commit", reason=str(why))

    async def look(self, catalog: Connection, confirmed: Lsn) -> None:
        """Find out whether the spool may be used by the next stream; ``confirmed`` is durable everywhere.

        The transactions that did not fit have ended at the source before some LSN; once that is durable, they do not
        come again. Raises what the source says.
        """
        if self._streaming or not self._space.limit_bytes:
            return
        if self._ended_by is None and await _have_ended(catalog, self._unfinished):
            _, self._ended_by = await read_clock(catalog)
        if self._ended_by is not None and self._ended_by <= confirmed:
            self._streaming = True
            self._metrics.spool_fallback(False)
            _log.info("the next stream has large transactions before their commit again")


async def _have_ended(catalog: Connection, xids: frozenset[int]) -> bool:
    """Whether none of the transactions (32 bits, those of the last two thousand millions) runs or is prepared."""
    with source_errors("say which transactions are running"):
        cursor = await catalog.execute(statements.load("source", "have_ended"), {"xids": sorted(xids)})
        row = await cursor.fetchone()
    return row is not None and bool(row[0])
