"""Committed source transactions, packed: what travels from the stream to the targets.

Nothing here is a row. A `Run` holds consecutive changes of one kind to one relation as the very messages that pgoutput
sent; a target's projection turns them into COPY bytes later. A bulk INSERT of a thousand rows is one `Run`; runs keep
the source's order, so that replaying them one after another replays the transaction.

Where the compiled core is there, small transactions come many at a time: one `Part` then stands for several whole
consecutive ones, whose rows are in a block. Whoever has to tell them apart divides it (`Part.divided`); nobody does
who only applies them.

A transaction that is larger than the accumulator's limit arrives as several `Part` objects, so that memory stays
bounded at any size. pgoutput (without streaming) sends a transaction only after its commit, so every part is known
to be committed; only the last one knows the end LSN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from cdc.changes.relation import Relation
from cdc.lsn import Lsn

if TYPE_CHECKING:
    from cdc.changes.blocks import PackedRows


class Kind(IntEnum):
    """The kind of a row change: the first byte of its pgoutput message."""

    INSERT = 0x49
    UPDATE = 0x55
    DELETE = 0x44


@dataclass(slots=True)
class Run:
    """Consecutive row changes of one kind to one relation, in the source's order.

    ``rows`` are whole pgoutput messages (``I``, ``U`` or ``D``); their tuples are read by `cdc.pgoutput.tuples`.
    ``commit_time_us`` is that of its transaction, as in `Part`.
    """

    relation: Relation
    kind: Kind
    rows: Sequence[bytes] = field(default_factory=list)
    commit_time_us: int = 0


@dataclass(frozen=True, slots=True)
class Truncation:
    """One TRUNCATE, of all the published relations that it emptied; ``commit_time_us`` as in `Part`."""

    relations: tuple[Relation, ...]
    cascade: bool
    restart_identity: bool
    commit_time_us: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """A logical message of ours (``pg_logical_emit_message``) at its place in the stream: a heartbeat, a watermark."""

    prefix: str
    content: bytes
    lsn: Lsn


Change = Run | Truncation | Mark


@dataclass(slots=True)
class Part:
    """A whole committed transaction, several consecutive ones, or one stretch of a large one.

    ``commit_lsn`` is where the commit record starts, ``end_lsn`` where it ends (known on the last part only: `None`
    says that more parts of the same transaction follow). ``commit_time_us`` counts microseconds since 2000-01-01 UTC
    on the source's clock. ``marks`` are those of ``changes`` that are marks. ``size`` is about the memory that it
    takes (its messages, and what is added to them), ``row_count`` its row changes.

    Of several transactions (``transaction_count``) these are the fields of the last one, and ``first_lsn`` is where the
    commit record of the first starts. They have neither marks nor truncations. ``packed`` are the rows, where all
    changes are rows and packed; ``changes`` then makes runs of them whenever it is read.
    """

    xid: int
    commit_lsn: Lsn
    commit_time_us: int
    is_first: bool = True
    end_lsn: Lsn | None = None
    changes: Sequence[Change] = field(default_factory=list)
    relations: set[Relation] = field(default_factory=set)
    marks: list[Mark] = field(default_factory=list)
    size: int = 0
    row_count: int = 0
    transaction_count: int = 1
    first_lsn: Lsn | None = None
    packed: PackedRows | None = None

    @property
    def is_last(self) -> bool:
        """Whether the transaction ends with this part."""
        return self.end_lsn is not None

    @property
    def begins_at(self) -> Lsn:
        """Where the commit record of its first transaction starts."""
        return self.commit_lsn if self.first_lsn is None else self.first_lsn

    def divided(self) -> Sequence[Part]:
        """The same changes, each transaction by itself."""
        if self.packed is None or self.transaction_count == 1:
            return [self]
        return self.packed.transactions()

    def without_changes(self) -> Part:
        """The same with nothing in it: what is remembered of a part that has been applied, so that its rows can go."""
        return Part(
            self.xid,
            self.commit_lsn,
            self.commit_time_us,
            self.is_first,
            self.end_lsn,
            transaction_count=self.transaction_count,
            first_lsn=self.first_lsn,
        )


def divided(parts: Sequence[Part]) -> list[Part]:
    """Parts of one transaction each, with the same changes."""
    return [one for part in parts for one in part.divided()]
