"""By which way a table is read again while everything streams. Pure.

*In place*: chunks in the order of the key, merged at their watermarks. That needs a key, an order of the key that both
servers share (a collation's is each server's own), and no unique index besides, because while chunks are merged two
rows may hold a value that only one of them holds at the source.

*Whole*: from one exact snapshot, replaced in one transaction, while the table's changes wait in the slot. For tables
that are small enough.

*Shadow*: built beside and swapped in, which only tables allow that `cdc` created.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cdc.changes.relation import DataType
from cdc.source.catalog import SourceTable
from cdc.target.remedies import again_command

WHOLE_BYTES = 1024**3
"""The largest table that is read whole: copied twice on the target's disk, its changes held in the slot for about the
minute that a gigabyte takes."""

Way = Literal["in place", "whole", "shadow", "refused"]

_SAME_ORDER = frozenset(
    [
        "bool",
        "bytea",
        "cidr",
        "date",
        "float4",
        "float8",
        "inet",
        "int2",
        "int4",
        "int8",
        "macaddr",
        "macaddr8",
        "numeric",
        "oid",
        "pg_lsn",
        "time",
        "timestamp",
        "timestamptz",
        "uuid",
    ]
)
"""Built-in types of which every server has the same order, and whose text form another server reads back."""

_INTEGERS = frozenset(["int2", "int4", "int8"])


@dataclass(frozen=True, slots=True)
class Verdict:
    """The way, and in a sentence why it is not another. ``mend`` is the command for a table that is refused."""

    way: Way
    reason: str
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides. ``key`` pairs the types of the key's columns at the source and at the target; none: no key.

    ``has_index`` says that an index of the source has exactly the key's columns; ``may_be_swapped`` that `cdc` created
    the table on a target that follows, ``keeps_deleted`` that rows stay there which the source has deleted.
    """

    target: str
    key: Sequence[tuple[DataType, DataType]]
    has_index: bool
    has_other_unique: bool
    is_shared: bool
    may_be_swapped: bool
    keeps_deleted: bool = False


def way_of(source: SourceTable, facts: Facts, *, whole_bytes: int = WHOLE_BYTES) -> Verdict:
    """How ``source`` is read again into a target."""
    if facts.is_shared:
        return _refused(source, facts, "several tables of the source are routed into one there")
    if not facts.key:
        return _rebuilt(source, facts, "nothing identifies its rows", whole_bytes=0)
    if facts.has_other_unique:
        return _rebuilt(source, facts, "it has a unique index besides its key", whole_bytes=whole_bytes)
    if not all(_has_same_order(*types) for types in facts.key):
        return _rebuilt(source, facts, "the order of its key may differ from server to server", whole_bytes=whole_bytes)
    if not facts.has_index:
        return _rebuilt(source, facts, "no index of the source is in the order of its key", whole_bytes=whole_bytes)
    return Verdict("in place", "its key has the same order on both servers")


def _rebuilt(source: SourceTable, facts: Facts, why: str, *, whole_bytes: int) -> Verdict:
    """Whole where it is small, else in a shadow where it may be swapped."""
    if whole_bytes and source.bytes <= whole_bytes:
        return Verdict("whole", f"{why}, and it is small")
    if facts.may_be_swapped and not facts.keeps_deleted:
        return Verdict("shadow", why)
    size = "" if not whole_bytes else f", it has {source.bytes / 1e9:.1f} GB"
    if facts.keeps_deleted:
        return _refused(source, facts, f"{why}{size}")
    return _refused(source, facts, f"{why}{size}, and a table that cdc did not create is never replaced by another")


def _refused(source: SourceTable, facts: Facts, why: str) -> Verdict:
    if facts.keeps_deleted:
        return Verdict(
            "refused",
            f"table {source.name} cannot be read again on target {facts.target} while everything streams: {why}. "
            'Rows stay there that the source has deleted (deletes = "keep"), so it is not emptied and loaded either',
        )
    return Verdict(
        "refused",
        f"table {source.name} cannot be read again on target {facts.target} while everything streams: {why}. Stop the "
        "worker, empty and load it with the command below, start the worker",
        again_command([source.name], facts.target),
    )


def _has_same_order(source: DataType, target: DataType) -> bool:
    if not (source.is_builtin and target.is_builtin and source.name in _SAME_ORDER):
        return False
    return source.name == target.name or {source.name, target.name} <= _INTEGERS
