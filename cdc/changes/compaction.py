"""What a stretch of changes to one target table comes to, key by key.

The changes of a stretch are folded so that each key has one outcome: *insert*, *update*, *delete*, or nothing. The
outcomes can then be applied set by set, in any order of the keys. What makes that right:

- The first change of a key says whether the row existed before (an update or delete says yes, an insert no); what
  follows only changes the row to be. So an insert after a delete is a replacement, an insert and a delete are nothing.
- Keys are compared as bytes. Two different byte strings can be equal for the database (``1.0`` and ``1.00``), but the
  source sends a row's old key whenever its bytes change, so that every change names the row by the bytes it has.
- An update that lacks unchanged TOASTed values (hazard 6) is merged into what the stretch knows of the row; where
  it knows nothing, the outcome is a partial update.
- A change of the key from k to k2 is the deletion of k and the insertion of k2. Where that cannot be (a value of the
  row is not known, or the target's row must live on because others refer to it), it stays what it was, a `KeyChange`,
  and ends the stretch: a new one begins behind it.

A change that contradicts what the stretch knows (an insert of a key that is there) raises `Contradiction`: folding has
no answer, replaying in the source's order has.

In *overlap* the target may hold a change already, so the first change of a key says nothing about the row before, and
nothing contradicts: the last word on a key counts. A row that is wholly known is an insert (which takes the place of a
row that is there), one that is gone is a delete even if the stretch inserted it.

Where the target *keeps deleted rows* a delete changes nothing but the place that notes its time (if there is one: the
last of each row). So the row stays with all that the stretch knows of it, and a row that comes and goes within a
stretch is inserted as a deleted one: what becomes of it must not depend on how changes are batched. For the same reason
it does not matter whether that happened in one transaction or in two. A change of the key stays a `KeyChange`, because
a row that has moved was not deleted.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from cdc.changes.row_reader import Fields, FormatChanged, Key, KeyNotSent, RowReader, key_fields, places_unchanged
from cdc.changes.transaction import Kind
from cdc.pgoutput.tuples import FIRST_MARKER, FIRST_TUPLE, NEW, NULL, UNCHANGED, UnexpectedFormat, read_fields


class Contradiction(Exception):
    """A change does not fit what came before it in the same stretch. Control flow: it says nothing about the row."""


@dataclass(slots=True)
class Outcome:
    """What one stretch comes to: rows to insert, to update and to delete, every key at most once in all.

    ``updates`` are grouped by the places whose values are not known and stay as they are (`UNCHANGED`); ``()`` holds
    the full ones. ``deletes`` are the key's fields. In overlap every row that is wholly known is among the ``inserts``,
    whether the target has its key or not.

    Where deleted rows are kept, ``deletes`` are those of which the stretch knows nothing else, and the time that is to
    be noted stands behind the key.
    """

    inserts: list[Fields] = field(default_factory=list)
    updates: dict[tuple[int, ...], list[Fields]] = field(default_factory=dict)
    deletes: list[tuple[bytes, ...]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.inserts or self.updates or self.deletes)


@dataclass(frozen=True, slots=True)
class KeyChange:
    """One update that changes the key in place: the old key's fields, and the new row, which may lack values."""

    old_key: tuple[bytes, ...]
    fields: Fields


Stretch = Outcome | KeyChange


