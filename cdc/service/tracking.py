"""One table that is read again in chunks, seen from the target transactions that apply the stream.

A `Tracking` hangs on an `OwnedTarget` from its first batch on while a table is read again. Every batch tells it what it
applies (`note`) and lets it add to its transaction (`before_commit`): the keys that have to be read again, and, when
the batch ends with the watermark of the chunk that is staged, the merge of that chunk and how far the request has come.
So rows, keys and progress are durable together with the changes that they belong to, or not at all.

A merge that the target refuses is rolled back alone: the stream goes on, and whoever reads the chunks is told.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cdc.changes.relation import Relation
from cdc.changes.row_reader import FormatChanged
from cdc.changes.touched_keys import Arrival, TouchedKeys, TouchReader
from cdc.changes.transaction import Part, Truncation
from cdc.errors import CdcError, ProtocolError, TableStopped
from cdc.lsn import Lsn
from cdc.service.planning import Planning
from cdc.service.positions import Positions
from cdc.source import chunks
from cdc.target import merge, resync_request
from cdc.target.applier import Applier
from cdc.target.merge import Chunk, Merged, ResyncTables
from cdc.target.resync_request import Request
from cdc.target.session import Session, is_driver_error, target_errors, translate
from cdc.target.table_plan import TablePlan
from cdc.target.table_shape import TableShape
from cdc.target.truncation import empties

TOUCHED_BYTES = 32 * 1024**2
"""Most memory for the keys that are changed while one chunk is read: some 80,000 changes. Beyond it the chunk is read
again, smaller (invariant 10)."""


class ChunkLost(Exception):
    """A staged chunk cannot be merged, and has to be read again. Control flow; says why, in a sentence."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a chunk: what it changed, and whether the table is exactly the source's now, ``at`` that LSN."""

    merged: Merged
    is_whole: bool
    at: Lsn
    request: Request


@dataclass(slots=True)
class _Staged:
    chunk: Chunk
    tables: ResyncTables
    mark: str
    result: asyncio.Future[Result]


