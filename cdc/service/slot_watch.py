"""The slots of a pipeline as its worker sees them: in the metrics, and in the log those that nobody here knows."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import structlog

from cdc.observe.metrics import Metrics
from cdc.source.slot import Slot, target_of, target_of_load

_log = structlog.get_logger(__name__)


class SlotWatch:
    """What has been shown of the slots. ``shared`` is the name of the one that the targets share."""

    def __init__(self, shared: str, targets: Collection[str], metrics: Metrics) -> None:
        self._shared = shared
        self._targets = targets
        self._metrics = metrics
        self._loads: set[str] = set()
        self._unknown: set[str] = set()

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
        self._loads = loads

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
