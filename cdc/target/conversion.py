"""Whether a source column's values fit a target column, and how they get there.

Values travel in the source type's wire format. Where both types are the same they go straight into the table; otherwise
they are staged as what they are, and the statement that moves them on converts them, by the rules of an assignment:
a number too large or a text too long is an error, never cut. An explicit cast would cut, so casts here name a type
without its modifier, and the assignment to the column applies that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial

from cdc.changes.relation import DataType
from cdc.changes.translation import (
    ObjectOids,
    Translate,
    Unlike,
    has_structure,
    names_objects,
    text_translation,
    translation,
)
from cdc.changes.translation import as_text as value_as_text
from cdc.changes.unreadable import AS_TEXT
from cdc.identifiers import quote, quote_qualified

_STRINGS = (("pg_catalog", "text"), ("pg_catalog", "varchar"))
"""Types of one binary format and one meaning; they differ in the length that they allow at most."""

_TEXT = quote_qualified("pg_catalog", "text")

_READ_FROM_STRINGS = frozenset(
    (
        *("bool", "int2", "int4", "int8", "numeric", "float4", "float8", "uuid", "json", "jsonb"),
        *("inet", "cidr", "macaddr", "macaddr8"),
    )
)
"""Built-in types into which strings are read although no assignment does it: each text means one value or none,
whatever a session is set to. (What a date in a text means depends on ``DateStyle``, so dates are not among them.)"""

_NUMBERS = frozenset(["int2", "int4", "int8", "numeric", "float4", "float8"])

_ASSIGNABLE = (
    (_NUMBERS, _NUMBERS),
    (frozenset(("date", "timestamp", "timestamptz")), frozenset(("date", "timestamp", "timestamptz"))),
    (frozenset(("time", "timetz", "timestamp", "timestamptz", "interval")), frozenset(("time",))),
    (frozenset(("time", "timetz", "timestamptz")), frozenset(("timetz",))),
    (frozenset(("time",)), frozenset(("interval",))),
    (frozenset(("json", "jsonb")), frozenset(("json", "jsonb"))),
    (frozenset(("cidr", "inet")), frozenset(("cidr", "inet"))),
)
"""Built-in types that an assignment converts (``castcontext`` i or a): any of the first to any of the second."""

_ANYTHING_BECOMES = frozenset(("text", "varchar", "bpchar"))
"""Types to which an assignment converts every other one, through its text form."""

_HOLD_ALL = frozenset([("int2", "int4"), ("int2", "int8"), ("int4", "int8"), ("float4", "float8")])
"""Pairs of built-in types of which the second holds every value of the first: a target is often widened before its
source is, and a transaction that retypes a column may have changed rows before and after."""

_COMPARABLE = frozenset(
    [
        "bool",
        "bpchar",
        "bytea",
        "date",
        "float4",
        "float8",
        "int2",
        "int4",
        "int8",
        "numeric",
        "text",
        "timestamp",
        "timestamptz",
        "uuid",
        "varchar",
    ]
)
"""Built-in types whose equality holds whenever the bytes are equal, and that can be hashed and sorted."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """How a source column gets into a target column.

    ``stage_type`` is what its staging column is, as SQL. ``cast`` is the type to cast to on the way from there, `None`
    where an assignment alone does it. ``is_direct`` says that COPY may write into the target column itself.
    ``translate`` makes the target's bytes of the source's before they are staged; `None` where they are the same.
    ``read_as`` is the type as which a staged text is read first, the source's: what it then becomes is what an
    assignment makes of the value (``12.5`` is no integer as a text, and 12 or 13 as a number).
    """

    stage_type: str
    cast: str | None
    is_direct: bool
    translate: Translate | None = None
    read_as: str | None = None


def conversion(
    source: DataType,
    target: DataType,
    *,
    as_text: bool,
    objects: ObjectOids | None = None,
    thorough: bool = False,
    lacks_infinity: bool = False,
) -> Conversion | None:
    """How values of ``source`` get into a column of ``target``; `None` when there is no way known.

    ``as_text`` says that they come as text, because the source's type has no binary format. ``objects`` is where a
    translation finds the oids of objects, ``thorough`` asks it to look into values that it need not. With
    ``lacks_infinity`` the target's server has no infinite intervals.

    Raises `Unlike` where both are of the same kind, and what they are made of does not fit.
    """
    if as_text:
        check_text(source, target)
        is_string = _name(target) in _STRINGS
        translate = None if is_string else text_translation(source, objects or ObjectOids())
        if _is_read_first(source.plain, target.plain):
            way = conversion(source, target, as_text=False)
            if way is None:
                return None
            if not way.is_direct:
                read_as = way.read_as if way.stage_type == _TEXT else way.stage_type
                return Conversion(_TEXT, way.cast, is_direct=False, read_as=read_as)
        return Conversion(_TEXT, None if is_string else _base_name(target), is_string, translate)
    if source.plain.is_builtin and source.plain.name in AS_TEXT and _name(source.plain) == _name(target.plain):
        return Conversion(_TEXT, _base_name(target), False, partial(value_as_text, source.plain.name))
    if has_structure(source) and has_structure(target) and source.plain.kind == target.plain.kind:
        try:
            translate = translation(source, target, objects or ObjectOids(), thorough=thorough)
            return Conversion(_base_name(target.plain), None, is_direct=True, translate=translate)
        except Unlike:
            if source.plain.kind not in ("a", "b") or _name(source.plain) == _name(target.plain):
                raise
    # A domain may refuse NULLs, which staged rows have in columns that they do not speak of: its base is staged.
    plain = source.plain
    if _same_format(plain, target.plain):
        return Conversion(_base_name(target.plain), None, is_direct=True)
    if plain.kind == "e":
        # An enum's binary format is its label.
        return Conversion(_TEXT, None if _name(target) in _STRINGS else _base_name(target), is_direct=False)
    if target.plain.kind == "e" and _name(plain) in _STRINGS:
        return Conversion(_TEXT, _base_name(target), is_direct=False)
    if _name(plain) in _STRINGS and target.plain.is_builtin and target.plain.name in _READ_FROM_STRINGS:
        return Conversion(_TEXT, _base_name(target), is_direct=False)
    if not _is_assignable(plain, target.plain):
        return None
    if plain.is_builtin and plain.name in AS_TEXT:
        # The text that is made here is not the one that PostgreSQL prints: that comes of reading it first.
        return Conversion(_TEXT, None, False, partial(value_as_text, plain.name), read_as=_base_name(plain))
    # They are staged as values of the source's type, which mean something else here.
    translate = None
    if has_structure(plain):
        translate = translation(plain, _as_there(plain, lacks_infinity), objects or ObjectOids())
    return Conversion(_base_name(plain), None, is_direct=False, translate=translate)


def _as_there(data_type: DataType, lacks_infinity: bool) -> DataType:
    """A built-in type of the source as the target has it."""
    element = None if data_type.element is None else _as_there(data_type.element, lacks_infinity)
    return replace(data_type, element=element, lacks_infinity=lacks_infinity and data_type.name == "interval")


def _is_read_first(source: DataType, target: DataType) -> bool:
    """Whether a text means another value to the target's type than to the source's, so that it is read as that first.

    The texts of reg* types and of those without a binary format stay what they are: read here, they would have to name
    what exists here.
    """
    if not source.is_builtin or _same_format(source, target) or _name(source) in _STRINGS:
        return False
    return not names_objects(source) and not source.holds(lambda one: not one.has_binary)


def check_text(source: DataType, target: DataType) -> None:
    """Raise `Unlike` where the text of a value would mean another value: it names no attributes, it counts them."""
    source, target = source.plain, target.plain
    if source.kind == "c" and target.kind == "c":
        translation(source, target, ObjectOids())
        if [one.name for one in source.attributes] != [one.name for one in target.attributes]:
            raise Unlike(
                f"the composite type {target.sql} has its attributes in another order than at the source, and values "
                "that travel as text go by the order"
            )
    for mine, theirs in zip(source.parts, target.parts, strict=False):
        check_text(mine, theirs)


def fits_exactly(source: DataType, target: DataType) -> bool:
    """Whether a column of ``target`` takes the values of ``source`` as they are: what following asks.

    A string type may differ in the length that it allows: a value that is too long is refused, not cut. A number may be
    wider than at the source.
    """
    if _name(source) in _STRINGS and _name(target) in _STRINGS:
        return True
    if source.is_builtin and target.is_builtin and (source.name, target.name) in _HOLD_ALL:
        return True
    if _name(source) != _name(target):
        return False
    if "d" in (source.kind, target.kind):
        return fits_exactly(source.plain, target.plain)
    if source.sql == target.sql:
        return True
    if target.name in ("interval", "_interval"):
        return target.sql in ("interval", "interval[]")
    if "(" not in target.sql:
        return True
    mine, theirs = _numeric_modifier(source.sql), _numeric_modifier(target.sql)
    return mine is not None and theirs is not None and mine[1] == theirs[1] and mine[0] <= theirs[0]


def needs_cast_to_compare(source: DataType, target: DataType) -> bool:
    """Whether a staged value must be cast to the target's type before an index on the target can find it."""
    plain = source.plain
    return not _same_format(plain, target.plain)


