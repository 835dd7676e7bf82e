"""Rows on their way into a table: the bytes of ``COPY … FROM STDIN (FORMAT binary)``.

PostgreSQL's manual, "COPY", "Binary Format": a signature and two int32, per row an int16 number of fields and the
fields, an int16 -1 at the end. Fields arrive in exactly that form from the source, so encoding is joining. The streams
below are generators: rows are read while the server takes in those before them, and memory holds one chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from struct import Struct

from cdc.changes.row_reader import Fields, FormatChanged, RowReader
from cdc.pgoutput.tuples import UNCHANGED, UnexpectedFormat

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

CHUNK_BYTES = 256 * 1024
"""How much is handed to the connection at once. Between two chunks the other tasks of the worker get their turn, so
this bounds how long they wait (some 10 ms of encoding); smaller chunks cost more calls and gain nothing."""

_COUNT = Struct(">H")
_ORDINAL = Struct(">Hiq")


class NotSent(Exception):
    """A row that must be whole lacks a value (an insert with an unchanged TOASTed value). Control flow."""


async def messages_stream(stretches: Iterable[tuple[RowReader, Sequence[bytes]]], columns: int) -> AsyncIterator[bytes]:
    """Encode the new rows of insert messages, as they are. A stretch is read in one go (`cdc.target.steps.stretched`).

    Raises `NotSent`, `FormatChanged`, and `ProtocolError` for bytes that are none of pgoutput's.
    """
    prefix = _COUNT.pack(columns)
    pieces = [HEADER]
    append, size = pieces.append, 0
    for reader, messages in stretches:
        try:
            for fields in reader.new_rows(messages):
                if UNCHANGED in fields:
                    raise NotSent
                append(prefix)
                pieces += fields
        except UnexpectedFormat as error:
            raise FormatChanged(reader.relation, error.column_index) from None
        size += sum(map(len, messages))
        if size > CHUNK_BYTES:
            yield b"".join(pieces)
            pieces.clear()
            size = 0
            await asyncio.sleep(0)
    append(TRAILER)
    yield b"".join(pieces)


async def rows_stream(
    rows: Iterable[Fields], columns: int, *, first_ordinal: int | None = None
) -> AsyncIterator[bytes]:
    """Encode rows of fields; with ``first_ordinal`` for staging, an ordinal counted from there in front of each."""
    pieces = [HEADER]
    prefix = _COUNT.pack(columns)
    size = 0
    for number, fields in enumerate(rows, first_ordinal or 0):
        row = b"".join(fields)
        pieces.append(prefix if first_ordinal is None else _ORDINAL.pack(columns + 1, 8, number))
        pieces.append(row)
        size += len(row)
        if size > CHUNK_BYTES:
            yield b"".join(pieces)
            pieces.clear()
            size = 0
            await asyncio.sleep(0)
    pieces.append(TRAILER)
    yield b"".join(pieces)
