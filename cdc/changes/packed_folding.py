"""Packed rows folded by key in compiled loops: the twin of `cdc.changes.compaction`, where that one's rules are plain.

`PackedCompaction` gives the same outcomes as a `Compaction` of the same rows. It covers tables whose keys are held by
one row at a time and whose rows are read as they are; and of those, whatever holds no surprise. For everything else the
caller takes the Python way over the same rows, the specification: it knows the answer, or which error to raise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdc.pgoutput.compiled import is_compiled

if TYPE_CHECKING:
    from cdc.changes._folding import Folding
    from cdc.changes._rows import BlockRows

if is_compiled():
    from cdc.changes import _folding

BREATH_ROWS = 10_000
"""After how many rows the other tasks of the worker get their turn: some 2 ms."""


@dataclass(slots=True)
class EncodedRows:
    """Some of the rows of a folding, in the order of its outcomes; ``size`` grows as they are encoded."""

    folding: Folding
    first: int
    behind: int
    size: int = 0

    def __len__(self) -> int:
        return self.behind - self.first

    def encode(self, row: int, prefix: bytes, room: int, ordinal: int | None) -> tuple[bytes, int]:
        """COPY's bytes, behind ``prefix``, of as many rows as about ``room`` bytes hold; and where to go on.

        ``row`` is from ``first`` to ``behind``; ``ordinal`` is that of the row, in front of it, if there is to be one.
        """
        data, behind = self.folding.encode(row, self.behind, prefix, room, ordinal)
        self.size += len(data) - len(prefix)
        return data, behind


@dataclass(frozen=True, slots=True)
class PackedOutcome:
    """What `cdc.changes.compaction.Outcome` holds, as numbers of rows: deletes, updates by unchanged places, inserts.

    The rows themselves are counted in that order.
    """

    folding: Folding
    deletes: int
    updates: Sequence[tuple[tuple[int, ...], int]]
    inserts: int

    @property
    def changed(self) -> int:
        """How many rows are deleted or updated."""
        return self.deletes + sum(count for _, count in self.updates)

    def rows(self, *, with_inserts: bool) -> EncodedRows:
        """The rows that are deleted and updated, and perhaps those that are inserted."""
        return EncodedRows(self.folding, 0, self.changed + (self.inserts if with_inserts else 0))

    def inserted(self) -> EncodedRows:
        """The rows that are inserted."""
        return EncodedRows(self.folding, self.changed, self.changed + self.inserts)


class Uncovered(Exception):
    """These rows have to be folded by a `Compaction`. Control flow: it says nothing about them."""


class PackedCompaction:
    """Folds packed rows of one table, ``columns`` wide, whose key is at the places ``key``.

    ``keeps_rows`` as in `Compaction`.
    """

    def __init__(self, columns: int, key: Sequence[int], *, keeps_rows: bool) -> None:
        self._folding = _folding.Folding(columns, tuple(key), keeps_rows)
        self._left = BREATH_ROWS

    def add(self, rows: BlockRows) -> Iterator[None]:
        """Fold in rows that follow those before; yields where other tasks should get their turn.

        Raises `Uncovered`.
        """
        position = 0
        while position >= 0:
            taken = min(self._left, len(rows))
            position = self._folding.add(rows, position, self._left)
            self._left -= taken
            if self._left <= 0:
                self._left = BREATH_ROWS
                yield
        if position == _folding.UNCOVERED:
            raise Uncovered

    def finish(self) -> PackedOutcome:
        """What the rows come to. The compaction is of no use afterwards."""
        return PackedOutcome(self._folding, *self._folding.finish())
