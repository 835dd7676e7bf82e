"""Which rows of one table the stream has changed, by whom, and how much of them it said: for `cdc resync`.

While a table is read anew in chunks, the stream goes on changing it. Where a chunk and the stream both know a row, the
stream's version is the newer one exactly if the chunk's snapshot does not see the transaction that made it. So every
key that the stream changes is kept here, with the transaction's id, until a snapshot has been taken that sees it: then
no later snapshot can be older than it, and it is forgotten. What has to be kept is therefore what was committed while
one chunk is read, however far the target lags.

A change can leave a row that the target did not hold right uncertain: an update that lacks unchanged TOASTed values
leaves those as they were (hazard 6). For such a key `Touch.lacking` says which columns no change has set; they are
taken from the chunk. Where the key itself changed and values were not sent, they come from another row, which may be
missing or wrong: such an `Arrival` has to be read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cdc.changes.relation import Relation
from cdc.changes.row_reader import FormatChanged, RowReader, key_fields
from cdc.changes.transaction import Kind, Part, Run, Truncation
from cdc.changes.transaction_ids import SnapshotIds, widen
from cdc.pgoutput.tuples import UNCHANGED, UnexpectedFormat

TOUCH_BYTES = 300
"""What Python takes for one remembered change beside the bytes of its key (a list, an object, a dictionary entry)."""

KeyFields = tuple[bytes, ...]
"""The fields of a key, in the form of ``COPY … (FORMAT binary)``."""


@dataclass(frozen=True, slots=True)
class TouchReader:
    """How to find the keys in the rows of one relation.

    ``columns`` are the target's names of the fields that the reader gives; ``form`` tells key fields that can be
    compared from others (the types in which the key is streamed): any value that equals itself.
    """

    reader: RowReader
    columns: tuple[str, ...]
    form: object


@dataclass(frozen=True, slots=True)
class Touch:
    """What one transaction did to a key. ``lacking`` are columns whose values it left as they were in the target.

    ``is_settled`` says that the target holds exactly what the transaction left, whatever it held before.
    """

    xid: int
    is_settled: bool
    lacking: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Arrival:
    """A row that came to ``key`` from ``old_key`` without all of its values, in transaction ``xid``."""

    xid: int
    key: KeyFields
    old_key: KeyFields


@dataclass(frozen=True, slots=True)
class Outdated:
    """Keys of which a chunk's row is not the newest version.

    ``settled``: leave the chunk's row out. ``partial``: take only the columns named from the chunk's row, if the target
    holds the row; each key with the transactions that changed it. ``is_emptied``: the table has been truncated since,
    so that nothing of the chunk is of use.
    """

    settled: tuple[KeyFields, ...]
    partial: Mapping[frozenset[str], Sequence[tuple[KeyFields, tuple[int, ...]]]]
    is_emptied: bool


@dataclass(slots=True)
class TouchedKeys:
    """The keys of one table that transactions have changed which ``snapshot`` does not see; `None` sees nothing.

    ``near`` is a transaction id in the sense of `widen`.
    ``form`` is that of all keys. When more than ``limit_bytes`` would have to be remembered it ``has_overflowed``: what
    was read cannot be merged, only arrivals are still noted. When a key of another form comes it ``is_broken``, and the
    table has to be read from its beginning.
    """

    form: object
    near: int
    limit_bytes: int
    snapshot: SnapshotIds | None = None
    size: int = 0
    has_overflowed: bool = False
    is_broken: bool = False
    _touches: dict[KeyFields, list[Touch]] = field(default_factory=dict)
    _emptied_by: list[int] = field(default_factory=list)

    def see(self, snapshot: SnapshotIds) -> None:
        """A snapshot was taken: forget what it sees. Later ones see no less."""
        self.snapshot = snapshot
        self.near = snapshot.xmax
        kept: dict[KeyFields, list[Touch]] = {}
        size = 0
        for key, touches in self._touches.items():
            unseen = [touch for touch in touches if not snapshot.sees(touch.xid)]
            if unseen:
                kept[key] = unseen
                size += _size(key, len(unseen))
        self._touches, self.size = kept, size
        self._emptied_by = [xid for xid in self._emptied_by if not snapshot.sees(xid)]

    def note(self, part: Part, readers: Mapping[Relation, TouchReader]) -> list[Arrival]:
        """Remember what ``part`` does to the table; returns the rows that have to be read again.

        Noting a part twice does no harm. Raises `FormatChanged` as the applier does, which then reads it again.
        """
        if self.is_broken or not any(relation in readers for relation in part.relations):
            return []
        xid = widen(part.xid, self.near)
        is_seen = self.snapshot is not None and self.snapshot.sees(xid)
        arrivals: list[Arrival] = []
        for change in part.changes:
            if isinstance(change, Run) and change.relation in readers:
                if not is_seen or change.kind is Kind.UPDATE:
                    self._note_run(change, readers[change.relation], xid, is_seen, arrivals)
            elif isinstance(change, Truncation) and not is_seen and any(r in readers for r in change.relations):
                # What was touched before is gone, and so is every row that a snapshot shows which does not see this.
                self._emptied_by.append(xid)
        if self.size > self.limit_bytes:
            self.has_overflowed = True
        if self.is_useless:
            self._touches.clear()
            self._emptied_by.clear()
            self.size = 0
        return arrivals

    @property
    def is_useless(self) -> bool:
        """Whether something was not remembered that would have to be."""
        return self.has_overflowed or self.is_broken

    def outdated(self) -> Outdated:
        """What must not be taken from a chunk that was read by ``snapshot``."""
        settled: list[KeyFields] = []
        partial: dict[frozenset[str], list[tuple[KeyFields, tuple[int, ...]]]] = {}
        for key, touches in self._touches.items():
            if any(touch.is_settled or not touch.lacking for touch in touches):
                settled.append(key)
            else:
                lacking = frozenset.intersection(*(touch.lacking for touch in touches))
                partial.setdefault(lacking, []).append((key, tuple(touch.xid for touch in touches)))
        return Outdated(tuple(settled), partial, bool(self._emptied_by))

    def _note_run(self, run: Run, of: TouchReader, xid: int, is_seen: bool, arrivals: list[Arrival]) -> None:
        reader = of.reader
        if self.form != of.form and not is_seen:
            self.is_broken = True
            return
        try:
            for message in run.rows:
                if run.kind is Kind.UPDATE:
                    self._note_update(message, of, xid, is_seen, arrivals)
                else:
                    fields = reader.new_row(message) if run.kind is Kind.INSERT else reader.old_row(message)
                    self._add(key_fields(reader.key_of(fields)), Touch(xid, is_settled=True))
        except UnexpectedFormat as error:
            raise FormatChanged(reader.relation, error.column_index) from None

    def _note_update(self, message: bytes, of: TouchReader, xid: int, is_seen: bool, arrivals: list[Arrival]) -> None:
        reader = of.reader
        old, new = reader.old_and_new(message)
        key = key_fields(reader.key_of(new))
        lacking = frozenset(name for name, value in zip(of.columns, new, strict=True) if value is UNCHANGED)
        old_key = key if old is None else key_fields(reader.key_of(old))
        if old_key != key:
            if not is_seen:
                self._add(old_key, Touch(xid, is_settled=True))
                # What an arrival lacks came from another row: nothing of the chunk's row of this key belongs to it.
                self._add(key, Touch(xid, is_settled=True))
            if lacking and self.form != of.form:
                self.is_broken = True
            elif lacking:
                arrivals.append(Arrival(xid, key, old_key))
        elif not is_seen:
            self._add(key, Touch(xid, is_settled=not lacking, lacking=lacking))

    def _add(self, key: KeyFields, touch: Touch) -> None:
        if self.has_overflowed:
            return
        touches = self._touches.setdefault(key, [])
        if touch not in touches:
            touches.append(touch)
            self.size += _size(key, 1)


def _size(key: KeyFields, touches: int) -> int:
    return sum(map(len, key)) + TOUCH_BYTES * touches
