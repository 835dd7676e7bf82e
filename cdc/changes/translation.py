"""Values of the source in the target's words: the oids inside of binary values, translated by name. Pure.

PostgreSQL's binary format of an array names the type of its elements by oid, that of a composite the type of each
attribute, and a value of a reg* type *is* the oid of an object. Such numbers mean something on one server only (the
design's hazard 8), and attributes come in the order of the source's type. `translation` compares a type of the source
with one of the target, once, and gives a function that rewrites a value, or `None` where it can pass as it is. The
formats are those of array_send, record_send, range_send and multirange_send.

A function that was made this way never guesses: a value whose structure is not that of the type that it was made for
(somebody has altered a composite type meanwhile) is `NotAsPlanned`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from struct import Struct

from cdc.changes.relation import DataType
from cdc.changes.unreadable import AS_TEXT, DAMAGE, is_empty
from cdc.identifiers import quote

_NUMBER_IN_ARRAY = re.compile(rb"(?<=[{,])[1-9][0-9]*(?=[,}])")
"""An element of an array's text that is the number of an object. (Looks alike inside of a quoted name only.)"""

Translate = Callable[[bytes], bytes]
"""From a value at the source, in its binary format without its length, to the value at the target."""

OBJECT_NAMES = frozenset(
    (
        "regclass",
        "regcollation",
        "regconfig",
        "regdictionary",
        "regnamespace",
        "regoper",
        "regoperator",
        "regproc",
        "regprocedure",
        "regrole",
        "regtype",
    )
)
"""Built-in types whose value is the oid of an object, and whose text is its name."""

_STRINGS = (("pg_catalog", "text"), ("pg_catalog", "varchar"))

_INT = Struct(">i")
_OID = Struct(">I")
_NULL = b"\xff\xff\xff\xff"

_FIRST_GENERATED_OID = 10_000
"""PostgreSQL's ``FirstGenbkiObjectId``: oids below it are the same in every version."""

_INFINITE_INTERVALS = (
    b"\x7f" + b"\xff" * 7 + b"\x7f\xff\xff\xff" * 2,
    b"\x80" + bytes(7) + b"\x80\0\0\0" * 2,
)
"""What PostgreSQL 17 and later take for infinity and -infinity: to older ones the longest intervals there are."""

_EMPTY, _NO_LOWER, _NO_UPPER = 0x01, 0x08 | 0x20, 0x10 | 0x40
"""Flags of a range (rangetypes.h): it is empty; it has no lower, no upper bound (infinite, or the obsolete NULL)."""


class Unlike(Exception):
    """Values of one type cannot be made values of the other; says why, in a sentence without a full stop.

    ``sql`` would make the target's type like the source's, where it is known.
    """

    def __init__(self, reason: str, sql: str | None = None) -> None:
        super().__init__(reason)
        self.sql = sql


