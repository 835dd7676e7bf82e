"""Folding where two rows may hold one key for a while.

A key that identifies rows at the target is not always unique at the source at every moment: under REPLICA IDENTITY
FULL the source may defer its constraint, or have none, so rows of one statement trade their keys; and where several
relations fill one table, a row may come to one of them before it leaves the other. Then an update or delete of a key
that the stretch has inserted may mean the row that was there before. Which row a change means is told by its whole old
row, where the source sends it, and by the relation that it comes from.

At the end of a stretch every key is held by one row again, or nobody can tell what is to be (`Contradiction`).

A target has one row of each key at any time. Where it refuses a second one, that is noticed; where an insert takes the
place of whatever row is there, `Arrivals` notices when a change means the row whose place was taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from cdc.changes.compaction import Compaction, Contradiction, KeyChange, merge, require_key
from cdc.changes.relation import ReplicaIdentity
from cdc.changes.row_reader import Fields, Key, RowReader, key_fields
from cdc.changes.transaction import Kind
from cdc.pgoutput.tuples import UNCHANGED


class SharedKeys(Compaction):
    """A `Compaction` in which a key may be held by several rows between its first change and its last."""

    def __init__(
        self, *, keeps_rows: bool, overlap: bool = False, keeps_deleted: bool = False, notes_time: bool = False
    ) -> None:
        super().__init__(keeps_rows=keeps_rows, overlap=overlap, keeps_deleted=keeps_deleted, notes_time=notes_time)
        self._held: dict[Key, list[tuple[int, Fields]]] = {}  # rows to be, each with the relation that it came from
        self._left: set[Key] = set()  # keys whose row of before the stretch is gone, or is among those
        self._deleted: dict[Key, tuple[Fields | None, bytes]] = {}  # where deleted rows are kept: the last, and when

    def _insert_all(self, reader: RowReader, messages: Sequence[bytes]) -> None:
        for message in messages:
            fields = reader.new_row(message)
            self._put(reader, reader.key_of(fields), fields)

    def _delete_all(self, reader: RowReader, messages: Sequence[bytes], time: bytes) -> None:
        for message in messages:
            old = reader.old_row(message)
            key = reader.key_of(old)
            known = self._take(reader, key, old)
            if self._keeps_deleted:
                self._deleted[key] = known, time

    def _update_all(self, reader: RowReader, messages: Sequence[bytes]) -> None:
        for message in messages:
            old, new = reader.old_and_new(message)
            require_key(reader, new)
            new_key = reader.key_of(new)
            old_key = new_key if old is None else reader.key_of(old)
            is_gone = self._overlap and old_key in self._left and not self._held[old_key]
            known = self._take(reader, old_key, old)
            fields = merge(known, new)
            if is_gone and UNCHANGED in fields and old_key == new_key:
                continue
            if old_key == new_key or not (self._keeps_rows or UNCHANGED in fields):
                self._put(reader, new_key, fields)
                continue
            if known is None:
                self._left.discard(old_key)
                if not self._held[old_key]:
                    del self._held[old_key]
            else:
                self._put(reader, old_key, known)
            self._end_stretch()
            self._finished.append(KeyChange(key_fields(old_key), fields if self._overlap else new))

    def _put(self, reader: RowReader, key: Key, fields: Fields) -> None:
        self._held.setdefault(key, []).append((reader.relation.oid, fields))

    def _take(self, reader: RowReader, key: Key, old: Fields | None) -> Fields | None:
        """Remove the row that a change means; what is known of it, `None` for the one of before the stretch."""
        held = self._held.setdefault(key, [])
        for place, (relation, fields) in enumerate(held):
            if _is_meant(reader, old, relation, fields):
                del held[place]
                return fields
        if key in self._left and not self._overlap:
            raise Contradiction
        self._left.add(key)
        return None

    def _end_stretch(self) -> None:
        for key, held in self._held.items():
            if len(held) > 1:
                raise Contradiction
            if not held and key in self._deleted:
                self._rows[key], self._kept[key] = self._deleted[key]
            else:
                self._rows[key] = held[0][1] if held else None
            if key not in self._left:
                self._fresh.add(key)
        self._held, self._left, self._deleted = {}, set(), {}
        super()._end_stretch()


class Arrivals:
    """The rows that changes brought to their keys since it was made.

    ``deletes``: a delete of a row whose place was taken would do something to the one that took it.
    """

    def __init__(self, *, deletes: bool) -> None:
        self._deletes = deletes
        self._rows: dict[Key, tuple[int, Fields]] = {}

    def check(self, reader: RowReader, kind: Kind, message: bytes) -> None:
        """Raise `Contradiction` for a change of a row whose place under its key another one has taken."""
        if kind is Kind.UPDATE:
            old, new = reader.old_and_new(message)
        elif kind is Kind.DELETE and self._deletes:
            old, new = reader.old_row(message), ()
        else:
            return
        there = self._rows.get(reader.key_of(new if old is None else old))
        if there is not None and not _is_meant(reader, old, *there):
            raise Contradiction

    def note(self, reader: RowReader, kind: Kind, message: bytes) -> None:
        """Remember what a change that is applied brings to its key."""
        if kind is Kind.INSERT:
            new = reader.new_row(message)
            self._rows[reader.key_of(new)] = reader.relation.oid, new
            return
        if kind is Kind.DELETE:
            gone = reader.old_row(message)
            there = self._rows.get(reader.key_of(gone))
            if there is not None and _is_meant(reader, gone, *there):
                del self._rows[reader.key_of(gone)]
            return
        old, new = reader.old_and_new(message)
        new_key = reader.key_of(new)
        old_key = new_key if old is None else reader.key_of(old)
        there = self._rows.pop(old_key, None)
        if there is not None or old_key != new_key:
            self._rows[new_key] = reader.relation.oid, merge(None if there is None else there[1], new)


def _is_meant(reader: RowReader, old: Fields | None, relation: int, fields: Fields) -> bool:
    """Whether a change with this old row (`None`: none was sent) may mean the row that ``relation`` brought."""
    if relation != reader.relation.oid:
        return False
    return old is None or reader.relation.replica_identity is not ReplicaIdentity.FULL or _agree(fields, old)


def _agree(fields: Fields, old: Fields) -> bool:
    return all(value is UNCHANGED or value == before for value, before in zip(fields, old, strict=True))
