"""Set by set: the way that nearly every batch takes.

Each table's changes of a step are folded to one outcome per key (cdc.changes.compaction). Then, over all tables:
deletes from children to parents, and from parents to children updates and inserts. Rows that are known to be new go by
COPY straight into their table, without being looked at when a table sees nothing but inserts; everything else is
staged, one COPY per table, and moved on by one statement per kind.

The number of changed rows is checked against what was staged: any difference, and any constraint that objects, raises
`Refused`, and the caller replays the batch more carefully. So the order of tables is a matter of speed, not of
correctness. Tables in overlap go the same way, with the statements of `cdc.target.overlap`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import asyncpg

from cdc.changes.compaction import Compaction, Contradiction, KeyChange, Outcome
from cdc.changes.packed_folding import EncodedRows, PackedCompaction, PackedOutcome, Uncovered
from cdc.changes.row_reader import Fields, KeyNotSent
from cdc.changes.shared_keys import SharedKeys
from cdc.changes.transaction import Kind, Run
from cdc.pgoutput.tuples import NULL, UNCHANGED
from cdc.target import kept_rows, overlap
from cdc.target.copy_encoding import NotSent, messages_stream, packed_stream, rows_stream
from cdc.target.rejection import Guard, Reason, Refused
from cdc.target.row_replay import RowReplay, arrivals_of
from cdc.target.staging import Staging
from cdc.target.steps import Group, PackedPiece, RoutedPart, Step, TargetName, parents_first, split, stretched
from cdc.target.table_plan import TablePlan
from cdc.target.table_shape import TableShape
from cdc.target.together import NotTogether, Together
from cdc.target.truncation import Truncations
from cdc.target.writing import Change, Move, OneByOne, Writing

BREATH_ROWS = 1_000
"""After how many folded rows the other tasks of the worker get their turn: some 5 to 10 ms."""


@dataclass(slots=True)
class _Staged:
    """One outcome on its way: ordinals of what was staged for each statement, and the rows to be copied straight in."""

    shape: TableShape
    copied: Sequence[Fields] | EncodedRows = ()
    deletes: tuple[int, int] | None = None
    updates: list[tuple[tuple[int, ...], int, int]] = field(default_factory=list)
    inserts: tuple[int, int] | None = None


class FastPath:
    """Applies parts set by set, inside the caller's transaction and savepoint."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        staging: Staging,
        guard: Guard,
        replay: RowReplay,
        truncations: Truncations,
        together: Together | None = None,
    ) -> None:
        """With ``together`` everything is only collected there, and what cannot be raises `NotTogether`."""
        self._connection = connection
        self._staging = staging
        self._guard = guard
        self._writing: Writing = together or OneByOne(connection, guard)
        self._is_together = together is not None
        self._replay = replay
        self._truncations = truncations

    async def apply(self, parts: Sequence[RoutedPart], in_order: Collection[TableShape] = ()) -> None:
        """Apply parts. The staging tables of their shapes must exist. Raises `Refused` and `Unfit`.

        Tables of the shapes ``in_order`` are taken change by change, as far as a range of them is refused.
        """
        self._replay.begin()
        for step in split(parts):
            await self._apply_step(step, in_order)
            self._needs_answers(step.truncation is not None)
            if step.truncation is not None:
                await self._truncations.truncate(step.truncated, step.truncation)

    async def _apply_step(self, step: Step, in_order: Collection[TableShape]) -> None:
        order = parents_first(
            {
                name: frozenset().union(*(group.shape.references for group in groups))
                for name, groups in step.tables.items()
            }
        )
        staged: dict[TargetName, _Staged] = {}
        for name in order:
            groups = step.tables[name]
            if any(group.shape in in_order for group in groups):
                continue
            outcome = await self._single_outcome(groups)
            if outcome is not None:
                staged[name] = outcome
        for name in reversed(order):
            if name in staged:
                await self._delete(staged[name])
        for name in order:
            if name in staged:
                await self._update_and_insert(staged[name])
            else:
                for group in step.tables[name]:
                    await self._apply_group(group, in_order)

    async def _single_outcome(self, groups: list[Group]) -> _Staged | None:
        """Fold and stage a table whose changes come to one outcome; `None` for one that must be taken in order."""
        if len(groups) != 1 or _goes_straight_in(groups[0]) or not groups[0].shape.key:
            return None
        shape = groups[0].shape
        stretches = await self._fold(groups[0])
        if len(stretches) > 1 or isinstance(stretches[0], KeyChange):
            return None
        return await self._stage(shape, stretches[0])

    async def _apply_group(self, group: Group, in_order: Collection[TableShape]) -> None:
        """Apply one group after another, each completely: where a table's changes come to more than one outcome."""
        shape = group.shape
        if shape in in_order:
            self._needs_answers()
            for plan, run in group.runs():
                await self._replay.apply(plan, run.kind, run.rows, run.commit_time_us)
        elif _goes_straight_in(group):
            if group.packed is not None:
                rows = sum(piece.inserted for piece in group.packed)
                await self._copy(shape, packed_stream(group.packed, len(shape.columns)), rows)
            else:
                await self._copy_messages(shape, list(group.runs()))
        elif not shape.key:
            for plan, run in group.runs():
                if run.kind is Kind.INSERT and shape.copies_directly:
                    await self._copy_messages(shape, [(plan, run)])
                else:
                    self._needs_answers()
                    await self._replay.apply(plan, run.kind, run.rows, run.commit_time_us)
        else:
            for stretch in await self._fold(group):
                if isinstance(stretch, KeyChange):
                    self._needs_answers()
                    await self._replay.change_key(shape, stretch.old_key, stretch.fields)
                else:
                    staged = await self._stage(shape, stretch)
                    await self._delete(staged)
                    await self._update_and_insert(staged)

    async def _fold(self, group: Group) -> list[Outcome | PackedOutcome | KeyChange]:
        """The stretches of a group; one empty outcome when nothing is left."""
        shape = group.shape
        if group.packed is not None and _folds_packed(shape):
            try:
                return [await self._fold_packed(shape, group.packed)]
            except Uncovered:
                pass
        folding = SharedKeys if shape.shares_keys else Compaction
        compaction = folding(
            keeps_rows=shape.keeps_rows,
            overlap=shape.overlap,
            keeps_deleted=shape.keeps_deleted,
            notes_time=shape.deleted_at is not None,
        )
        arrivals = arrivals_of(shape) if shape.takes_places else None
        folded = 0
        try:
            for (plan, kind, time_us), rows in stretched(
                ((plan, run.kind, _noted(shape, run)), run.rows) for plan, run in group.runs()
            ):
                compaction.add(plan.reader, kind, rows, time_us)
                if arrivals is not None:
                    for message in rows:
                        arrivals.check(plan.reader, kind, message)
                        arrivals.note(plan.reader, kind, message)
                folded += len(rows)
                if folded >= BREATH_ROWS:
                    folded = 0
                    await asyncio.sleep(0)
            return [*compaction.finish()] or [Outcome()]
        except Contradiction:
            raise Refused(shape, Reason.CONTRADICTION) from None
        except KeyNotSent:
            raise Refused(shape, Reason.KEY_NOT_SENT) from None

    async def _fold_packed(self, shape: TableShape, pieces: Sequence[PackedPiece]) -> PackedOutcome:
        """The same in compiled loops. Raises `Uncovered`."""
        compaction = PackedCompaction(len(shape.columns), shape.key, keeps_rows=shape.keeps_rows)
        for piece in pieces:
            for _ in compaction.add(piece.rows):
                await asyncio.sleep(0)
        return compaction.finish()

    async def _stage(self, shape: TableShape, outcome: Outcome | PackedOutcome) -> _Staged:
        """Copy what needs a statement into staging: deletes, updates by what they leave unchanged, perhaps inserts."""
        is_copied = copies_inserts(shape)
        if isinstance(outcome, PackedOutcome):
            staged = _Staged(shape, outcome.inserted() if is_copied else ())
            rows: Sequence[Fields] | EncodedRows = outcome.rows(with_inserts=not is_copied)
            deletes, updates, inserts = outcome.deletes, outcome.updates, outcome.inserts
        else:
            staged = _Staged(shape, outcome.inserts if is_copied else ())
            rows = _staged_rows(shape, outcome, with_inserts=not is_copied)
            deletes, inserts = len(outcome.deletes), len(outcome.inserts)
            updates = [(unchanged, len(fields)) for unchanged, fields in outcome.updates.items()]
        if not len(rows):
            return staged
        low, _ = await self._staging.stage(shape, rows, with_old=False, writing=self._writing)
        if deletes:
            staged.deletes = (low, low + deletes - 1)
            low += deletes
        for unchanged, count in updates:
            staged.updates.append((unchanged, low, low + count - 1))
            low += count
        if inserts and not is_copied:
            staged.inserts = (low, low + inserts - 1)
        return staged

    async def _delete(self, staged: _Staged) -> None:
        shape = staged.shape
        if staged.deletes is not None:
            low, high = staged.deletes
            if shape.overlap:
                self._needs_answers()
                await overlap.delete(self._connection, self._guard, shape, self._staging.name(shape), low, high)
                return
            await self._writing.change(Change(Move.DELETE, shape), self._staging.name(shape), low, high)

    async def _update_and_insert(self, staged: _Staged) -> None:
        shape, stage = staged.shape, self._staging.name(staged.shape)
        if shape.overlap:
            self._needs_answers()
            await self._overlap(staged, stage)
            return
        for unchanged, low, high in staged.updates:
            await self._writing.change(Change(Move.UPDATE, shape, unchanged), stage, low, high)
        if staged.inserts is not None:
            low, high = staged.inserts
            if shape.keeps_deleted:
                self._needs_answers()
                await kept_rows.insert(self._connection, self._guard, shape, stage, low, high)
                return
            await self._writing.change(Change(Move.INSERT, shape), stage, low, high)
        elif len(staged.copied):
            await self._copy(shape, rows_stream(staged.copied, len(shape.columns)), len(staged.copied))

    async def _overlap(self, staged: _Staged, stage: str) -> None:
        shape = staged.shape
        for unchanged, low, high in staged.updates:
            await overlap.update(self._connection, self._guard, shape, stage, unchanged, low, high)
        if staged.inserts is not None:
            await overlap.upsert(self._connection, self._guard, shape, stage, *staged.inserts)

    async def _copy_messages(self, shape: TableShape, runs: Sequence[tuple[TablePlan, Run]]) -> None:
        """Copy the rows of insert messages straight into the table."""
        stretches = ((plan.reader, rows) for plan, rows in stretched((plan, run.rows) for plan, run in runs))
        source = messages_stream(stretches, len(shape.columns))
        await self._copy(shape, source, sum(len(run.rows) for _, run in runs))

    async def _copy(self, shape: TableShape, rows: AsyncIterator[bytes], count: int) -> None:
        """Copy rows straight into the table."""
        columns = [column.name for column in shape.columns]
        try:
            await self._writing.copy(shape, (shape.schema, shape.name), columns, rows, count)
        except NotSent:
            raise Refused(shape, Reason.CONTRADICTION) from None

    def _needs_answers(self, really: bool = True) -> None:
        """What comes next asks the target, and goes by the answer."""
        if really and self._is_together:
            raise NotTogether


