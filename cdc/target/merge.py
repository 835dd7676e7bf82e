"""Merging a chunk of a table's rows into the table, while the stream goes on changing it (`cdc resync`).

What `merge` promises, inside the target transaction that applies the chunk's watermark: when it returns, the rows of
the chunk's range, and those whose keys were to be read again, are what the source held at the watermark; excepted are
the rows that it wrote down to be read (once more) with a later chunk. Rows that the source lacks are gone; where
deleted rows stay (`cdc.target.kept_rows`) they are noted as deleted now, because nobody knows when they were.

The rows come by COPY into a staging table that another session fills. A row of which the stream has a newer version is
left out; of one that a newer change left uncertain only those columns are taken that no change has set. Where the
target lacks such a row, the chunk's older version is put in, so that the next changes find it, and its key is written
down. (Why that ends: after one pass every row is there, so a change always finds its row.)

Statements hold names, numbers and transaction ids, never a value: keys travel by COPY, too (invariant 8).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from cdc.changes.touched_keys import Arrival, KeyFields, Outdated
from cdc.changes.transaction_ids import SnapshotIds
from cdc.errors import SetupError
from cdc.identifiers import quote, quote_list
from cdc.target import dml
from cdc.target.copy_encoding import rows_stream
from cdc.target.table_shape import TableShape

_TOUCHED = "pg_temp.cdc_resync_touched"

_INT4 = struct.Struct(">ii").pack
_INT8 = struct.Struct(">iq").pack


@dataclass(frozen=True, slots=True)
class ResyncTables:
    """The tables of one request in the schema ``cdc``, and the table that they serve.

    ``rows`` holds a chunk in the columns of ``shape`` that are written; ``bound`` the key up to which everything is
    merged, and the one up to which the chunk goes; ``again`` keys that have to be read again. ``order`` are the places
    of the key in the order in which ranges go. Keys have the types in which the source sends them. ``only``: no other
    rows of the table are read again than those that fulfil this condition.
    """

    request: int
    shape: TableShape
    order: tuple[int, ...]
    only: str | None = None

    @property
    def rows(self) -> str:
        """The staging table, which a crash of the server empties."""
        return f"cdc.resync_{self.request}_rows"

    @property
    def bound(self) -> str:
        """At most two keys."""
        return f"cdc.resync_{self.request}_bound"

    @property
    def again(self) -> str:
        """Keys to be read again, each with the transaction that a snapshot has to see for that."""
        return f"cdc.resync_{self.request}_again"

    @property
    def row_columns(self) -> tuple[str, ...]:
        """The columns of ``rows``, as the target calls them."""
        return tuple(column.name for column in self.shape.columns if column.is_written)

    @property
    def ordered_keys(self) -> tuple[str, ...]:
        """The key's columns of ``bound`` and ``again``, in the order in which ranges go."""
        return tuple(f"key_{self.shape.key.index(place) + 1}" for place in self.order)

    def create(self) -> str:
        """The statements that create them, empty."""
        keys = self._definitions("key")
        columns = quote_list(self.row_columns)
        return (
            f"{drop(self.request)};"
            f"CREATE UNLOGGED TABLE {self.rows} AS SELECT {columns} FROM {self.shape.sql_name} WITH NO DATA;"
            f"CREATE TABLE {self.bound} (is_upper boolean PRIMARY KEY, {keys});"
            f"CREATE TABLE {self.again} (ordinal bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
            f"xid bigint NOT NULL, {keys}, {self._definitions('old')})"
        )

    def touched(self) -> str:
        """The statement that creates the table of touched keys, for the length of the transaction."""
        return (
            f"CREATE TEMPORARY TABLE cdc_resync_touched (part int4 NOT NULL, xid int8 NOT NULL, "
            f"{self._definitions('key')}) ON COMMIT DROP"
        )

    def _definitions(self, prefix: str) -> str:
        columns = (self.shape.columns[place] for place in self.shape.key)
        return ", ".join(f"{prefix}_{number} {c.stage_type} NOT NULL" for number, c in enumerate(columns, 1))

    def same_row(self, left: str, right: str) -> str:
        """The keys of two rows in the target's types are equal."""
        columns = [self.shape.columns[place] for place in self.shape.key]
        return " AND ".join(f"{left}.{quote(c.name)} {c.equals} {right}.{quote(c.name)}" for c in columns)

    def has_key(self, row: str, key: str, prefix: str = "key") -> str:
        """A row's key equals one in the types of the stream."""
        conditions = []
        for number, place in enumerate(self.shape.key, 1):
            column = self.shape.columns[place]
            value = column.compared(f"{key}.{prefix}_{number}")
            conditions.append(f"{row}.{quote(column.name)} {column.equals} {value}")
        return " AND ".join(conditions)

    def within(self, *, has_lower: bool, has_upper: bool) -> str:
        """The row ``t`` is in the chunk's range."""
        ours = f"({', '.join(f't.{quote(self.shape.columns[place].name)}' for place in self.order)})"
        casts = [
            self.shape.columns[place].compared(f"b.{key}")
            for place, key in zip(self.order, self.ordered_keys, strict=True)
        ]
        bound = f"SELECT {', '.join(casts)} FROM {self.bound} AS b WHERE"
        conditions = ["true" if self.only is None else f"({self.only})"]
        if has_lower:
            conditions.append(f"{ours} > ({bound} NOT b.is_upper)")
        if has_upper:
            conditions.append(f"{ours} <= ({bound} b.is_upper)")
        return " AND ".join(conditions)


