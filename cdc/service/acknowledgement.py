"""What a lane tells its slot: how much has come, and how much of it is durable everywhere (invariant 3)."""

from __future__ import annotations

from collections.abc import Sequence

from cdc.lsn import INVALID_LSN, Lsn
from cdc.service.delivery import Delivery


class Acknowledgement:
    """``received`` is the end of what the lane was sent, ``confirmed`` what the slot was told to be durable."""

    def __init__(self) -> None:
        self.received = INVALID_LSN
        self.confirmed = INVALID_LSN
        self._held_at: Lsn | None = None

    def begin(self, confirmed: Lsn) -> None:
        """A stream begins where the slot says."""
        self.confirmed = self.received = confirmed

    def receive(self, lsn: Lsn) -> None:
        """Everything up to ``lsn`` has come."""
        self.received = max(self.received, lsn)

    def hold(self) -> Lsn:
        """Do not go beyond where the slot is now, through any number of streams, until `release`; returns where."""
        self._held_at = self.confirmed
        return self.confirmed

    def release(self) -> None:
        """Go on."""
        self._held_at = None

    def advance(self, deliveries: Sequence[Delivery]) -> bool:
        """Follow the minimum of what is durable at these targets; whether that has moved.

        A target that was not read holds everything; one that can only be loaded again holds nothing.
        """
        known = [delivery.acknowledgeable for delivery in deliveries if delivery.holds_acknowledgement]
        durable = min((INVALID_LSN if lsn is None else lsn for lsn in known), default=INVALID_LSN)
        if self._held_at is not None:
            durable = min(durable, self._held_at)
        if durable <= self.confirmed:
            return False
        self.confirmed = durable
        return True
