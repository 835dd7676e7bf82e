"""The slots of a pipeline as its worker sees them: in the metrics, and in the log those that nobody seems to need.

These are slots that no target of the configuration explains, and that of a load beside which nobody goes on with: it
keeps WAL at the source until somebody does, or gives it up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import structlog

from cdc.observe.metrics import Metrics
from cdc.observe.remedies import left_load
from cdc.observe.status import size
from cdc.source.slot import Slot, target_of, target_of_load

_log = structlog.get_logger(__name__)

UNUSED_S = 300.0
"""How long the slot of a load may be out of use before it is said: small tables are copied meanwhile."""

SAID_AGAIN_S = 3600.0
"""How soon it is said again. By then it may keep some gigabytes more."""


class SlotWatch:
    """What has been shown of the slots. ``shared`` is the name of the one that the targets share."""

    def __init__(
        self,
        shared: str,
        targets: Collection[str],
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shared = shared
        self._targets = targets
        self._metrics = metrics
        self._loads: set[str] = set()
        self._unknown: set[str] = set()
        self._say_at: dict[str, float] = {}
        self._clock = clock

    def show(self, slots: Sequence[Slot]) -> None:
        """Take over what there is; ``slots`` are those whose names begin with the shared one's."""
        loads: set[str] = set()
        for slot in slots:
            target = target_of(slot.name, self._shared)
            if target in self._targets:
                self._put(slot, target)
            elif slot.name == self._shared or target_of_load(slot.name, self._shared) in self._targets:
                loads.add(slot.name)
                self._put(slot, None)
                self._look_for_left(slot)
            elif slot.name not in self._unknown:
                self._unknown.add(slot.name)
                _log.warning(
                    "the source has a slot that no target of this configuration needs; it keeps WAL",
                    slot=slot.name,
                    mend=f"SELECT pg_drop_replication_slot('{slot.name}');",
                )
        for name in (self._loads | {self._shared}) - loads:
            if name == self._shared:
                self._metrics.lane().slot_gone(name)
            else:
                self._metrics.lane().forget_slot(name)
                self._say_at.pop(name, None)
        self._loads = loads

    def _look_for_left(self, slot: Slot) -> None:
        """Say of a load's slot that nobody has used it for a while, now and then."""
        target = target_of_load(slot.name, self._shared)
        if target is None:
            return
        if slot.active:
            self._say_at.pop(slot.name, None)
            return
        now = self._clock()
        if now >= self._say_at.setdefault(slot.name, now + UNUSED_S):
            self._say_at[slot.name] = now + SAID_AGAIN_S
            reason = left_load(slot.name, target, size(slot.retained_bytes))
            _log.warning("a load may be left behind", target=target, slot=slot.name, reason=reason)

    def _put(self, slot: Slot, target: str | None) -> None:
        lane = self._metrics.lane() if target is None else self._metrics.lane(target)
        lane.slot(
            slot.name,
            active=slot.active,
            retained_bytes=slot.retained_bytes,
            safe_wal_size=slot.safe_wal_size,
            wal_status=slot.wal_status,
            confirmed_flush_lsn=slot.confirmed_flush_lsn,
        )