def drop(request: int) -> str:
    """The statement that removes the tables of a request."""
    return ", ".join(f"cdc.resync_{request}_{name}" for name in ("rows", "bound", "again")).join(
        ("DROP TABLE IF EXISTS ", "")
    )


@dataclass(frozen=True, slots=True)
class Chunk:
    """What was read and staged: by which snapshot, which range (if any), and up to which ordinal of ``again``."""

    snapshot: SnapshotIds
    is_range: bool
    has_lower: bool
    has_upper: bool
    asked_again: int
    row_count: int

    @property
    def is_last_range(self) -> bool:
        """Whether every row of the table has been read once when this is merged."""
        return self.is_range and not self.has_upper


@dataclass(frozen=True, slots=True)
class Merged:
    """What merging a chunk changed, and how many keys still have to be read again."""

    deleted: int
    updated: int
    inserted: int
    left: int


async def record_arrivals(connection: asyncpg.Connection, tables: ResyncTables, arrivals: Sequence[Arrival]) -> None:
    """Write down rows to be read again, in the transaction that applies the changes which left them uncertain."""
    number = len(tables.shape.key)
    columns = [f"{prefix}_{n}" for prefix in ("key", "old") for n in range(1, number + 1)]
    await connection.copy_to_table(
        f"resync_{tables.request}_again",
        schema_name="cdc",
        columns=["xid", *columns],
        source=rows_stream([(_INT8(8, a.xid), *a.key, *a.old_key) for a in arrivals], 1 + len(columns)),
        format="binary",
    )


async def merge(
    connection: asyncpg.Connection, tables: ResyncTables, chunk: Chunk, outdated: Outdated, *, sweep_after: int | None
) -> Merged:
    """Merge a staged chunk, in the open transaction of the batch that ends with its watermark.

    ``sweep_after``: all ranges are merged already, and what was written down up to this ordinal is known to be needed.
    Lets the driver's errors pass; the caller rolls back.
    """
    counts = [0, 0, 0]
    if not outdated.is_emptied:
        groups = await _stage_touched(connection, tables, outdated)
        for kind, statement in _statements(tables, chunk, groups):
            tag = await connection.execute(statement)
            if kind is not None:
                counts[kind] += int(tag.rpartition(" ")[2])
    if sweep_after is not None:
        await connection.execute(_forget_harmless(tables, sweep_after))
    if not outdated.is_emptied:
        await connection.execute(
            f"DELETE FROM {tables.again} WHERE ordinal <= {chunk.asked_again} AND {_sees(chunk.snapshot)}"
        )
    if chunk.is_range:
        await connection.execute(f"DELETE FROM {tables.bound} WHERE NOT is_upper")
        await connection.execute(f"UPDATE {tables.bound} SET is_upper = false")
    if tables.shape.defers:
        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
    left = int(await connection.fetchval(f"SELECT count(*) FROM {tables.again}"))
    return Merged(counts[_DELETED], counts[_UPDATED], counts[_INSERTED], left)


