"""The changes of a packed part (`cdc.changes._blocks.Block`), as those see them who take them one by one.

A block is C arrays. `PackedRows` is a view of it, of some of its transactions: it makes runs and messages out of it
when somebody asks, and keeps none of them. So the careful ways (replaying in order, dividing, values that are
translated) work on a block as on anything else, and pay for it only then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from cdc.changes.relation import Relation
from cdc.changes.transaction import Change, Kind, Part, Run
from cdc.lsn import Lsn

if TYPE_CHECKING:
    from cdc.changes._blocks import Block

BLOCK_OVERHEAD = 1_500
"""Bytes that Python takes for a block and its part (sys.getsizeof, CPython 3.11), beside its relations and arrays."""

_KINDS = {int(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Messages(Sequence[bytes]):
    """Consecutive messages of a block, from ``first`` on; each is copied out when it is asked for."""

    block: Block
    first: int
    behind: int

    def __len__(self) -> int:
        return self.behind - self.first

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            first, behind, step = index.indices(len(self))
            if step != 1:
                return [self[number] for number in range(first, behind, step)]
            return Messages(self.block, self.first + first, self.first + max(first, behind))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.block.message(self.first + index % len(self))

    def __iter__(self) -> Iterator[bytes]:
        return map(self.block.message, range(self.first, self.behind))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class PackedRows(Sequence[Change]):
    """The changes of a block's transactions, from ``first`` on; all of them are rows.

    As a sequence it is the runs, made anew each time. ``is_first`` and ``is_last`` are those of the parts: a block of
    one stretch of a large transaction has one transaction.
    """

    block: Block
    first: int
    behind: int

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return len(self.block) > 0 if self.is_whole else next(iter(self), None) is not None

    @overload
    def __getitem__(self, index: int) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Change]: ...
    def __getitem__(self, index: int | slice) -> Change | Sequence[Change]:
        return list(self)[index]

    def __iter__(self) -> Iterator[Run]:
        block = self.block
        relations: Sequence[Relation] = block.relations
        for number in range(self.first, self.behind):
            _, _, _, commit_time_us, first, behind = block.transaction_at(number)
            for relation, kind, start, end in block.runs(first, behind):
                yield Run(relations[relation], _KINDS[kind], Messages(block, start, end), commit_time_us)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def is_whole(self) -> bool:
        """Whether these are all the rows of the block."""
        return self.first == 0 and self.behind == self.block.transaction_count

    def transactions(self) -> list[Part]:
        """A part for each transaction, with the same rows. Whole transactions only."""
        return [part_of(self.block, number) for number in range(self.first, self.behind)]


def part_of(block: Block, number: int, *, is_first: bool = True, is_last: bool = True) -> Part:
    """One transaction of a block, or its stretch of a large one, as a part."""
    xid, commit_lsn, end_lsn, commit_time_us, first, behind = block.transaction_at(number)
    rows = PackedRows(block, number, number + 1)
    is_all = rows.is_whole
    relations = set(block.relations) if is_all else {block.relations[run[0]] for run in block.runs(first, behind)}
    share = 1 if is_all else (behind - first) / max(1, len(block))
    return Part(
        xid,
        Lsn(commit_lsn),
        commit_time_us,
        is_first,
        Lsn(end_lsn) if is_last else None,
        changes=rows,
        relations=relations,
        size=BLOCK_OVERHEAD + int(block.size * share),
        row_count=behind - first,
        packed=rows if is_all else None,
    )


def part_of_all(block: Block) -> Part:
    """All transactions of a block, whole ones, as one part."""
    count = block.transaction_count
    if count == 1:
        return part_of(block, 0)
    xid, commit_lsn, end_lsn, commit_time_us, _, _ = block.transaction_at(count - 1)
    rows = PackedRows(block, 0, count)
    return Part(
        xid,
        Lsn(commit_lsn),
        commit_time_us,
        True,
        Lsn(end_lsn),
        changes=rows,
        relations=set(block.relations),
        size=BLOCK_OVERHEAD + block.size,
        row_count=len(block),
        transaction_count=count,
        first_lsn=Lsn(block.transaction_at(0)[1]),
        packed=rows,
    )
