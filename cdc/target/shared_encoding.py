"""COPY's bytes of a block's inserts, made once for all targets that want the same columns of the same relations.

Targets of one lane take the same blocks, most of them within the same second. So what was encoded last is kept for a
while, bounded over the whole process; a target that comes later than that encodes for itself. Rows that were folded are
not shared: which blocks are folded together differs from target to target, and so do the ordinals.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdc.changes._blocks import Block
    from cdc.changes._rows import BlockRows

SHARED_BYTES = 8 * 1024**2
"""How many encoded bytes are kept. It bridges a batch of distance between two targets."""

_Key = tuple[int, tuple[tuple[bytes, tuple[int, ...]] | None, ...]]


class SharedEncoding:
    """Encoded rows by block and projection, the oldest forgotten first. ``size`` is in bytes."""

    def __init__(self, limit_bytes: int = SHARED_BYTES) -> None:
        self._limit_bytes = limit_bytes
        # With its block, so that its identity is not given to another one meanwhile.
        self._kept: OrderedDict[_Key, tuple[Block, Sequence[bytes]]] = OrderedDict()
        self.size = 0

    def find(self, rows: BlockRows) -> Sequence[bytes] | None:
        """What was kept for these rows, whoever encoded it."""
        found = self._kept.get(_key(rows))
        return None if found is None else found[1]

    def keep(self, rows: BlockRows, chunks: Sequence[bytes]) -> None:
        """Keep what was encoded of these rows; a quarter of the limit at most."""
        size = sum(map(len, chunks))
        if size * 4 > self._limit_bytes or _key(rows) in self._kept:
            return
        self._kept[_key(rows)] = rows.block, chunks
        self.size += size
        while self.size > self._limit_bytes:
            _, (_, oldest) = self._kept.popitem(last=False)
            self.size -= sum(map(len, oldest))


def _key(rows: BlockRows) -> _Key:
    return id(rows.block), tuple(None if one is None else one.content for one in rows.projections)
