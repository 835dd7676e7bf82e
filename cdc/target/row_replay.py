"""Changes of one table in the source's order: as many at a time as the rows allow, one at a time where they do not.

Consecutive changes that are alike and concern different rows form a *range*, which is staged and applied by one
statement under a savepoint. When the target refuses it, or the number of changed rows is off, the range is halved,
down to single rows. So nothing depends on the order within a statement: either a range comes out exactly right, or its
halves are tried in order. A single row that is refused is final: `Refused` says how many rows before it are in.

Tables without a key always go this way (their changes cannot be folded), and so does what the fast path could not do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import asyncpg

from cdc.changes.compaction import Contradiction, time_field
from cdc.changes.row_reader import Fields, FormatChanged, KeyNotSent, places_unchanged
from cdc.changes.shared_keys import Arrivals
from cdc.changes.transaction import Kind
from cdc.pgoutput.tuples import NULL, UNCHANGED, UnexpectedFormat
from cdc.target import dml, kept_rows, overlap
from cdc.target.rejection import UNIQUE_VIOLATION, Guard, Reason, Refused
from cdc.target.row_counts import check_count, row_count
from cdc.target.staging import Staging, old_places
from cdc.target.table_plan import TablePlan
from cdc.target.table_shape import TableShape
from cdc.target.writing import OneByOne

RANGE_ROWS = 1_000
"""How many rows a range holds at most. A refused range is halved, and every half scans the staging table: this keeps
that table at a size which is scanned in a fraction of a millisecond."""

RANGE_BYTES = 1024 * 1024
"""How many bytes of values a range holds at most (one row may be larger), for the same reason."""


class Action(Enum):
    """What a statement does with the rows of a range."""

    INSERT = "insert"
    UPDATE = "update"
    CHANGE_KEY = "change_key"
    DELETE = "delete"


@dataclass(slots=True)
class Range:
    """Consecutive changes for one statement: ``rows`` are new fields followed by old ones.

    ``unchanged`` are the places that stay as they are, ``known`` those of a whole old row that hold no NULL in any.
    ``start`` is the place of the first in its run.
    """

    action: Action
    unchanged: tuple[int, ...]
    start: int
    rows: list[Fields] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    size: int = 0
    names: set[Fields] = field(default_factory=set)


class RowReplay:
    """Applies changes of one table in order, inside the caller's transaction."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        staging: Staging,
        guard: Guard,
        read_again: Collection[tuple[str, str]] = (),
    ) -> None:
        """``read_again``: the tables, ``(schema, name)``, of which rows that were left uncertain are read again."""
        self._connection = connection
        self._staging = staging
        self._guard = guard
        self._writing = OneByOne(connection, guard)
        self._read_again = read_again
        self._arrivals: dict[TableShape, Arrivals] = {}

    def begin(self) -> None:
        """Forget what was replayed: a batch, or one part of a transaction, begins, or is tried again."""
        self._arrivals.clear()

    async def apply(self, plan: TablePlan, kind: Kind, messages: Sequence[bytes], commit_time_us: int) -> None:
        """Apply changes of one kind, committed at ``commit_time_us``. The plan's staging table must exist.

        Raises `Refused`, with the number of changes that were applied before the refused one, which stay applied.
        """
        done = 0
        try:
            for rows in ranges(plan, kind, messages, commit_time_us):
                done = rows.start
                if plan.shape.takes_places:
                    await self._apply_watched(plan, kind, messages[done : done + len(rows.rows)], rows)
                else:
                    await self._apply_range(plan.shape, rows)
        except Refused as refused:
            refused.plan, refused.kind = plan, kind
            refused.done += done
            raise

    async def change_key(self, shape: TableShape, old_key: tuple[bytes, ...], fields: Fields) -> None:
        """Apply one change of a key."""
        rows = Range(Action.CHANGE_KEY, places_unchanged(fields), 0)
        rows.rows.append((*_sent(fields), *old_key))
        await self._apply_range(shape, rows)

    async def _apply_watched(self, plan: TablePlan, kind: Kind, messages: Sequence[bytes], rows: Range) -> None:
        """Apply a range where a row may have taken another's place; no change in it depends on another."""
        shape, reader = plan.shape, plan.reader
        arrivals = self._arrivals.setdefault(shape, arrivals_of(shape))
        try:
            for message in messages:
                arrivals.check(reader, kind, message)
        except Contradiction:
            raise Refused(shape, Reason.UNDECIDED if shape.overlap else Reason.DUPLICATE) from None
        done = len(messages)
        try:
            await self._apply_range(shape, rows)
        except Refused as refused:
            done = refused.done
            raise
        finally:
            for message in messages[:done]:
                arrivals.note(reader, kind, message)

    async def _apply_range(self, shape: TableShape, rows: Range) -> None:
        low, high = await self._staging.stage(shape, rows.rows, with_old=True, writing=self._writing)
        pending = [(low, high)]
        while pending:
            first, last = pending.pop()
            try:
                await self._attempt(shape, rows, first, last)
            except Refused as refused:
                if first == last:
                    refused.done = first - low
                    raise
                middle = (first + last) // 2
                pending += [(middle + 1, last), (first, middle)]

    async def _attempt(self, shape: TableShape, rows: Range, low: int, high: int) -> None:
        """One statement under a savepoint; all or nothing."""
        if shape.overlap:
            await self._attempt_in_overlap(shape, rows, low, high)
            return
        sql = self._statement(shape, rows, low, high)
        if sql is None:
            return
        try:
            if shape.keeps_deleted and shape.key and rows.action is Action.INSERT:
                await self._connection.execute("SAVEPOINT cdc_rows")
                await kept_rows.insert(self._connection, self._guard, shape, self._staging.name(shape), low, high)
            else:
                await self._run(shape, rows, sql, low, high)
        except Refused as refused:
            await self._connection.execute("ROLLBACK TO SAVEPOINT cdc_rows; RELEASE SAVEPOINT cdc_rows")
            if low == high:
                await self._look_closer(shape, rows, refused, low)
                return
            raise
        await self._connection.execute("RELEASE SAVEPOINT cdc_rows")

    async def _run(self, shape: TableShape, rows: Range, sql: str, low: int, high: int) -> None:
        if shape.clears_the_way and rows.action is Action.CHANGE_KEY:
            sql = f"{dml.delete_in_the_way(shape, self._staging.name(shape), low, high)}; {sql}"
        with self._guard(shape):
            changed = row_count(await self._connection.execute(f"SAVEPOINT cdc_rows; {sql}"))
        check_count(shape, changed, high - low + 1, may_fall_short=rows.action is Action.DELETE and shape.loses_rows)

    async def _attempt_in_overlap(self, shape: TableShape, rows: Range, low: int, high: int) -> None:
        """What overlap asks for instead of one statement; all or nothing, too."""
        await self._connection.execute("SAVEPOINT cdc_rows")
        try:
            await self._overlap(shape, rows, low, high)
        except Refused:
            await self._connection.execute("ROLLBACK TO SAVEPOINT cdc_rows; RELEASE SAVEPOINT cdc_rows")
            raise
        await self._connection.execute("RELEASE SAVEPOINT cdc_rows")

    async def _overlap(self, shape: TableShape, rows: Range, low: int, high: int) -> None:
        connection, guard, stage = self._connection, self._guard, self._staging.name(shape)
        match rows.action:
            case Action.DELETE:
                await overlap.delete(connection, guard, shape, stage, low, high)
            case Action.UPDATE if rows.unchanged:
                await overlap.update(connection, guard, shape, stage, rows.unchanged, low, high)
            case Action.INSERT | Action.UPDATE:
                await overlap.upsert(connection, guard, shape, stage, low, high)
            case Action.CHANGE_KEY:
                for ordinal in range(low, high + 1):
                    await overlap.change_key(
                        connection,
                        guard,
                        shape,
                        stage,
                        rows.unchanged,
                        ordinal,
                        is_read_again=(shape.schema, shape.name) in self._read_again,
                    )

    async def _look_closer(self, shape: TableShape, rows: Range, refused: Refused, ordinal: int) -> None:
        """A single row was refused: do what a set could not, or find out more."""
        stage = self._staging.name(shape)
        if rows.action in (Action.INSERT, Action.CHANGE_KEY) and shape.key:
            if refused.reason is Reason.MISSING and rows.action is Action.INSERT:
                refused.reason = Reason.DUPLICATE
            elif refused.server is not None and refused.server.sqlstate == UNIQUE_VIOLATION:
                with self._guard(shape):
                    if await self._connection.fetchval(dml.key_exists(shape, stage, ordinal, ordinal)):
                        refused.reason = Reason.DUPLICATE
        if shape.moves_rows and refused.reason is Reason.MISSING and await self._is_moved(shape, rows, ordinal):
            return
        has_fixed = any(column.is_written and not column.is_updatable for column in shape.columns)
        if rows.action is not Action.UPDATE or not has_fixed or refused.reason is not Reason.MISSING:
            raise refused
        # An identity ALWAYS column has changed: an UPDATE may not, so the row is written anew.
        try:
            await self._run(shape, rows, dml.replace(shape, stage, rows.unchanged, ordinal, ordinal), ordinal, ordinal)
        except Refused:
            await self._connection.execute("ROLLBACK TO SAVEPOINT cdc_rows; RELEASE SAVEPOINT cdc_rows")
            raise
        await self._connection.execute("RELEASE SAVEPOINT cdc_rows")

    async def _is_moved(self, shape: TableShape, rows: Range, ordinal: int) -> bool:
        """Whether the target has changed the row's identity by itself, as the source did; the rest of it is written."""
        stage = self._staging.name(shape)
        if rows.action is Action.CHANGE_KEY:
            sql = dml.take_over(shape, stage, rows.unchanged, ordinal, ordinal)
            with self._guard(shape):
                changed = 0 if sql is None else row_count(await self._connection.execute(sql))
            return changed == 1
        if rows.action is Action.UPDATE and shape.matches_whole_row and not rows.unchanged:
            with self._guard(shape):
                return bool(await self._connection.fetchval(dml.new_row_exists(shape, stage, ordinal, ordinal)))
        return False

    def _statement(self, shape: TableShape, rows: Range, low: int, high: int) -> str | None:
        stage = self._staging.name(shape)
        whole = shape.matches_whole_row
        match rows.action:
            case Action.INSERT:
                return dml.insert(shape, stage, low, high)
            case Action.DELETE if shape.keeps_deleted and shape.deleted_at is None:
                return None
            case Action.DELETE if whole:
                return dml.delete_whole_rows(shape, stage, rows.known, low, high)
            case Action.DELETE:
                return dml.delete(shape, stage, low, high)
            case Action.UPDATE if whole:
                return dml.update_whole_rows(shape, stage, rows.unchanged, rows.known, low, high)
            case Action.UPDATE:
                return dml.update(shape, stage, rows.unchanged, low, high)
            case Action.CHANGE_KEY if shape.replaces_rows:
                return dml.replace(shape, stage, rows.unchanged, low, high)
            case Action.CHANGE_KEY:
                return dml.change_key(shape, stage, rows.unchanged, low, high)


