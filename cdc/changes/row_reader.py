"""From a row's message to the fields that one target wants of it.

A `RowReader` belongs to one relation and one projection. It picks fields; a field is the bytes that ``COPY … (FORMAT
binary)`` wants (cdc.pgoutput.tuples), and none is parsed but those of columns whose values mean something else at the
target (cdc.changes.translation): picking translates those, so that everybody who reads rows sees the target's bytes.
Loops over many rows use its parts directly, which saves a call a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING

from cdc.changes.relation import Relation
from cdc.changes.translation import NotAsPlanned, Translate
from cdc.pgoutput.compiled import is_compiled
from cdc.pgoutput.layouts import LayoutReader
from cdc.pgoutput.tuples import FIRST_MARKER, FIRST_TUPLE, NEW, NULL, OLD_ROW, UNCHANGED, read_fields

if is_compiled():
    from cdc.changes import _rows

if TYPE_CHECKING:
    from cdc.changes._rows import Projection

_LENGTH = Struct(">i")

Fields = Sequence[bytes]
"""One row: a field per column that travels."""

Key = bytes | tuple[bytes, ...]
"""What identifies a row: the field of a key of one column, a tuple of fields otherwise. Keys are compared as bytes."""


class FormatChanged(Exception):
    """A column's values come in the other format (text for binary, or back). Control flow: read it so from now on."""

    def __init__(self, relation: Relation, column_index: int) -> None:
        super().__init__()
        self.relation = relation
        self.column_index = column_index


class KeyNotSent(Exception):
    """An update whose key is TOASTed, unchanged, and not sent beside it. Control flow: nothing is known of the row."""


class ValueRefused(Exception):
    """A value of a column is not as it was planned. Control flow; ``reason`` and ``advises`` are `NotAsPlanned`'s."""

    def __init__(self, relation: Relation, column_index: int, reason: str, *, advises: bool = False) -> None:
        super().__init__(reason)
        self.advises = advises
        self.relation = relation
        self.column_index = column_index
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RowReader:
    """How to read the messages of one relation for one target.

    Its methods raise `cdc.pgoutput.tuples.UnexpectedFormat`; whoever loops turns that into `FormatChanged`. Where
    values are translated they also raise `ValueRefused` and `cdc.changes.translation.UnknownObjects`.

    ``wire`` is the format expected per column of the relation, ``pick`` takes the travelling ones and translates them
    (`None` when all travel in their order, as they are), ``key`` are the places of the key among those, ``key_of``
    takes it (meaningless without a key). ``inserts`` remembers how insert messages are laid out. ``projection`` reads
    packed rows in the same way; `None` without the compiled core, and where values are translated or a time is noted.
    """

    relation: Relation
    wire: bytes
    pick: Callable[[Sequence[bytes]], Fields] | None
    key: tuple[int, ...]
    key_of: Callable[[Fields], Key]
    inserts: LayoutReader
    projection: Projection | None = None

    def new_rows(self, messages: Sequence[bytes]) -> Iterator[Fields]:
        """The rows of many inserts: the same as `new_row` of each, in less time."""
        rows = self.inserts.read(messages)
        return iter(rows) if self.pick is None else map(self.pick, rows)

    def new_row(self, message: bytes) -> Fields:
        """The row of an insert."""
        fields, _ = read_fields(message, FIRST_TUPLE, self.wire)
        return fields if self.pick is None else self.pick(fields)

    def old_row(self, message: bytes) -> Fields:
        """The old row of a delete: all of it under REPLICA IDENTITY FULL, otherwise its key among NULLs."""
        return self.new_row(message)

    def old_and_new(self, message: bytes) -> tuple[Fields | None, Fields]:
        """The old row of an update, `None` when the source saw no need to send it, and the new one.

        Values of the new row that are unchanged and stand in the old one are filled in from there; the others are
        `UNCHANGED`.
        """
        if message[FIRST_MARKER] == NEW:
            return None, self.new_row(message)
        old, end = read_fields(message, FIRST_TUPLE, self.wire)
        new, _ = read_fields(message, end + 1, self.wire)
        if self.pick is not None:
            old, new = list(self.pick(old)), list(self.pick(new))
        if UNCHANGED in new:
            # With K only the key's fields of the old row mean anything: its other fields are NULL.
            known = range(len(new)) if message[FIRST_MARKER] == OLD_ROW else self.key
            for place in known:
                if new[place] is UNCHANGED:
                    new[place] = old[place]
        return old, new


def row_reader(
    relation: Relation,
    wire: bytes,
    indices: tuple[int, ...],
    key: tuple[int, ...],
    translations: Mapping[int, Translate] | None = None,
    *,
    notes_time: bool = False,
) -> RowReader:
    """The reader of ``relation`` with formats ``wire``, for its columns ``indices``; the key is at ``key`` of those.

    ``translations`` are by place among those columns. With ``notes_time`` a NULL stands behind the fields of every row:
    the place that notes when it was deleted.
    """
    pick: Callable[[Sequence[bytes]], Fields] | None
    if notes_time:
        pick = lambda fields: [*(fields[index] for index in indices), NULL]  # noqa: E731
    elif indices == tuple(range(len(wire))):
        pick = None
    elif len(indices) == 1:
        only = indices[0]
        pick = lambda fields: [fields[only]]  # noqa: E731  # itemgetter of one index gives no sequence
    else:
        pick = itemgetter(*indices)
    if translations:
        pick = _translating(relation, indices, pick, translations)
    key_of: Callable[[Fields], Key] = itemgetter(*key) if key else lambda _: ()
    is_plain = is_compiled() and not (translations or notes_time)
    projection = _rows.Projection(wire, indices, key) if is_plain else None
    return RowReader(relation, wire, pick, key, key_of, LayoutReader(wire), projection)


def _translating(
    relation: Relation,
    indices: tuple[int, ...],
    pick: Callable[[Sequence[bytes]], Fields] | None,
    translations: Mapping[int, Translate],
) -> Callable[[Sequence[bytes]], Fields]:
    steps = tuple(translations.items())

    def translate(fields: Sequence[bytes]) -> Fields:
        row = list(fields if pick is None else pick(fields))
        place = 0
        try:
            for place, translate_value in steps:
                field = row[place]
                if field is not NULL and field is not UNCHANGED:
                    value = translate_value(field[4:])
                    row[place] = _LENGTH.pack(len(value)) + value
        except NotAsPlanned as refusal:
            raise ValueRefused(relation, indices[place], refusal.reason, advises=refusal.advises) from None
        return row

    return translate


def key_fields(key: Key) -> tuple[bytes, ...]:
    """The fields of a key, one or many."""
    return key if isinstance(key, tuple) else (key,)


def places_unchanged(fields: Fields) -> tuple[int, ...]:
    """Which places of a new row the source did not send."""
    return tuple(place for place, field in enumerate(fields) if field is UNCHANGED)
