"""From pgoutput messages to whole transactions, packed: the compiled twin of `cdc.changes.accumulator.Accumulator`.

It takes the same messages, hands out the same changes, and raises the same errors. Rows are not looked at in Python: a
`Packer` collects them, and all transactions that are whole when somebody calls `take` come in one block.

A transaction comes alone where something in it is not a row (a truncation, a mark of ours: rare, and looked at one by
one anyway), where it is the first with a new description of a relation (so that whoever cannot take that description
stops exactly there), and where it is cut because it is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from cdc.changes.accumulator import (
    PART_OVERHEAD,
    RUN_OVERHEAD,
    Accumulator,
    UnknownTypes,
    damaged,
    size_of,
    taken_in,
    undescribed,
)
from cdc.changes.blocks import PackedRows, part_of, part_of_all
from cdc.changes.descriptions import Descriptions, NeedTypes
from cdc.changes.relation import Relation
from cdc.changes.transaction import Change, Mark, Part, Run, Truncation
from cdc.lsn import Lsn
from cdc.pgoutput.compiled import is_compiled
from cdc.pgoutput.decoder import decode
from cdc.pgoutput.packed import Messages

if is_compiled():
    from cdc.changes import _blocks

_OID = Struct(">I").unpack_from
_COMMIT = Struct(">cBQQq")
BLOCK_BYTES = 512 * 1024
"""How large a block of small transactions grows while nobody asks for it. What is done once for each block and table
is then lost among thousands of rows; a larger one would only come later."""

_LARGEST_PART = 1 << 30
"""A block's buffer is counted in 32 bits."""


class PackedAccumulator:
    """Collects the messages of one stream into parts, most of them with many transactions."""

    def __init__(self, *, part_bytes: int, with_roots: bool = False) -> None:
        self._part_bytes = part_bytes
        self._packer = _blocks.Packer(min(part_bytes, _LARGEST_PART))
        self.descriptions = Descriptions(with_roots=with_roots, changed=self._changed)
        self._ready: list[Part] = []
        self._is_first = True  # of the open transaction nothing has been handed out
        self._items: list[tuple[int, Mark | Truncation]] = []  # of the open transaction, each with its place

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun whose commit has not been fed yet."""
        return self._packer.in_transaction

    @property
    def is_due(self) -> bool:
        """Whether there are parts to take that will not grow any more."""
        return bool(self._ready) or self._packer.whole_size >= BLOCK_BYTES

    def take(self) -> list[Part]:
        """The parts that are complete since the last call, in order."""
        self._hand_over()
        ready, self._ready = self._ready, []
        return ready

    def feed(self, messages: Sequence[bytes]) -> None:
        """Take in messages, in the stream's order. Raises as `Accumulator.feed` does."""
        packed = messages if isinstance(messages, Messages) else Messages(messages)
        packer, index, count = self._packer, 0, len(packed)
        while True:
            index = packer.feed(packed, index)
            if packer.has_outgrown:
                self._cut()
            elif index == count:
                break
            else:
                try:
                    self._take_in(packed[index])
                except NeedTypes as need:
                    raise UnknownTypes(need.keys, packed[index:], need.relations) from None
                index += 1

    def _take_in(self, message: bytes) -> None:
        """A message that the packer leaves: something beside rows, the end of such a transaction, or damage."""
        packer = self._packer
        if message[:1] in (b"I", b"U", b"D"):
            if len(message) < 7 or not packer.in_transaction:
                damaged(message)
            raise undescribed(_OID(message, 1)[0])
        if message[:1] == b"C" and len(message) == _COMMIT.size and packer.in_transaction:
            _, flags, commit_lsn, end_lsn, _ = _COMMIT.unpack(message)
            if flags or commit_lsn != packer.open_transaction[1]:
                damaged(message)
            self._end(Lsn(end_lsn))
            return
        time_us = packer.open_transaction[2] if packer.in_transaction else None
        item = taken_in(decode(message), message, self.descriptions, time_us)
        if item is not None:
            self._hand_over()
            packer.is_careful = True
            self._items.append((packer.open_rows, item))
            packer.beside += size_of(item)
            if packer.open_size > self._part_bytes:
                self._cut()

    def _changed(self, oid: int, relation: Relation) -> None:
        """Another description of a relation is in force: whoever needs it begins with the open transaction."""
        self._packer.describe(oid, relation)
        self._hand_over()

    def _hand_over(self) -> None:
        """Hand out the transactions that are whole."""
        block = self._packer.take_whole()
        if block is not None:
            self._ready.append(part_of_all(block))

    def _cut(self) -> None:
        """End a part in the middle of its transaction and begin the next."""
        self._hand_over()
        self._hand_out_open(None)
        self._packer.is_careful = True

    def _end(self, end_lsn: Lsn) -> None:
        """The end of a transaction that comes alone."""
        self._hand_out_open(end_lsn)
        self._packer.is_careful = False
        self._is_first = True

    def _hand_out_open(self, end_lsn: Lsn | None) -> None:
        block = self._packer.take_open(end_lsn or 0, end_lsn is not None)
        items, self._items = self._items, []
        self._packer.beside = 0
        part = part_of(block, 0, is_first=self._is_first, is_last=end_lsn is not None)
        self._is_first = False
        if items:
            part.packed = None
            part.changes = _with_items(part, PackedRows(block, 0, 1), items)
            part.marks = [item for _, item in items if isinstance(item, Mark)]
            for _, item in items:
                part.size += size_of(item)
                if isinstance(item, Truncation):
                    part.relations.update(item.relations)
        self._ready.append(part)


def _with_items(part: Part, rows: PackedRows, items: Sequence[tuple[int, Mark | Truncation]]) -> list[Change]:
    """The runs of a transaction, with what is no row at its place among them."""
    changes: list[Change] = []
    waiting = list(reversed(items))
    seen = 0
    for run in rows:
        left = run.rows
        while waiting and waiting[-1][0] < seen + len(left):
            before = waiting[-1][0] - seen
            if before:
                changes.append(Run(run.relation, run.kind, left[:before], run.commit_time_us))
                left, seen = left[before:], seen + before
            changes.append(waiting.pop()[1])
        changes.append(Run(run.relation, run.kind, left, run.commit_time_us))
        seen += len(left)
    changes.extend(item for _, item in reversed(waiting))
    part.size += RUN_OVERHEAD * len(changes) + PART_OVERHEAD
    return changes


AnyAccumulator = Accumulator | PackedAccumulator
"""Either of the twins."""


def accumulator_for(*, part_bytes: int, with_roots: bool = False) -> AnyAccumulator:
    """The accumulator of one replication connection: packed where the compiled core is there."""
    twin = PackedAccumulator if is_compiled() else Accumulator
    return twin(part_bytes=part_bytes, with_roots=with_roots)
