"""Rows on their way into a table: the bytes of ``COPY … FROM STDIN (FORMAT binary)``.

PostgreSQL's manual, "COPY", "Binary Format": a signature and two int32, per row an int16 number of fields and the
fields, an int16 -1 at the end. Fields arrive in exactly that form from the source, so encoding is joining. The streams
below are generators: rows are read while the server takes in those before them, and memory holds one chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from struct import Struct

from cdc.changes.packed_folding import EncodedRows
from cdc.changes.row_reader import Fields, FormatChanged, RowReader
from cdc.pgoutput.compiled import is_compiled
from cdc.pgoutput.tuples import UNCHANGED, UnexpectedFormat
from cdc.target.shared_encoding import SharedEncoding
from cdc.target.steps import PackedPiece

if is_compiled():
    from cdc.changes import _rows

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

CHUNK_BYTES = 256 * 1024
"""How much is handed to the connection at once. Between two chunks the other tasks of the worker get their turn, so
this bounds how long they wait (some 10 ms of encoding); smaller chunks cost more calls and gain nothing."""

_COUNT = Struct(">H")
_ORDINAL = Struct(">Hiq")


_SHARED = SharedEncoding()


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


async def packed_stream(pieces: Iterable[PackedPiece], columns: int) -> AsyncIterator[bytes]:
    """Encode the rows of packed pieces that hold nothing but inserts. Raises what `messages_stream` raises."""
    waiting, size = [HEADER], 0
    for piece in pieces:
        is_shared = piece.rows.block.is_shared
        shared = _SHARED.find(piece.rows) if is_shared else None
        encoded: list[bytes] = []
        for chunk in _encoded_pieces(piece, columns) if shared is None else shared:
            if is_shared and shared is None:
                encoded.append(chunk)
            waiting.append(chunk)
            size += len(chunk)
            if size > CHUNK_BYTES // 2:
                yield b"".join(waiting)
                waiting, size = [], 0
                await asyncio.sleep(0)
        if encoded:
            _SHARED.keep(piece.rows, encoded)
    waiting.append(TRAILER)
    yield b"".join(waiting)


def _encoded_pieces(piece: PackedPiece, columns: int) -> Iterator[bytes]:
    position = 0
    while position >= 0:
        data, position, is_stuck = _rows.encode_inserts(piece.rows, position, CHUNK_BYTES, columns)
        yield data
        if is_stuck:
            # The reader knows what is wrong, or how to read it.
            yield _encode_one(piece, position, columns)
            position = _rows.behind(piece.rows, position)


def _encode_one(piece: PackedPiece, position: int, columns: int) -> bytes:
    block = piece.changes.block
    relation, message = block.row(position - 1)
    reader = piece.plans[block.relations[relation]].reader
    try:
        (fields,) = reader.new_rows([message])
    except UnexpectedFormat as error:
        raise FormatChanged(reader.relation, error.column_index) from None
    if UNCHANGED in fields:
        raise NotSent
    return _COUNT.pack(columns) + b"".join(fields)


async def _encoded_stream(rows: EncodedRows, first_ordinal: int | None) -> AsyncIterator[bytes]:
    row, prefix = rows.first, HEADER
    while True:
        ordinal = None if first_ordinal is None else first_ordinal + row - rows.first
        data, row = rows.encode(row, prefix, CHUNK_BYTES, ordinal)
        prefix = b""
        if row >= rows.behind:
            yield data + TRAILER
            return
        yield data
        await asyncio.sleep(0)


def size_of(rows: Sequence[Fields] | EncodedRows) -> int:
    """About the bytes of the rows' values, once they are encoded: by the first, the middle and the last row."""
    if isinstance(rows, EncodedRows):
        return rows.size
    if not rows:
        return 0
    sample = [rows[0], rows[len(rows) // 2], rows[-1]]
    return len(rows) * sum(sum(map(len, row)) for row in sample) // len(sample)


async def rows_stream(
    rows: Iterable[Fields] | EncodedRows, columns: int, *, first_ordinal: int | None = None
) -> AsyncIterator[bytes]:
    """Encode rows of fields; with ``first_ordinal`` for staging, an ordinal counted from there in front of each."""
    if isinstance(rows, EncodedRows):
        async for chunk in _encoded_stream(rows, first_ordinal):
            yield chunk
        return
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