class Compaction:
    """Folds the changes of one target table. Add them in the source's order; `finish` gives the stretches in order.

    ``keeps_rows`` says that a change of the key must keep the target's row (foreign keys refer to it, or it has columns
    that the source does not know). ``overlap`` says that the target may hold the changes already.

    ``keeps_deleted`` says that deleted rows stay at the target, and ``notes_time`` that the last place of each row
    notes when they were deleted.
    """

    def __init__(
        self, *, keeps_rows: bool, overlap: bool = False, keeps_deleted: bool = False, notes_time: bool = False
    ) -> None:
        self._keeps_rows = keeps_rows or keeps_deleted
        self._overlap = overlap
        self._keeps_deleted = keeps_deleted
        self._notes_time = notes_time
        self._kept: dict[Key, bytes] = {}  # where deleted rows are kept: the keys of those, each with when that was
        self._finished: list[Stretch] = []
        self._rows: dict[Key, Fields | None] = {}  # the row to be; None: it is gone
        self._fresh: set[Key] = set()  # keys that did not exist before the stretch

    def add(self, reader: RowReader, kind: Kind, rows: Sequence[bytes], commit_time_us: int = 0) -> None:
        """Fold in messages of one kind and relation, which were committed at ``commit_time_us``.

        Raises `Contradiction`, `KeyNotSent`, `FormatChanged`, and `ProtocolError` for bytes that are none of
        pgoutput's.
        """
        try:
            if kind is Kind.UPDATE:
                self._update_all(reader, rows)
            elif kind is Kind.INSERT:
                self._insert_all(reader, rows)
            else:
                self._delete_all(reader, rows, time_field(commit_time_us))
        except UnexpectedFormat as error:
            raise FormatChanged(reader.relation, error.column_index) from None

    def finish(self) -> list[Stretch]:
        """All stretches, in order; most often one `Outcome`. The compaction is empty afterwards."""
        self._end_stretch()
        finished, self._finished = self._finished, []
        return finished

    def _insert_all(self, reader: RowReader, messages: Sequence[bytes]) -> None:
        for message in messages:
            fields = reader.new_row(message)
            self._insert(reader.key_of(fields), fields)

    def _delete_all(self, reader: RowReader, messages: Sequence[bytes], time: bytes) -> None:
        for message in messages:
            self._delete(reader.key_of(reader.old_row(message)), time)

    def _insert(self, key: Key, fields: Fields) -> None:
        if key not in self._rows:
            self._fresh.add(key)
        elif not self._is_gone(key) and not self._overlap:
            raise Contradiction
        self._rows[key] = fields
        self._kept.pop(key, None)

    def _delete(self, key: Key, time: bytes) -> None:
        if self._is_gone(key) and not self._overlap:
            raise Contradiction
        if self._keeps_deleted:
            self._rows.setdefault(key, None)
            self._kept[key] = time
        else:
            self._rows[key] = None

    def _is_gone(self, key: Key) -> bool:
        return key in self._rows and (self._rows[key] is None or key in self._kept)

    def _update_all(self, reader: RowReader, messages: Sequence[bytes]) -> None:
        # The loop of every busy table: one reading and one or two looks into a dictionary a row.
        rows, wire, pick, key_of = self._rows, reader.wire, reader.pick, reader.key_of
        for message in messages:
            if message[FIRST_MARKER] != NEW:
                self._update_with_old_row(reader, message)
                rows = self._rows
                continue
            row, _ = read_fields(message, FIRST_TUPLE, wire)
            fields = row if pick is None else pick(row)
            key = key_of(fields)
            if UNCHANGED in fields:
                require_key(reader, fields)
                fields = merge(rows.get(key), fields)
            if key in rows and (rows[key] is None or key in self._kept):
                if not self._overlap:
                    raise Contradiction
                if UNCHANGED in fields:
                    continue
                self._kept.pop(key, None)
            rows[key] = fields

    def _update_with_old_row(self, reader: RowReader, message: bytes) -> None:
        old, new = reader.old_and_new(message)
        assert old is not None  # the caller has seen its marker
        require_key(reader, new)
        old_key, new_key = reader.key_of(old), reader.key_of(new)
        known = self._rows.get(old_key)
        is_gone = self._is_gone(old_key)
        if is_gone and not self._overlap:
            raise Contradiction
        fields = merge(known, new)
        if old_key == new_key:
            if not (is_gone and UNCHANGED in fields):
                self._rows[old_key] = fields
                self._kept.pop(old_key, None)
        elif self._keeps_rows or UNCHANGED in fields:
            self._end_stretch()
            # In overlap the target's row of the new key may be the one to keep: it lacks what the stretch knew.
            self._finished.append(KeyChange(key_fields(old_key), fields if self._overlap else new))
        else:
            self._delete(old_key, NULL)
            self._insert(new_key, fields)

    def _end_stretch(self) -> None:
        outcome, fresh = Outcome(), self._fresh
        if self._keeps_deleted:
            self._end_with_kept(outcome)
        for key, fields in self._rows.items():
            if fields is None:
                if key not in fresh or self._overlap:
                    outcome.deletes.append(key_fields(key))
            elif key in fresh or (self._overlap and UNCHANGED not in fields):
                outcome.inserts.append(fields)
            elif UNCHANGED in fields:
                outcome.updates.setdefault(places_unchanged(fields), []).append(fields)
            else:
                outcome.updates.setdefault((), []).append(fields)
        if outcome:
            self._finished.append(outcome)
        self._rows, self._fresh, self._kept = {}, set(), {}

    def _end_with_kept(self, outcome: Outcome) -> None:
        """Note the time in the deleted rows that are known; of the others it is all that there is to do."""
        rows, self._rows = self._rows, {}
        for key, fields in rows.items():
            time = self._kept.get(key)
            if fields is not None:
                self._rows[key] = fields if time is None or not self._notes_time else [*fields[:-1], time]
            elif self._notes_time:
                assert time is not None  # nothing else makes a row unknown
                outcome.deletes.append((*key_fields(key), time))


def time_field(commit_time_us: int) -> bytes:
    """The field that notes when a row was deleted.

    PostgreSQL's binary format of a timestamptz, and of a timestamp that is meant in UTC, is what a commit's time comes
    in: microseconds since 2000-01-01.
    """
    return _TIME(8, commit_time_us)


_TIME = struct.Struct(">iq").pack


def merge(known: Fields | None, fields: Fields) -> Fields:
    """Fill the values that the source did not send with those that are known."""
    if known is None or UNCHANGED not in fields:
        return fields
    return [old if new is UNCHANGED else new for old, new in zip(known, fields, strict=True)]


def require_key(reader: RowReader, fields: Fields) -> None:
    """Raise `KeyNotSent` for a row whose key is not known."""
    if any(fields[place] is UNCHANGED for place in reader.key):
        raise KeyNotSent
