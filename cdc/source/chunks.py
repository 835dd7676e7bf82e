"""Reading one table of the source in chunks, in the order of its key, and marking in the stream when one was read.

A chunk is one short REPEATABLE READ READ ONLY transaction on the primary. `begin` takes its snapshot, says which
transactions that sees, and makes sure that it shows the table's rows at all: a rewrite or TRUNCATE that is younger
would make it read nothing, without an error (hazard 23). The statements are text, because COPY has no parameters: the
bounds of a chunk are literals in them, so a source that logs every statement logs these, like the application's own.

A `Watermark` is a logical message of ours. It is written when the rows are staged, so it stands in the WAL behind the
commit of everything that the chunk's snapshot sees.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from cdc import statements
from cdc.changes.relation import DataType
from cdc.changes.transaction_ids import SnapshotIds
from cdc.errors import ProtocolError, SourceUnavailable
from cdc.identifiers import quote, quote_list, quote_literal, quote_qualified
from cdc.source.connection import Connection, source_errors

PREFIX = "cdc.watermark"
"""The prefix of the logical message."""

LOCK_TIMEOUT_S = 5
"""How long a chunk waits for its table's ACCESS SHARE lock: whoever alters the table comes first, and nobody shall
queue behind us."""

KeyText = tuple[str, ...]
"""A key as text, one value for each of its columns: as the server writes them for us, and reads them again."""


class Rewritten(Exception):
    """The table was rewritten or emptied after the snapshot was taken: take another. Control flow."""


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A column of the key at the source."""

    name: str
    type: DataType


@dataclass(frozen=True, slots=True)
class TableRead:
    """What is read of a table: ``expressions`` in the order in which they are wanted, ``key`` in that of its index.

    ``rows_name`` is where its rows are read. ``within``: only those that fulfil this condition. Rows that do not
    satisfy ``row_filter`` are as if they were not there: the stream does not send them.
    """

    schema: str
    name: str
    rows_name: str
    expressions: tuple[str, ...]
    key: tuple[KeyColumn, ...]
    format: str
    row_filter: str | None = None
    within: str | None = None

    def copy(self, after: KeyText | None, upto: KeyText | None, again: Sequence[KeyText], *, is_range: bool) -> str:
        """The COPY of one chunk: the rows behind ``after`` up to ``upto``, and those whose keys are in ``again``.

        `None` is no bound. Not ``is_range``: only those in ``again``. No row comes twice.
        """
        select = f"SELECT {', '.join(self.expressions)} FROM {self._rows()}"
        bounds = self._bounds(after, upto)
        parts = []
        if is_range:
            parts.append(f"{select} WHERE {bounds}" if bounds else select)
        if again and (bounds or not is_range):
            keys = ", ".join(self._row(key) for key in dict.fromkeys(again))
            outside = f" AND NOT ({bounds})" if is_range else ""
            parts.append(f"{select} WHERE {self._key()} IN ({keys}){outside}")
        query = " UNION ALL ".join(parts) if parts else f"{select} WHERE false"
        return f"COPY ({query}) TO STDOUT (FORMAT {self.format})"

    def upper_bound(self, after: KeyText | None, rows: int) -> str:
        """The query for the key, as text, of the row that is ``rows`` behind ``after``; none: fewer remain."""
        bounds = self._bounds(after, None)
        where = f" WHERE {bounds}" if bounds else ""
        texts = ", ".join(f"{quote(column.name)}::text" for column in self.key)
        order = quote_list(column.name for column in self.key)
        return (
            f"SELECT {texts} FROM (SELECT {order} FROM {self._rows()}{where} "
            f"ORDER BY {order} OFFSET {rows - 1} LIMIT 1) AS bound"
        )

    def _rows(self) -> str:
        if self.row_filter is None:
            return self.rows_name
        return f"(SELECT * FROM {self.rows_name} WHERE {self.row_filter}) AS sent"

    def _bounds(self, after: KeyText | None, upto: KeyText | None) -> str:
        conditions = [] if self.within is None else [f"({self.within})"]
        if after is not None:
            conditions.append(f"{self._key()} > {self._row(after)}")
        if upto is not None:
            conditions.append(f"{self._key()} <= {self._row(upto)}")
        return " AND ".join(conditions)

    def _key(self) -> str:
        return f"({quote_list(column.name for column in self.key)})"

    def _row(self, key: KeyText) -> str:
        values = (f"{quote_literal(v)}::{column.type.sql}" for v, column in zip(key, self.key, strict=True))
        return f"({', '.join(values)})"


async def current_snapshot(connection: Connection) -> SnapshotIds:
    """What a snapshot that is taken now sees: of the transaction that is open, or else of this statement."""
    with source_errors("take a snapshot"):
        cursor = await connection.execute("SELECT pg_current_snapshot()::text")
        row = await cursor.fetchone()
    if row is None:
        raise SourceUnavailable("the source did not give a snapshot")
    return SnapshotIds.parse(row[0])


async def begin(connection: Connection, schema: str, name: str, *, import_from: str | None = None) -> SnapshotIds:
    """Open the transaction of a chunk; returns what its snapshot sees. The caller ends it.

    ``import_from`` names an exported snapshot that is used instead of a new one.

    Raises `Rewritten` when this snapshot does not show the rows of the table, `cdc.errors.SetupError` when there is no
    such table, `SourceUnavailable` when DDL on it keeps us waiting.
    """
    table = quote_qualified(schema, name)
    with source_errors(f"read a chunk of {schema}.{name}"):
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if import_from is not None:
            await connection.execute(f"SET TRANSACTION SNAPSHOT {quote_literal(import_from)}".encode())
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'".encode())
    snapshot = await current_snapshot(connection)
    with source_errors(f"read a chunk of {schema}.{name}"):
        # Without ONLY: the partitions of a partitioned table, too.
        await connection.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE".encode())
        try:
            parameters = {"table": table, "leaves": None, "names": None, "numbers": None}
            cursor = await connection.execute(statements.load("source", "copy_is_readable"), parameters)
            row = await cursor.fetchone()
        except psycopg.errors.UndefinedTable:
            raise Rewritten from None
    if row is None or row[0] is not True:
        raise Rewritten
    return snapshot


async def find_upper_bound(connection: Connection, read: TableRead, after: KeyText | None, rows: int) -> KeyText | None:
    """The key of the last row of a chunk of ``rows`` rows behind ``after``; `None`: it is the last chunk."""
    with source_errors(f"find the end of a chunk of {read.schema}.{read.name}"):
        cursor = await connection.execute(read.upper_bound(after, rows).encode())
        row = await cursor.fetchone()
    return None if row is None else tuple(row)


@dataclass(frozen=True, slots=True)
class Watermark:
    """The mark of one chunk: whose it is, and an id that is drawn for each."""

    pipeline: str
    key: str
    target: str
    table: str
    chunk: str

    def content(self) -> str:
        """What the logical message holds."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


async def emit(connection: Connection, watermark: Watermark) -> None:
    """Write the mark, in autocommit mode: committed when this returns."""
    with source_errors("write a watermark"):
        await connection.execute(
            statements.load("source", "emit_watermark"), {"prefix": PREFIX, "content": watermark.content()}
        )


def parse(content: bytes) -> Watermark:
    """Read the content of a logical message with prefix `PREFIX`. Raises `ProtocolError` when it is none of ours."""
    try:
        fields = json.loads(content)
        return Watermark(*(str(fields[name]) for name in Watermark.__slots__))
    except (ValueError, TypeError, KeyError):
        raise ProtocolError(
            f"a logical message with prefix {PREFIX} is not a watermark: does another program use this prefix?"
        ) from None