class NotAsPlanned(Exception):
    """A value is not one that the type can have, as it was when the translation was made.

    Control flow, without a value; ``reason`` says what it means, in a sentence without a full stop. ``advises``: what
    is to be done about it is in there, too, and another value of the row would not help.
    """

    def __init__(self, reason: str, *, advises: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advises = advises


class UnknownObjects(Exception):
    """Values hold oids of objects whose names are not known yet (`ObjectOids.missing`). Control flow."""


@dataclass(slots=True)
class ObjectOids:
    """Which oid an object of the source has at the target, by kind (a reg* type's name) and oid.

    While it ``collects``, what is not known is noted in ``missing`` and passes as it is, instead of `UnknownObjects`.
    """

    known: dict[tuple[str, int], int] = field(default_factory=dict)
    missing: set[tuple[str, int]] = field(default_factory=set)
    collects: bool = False

    def translate(self, kind: str, value: bytes) -> bytes:
        """The oid of an object at the target."""
        if len(value) != 4:
            raise NotAsPlanned(f"a value of type {kind} is not four bytes long")
        oid = _OID.unpack(value)[0]
        if oid == 0:
            return value
        found = self.known.get((kind, oid))
        if found is not None:
            return _OID.pack(found)
        self.missing.add((kind, oid))
        if not self.collects:
            raise UnknownObjects
        return value

    def translate_text(self, kind: str, value: bytes) -> bytes:
        """The text of a value: a name says itself which object it means, a number is that of one that is gone."""
        if not value.isdigit() or int(value) == 0:
            return value
        if kind == "regclass" and not self.collects:
            raise NotAsPlanned(
                "it names a table that the source does not have any more, and such a value cannot come as text"
            )
        return self._number(kind, value)

    def translate_texts(self, kind: str, value: bytes) -> bytes:
        """The same for the text of an array."""
        return _NUMBER_IN_ARRAY.sub(lambda found: self._number(kind, found[0]), value)

    def _number(self, kind: str, digits: bytes) -> bytes:
        if int(digits) > 0xFFFFFFFF:
            raise NotAsPlanned(f"a value of type {kind} is neither a name nor the number of an object")
        number: int = _OID.unpack(self.translate(kind, _OID.pack(int(digits))))[0]
        return b"%d" % number


def names_objects(data_type: DataType) -> bool:
    """Whether values are, or contain, oids of objects (reg* types)."""
    return data_type.holds(lambda one: one.is_builtin and one.name in OBJECT_NAMES)


def text_translation(source: DataType, objects: ObjectOids) -> Translate | None:
    """The function that looks up the objects that the text of a value names by their numbers; `None`: it names none.

    Inside of other values than arrays they cannot be told from other numbers, and pass as they are.
    """
    source = source.plain
    element = source.element.plain if source.kind == "a" and source.element is not None else source
    if not element.is_builtin or element.name not in OBJECT_NAMES:
        return None
    return partial(objects.translate_text if element is source else objects.translate_texts, element.name)


def translation(source: DataType, target: DataType, objects: ObjectOids, *, thorough: bool = False) -> Translate | None:
    """The function that makes a value of ``source`` one of ``target``; `None` where the bytes stay the same.

    ``thorough`` asks for one also where all oids agree, because it finds a composite that is not as planned.

    Raises `Unlike` where there is none. Types are alike by their names; below the surface an enum may become another
    enum or a string (its binary format is its label), and a domain what it is made of.
    """
    source, target = source.plain, target.plain
    if source.kind == "a" and target.kind == "a" and source.element is not None and target.element is not None:
        inner = translation(source.element, target.element, objects, thorough=thorough)
        if inner is None and not _are_told_apart(source.element.oid, target.element.oid):
            return None
        return partial(_array, source.sql, _OID.pack(source.element.oid), _OID.pack(target.element.oid), inner)
    if source.kind == "c" and target.kind == "c":
        return _composite_translation(source, target, objects, thorough)
    if source.kind == target.kind and source.kind in ("r", "m") and source.element and target.element:
        inner = translation(source.element, target.element, objects, thorough=thorough)
        if inner is None:
            return None
        return partial(_range if source.kind == "r" else _multirange, source.sql, inner)
    if _name(source) == _name(target) and source.kind == target.kind:
        if source.is_builtin and source.name in OBJECT_NAMES:
            return partial(objects.translate, source.name)
        if source.is_builtin and source.name == "interval" and source.lacks_infinity != target.lacks_infinity:
            return _finite_interval
        if source.is_builtin and source.name in AS_TEXT:
            return partial(_not_empty, source.name)
        return None
    if _is_label(source) and _is_label(target):
        return None
    raise Unlike(f"values of {source.sql} cannot be taken as {target.sql}")


def as_text(name: str, value: bytes) -> bytes:
    """The text of a value of a type of `AS_TEXT`."""
    try:
        return AS_TEXT[name](value)
    except DAMAGE:
        raise NotAsPlanned(f"a value of type {name} is damaged") from None


def _not_empty(name: str, value: bytes) -> bytes:
    if is_empty(name, value):
        raise NotAsPlanned(
            f"it holds an empty {name} inside of another value, and PostgreSQL does not read what it sends of that"
        )
    return value


def has_structure(data_type: DataType) -> bool:
    """Whether a value consists of values, or of something that another server reads in another way."""
    plain = data_type.plain
    if plain.kind in ("a", "c", "r", "m"):
        return True
    return plain.is_builtin and (plain.name in OBJECT_NAMES or plain.name == "interval")


def _are_told_apart(source: int, target: int) -> bool:
    """Whether array_recv refuses the oid of an element's type.

    Since 14 it does so only where both are oids that were assigned by hand; otherwise it goes by the column's type, so
    arrays of what users created pass unread. (record_recv does the same. But attributes of a composite can be altered
    while a column stays, and only their oids show it.)
    """
    return source != target and source < _FIRST_GENERATED_OID and target < _FIRST_GENERATED_OID


def _is_label(data_type: DataType) -> bool:
    return data_type.kind == "e" or _name(data_type) in _STRINGS


def _name(data_type: DataType) -> tuple[str, str]:
    return data_type.schema, data_type.name


def _array(of: str, source: bytes, target: bytes, inner: Translate | None, value: bytes) -> bytes:
    """An array: dimensions, flags, the oid of the elements' type, per dimension length and lower bound; elements."""
    try:
        dimensions = _INT.unpack_from(value)[0]
        start = 12 + 8 * dimensions
        if dimensions < 0 or len(value) < start or value[8:12] != source:
            raise _altered(of)
        if inner is None:
            return b"".join((value[:8], target, value[12:]))
        pieces = [value[:8], target, value[12:start]]
        position = start
        while position < len(value):
            position = _element(of, inner, value, position, pieces)
    except struct.error:
        raise _altered(of) from None
    return b"".join(pieces)


def _element(of: str, inner: Translate, value: bytes, position: int, pieces: list[bytes]) -> int:
    """Append the translated element that stands at ``position``; return where the next one is."""
    length: int = _INT.unpack_from(value, position)[0]
    position += 4
    if length == -1:
        pieces.append(_NULL)
        return position
    end = position + length
    if length < 0 or end > len(value):
        raise _altered(of)
    element = inner(value[position:end])
    pieces.append(_INT.pack(len(element)))
    pieces.append(element)
    return end


def _range(of: str, inner: Translate, value: bytes) -> bytes:
    """A range: its flags, and the bounds that it has."""
    if not value:
        raise _altered(of)
    flags = value[0]
    bounds = 0 if flags & _EMPTY else (not flags & _NO_LOWER) + (not flags & _NO_UPPER)
    pieces = [value[:1]]
    position = 1
    try:
        for _ in range(bounds):
            position = _element(of, inner, value, position, pieces)
    except struct.error:
        raise _altered(of) from None
    if position != len(value):
        raise _altered(of)
    return b"".join(pieces)


def _multirange(of: str, inner: Translate, value: bytes) -> bytes:
    """A multirange: how many ranges, and the ranges."""
    pieces = [value[:4]]
    position = 4
    try:
        for _ in range(_INT.unpack_from(value)[0]):
            position = _element(of, inner, value, position, pieces)
    except struct.error:
        raise _altered(of) from None
    if position != len(value):
        raise _altered(of)
    return b"".join(pieces)


@dataclass(frozen=True, slots=True)
class _Attribute:
    """One attribute: the oid of its type here and there, at which place it is there, how its value gets there."""

    source_oid: bytes
    target_oid: bytes
    place: int
    inner: Translate | None


def _composite_translation(source: DataType, target: DataType, objects: ObjectOids, thorough: bool) -> Translate | None:
    places = {one.name: place for place, one in enumerate(target.attributes)}
    lacking = [one for one in source.attributes if one.name not in places]
    surplus = sorted(places.keys() - {one.name for one in source.attributes})
    if lacking:
        names = ", ".join(one.name for one in lacking)
        raise Unlike(
            f"the composite type {target.sql} lacks the attribute {names} that {source.sql} has at the source",
            f"ALTER TYPE {target.sql} "
            + ", ".join(f"ADD ATTRIBUTE {quote(one.name)} {one.type.sql}" for one in lacking),
        )
    if surplus:
        raise Unlike(
            f"the composite type {target.sql} has the attribute {', '.join(surplus)} that {source.sql} lacks at the "
            "source",
            f"ALTER TYPE {target.sql} " + ", ".join(f"DROP ATTRIBUTE {quote(name)}" for name in surplus),
        )
    attributes = []
    for one in source.attributes:
        there = target.attributes[places[one.name]]
        try:
            inner = translation(one.type, there.type, objects, thorough=thorough)
        except Unlike as unlike:
            raise Unlike(f"attribute {one.name} of the composite type {target.sql}: {unlike}", unlike.sql) from None
        attributes.append(_Attribute(_OID.pack(one.type.oid), _OID.pack(there.type.oid), places[one.name], inner))
    is_same = all(
        one.inner is None and one.source_oid == one.target_oid and one.place == place
        for place, one in enumerate(attributes)
    )
    if is_same and not thorough:
        return None
    nothing = tuple(_OID.pack(one.type.oid) + _NULL for one in target.attributes)
    return partial(_composite, source.sql, tuple(attributes), nothing)


def _composite(of: str, attributes: tuple[_Attribute, ...], nothing: tuple[bytes, ...], value: bytes) -> bytes:
    """A composite: how many attributes, per attribute the oid of its type, a length and the value.

    A value that was sent before attributes were added has fewer of them: those that lack are NULL, as at the source.
    """
    fields = list(nothing)
    position = 4
    try:
        count = _INT.unpack_from(value)[0]
        if not 0 <= count <= len(attributes):
            raise _altered(of) if count < 0 else _has_more(of)
        for attribute in attributes[:count]:
            length = _INT.unpack_from(value, position + 4)[0]
            if value[position : position + 4] != attribute.source_oid:
                raise _altered(of)
            position += 8
            if length == -1:
                continue
            end = position + length
            if length < 0 or end > len(value):
                raise _altered(of)
            inner = value[position:end]
            if attribute.inner is not None:
                inner = attribute.inner(inner)
            fields[attribute.place] = attribute.target_oid + _INT.pack(len(inner)) + inner
            position = end
    except struct.error:
        raise _altered(of) from None
    if position != len(value):
        raise _altered(of)
    return _INT.pack(len(fields)) + b"".join(fields)


def _finite_interval(value: bytes) -> bytes:
    if value in _INFINITE_INTERVALS:
        raise NotAsPlanned(
            "an interval is infinite, or so long that another version of PostgreSQL takes it for infinite; one side is "
            "older than 17, which has no infinite intervals"
        )
    return value


def _altered(of: str) -> NotAsPlanned:
    return NotAsPlanned(
        f"a value of {of} is made of other parts than that type has: it was altered at the source, perhaps since the "
        "stream began. Alter it at the target in the same way",
        advises=True,
    )


def _has_more(of: str) -> NotAsPlanned:
    return NotAsPlanned(
        f"a value of {of} has more attributes than that type: it was altered at the source, perhaps since the stream "
        "began. Alter it at the target in the same way; where that is done, attributes were dropped after the row was "
        "written: run cdc resync for its table",
        advises=True,
    )
