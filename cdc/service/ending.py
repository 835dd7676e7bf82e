"""The end of a target transaction: what it stores beside its rows, and what follows in memory once that is durable."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdc.changes.transaction import Part
from cdc.lsn import Lsn
from cdc.routing.patterns import split
from cdc.service.stops import Stop
from cdc.source.heartbeat import Heartbeat
from cdc.target.applier import Applied
from cdc.target.table_state import RowCounts, TableName

COUNTERS_EVERY_S = 2.0
"""How often the row counters of ``cdc status`` are written. They travel with a batch, but not with each: an update per
table would cost a small batch more than its rows. A worker that is killed loses at most these seconds of counts."""


class Counters:
    """What the counters of the tables grow by, until it is written with some batch."""

    def __init__(self) -> None:
        self.waiting: dict[TableName, RowCounts] = {}
        self._written_at = time.monotonic()

    def add(self, applied: Applied) -> Counter[str]:
        """Add what a batch did; returns its sums over all tables."""
        total: Counter[str] = Counter()
        for table, rows in applied.tables.items():
            counts = RowCounts(rows.inserted, rows.updated, rows.deleted, rows.truncated)
            for field in ("inserted", "updated", "deleted", "truncated"):
                total[field] += getattr(counts, field)
            self.waiting[split(table)] = self.waiting.get(split(table), RowCounts()) + counts
        return total

    def due(self) -> dict[TableName, RowCounts]:
        """What is to be written now: nothing most of the time."""
        return self.waiting if time.monotonic() - self._written_at >= COUNTERS_EVERY_S else {}

    def hurry(self) -> None:
        """Let all be due."""
        self._written_at = -COUNTERS_EVERY_S

    def written(self) -> None:
        """What was due is durable."""
        self.waiting = {}
        self._written_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class Ending:
    """``statements`` are executed before the COMMIT; the rest is what they say.

    ``after`` is the target's position then, ``changed`` the own positions of tables that move (`None`: it has none any
    more), ``counts`` what the counters grow by. ``unrecorded`` are tables that have stopped, which the same transaction
    has to record before these statements. ``newest`` is the last heartbeat, ``cut_over_at`` the transaction with which
    the target becomes exactly consistent.
    """

    statements: tuple[str, ...]
    after: Lsn
    changed: Mapping[str, Lsn | None]
    counts: Mapping[TableName, RowCounts]
    unrecorded: Sequence[Stop]
    newest: Heartbeat | None
    cut_over_at: Part | None