def copies_inserts(shape: TableShape) -> bool:
    """Whether new rows may go by COPY into the table: it takes them as they are, and refuses a key that it has."""
    return shape.copies_directly and not shape.overlap and (shape.key_is_unique or not shape.key)


def _goes_straight_in(group: Group) -> bool:
    """Whether no row of a group needs to be looked at: nothing but inserts, and the table itself refuses duplicates."""
    return copies_inserts(group.shape) and group.has_only_inserts


def _folds_packed(shape: TableShape) -> bool:
    """Whether a key means one row, and a row is what the source sent: the compiled folding knows nothing else."""
    return not (shape.shares_keys or shape.overlap or shape.keeps_deleted or shape.deleted_at is not None)


def _staged_rows(shape: TableShape, outcome: Outcome, *, with_inserts: bool) -> list[Fields]:
    rows: list[Fields] = [_key_among_nulls(shape, key) for key in outcome.deletes]
    for unchanged, updates in outcome.updates.items():
        rows += [_without_unchanged(fields) for fields in updates] if unchanged else updates
    return rows + outcome.inserts if with_inserts else rows


def _noted(shape: TableShape, run: Run) -> int:
    """The commit time of a run where it is noted in rows; otherwise runs of different transactions are read as one."""
    return run.commit_time_us if shape.deleted_at is not None and run.kind is Kind.DELETE else 0


def _key_among_nulls(shape: TableShape, key: Iterable[bytes]) -> Fields:
    row = [NULL] * len(shape.columns)
    places = shape.key if shape.deleted_at is None else (*shape.key, shape.deleted_at)
    for place, value in zip(places, key, strict=True):
        row[place] = value
    return row


def _without_unchanged(fields: Fields) -> Fields:
    return [NULL if value is UNCHANGED else value for value in fields]
