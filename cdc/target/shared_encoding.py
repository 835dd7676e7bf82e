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

SHARED_BYTES = 16 * 1024**2
"""How much is kept, blocks and encoded bytes: one stretch of a large transaction, or some 50,000 rows of small ones."""

_Key = tuple[int, tuple[tuple[bytes, tuple[int, ...]] | None, ...]]


class SharedEncoding:
    """Encoded rows by block and projection, the oldest forgotten first. ``size`` is in bytes, with those of the blocks.

    Narrow rows may have been encoded of a wide table's block, which stays in memory as long as they are kept.
    """

    def __init__(self, limit_bytes: int = SHARED_BYTES) -> None:
        self._limit_bytes = limit_bytes
        # With its block, so that its identity is not given to another one meanwhile.
        self._kept: OrderedDict[_Key, tuple[Block, Sequence[bytes], int]] = OrderedDict()
        self.size = 0

    def find(self, rows: BlockRows) -> Sequence[bytes] | None:
        """What was kept for these rows, whoever encoded it."""
        found = self._kept.get(_key(rows))
        return None if found is None else found[1]

    def keep(self, rows: BlockRows, chunks: Sequence[bytes]) -> None:
        """Keep what was encoded of these rows, unless that alone is more than the limit."""
        size = rows.block.size + sum(map(len, chunks))
        if size > self._limit_bytes or _key(rows) in self._kept:
            return
        self._kept[_key(rows)] = rows.block, chunks, size
        self.size += size
        while self.size > self._limit_bytes:
            _, (_, _, gone) = self._kept.popitem(last=False)
            self.size -= gone


def _key(rows: BlockRows) -> _Key:
    return id(rows.block), tuple(None if one is None else one.content for one in rows.projections)