def is_comparable(target: DataType) -> bool:
    """Whether ``=`` may be used to look for a value of which the very bytes are known."""
    return target.is_builtin and target.name in _COMPARABLE


def equality(target: DataType) -> str:
    """The equality operator of a type. An extension's type has its own, outside of our search_path."""
    plain = target.plain
    if plain.is_builtin or plain.kind != "b":
        return "OPERATOR(pg_catalog.=)"
    return f"OPERATOR({quote(plain.schema)}.=)"


def type_name(target: DataType) -> str:
    """The type's qualified name, without a modifier: ``"pg_catalog"."varchar"``."""
    return _base_name(target)


def _is_assignable(source: DataType, target: DataType) -> bool:
    """Whether PostgreSQL converts by itself when a value of ``source`` is assigned to a column of ``target``."""
    if source.kind == "a" and target.kind == "a" and source.element and target.element:
        return source.is_builtin and _is_assignable(source.element.plain, target.element.plain)
    if not source.is_builtin or not target.is_builtin:
        return False
    if target.name in _ANYTHING_BECOMES or source.name == target.name:
        return True
    return any(source.name in sources and target.name in targets for sources, targets in _ASSIGNABLE)


def _same_format(source: DataType, target: DataType) -> bool:
    return _name(source) == _name(target) or (_is_string(source) and _is_string(target))


def _is_string(data_type: DataType) -> bool:
    """Whether it is one of the types whose binary format is the string: the extension citext's is, too."""
    return _name(data_type) in _STRINGS or (data_type.kind == "b" and data_type.name == "citext")


def _name(data_type: DataType) -> tuple[str, str]:
    return data_type.schema, data_type.name


def _base_name(data_type: DataType) -> str:
    return quote_qualified(data_type.schema, data_type.name)


def _numeric_modifier(sql: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"numeric\((\d+),(-?\d+)\)", sql)
    return (int(match[1]), int(match[2])) if match else None
