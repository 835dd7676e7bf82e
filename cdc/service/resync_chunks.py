"""One chunk after the other: read under a snapshot, staged in the target, marked in the stream, and waited for.

The size of a chunk follows the rows: about `CHUNK_BYTES`, so that staging and merging one takes a moment whatever a row
holds. When so much is changed while one is read that the changes cannot be remembered, the next is smaller.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from uuid import uuid4

import psycopg

from cdc.bootstrap.pipe import read_copy
from cdc.changes.transaction_ids import SnapshotIds
from cdc.service.resync_partitions import partitions_moved
from cdc.service.resync_plan import Layout
from cdc.service.resync_steps import Errand
from cdc.service.tracking import ChunkLost, Result, Tracking
from cdc.source import chunks
from cdc.source.chunks import KeyText, Rewritten, Watermark
from cdc.source.connection import source_errors
from cdc.target import column_record
from cdc.target import resync_request as requests
from cdc.target.copy_text import text_rows
from cdc.target.merge import Chunk, ResyncTables
from cdc.target.resync_request import Request
from cdc.target.session import target_errors

CHUNK_BYTES = 8 * 1024**2
"""About how much a chunk holds. Merging so much takes some tenths of a second, which the stream waits for."""

CHUNK_ROWS = (100, 50_000)
"""Fewest and most rows of a chunk."""

FIRST_ROWS = 1000
"""Rows of the first chunk, before it is known how large they are."""

AGAIN_ROWS = 2000
"""Most keys that one chunk reads again: they stand in its statement one by one."""

REWRITES = 5
"""How often in a row the table may be rewritten while a chunk begins, before it counts as lost."""


class Restructured(Exception):
    """The table is not what it was when the first chunk was read: begin with its first row. Control flow."""


class ChunkReader:
    """Reads the chunks of one request, whose table is in overlap and tracked."""

    def __init__(
        self,
        errand: Errand,
        tracking: Tracking,
        before_mark: Callable[[Request], Awaitable[None]],
        most_rows: int = CHUNK_ROWS[1],
        leaf_marks: Sequence[str] = (),
    ) -> None:
        """``before_mark`` is awaited when a chunk is staged and not yet marked; no chunk has over ``most_rows``.

        ``leaf_marks`` say which leaves a partitioned table had when its first chunk was to be read.
        """
        self._errand = errand
        self._tracking = tracking
        self._before_mark = before_mark
        self._most_rows = most_rows
        self._rows = min(FIRST_ROWS, most_rows)
        self._layout: tuple[object, ...] | None = None
        self._leaf_marks = leaf_marks
        self._began = time.monotonic()
        self._read = 0

    def smaller(self) -> None:
        """The last chunk was lost: make the next one smaller."""
        self._rows = min(self._most_rows, max(CHUNK_ROWS[0], self._rows // 2))

    def pause_s(self) -> float:
        """For how long not to read, by the pace that was asked for."""
        pace = self._tracking.request.max_rows_per_second
        if pace is None:
            return 0.0
        return max(0.0, self._read / pace - (time.monotonic() - self._began))

    async def next(self) -> Result:
        """Read, stage and mark the next chunk; returns when it is merged, durably.

        Raises `ChunkLost`, `Restructured`, and what a database says.
        """
        chunk, tables = await self._stage()
        request = self._tracking.request
        mark = uuid4().hex
        merged = self._tracking.expect(chunk, tables, mark)
        await self._before_mark(request)
        errand = self._errand
        watermark = Watermark(errand.config.pipeline, errand.key, errand.target, request.table, mark)
        await chunks.emit(errand.connection, watermark)
        result = await merged
        self._read += chunk.row_count
        return result

    async def _stage(self) -> tuple[Chunk, ResyncTables]:
        errand, connection, request = self._errand, self._errand.connection, self._tracking.request
        try:
            snapshot = await self._begin(request)
            touched = self._tracking.touched
            touched.see(snapshot)
            if touched.is_broken:
                raise Restructured
            if touched.has_overflowed:
                raise ChunkLost("more is changed than can be remembered")
            layout = await errand.look(request)
            self._compare(request, layout)
            await self._compare_columns(layout)
            is_range = request.state != requests.SWEEPING
            after = await self._bound(layout) if is_range else None
            asked, again = await self._again(layout)
            upto = await chunks.find_upper_bound(connection, layout.read, after, self._limit()) if is_range else None
            statement = layout.read.copy(after, upto, again, is_range=is_range)
            rows, size = await self._copy(layout, statement, upto)
            with source_errors("end a chunk"):
                await connection.execute("COMMIT")
        except BaseException:
            await self._roll_back()
            raise
        if rows:
            fitting = max(CHUNK_ROWS[0], int(CHUNK_BYTES / (size / rows)))
            self._rows = min(fitting, self._most_rows, 4 * self._rows)
        chunk = Chunk(snapshot, is_range, after is not None, upto is not None, asked, rows)
        return chunk, layout.tables

    async def _begin(self, request: Request) -> SnapshotIds:
        for _ in range(REWRITES):
            try:
                return await chunks.begin(self._errand.connection, request.source_schema, request.source_table)
            except Rewritten:
                await self._roll_back()
        raise ChunkLost("the table at the source is rewritten again and again")

    async def _roll_back(self) -> None:
        """End the chunk's transaction. In the middle of a COPY the connection is of no more use."""
        connection = self._errand.connection
        status = connection.info.transaction_status
        if connection.closed or status == psycopg.pq.TransactionStatus.IDLE:
            return
        if status == psycopg.pq.TransactionStatus.ACTIVE:
            await connection.close()
            return
        with source_errors("end a chunk"):
            await connection.execute("ROLLBACK")

    def _compare(self, request: Request, layout: Layout) -> None:
        """Raise `Restructured` when what is merged or staged does not belong to the table any more."""
        if layout.source.relation.oid != request.source_oid or layout.form != request.key_form:
            raise Restructured
        if partitions_moved(layout.source, self._leaf_marks) or (request.within and not request.partitions_only):
            raise Restructured
        seen = (layout.columns, layout.tables.row_columns, layout.tables.order)
        if self._layout is not None and self._layout != seen:
            raise Restructured
        self._layout = seen

    async def _compare_columns(self, layout: Layout) -> None:
        """Raise `Restructured` when names of columns mean others than in the chunks that are merged."""
        session, route = self._errand.session, layout.route
        record = await column_record.read(session, self._errand.key, (route.source_schema, route.source_table))
        there = await column_record.read_columns(session, route)
        assert there is not None  # the layout was made of it
        if record is not None and not record.agrees(column_record.pairs(route, layout.source.sent_numbers, there)):
            raise Restructured

    def _limit(self) -> int:
        pace = self._tracking.request.max_rows_per_second
        return self._rows if pace is None else max(1, min(self._rows, pace))

    async def _bound(self, layout: Layout) -> KeyText | None:
        """The key up to which everything is merged."""
        texts = ", ".join(f"{name}::text" for name in layout.tables.ordered_keys)
        session = self._errand.session
        with target_errors("reading how far a resync is", session.where):
            row = await session.connection.fetchrow(f"SELECT {texts} FROM {layout.tables.bound} WHERE NOT is_upper")
        return None if row is None else tuple(row)

    async def _again(self, layout: Layout) -> tuple[int, list[KeyText]]:
        """The keys that are to be read again, and the ordinal of the last of them."""
        texts = ", ".join(f"{name}::text" for name in layout.tables.ordered_keys)
        session = self._errand.session
        with target_errors("reading what is to be read again", session.where):
            rows = await session.connection.fetch(
                f"SELECT ordinal, {texts} FROM {layout.tables.again} ORDER BY ordinal LIMIT {AGAIN_ROWS}"
            )
        return (rows[-1][0] if rows else 0), [tuple(row)[1:] for row in rows]

    async def _copy(self, layout: Layout, statement: str, upto: KeyText | None) -> tuple[int, int]:
        """Put the chunk's rows into the staging table, and its end beside them; returns rows and bytes."""
        session, tables = self._errand.session, layout.tables
        size = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            with source_errors(f"read a chunk of {layout.source.name}"):
                async for piece in read_copy(self._errand.connection, statement):
                    size += len(piece)
                    yield piece

        with target_errors(f"staging rows of {layout.source.name}", session.where):
            async with session.connection.transaction():
                await session.connection.execute(f"TRUNCATE {tables.rows}; DELETE FROM {tables.bound} WHERE is_upper")
                tag = await session.connection.copy_to_table(
                    tables.rows.removeprefix("cdc."),
                    schema_name="cdc",
                    columns=list(layout.columns),
                    source=counted(),
                    format=layout.copy.format,
                )
                if upto is not None:
                    await session.connection.copy_to_table(
                        tables.bound.removeprefix("cdc."),
                        schema_name="cdc",
                        columns=["is_upper", *tables.ordered_keys],
                        source=text_rows([("t", *upto)]),
                        format="text",
                    )
        return int(tag.rpartition(" ")[2]), size