def ranges(plan: TablePlan, kind: Kind, messages: Sequence[bytes], commit_time_us: int) -> Iterator[Range]:
    """Cut a run into ranges.

    Raises `FormatChanged`, and `Refused` for a change that does not say which row it means.
    """
    current: Range | None = None
    for number, message in enumerate(messages):
        try:
            action, new, old = _read(plan, kind, message)
        except UnexpectedFormat as error:
            raise FormatChanged(plan.relation, error.column_index) from None
        except KeyNotSent:
            raise Refused(plan.shape, Reason.KEY_NOT_SENT) from None
        unchanged = places_unchanged(new)
        names = _names(plan.shape, action, new, old)
        if (
            current is None
            or current.action is not action
            or current.unchanged != unchanged
            or len(current.rows) >= RANGE_ROWS
            or current.size >= RANGE_BYTES
            or not current.names.isdisjoint(names)
        ):
            if current is not None:
                yield current
            current = Range(action, unchanged, number)
            current.known = (
                [place for place in old_places(plan.shape) if plan.shape.columns[place].is_comparable]
                if plan.shape.matches_whole_row
                else []
            )
        if plan.shape.matches_whole_row and action is not Action.INSERT:
            by_place = dict(zip(old_places(plan.shape), old, strict=True))
            current.known = [place for place in current.known if by_place[place] is not NULL]
        if action is Action.DELETE and plan.shape.deleted_at is not None:
            new = (*new[: plan.shape.deleted_at], time_field(commit_time_us))
        current.rows.append((*_sent(new), *old))
        current.names.update(names)
        current.size += len(message)
    if current is not None:
        yield current


