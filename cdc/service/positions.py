"""What a target holds, table by table: the reasoning about positions, once.

A target has one position P: it holds every transaction that ends at or before P. A table can differ from its target:

- It was *loaded* from a snapshot at L > P: it holds every change of transactions that end at or before L, and must
  not get them again while the target catches up from P to L.
- It has *stopped* at a transaction T that it cannot take (hazard: a changed shape, a rejected row): it holds everything
  before T, the target goes on without it. T and what follows stay in the slot, because the acknowledgement never
  passes T. Once mended, the stream is read again from there: the other tables skip what they hold, this one does not.

One rule covers all three: a change is applied if and only if its table does not hold it, and is not stopped before it.
When a table's position and the target's meet, the difference is forgotten.

Which transaction a position holds is decided by the start of its commit record, because the end of a large transaction
is not known while its first parts are applied. A position is an end LSN, so it never falls inside a commit record: the
record starts before the position if and only if it ends at or before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdc.changes.transaction import Part, divided
from cdc.lsn import Lsn


class TransactionsNeeded(Exception):
    """A table stops at one of several transactions that came as one part: they have to come one by one.

    Those before it are then applied. Control flow; nothing has been applied.
    """


@dataclass(slots=True)
class TablePosition:
    """Where one table differs from its target.

    It holds everything that ends at or before ``held``, and, if ``stopped_from`` is given, takes nothing from the
    transaction on whose commit record starts there.
    """

    held: Lsn
    stopped_from: Lsn | None = None


class Positions:
    """The position of one target and of its tables that differ, in memory; the target's database has the same."""

    def __init__(self, target: Lsn, tables: Mapping[str, Lsn]) -> None:
        """``tables``: the own positions of tables (``schema.table`` at the source) that have one. None is stopped."""
        self.target = target
        self.tables = {name: TablePosition(held) for name, held in tables.items()}

    def skips(self, table: str, part: Part) -> bool:
        """Whether the changes of ``table`` in this transaction are not to be applied."""
        own = self.tables.get(table)
        if own is None:
            return part.commit_lsn < self.target
        return part.commit_lsn < own.held or (own.stopped_from is not None and part.commit_lsn >= own.stopped_from)

    def skips_all(self, part: Part) -> bool:
        """Whether no table needs anything of this transaction."""
        return part.commit_lsn < self.target and not any(
            own.held <= part.commit_lsn and (own.stopped_from is None or part.commit_lsn < own.stopped_from)
            for own in self.tables.values()
        )

    def told_apart(self, parts: list[Part], *, by_tracking: bool) -> list[Part]:
        """The same parts, of one transaction each where it matters which: some may be held, and others not."""
        if by_tracking or any(bool(self.tables) or part.begins_at < self.target for part in parts):
            return divided(parts)
        return parts

    def stop(self, table: str, commit_lsn: Lsn) -> None:
        """``table`` takes nothing from the transaction on whose commit record starts at ``commit_lsn``."""
        own = self.tables.setdefault(table, TablePosition(self.target))
        own.stopped_from = commit_lsn if own.stopped_from is None else min(own.stopped_from, commit_lsn)

    def of(self, table: str) -> Lsn:
        """Up to where ``table`` holds everything."""
        own = self.tables.get(table)
        return self.target if own is None else own.held

    def stopped_from(self, table: str) -> Lsn | None:
        """From which commit record on the table takes nothing; `None` when it is not stopped."""
        own = self.tables.get(table)
        return None if own is None else own.stopped_from

    def lacking(self, gone: Lsn | None) -> list[str]:
        """Tables that go on from before the transaction ``gone``, which was read and will not be read again.

        A table that went on when that was made durable, or left out because nobody needed it, stands behind it. These
        did not: they were stopped then, and only a stream that starts anew brings them what they lack.
        """
        if gone is None:
            return []
        return [name for name, own in self.tables.items() if own.stopped_from is None and own.held <= gone]

    def after(self, parts: Sequence[Part], idle_at: Lsn | None = None) -> tuple[Lsn, dict[str, Lsn | None]]:
        """The target's position once ``parts`` are applied, and the own positions that change.

        `None` for a table says that it has no own position any more. ``idle_at`` says that the stream holds nothing
        more before that LSN.
        """
        ends = [(part.commit_lsn, part.end_lsn) for part in parts if part.end_lsn is not None]
        if idle_at is not None:
            ends.append((idle_at, idle_at))
        target = max([self.target, *(end for _, end in ends)])
        changed: dict[str, Lsn | None] = {}
        for name, own in self.tables.items():
            limit = own.stopped_from
            held = max([own.held, *(end for commit, end in ends if limit is None or commit < limit)])
            if limit is None and own.held <= target <= held:
                changed[name] = None
            elif held != own.held:
                changed[name] = held
        return target, changed

    def advance(self, target: Lsn, changed: Mapping[str, Lsn | None]) -> None:
        """Take over what `after` said, once it is durable."""
        self.target = target
        for name, held in changed.items():
            if held is None:
                self.tables.pop(name, None)
            else:
                self.tables[name].held = held

    @property
    def acknowledgeable(self) -> Lsn:
        """Up to where nothing is needed from the slot any more."""
        return min([self.target, *(own.held for own in self.tables.values())])
