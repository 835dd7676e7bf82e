"""Transaction ids, and which of them a snapshot sees.

Which of two versions of a row is newer cannot be told by LSNs: commits become visible in another order than their
records stand in the WAL (hazard 22). A snapshot says exactly which transactions it sees, by their ids; the stream's
Begin carries the same id, cut to 32 bits. `widen` puts the two together.

Both mean top-level transactions only: what a subtransaction did is streamed under the id of the transaction that it
belongs to, and a snapshot lists no subtransactions. A prepared transaction counts as running until it is committed.
Source: PostgreSQL's manual, "Transaction ID and Snapshot Information Functions".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

_TEXT = re.compile(r"(\d+):(\d+):((?:\d+(?:,\d+)*)?)")

_EPOCH = 1 << 32


@dataclass(frozen=True, slots=True)
class SnapshotIds:
    """A ``pg_snapshot``: sees what committed below ``xmin``, nothing from ``xmax`` on, in between all but ``running``.

    All ids have 64 bits.
    """

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read PostgreSQL's notation, ``xmin:xmax:xip,xip``. Raises ``ValueError`` for anything else."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError("not a pg_snapshot")
        running = frozenset(int(xid) for xid in match[3].split(",") if xid)
        return cls(int(match[1]), int(match[2]), running)

    def sees(self, xid: int) -> bool:
        """Whether the changes of ``xid``, which did commit at some time, are visible to the snapshot."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)


def widen(xid: int, near: int) -> int:
    """The 64 bits of a transaction id of which 32 are known; ``near`` is one that is less than 2^31 away.

    That holds for any transaction whose WAL can still be read: PostgreSQL stops before two are further apart.
    """
    wide = (near & ~(_EPOCH - 1)) | xid
    if wide - near > _EPOCH // 2:
        return wide - _EPOCH
    if near - wide > _EPOCH // 2:
        return wide + _EPOCH
    return wide
