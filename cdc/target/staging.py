"""Temporary tables that rows pass through on their way into a target table.

Rows reach a target by COPY only, never as parameters (invariant 8). What cannot be copied straight into its table is
copied into a staging table and moved on by one statement per kind of change. Measured on PostgreSQL 15
(POSTGRES.md, "Writing"): emptying 110 temporary tables at every commit costs 18.8 ms a transaction, creating or
truncating them per batch bloats the catalog. So a staging table is created once per session, when its target table
first needs one, and is not emptied per batch: each staged row carries an ordinal that is never used twice in a
session, and each statement says between which ordinals its rows are. What is left of earlier batches is garbage that a
scan passes over, and goes when it has grown to `GARBAGE_BYTES`.

A staging table has ``ordinal``, then ``new_1``… for the columns of the shape, and ``old_1``… for those that can
identify an old row, named by the place of the column. It has no index: it is small, and is read once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import asyncpg

from cdc.changes.packed_folding import EncodedRows
from cdc.changes.row_reader import Fields
from cdc.target.copy_encoding import rows_stream, size_of
from cdc.target.table_shape import TableShape
from cdc.target.writing import Writing

GARBAGE_BYTES = 512 * 1024
"""How many bytes of earlier batches a staging table may hold before it is truncated. Every statement scans them, at
about 1 GB/s: half a megabyte costs half a millisecond. A TRUNCATE leaves one dead row of ``pg_class`` behind, which at
this size is one for thousands of staged rows: autovacuum keeps up easily."""

_ROW_OVERHEAD_BYTES = 40
"""What a staged row occupies beside its values: its header, its line pointer and the ordinal."""


class Staging:
    """The staging tables of one session. They vanish with it, or with the transaction that created them."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._tables: dict[TableShape, str] = {}
        self._created: set[str] = set()
        self._doubtful: set[str] = set()  # created in a transaction of which we do not know whether it committed
        self._garbage: dict[str, int] = {}
        self._ordinal = 0
        self._emptied: list[str] = []

    def name(self, shape: TableShape) -> str:
        """The qualified name of the shape's staging table, which `ensure` has created."""
        return f"pg_temp.{self._bare_name(shape)}"

    async def ensure(self, shapes: Collection[TableShape], *, tidies: bool = True) -> None:
        """Create what is missing of these shapes' tables, and, if it ``tidies``, empty those that hold much garbage.

        To be called outside of any savepoint that may be rolled back, best outside of a transaction.
        """
        in_transaction = self._connection.is_in_transaction()
        wanted = {self._bare_name(shape): shape for shape in shapes}
        missing = [name for name in wanted if name not in self._created or name in self._doubtful]
        for name in missing:
            columns = ["ordinal int8 NOT NULL", *_column_definitions(wanted[name])]
            await self._connection.execute(
                f"CREATE TEMPORARY TABLE IF NOT EXISTS pg_temp.{name} ({', '.join(columns)})"
            )
            self._created.add(name)
            self._garbage.setdefault(name, 0)
        if in_transaction:
            self._doubtful.update(missing)
        else:
            self._doubtful.difference_update(missing)
        emptying = self.emptying(shapes) if tidies else None
        if emptying is not None:
            await self._connection.execute(emptying)

    def emptying(self, shapes: Iterable[TableShape]) -> str | None:
        """A statement that empties those of these shapes' tables that hold too much garbage; it will be executed."""
        names = [self._bare_name(shape) for shape in shapes]
        full = self._emptied = [name for name in names if self._garbage.get(name, 0) > GARBAGE_BYTES]
        if not full:
            return None
        # If a rollback brings the garbage back, it is scanned a little longer; no ordinal comes twice.
        self._garbage.update(dict.fromkeys(full, 0))
        return "TRUNCATE " + ", ".join(f"pg_temp.{name}" for name in full)

    def not_emptied(self) -> None:
        """The last `emptying` was not executed, or rolled back."""
        self._garbage.update(dict.fromkeys(self._emptied, GARBAGE_BYTES + 1))

    def has(self, shapes: Iterable[TableShape]) -> bool:
        """Whether these shapes' tables exist for certain."""
        names = map(self._bare_name, shapes)
        return all(name in self._created and name not in self._doubtful for name in names)

    async def stage(
        self, shape: TableShape, rows: Sequence[Fields] | EncodedRows, *, with_old: bool, writing: Writing
    ) -> tuple[int, int]:
        """Copy rows into the shape's staging table; return the first and the last ordinal.

        A row is the fields of the new row and, ``with_old``, those of `old_places` behind them. All must be sent
        fields: a value that is not known is a NULL here.
        """
        name = self._bare_name(shape)
        columns = [f"new_{place + 1}" for place in range(len(shape.columns))]
        if with_old:
            columns += [f"old_{place + 1}" for place in old_places(shape)]
        low = self._ordinal + 1
        self._ordinal += len(rows)
        source = rows_stream(rows, len(columns), first_ordinal=low)
        await writing.copy(shape, ("pg_temp", name), ["ordinal", *columns], source, len(rows))
        self._garbage[name] += len(rows) * (_ROW_OVERHEAD_BYTES + 4 * len(columns)) + size_of(rows)
        return low, self._ordinal

    def _bare_name(self, shape: TableShape) -> str:
        return self._tables.setdefault(shape, f"cdc_stage_{len(self._tables) + 1}")


def old_places(shape: TableShape) -> tuple[int, ...]:
    """Places of the columns that identify an old row: those of the key, or all that are stored."""
    return shape.written if shape.matches_whole_row else shape.key


def _column_definitions(shape: TableShape) -> list[str]:
    new = [f"new_{place + 1} {column.stage_type}" for place, column in enumerate(shape.columns)]
    return new + [f"old_{place + 1} {shape.columns[place].stage_type}" for place in old_places(shape)]
