"""What a core makes of messages, in a form in which the compiled core and its specification can be compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from cdc.changes.accumulator import UnknownTypes
from cdc.changes.compaction import Compaction, Contradiction, KeyChange, Outcome
from cdc.changes.packed_accumulator import AnyAccumulator, PackedAccumulator
from cdc.changes.packed_folding import PackedCompaction, Uncovered
from cdc.changes.row_reader import FormatChanged, KeyNotSent, RowReader
from cdc.changes.transaction import Mark, Part, Run, Truncation, divided
from cdc.errors import ProtocolError
from cdc.pgoutput.compiled import is_compiled
from cdc.pgoutput.tuples import NULL, UNCHANGED
from cdc.target.copy_encoding import NotSent, messages_stream, rows_stream
from cdc.target.steps import Group
from tests.unit.test_accumulator import TYPES

needs_compiled_core = pytest.mark.skipif(
    not is_compiled(), reason="the compiled core is not built, or CDC_UNCOMPILED is set"
)

Result = tuple[Any, ...]


def outcome_of(work: Callable[[], Any]) -> Result:
    """What came of it: a result, or an error's type and message."""
    try:
        return "result", work()
    except (ProtocolError, FormatChanged, NotSent, Contradiction, KeyNotSent) as error:
        return type(error), str(error), getattr(error, "column_index", None)


def fed_in_pieces(accumulator: AnyAccumulator, messages: Sequence[bytes], cuts: Sequence[int]) -> list[Part]:
    return divided(fed(accumulator, messages, cuts))


def fed(accumulator: AnyAccumulator, messages: Sequence[bytes], cuts: Sequence[int]) -> list[Part]:
    accumulator.descriptions.learn(TYPES, frozenset(TYPES))
    parts: list[Part] = []
    for first, last in zip([0, *cuts], [*cuts, len(messages)], strict=True):
        left: Sequence[bytes] = messages[first:last]
        while left:
            try:
                accumulator.feed(left)
                break
            except UnknownTypes as unknown:
                accumulator.descriptions.learn({}, unknown.keys)
                left = unknown.remaining
        parts += accumulator.take()
        if isinstance(accumulator, PackedAccumulator):
            assert all(part.is_first and part.is_last for part in parts if part.transaction_count > 1)
    return parts


def content(part: Part) -> Result:
    """What a part says, without its sizes; relations by their names. Runs that are alike are one."""

    def change(one: Run | Truncation | Mark) -> Result:
        if isinstance(one, Run):
            return one.relation.oid, one.relation.name, one.kind, one.commit_time_us, list(one.rows)
        if isinstance(one, Truncation):
            return tuple(found.oid for found in one.relations), one.cascade, one.restart_identity, one.commit_time_us
        return one.prefix, one.content, one.lsn

    changes: list[Result] = []
    for one in map(change, part.changes):
        if changes and len(one) == 5 and changes[-1][:4] == one[:4]:
            changes[-1][4].extend(one[4])
        else:
            changes.append(one)
    names = {(found.oid, found.name) for found in part.relations}
    return part.xid, part.commit_lsn, part.end_lsn, part.commit_time_us, part.row_count, changes, part.marks, names


def whole(parts: Sequence[Part]) -> list[Result]:
    """The changes one by one, wherever large transactions were cut, with the transaction and what ends."""
    found: list[Result] = []
    for part in parts:
        for one in part.changes:
            if isinstance(one, Run):
                found += [(part.xid, one.relation.oid, one.relation.name, one.kind, message) for message in one.rows]
            elif isinstance(one, Truncation):
                found.append((part.xid, [relation.oid for relation in one.relations]))
            else:
                found.append((part.xid, one))
        if part.is_last:
            found.append((part.xid, part.end_lsn))
    return found


class Shape:
    """What `cdc.target.steps` asks of a shape."""

    schema = "public"

    def __init__(self, key: tuple[int, ...], name: str = "t") -> None:
        self.key, self.name = key, name


class Plan:
    """What `cdc.target.steps` asks of a plan."""

    def __init__(self, shape: Shape, reader: RowReader) -> None:
        self.shape, self.reader = shape, reader


async def collected(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])


def encoded_plainly(group: Group, columns: int) -> bytes:
    # Row by row: of several rows that cannot be encoded, which is met first depends on how many are read at once.
    rows = ((plan.reader, [row]) for plan, run in group.runs() for row in run.rows)
    return asyncio.run(collected(messages_stream(rows, columns)))


def staged(outcome: Outcome, columns: int, key: tuple[int, ...], first: int | None) -> bytes:
    """What the plain way stages of an outcome, and its inserts behind that."""
    rows: list[Any] = []
    for found in outcome.deletes:
        fields = [NULL] * columns
        for place, value in zip(key, found, strict=True):
            fields[place] = value
        rows.append(fields)
    for updates in outcome.updates.values():
        rows += [[NULL if value is UNCHANGED else value for value in fields] for fields in updates]
    rows += outcome.inserts
    return asyncio.run(collected(rows_stream(rows, columns, first_ordinal=first)))


def folded_plainly(group: Group, *, keeps_rows: bool) -> list[Outcome | KeyChange]:
    compaction = Compaction(keeps_rows=keeps_rows)
    for plan, run in group.runs():
        compaction.add(plan.reader, run.kind, run.rows)
    return compaction.finish()


def compare_outcomes(group: Group, indices: tuple[int, ...], key: tuple[int, ...], *, keeps_rows: bool) -> str:
    assert group.packed is not None
    plain = outcome_of(lambda: folded_plainly(group, keeps_rows=keeps_rows))
    compaction = PackedCompaction(len(indices), key, keeps_rows=keeps_rows)
    try:
        for piece in group.packed:
            for _ in compaction.add(piece.rows):
                pass
    except Uncovered:
        return f"not covered, {plain[0]}"
    compiled = compaction.finish()
    assert plain[0] == "result"
    stretches = plain[1] or [Outcome()]
    assert len(stretches) == 1
    [outcome] = stretches
    assert isinstance(outcome, Outcome)
    assert compiled.deletes == len(outcome.deletes)
    assert list(compiled.updates) == [(places, len(rows)) for places, rows in outcome.updates.items()]
    assert compiled.inserts == len(outcome.inserts)
    for first in (None, 1, (1 << 40) + 7):
        rows = compiled.rows(with_inserts=True)
        found = asyncio.run(collected(rows_stream(rows, len(indices), first_ordinal=first)))
        assert found == staged(outcome, len(indices), key, first)
    inserted = asyncio.run(collected(rows_stream(compiled.inserted(), len(indices))))
    assert inserted == staged(Outcome(inserts=outcome.inserts), len(indices), key, None)
    return "folded"