def _read(plan: TablePlan, kind: Kind, message: bytes) -> tuple[Action, Fields, tuple[bytes, ...]]:
    """What a change does, its new row (when it deletes: the key among NULLs), and what identifies the old row."""
    reader, shape = plan.reader, plan.shape
    places = old_places(shape)
    if kind is Kind.INSERT:
        return Action.INSERT, reader.new_row(message), (NULL,) * len(places)
    if shape.is_insert_only:
        raise Refused(shape, Reason.NOT_IDENTIFIED)
    if kind is Kind.DELETE:
        gone = reader.old_row(message)
        return Action.DELETE, gone, tuple(gone[place] for place in places)
    old, new = reader.old_and_new(message)
    if any(new[place] is UNCHANGED for place in shape.key):
        raise KeyNotSent
    if old is None:
        if shape.matches_whole_row:
            raise Refused(shape, Reason.NOT_IDENTIFIED)
        return Action.UPDATE, new, tuple(new[place] for place in places)
    identity = tuple(old[place] for place in places)
    moves = bool(shape.key) and any(old[place] != new[place] for place in shape.key)
    return (Action.CHANGE_KEY if moves else Action.UPDATE), new, identity


def arrivals_of(shape: TableShape) -> Arrivals:
    """What notices changes of rows whose place was taken, for a shape that ``takes_places``."""
    return Arrivals(deletes=not shape.keeps_deleted or shape.deleted_at is not None)


def _names(shape: TableShape, action: Action, new: Fields, old: tuple[bytes, ...]) -> list[Fields]:
    """What identifies the rows that a change concerns: two changes that share one must not be in one statement."""
    if shape.matches_whole_row:
        return [] if action is Action.INSERT else [old]
    key = tuple(new[place] for place in shape.key)
    if not key:
        return []
    return [key] if action is not Action.CHANGE_KEY else [key, old]


def _sent(fields: Fields) -> Fields:
    """The fields with NULLs where the source sent nothing."""
    return [NULL if value is UNCHANGED else value for value in fields] if UNCHANGED in fields else fields