async def replace_all(connection: asyncpg.Connection, tables: ResyncTables, *, where: str) -> None:
    """Make the table's rows those that are staged, all of them, in the open transaction.

    Rows that are equal stay, and rows that differ are updated. Where that fails because a unique value has moved
    between rows, all that differ are deleted before any is inserted; but never where more hangs on a row than what is
    staged (`TableShape.holds_more`): other rows would go with it, or the owner's values. Then it raises `SetupError`,
    and the caller rolls back. ``where`` names the target for that.
    """
    shape = tables.shape
    table, names = shape.rows_name, tables.row_columns
    same = tables.same_row("t", "s")
    equal = f"EXISTS (SELECT FROM {tables.rows} AS s WHERE {same} AND {_equal(names)})"
    only = tables.within(has_lower=False, has_upper=False)
    delete_missing = ""
    if not shape.keeps_deleted or shape.deleted_at is not None:
        missing = f"{only} AND NOT EXISTS (SELECT FROM {tables.rows} AS s WHERE {same})"
        delete_missing = dml.remove(shape, missing) + ";"
    delete_different = f"DELETE FROM {table} AS t WHERE {only} AND NOT {equal}"
    insert = (
        f"INSERT INTO {shape.sql_name} ({quote_list(names)}) OVERRIDING SYSTEM VALUE "
        f"SELECT {', '.join(f's.{quote(name)}' for name in names)} FROM {tables.rows} AS s "
        f"WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {same})"
    )
    updatable = [column.name for column in shape.columns if column.is_updatable]
    settle = "; SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED" if shape.defers else ""
    if not shape.rewritten:
        # What no UPDATE can change is the key then, and that is what two rows are known by.
        update = (
            f"UPDATE {table} AS t SET {_assign(updatable)} FROM {tables.rows} AS s "
            f"WHERE {same} AND NOT {_equal(updatable)};"
            if updatable
            else ""
        )
        try:
            await connection.execute(f"SAVEPOINT cdc_replace; {delete_missing} {update} {insert}{settle}")
        except (asyncpg.UniqueViolationError, asyncpg.ExclusionViolationError) as error:
            if shape.holds_more:
                raise _moved(where, shape.sql_name, error.constraint_name) from None
            await connection.execute("ROLLBACK TO SAVEPOINT cdc_replace")
        else:
            return
    elif shape.holds_more:
        raise fixed_columns(where, shape)
    await connection.execute(f"{delete_different}; {insert}{settle}")


def fixed_columns(where: str, shape: TableShape) -> SetupError:
    """Why rows on which more hangs cannot be brought to what the source has, and what makes it possible."""
    columns = ", ".join(shape.rewritten)
    return SetupError(
        f"{where}: table {shape.sql_name} has a column that no UPDATE can change ({columns}, GENERATED ALWAYS AS "
        "IDENTITY), so a row that differs there could only be deleted and written anew; rows that refer to it, or "
        "columns of the target's own, would be lost, so nothing was changed. Run the statement below, and `cdc resync` "
        "again",
        sql="\n".join(
            f"ALTER TABLE {shape.sql_name} ALTER COLUMN {quote(name)} SET GENERATED BY DEFAULT;"
            for name in shape.rewritten
        ),
    )


def _moved(where: str, table: str, index: str | None) -> SetupError:
    name = "its unique index" if index is None else f"its unique index {quote(index)}"
    return SetupError(
        f"{where}: in table {table} values of {name} have moved between rows, so these could only be deleted and "
        "written anew; rows that refer to them, or columns of the target's own, would be lost, so nothing was changed. "
        "Drop that index (or constraint) there, run `cdc resync` again, and create it again"
    )


_DELETED, _UPDATED, _INSERTED = range(3)


async def _stage_touched(
    connection: asyncpg.Connection, tables: ResyncTables, outdated: Outdated
) -> list[frozenset[str]]:
    """Copy the touched keys into a temporary table; returns the columns that each part lacks, from part 1 on."""
    groups = list(outdated.partial)
    rows: list[tuple[bytes, ...]] = [_touched_row(0, 0, key) for key in outdated.settled]
    for part, lacking in enumerate(groups, 1):
        rows += [_touched_row(part, xid, key) for key, xids in outdated.partial[lacking] for xid in xids]
    await connection.execute(tables.touched())
    if rows:
        await connection.copy_to_table(
            "cdc_resync_touched",
            schema_name="pg_temp",
            source=rows_stream(rows, 2 + len(tables.shape.key)),
            format="binary",
        )
        await connection.execute(f"ANALYZE {_TOUCHED}")
    return groups


def _touched_row(part: int, xid: int, key: KeyFields) -> tuple[bytes, ...]:
    return (_INT4(4, part), _INT8(8, xid), *key)