class Tracking:
    """What the stream does to one table, and the chunk that waits for its watermark.

    ``touched`` may be replaced by whoever reads the chunks. ``request`` is as it was when the last chunk was merged.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.touched = self.forget_touched()
        self.is_lost = False
        self._staged: _Staged | None = None
        self._keys: ResyncTables | None = None
        self._mark_has_come = False
        self._begins_anew = False
        self._readers: dict[TablePlan, TouchReader] = {}
        self._outcome: Result | CdcError | ChunkLost | None = None

    # --- the side of whoever reads the chunks

    def forget_touched(self) -> TouchedKeys:
        """Begin anew to remember keys: what was read until now cannot be merged, and older transactions must end."""
        request = self.request
        self.touched = TouchedKeys(request.key_form, near=request.near_xid or 0, limit_bytes=TOUCHED_BYTES)
        return self.touched

    def expect(self, chunk: Chunk, tables: ResyncTables, mark: str) -> asyncio.Future[Result]:
        """A chunk is staged, and its watermark is about to be written. The result comes when it is merged, durably.

        Instead comes `ChunkLost`, or a `CdcError` of the target.
        """
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        result.add_done_callback(_retrieved)
        self._staged = _Staged(chunk, tables, mark, result)
        if self.is_lost:
            self.lose("the target was taken anew")
        return result

    def lose(self, reason: str) -> None:
        """Nothing of this will be merged any more: the target's session is gone."""
        self.is_lost = True
        self._tell(ChunkLost(reason))

    # --- the side of the batches

    def ends_batch(self, part: Part) -> bool:
        """Whether the batch ends with this part, because it holds the watermark that is waited for."""
        return self._staged is not None and any(self._is_awaited(mark.prefix, mark.content) for mark in part.marks)

    async def note(
        self, session: Session, parts: Sequence[Part], applier: Applier, planning: Planning, positions: Positions
    ) -> None:
        """These parts have been applied, in the transaction that is open: what they leave uncertain is written down."""
        arrivals: list[Arrival] = []
        for part in parts:
            self._mark_has_come |= self.ends_batch(part)
            readers: dict[Relation, TouchReader] = {}
            for relation in part.relations:
                if planning.table_of(relation) != self.request.table or positions.skips(self.request.table, part):
                    continue
                plan = planning.plans.get(relation)
                if plan is not None:
                    try:
                        # The applier may have replaced it since (values in another format); what it has is cached.
                        plan = await applier.plan(plan.relation, plan.route, overlap=plan.shape.overlap)
                        readers[relation] = self._reader(plan)
                    except TableStopped:
                        self.touched.is_broken = True
            try:
                arrivals += self.touched.note(part, readers)
            except FormatChanged:
                self.touched.is_broken = True
            for change in part.changes:
                if isinstance(change, Truncation):
                    plans = [planning.plans[relation] for relation in change.relations if relation in readers]
                    # Rows of a part of the table went: which of those that are staged, nobody can tell.
                    if plans and not empties(plans, applier.held):
                        self.touched.has_overflowed = True
        if self.request.table in applier.untold:
            # Nor of those that are merged.
            applier.untold.remove(self.request.table)
            self.touched.is_broken = self._begins_anew = True

        if arrivals:
            assert self._keys is not None  # something of the table was read
            with target_errors("writing down keys to be read again", session.where):
                await merge.record_arrivals(session.connection, self._keys, arrivals)

    async def before_commit(self, session: Session, key: str, positions: Positions, ended: Sequence[Part]) -> None:
        """Add to the transaction of a batch what belongs to its changes; ``key`` is the target's row."""
        if self._begins_anew:
            # Durable with the change: what is merged cannot be told from what went, so nothing of it counts.
            await resync_request.record(session, self.request.request, key_form="")
        staged = self._staged
        if staged is None or not self._mark_has_come:
            return
        if self.touched.is_useless:
            self._outcome = ChunkLost("too much was changed while the chunk was read")
            return
        if self.request.table in positions.tables:
            self._outcome = ChunkLost("the table has stopped")
            return
        connection = session.connection
        with target_errors("merging a chunk", session.where):
            await connection.execute("SAVEPOINT cdc_merge")
        try:
            end_lsn = ended[-1].end_lsn
            assert end_lsn is not None  # a watermark is a transaction of its own
            self._outcome = await self._merge(session, key, staged, end_lsn)
        except Exception as error:
            if not is_driver_error(error):
                raise
            failure = translate(error, f"merging rows of {self.request.table}", session.where)
            if connection.is_closed():
                raise failure from None
            self._outcome = failure
            with target_errors("rolling back", session.where):
                await connection.execute("ROLLBACK TO SAVEPOINT cdc_merge")

    def rolled_back(self) -> None:
        """The transaction was rolled back; its parts come again."""
        self._mark_has_come = self._begins_anew = False
        self._outcome = None

    def committed(self, planning: Planning) -> None:
        """The transaction is durable."""
        self._mark_has_come = False
        if self._begins_anew:
            self.request, self._begins_anew = replace(self.request, key_form=""), False
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            if isinstance(outcome, Result):
                self.request = outcome.request
            if isinstance(outcome, Result) and outcome.is_whole:
                planning.set_overlap(planning.overlap - {self.request.table})
            self._tell(outcome)

    async def _merge(self, session: Session, key: str, staged: _Staged, at: Lsn) -> Result:
        request, connection, chunk, tables = self.request, session.connection, staged.chunk, staged.tables
        is_sweeping = request.state == resync_request.SWEEPING
        merged = await merge.merge(
            connection,
            tables,
            chunk,
            self.touched.outdated(),
            sweep_after=request.sweep_after if is_sweeping else None,
        )
        is_sweeping |= chunk.is_last_range
        is_whole = is_sweeping and merged.left == 0
        after = await resync_request.record_merged(
            session,
            tables,
            chunk.row_count,
            state=resync_request.FINISHING if is_whole else resync_request.SWEEPING if is_sweeping else request.state,
        )
        if is_whole:
            await resync_request.end_overlap(session, key, request, tables, at)
        return Result(merged, is_whole, at, after)

    def _is_awaited(self, prefix: str, content: bytes) -> bool:
        if self._staged is None or prefix != chunks.PREFIX:
            return False
        try:
            return chunks.parse(content).chunk == self._staged.mark
        except ProtocolError:
            return False

    def _reader(self, plan: TablePlan) -> TouchReader:
        reader = self._readers.get(plan)
        if reader is None:
            columns = tuple(column.name for column in plan.shape.columns)
            reader = self._readers[plan] = TouchReader(plan.reader, columns, key_form(plan.shape))
            self._keys = ResyncTables(self.request.request, plan.shape, plan.shape.key)
        return reader

    def _tell(self, outcome: Result | CdcError | ChunkLost) -> None:
        staged, self._staged = self._staged, None
        if staged is None or staged.result.done():
            return
        if isinstance(outcome, Result):
            staged.result.set_result(outcome)
        else:
            staged.result.set_exception(outcome)


def key_form(shape: TableShape) -> str:
    """In which columns and types the fields of a key come: what has the same form can be compared."""
    columns = (shape.columns[place] for place in shape.key)
    return json.dumps(
        [
            (column.name, column.stage_type, column.key_cast, *(() if column.read_as is None else (column.read_as,)))
            for column in columns
        ]
    )


def _retrieved(result: asyncio.Future[Result]) -> None:
    """Whoever waited for it may be gone: then nobody has to hear of its error."""
    if not result.cancelled():
        result.exception()
