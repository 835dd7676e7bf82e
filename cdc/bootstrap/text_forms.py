"""Whether a type reads what another one writes: the same value, through its text, as an assignment would give it.

A backup holds values as text. Where an owned target has another type than the source, its COPY reads that text with the
target type's input function, while a live copy and the stream assign the value itself. These are not the same: ``12.5``
is no integer to the input function, and 12 or 13 to the assignment; a ``timestamp`` silently drops the time zone of a
text that has one; ``true`` becomes ``t`` as text; a ``float4`` 0.1 becomes another ``float8`` by assignment than by its
text; ``char(n)`` keeps its padding. Only pairs where both ways always agree, or both refuse, are taken.
"""

from __future__ import annotations

from cdc.changes.relation import DataType

_STRINGS = frozenset(("text", "varchar"))

_INTEGERS = frozenset(("int2", "int4", "int8"))

_READ_FROM_STRINGS = _INTEGERS | {"numeric", "float4", "float8", "bool", "uuid", "inet", "cidr", "macaddr", "macaddr8"}

_READ_ALIKE: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    # What is out of range is refused either way.
    (_INTEGERS, _INTEGERS | {"numeric", "float4", "float8"}),
    (frozenset(("numeric",)), frozenset(("float4", "float8"))),
    (frozenset(("json", "jsonb")), frozenset(("json", "jsonb"))),
    # They are assigned by being read.
    (_STRINGS, _READ_FROM_STRINGS | {"json", "jsonb"}),
    (_STRINGS | _INTEGERS | {"numeric", "uuid", "json", "jsonb"}, _STRINGS),
)
"""Built-in types: values of any of the first are read by any of the second."""

_SPEAK_OF_THEIR_SERVER = frozenset(("money", "regproc", "regoper", "char"))
"""Types whose text another server may read as another value, or not at all: that of ``money`` depends on a server's
settings (``lc_monetary``), that of a function or an operator without its arguments may mean several, and that of
``"char"`` (one byte) is escaped since 16, which older versions do not read."""


def reads_text(source: DataType, target: DataType) -> bool:
    """Whether the text of a ``source`` value, read as ``target``, is the value that assigning it would give."""
    if source.holds(_speaks_of_its_server) or target.holds(_speaks_of_its_server):
        return False
    source, target = source.plain, target.plain
    if source.kind == "c" and target.kind == "c":
        # The text of a composite names no attributes: they go by their order.
        return [one.name for one in source.attributes] == [one.name for one in target.attributes] and all(
            reads_text(ours.type, theirs.type)
            for ours, theirs in zip(source.attributes, target.attributes, strict=True)
        )
    if source.kind == target.kind and source.kind in ("a", "r", "m") and source.element and target.element:
        return reads_text(source.element, target.element)
    if (source.schema, source.name) == (target.schema, target.name):
        return True
    if source.kind == "e" or target.kind == "e":
        # An enum's text is its label.
        return all(one.kind == "e" or (one.is_builtin and one.name in _STRINGS) for one in (source, target))
    if not (source.is_builtin and target.is_builtin):
        return False
    return any(source.name in sources and target.name in targets for sources, targets in _READ_ALIKE)


def _speaks_of_its_server(data_type: DataType) -> bool:
    return data_type.is_builtin and data_type.name in _SPEAK_OF_THEIR_SERVER