def _statements(tables: ResyncTables, chunk: Chunk, groups: Sequence[frozenset[str]]) -> list[tuple[int | None, str]]:
    """What makes the table's rows those of the chunk, in order, each with what its rows count as."""
    shape, table = tables.shape, tables.shape.rows_name
    is_staged = f"EXISTS (SELECT FROM {tables.rows} AS s WHERE {tables.same_row('s', 't')})"
    is_there = f"EXISTS (SELECT FROM {table} AS t WHERE {tables.same_row('t', 's')})"

    def touched(row: str, condition: str = "true") -> str:
        return f"EXISTS (SELECT FROM {_TOUCHED} AS k WHERE {condition} AND {tables.has_key(row, 'k')})"

    columns = quote_list(tables.row_columns)
    values = ", ".join(f"s.{quote(name)}" for name in tables.row_columns)
    into = f"INSERT INTO {shape.sql_name} ({columns}) OVERRIDING SYSTEM VALUE"
    insert = f"{into} SELECT {values} FROM {tables.rows} AS s WHERE"
    found: list[tuple[int | None, str]] = []
    loses_rows = not shape.keeps_deleted or shape.deleted_at is not None
    if chunk.is_range and loses_rows:
        within = tables.within(has_lower=chunk.has_lower, has_upper=chunk.has_upper)
        found.append((_DELETED, dml.remove(shape, f"{within} AND NOT {is_staged} AND NOT {touched('t')}")))
    if chunk.asked_again and loses_rows:
        keys = ", ".join(f"key_{number}" for number in range(1, len(shape.key) + 1))
        asked = f"(SELECT DISTINCT {keys} FROM {tables.again} WHERE ordinal <= {chunk.asked_again}) AS a"
        found.append(
            (
                _DELETED,
                dml.remove(
                    shape, f"{tables.has_key('t', 'a')} AND NOT {is_staged} AND NOT {touched('t')}", other=asked
                ),
            )
        )
    fixed = [c for c in shape.columns if c.is_written and not c.is_updatable]
    if fixed:
        differs = " OR ".join(f"t.{quote(c.name)} IS DISTINCT FROM s.{quote(c.name)}" for c in fixed)
        found.append(
            (
                _DELETED,
                f"DELETE FROM {table} AS t USING {tables.rows} AS s "
                f"WHERE {tables.same_row('t', 's')} AND ({differs}) AND NOT {touched('s')}",
            )
        )
    updatable = [c.name for c in shape.columns if c.is_updatable]
    if updatable:
        found.append(
            (
                _UPDATED,
                f"UPDATE {table} AS t SET {_assign(updatable)} FROM {tables.rows} AS s "
                f"WHERE {tables.same_row('t', 's')} AND NOT {_equal(updatable)} AND NOT {touched('s')}",
            )
        )
    found.append((_INSERTED, f"{insert} NOT {touched('s')} AND NOT {is_there}"))
    for part, lacking in enumerate(groups, 1):
        names = [name for name in updatable if name in lacking]
        if names:
            found.append(
                (
                    _UPDATED,
                    f"UPDATE {table} AS t SET {_assign(names)} FROM {tables.rows} AS s "
                    f"WHERE {tables.same_row('t', 's')} AND NOT {_equal(names)} AND {touched('s', f'k.part = {part}')} "
                    f"AND NOT {touched('s', 'k.part = 0')}",
                )
            )
    if groups:
        unsettled = f"{touched('s', 'k.part > 0')} AND NOT {touched('s', 'k.part = 0')} AND NOT {is_there}"
        numbers = range(1, len(shape.key) + 1)
        names = [f"{prefix}_{number}" for prefix in ("key", "old") for number in numbers]
        twice = ", ".join(f"k.key_{number}" for _ in range(2) for number in numbers)
        found.append(
            (
                None,
                f"INSERT INTO {tables.again} (xid, {', '.join(names)}) SELECT k.xid, {twice} "
                f"FROM {_TOUCHED} AS k JOIN {tables.rows} AS s ON {tables.has_key('s', 'k')} "
                f"WHERE k.part > 0 AND {unsettled}",
            )
        )
        found.append((_INSERTED, f"{insert} {unsettled}"))
    return found


def _forget_harmless(tables: ResyncTables, sweep_after: int) -> str:
    """Once every range is merged, a row that moved from a key which is right is right where it came to."""
    numbers = range(1, len(tables.shape.key) + 1)
    same = " AND ".join(f"b.key_{n} = a.old_{n}" for n in numbers)
    return (
        f"DELETE FROM {tables.again} AS a WHERE a.ordinal > {sweep_after} AND NOT EXISTS "
        f"(SELECT FROM {tables.again} AS b WHERE b.ordinal < a.ordinal AND {same})"
    )


def _sees(snapshot: SnapshotIds) -> str:
    running = ",".join(map(str, sorted(snapshot.running)))
    return f"(xid < {snapshot.xmin} OR (xid < {snapshot.xmax} AND xid <> ALL ('{{{running}}}'::int8[])))"


def _assign(names: Sequence[str]) -> str:
    return ", ".join(f"{quote(name)} = s.{quote(name)}" for name in names)


def _equal(names: Sequence[str]) -> str:
    """Byte by byte: ``=`` does not exist for every type, and takes 1.0 for 1.00."""
    left, right = (", ".join(f"{row}.{quote(name)}" for name in names) for row in ("t", "s"))
    return f"(CAST(ROW({left}) AS record) OPERATOR(pg_catalog.*=) CAST(ROW({right}) AS record))"
