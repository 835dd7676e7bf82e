"""Tables that have stopped alone: why, and when to try them again.

A stopped table costs nothing but WAL at the source: its target goes on, the acknowledgement stays before the
transaction that the table could not take. Two kinds of stop are told apart, because what tells that somebody has mended
it differs. A shape that does not fit is looked at again in the target's catalog, every few seconds, which is cheap. A
row that was rejected can only be tried again, by reading the stream from there once more, so the waits grow.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from cdc.changes.relation import Relation
from cdc.errors import CdcError, ReadAgain
from cdc.lsn import Lsn
from cdc.service.retry import Backoff
from cdc.target.column_record import ColumnsMoved

LOOK_AGAIN_S = 2.0
"""How often the catalog of a target is asked whether a stopped table fits now: one query for each stopped table."""

RETRY_WAIT_S = (2.0, 600.0)
"""First and longest wait before a rejected row is tried again: the lane's stream is restarted for it."""


@dataclass(slots=True)
class Stop:
    """One stopped table. ``relation`` is the shape that did not fit; `None` when a row was rejected.

    It is `None`, too, where a look at the catalog has stopped it (`cdc.service.column_looks`). One that ``is_held``
    waits for whoever reads the table again (`cdc resync`).
    """

    table: str
    commit_lsn: Lsn
    error: CdcError
    relation: Relation | None
    retry_at: float
    is_recorded: bool = False
    is_held: bool = False


@dataclass(slots=True)
class Stops:
    """The tables of one target that are stopped now, and how often each has been tried in vain."""

    current: dict[str, Stop] = field(default_factory=dict)
    _backoffs: dict[str, Backoff] = field(default_factory=dict)

    def add(self, table: str, commit_lsn: Lsn, error: CdcError, relation: Relation | None) -> None:
        """``table`` takes nothing from the transaction at ``commit_lsn`` on."""
        if relation is not None or isinstance(error, ColumnsMoved):
            wait_s = LOOK_AGAIN_S
        else:
            backoff = self._backoffs.setdefault(table, Backoff())
            first, longest = RETRY_WAIT_S
            wait_s = min(longest, first * 2 ** min(backoff.failures, 10))
            backoff.failures += 1
        is_held = isinstance(error, ReadAgain)
        self.current[table] = Stop(table, commit_lsn, error, relation, time.monotonic() + wait_s, is_held=is_held)

    def recorded(self) -> set[str]:
        """Those of which the target says that they are stopped: unless somebody has had them loaded again meanwhile."""
        return {stop.table for stop in self.current.values() if stop.is_recorded}

    def unrecorded(self) -> list[Stop]:
        """Those that the target has not been told of, or not in the words of today."""
        return [stop for stop in self.current.values() if not stop.is_recorded]

    def held(self) -> set[str]:
        """Those that wait for whoever reads them again."""
        return {stop.table for stop in self.current.values() if stop.is_held}

    def forget_unrecorded(self) -> list[str]:
        """Forget those that the target does not know of, and say which: what refused them is not ours any more."""
        forgotten = [stop.table for stop in self.unrecorded()]
        for table in forgotten:
            self.remove(table)
        return forgotten

    def due(self) -> list[Stop]:
        """The stops that are to be looked at now."""
        now = time.monotonic()
        return [stop for stop in self.current.values() if stop.retry_at <= now and not stop.is_held]

    def next_due_in_s(self) -> float | None:
        """Seconds until `due` has something; `None` when nothing is stopped."""
        times = [stop.retry_at for stop in self.current.values() if not stop.is_held]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def hold(self, table: str, commit_lsn: Lsn, error: CdcError) -> None:
        """``table`` takes nothing from the transaction at ``commit_lsn`` on, until `release`."""
        self.current[table] = Stop(table, commit_lsn, error, None, time.monotonic(), is_recorded=True, is_held=True)

    def release(self, table: str) -> None:
        """What is held is tried again now; the stream is started anew for it."""
        if table in self.current:
            self.current[table].is_held = False
            self.current[table].retry_at = time.monotonic()

    def look_later(self, stop: Stop, wait_s: float = LOOK_AGAIN_S) -> None:
        """It still does not fit, or cannot be tried now."""
        stop.retry_at = time.monotonic() + max(wait_s, LOOK_AGAIN_S)

    def remove(self, table: str) -> None:
        """The table is tried again."""
        self.current.pop(table, None)

    def went_on(self, tables: Iterable[str]) -> None:
        """These tables have caught up with their target: their waits begin anew."""
        for table in tables:
            self._backoffs.pop(table, None)
