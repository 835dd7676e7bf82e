r"""The rows of one archived table, as the bytes of COPY's text format.

``pg_restore`` unpacks them: asked for one entry it prints a few settings and comments, the table's COPY statement, the
rows as they were dumped, a line ``\.``, and a comment. What `read_rows` hands on is just the rows, in large chunks,
unparsed. Where they begin is known to the byte, since ``pg_restore`` prints the statement as the archive holds it, and
names in its comments cannot begin a line (``sanitize_line`` in src/bin/pg_dump/dumputils.c). Where they end is just as
certain: a value that consists of ``\.`` is written ``\\.``, because COPY escapes every backslash (PostgreSQL's
manual, COPY, "Text Format").

It promises all rows or an error: the end of the output without that line, and a ``pg_restore`` that ends with another
status than 0, raise. What it says on its standard error can quote values, so nobody reads it (invariant 8). The process
never outlives the generator; it writes into a pipe, so neither does it outlive ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from cdc.bootstrap.archive.pg_restore import PgRestore, choose_pg_restore, environment
from cdc.bootstrap.archive.toc import Toc, TocEntry, codec, read_toc
from cdc.errors import SetupError, TransientError

CHUNK_BYTES = 256 * 1024
"""About what is handed on at once, as for a live copy (cdc.bootstrap.pipe)."""

_PREAMBLE_BYTES = 1024 * 1024
"""What may come before the COPY statement. It is about a kilobyte."""

_END = b"\n\\.\n"


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive in the custom format, its table of contents, and the program that reads its rows."""

    path: Path
    toc: Toc
    pg_restore: PgRestore


def open_archive(path: Path, configured: Path | None) -> Archive:
    """Read the table of contents, and find a ``pg_restore`` (or take the configured one) that can read the rest.

    Blocks, for some tenths of a second. Raises `SetupError` for what is no archive, or damaged, and when no
    ``pg_restore`` can read it; the message says which one is needed.
    """
    toc = read_toc(path)
    return Archive(path, toc, choose_pg_restore(configured, toc, path))


async def read_rows(archive: Archive, entry: TocEntry) -> AsyncGenerator[bytes, None]:
    """The rows of one table's ``TABLE DATA`` in COPY's text format, in chunks of about `CHUNK_BYTES`.

    Each chunk ends anywhere; together they are whole lines. Close the generator (``contextlib.aclosing``) when it is
    not read to its end. Raises `SetupError` when the archive does not give the rows, `TransientError` when
    ``pg_restore`` was ended from outside.
    """
    if entry.copy_statement is None:
        raise _unreadable(archive, entry, "it does not hold them as COPY")
    statement = b"\n" + entry.copy_statement.encode(codec(archive.toc.encoding), "surrogateescape")
    async with _running(archive, entry) as (process, output):
        ends_early = False
        try:
            # The line feed that the statement ends with stays: the end of an empty table is found like any other.
            held = await _skip(output, statement)
            async for chunk in _until_end(output, held):
                yield chunk
        except EOFError:
            ends_early = True
        while await output.read(CHUNK_BYTES):
            continue
        status = await process.wait()
        if status < 0:
            raise TransientError(f"pg_restore, reading {entry.qualified_name}, was ended by signal {-status}")
        if status != 0:
            raise _unreadable(archive, entry, f"pg_restore ended with status {status}: the archive may be damaged")
        if ends_early:
            raise _unreadable(archive, entry, "pg_restore does not give them, or not all of them")


async def _skip(output: asyncio.StreamReader, statement: bytes) -> bytes:
    """Read past the COPY statement; returns what was read behind it, from its last line feed on.

    Raises ``EOFError`` where it does not come.
    """
    held = b""
    while (place := held.find(statement)) < 0:
        chunk = await _read(output)
        held += chunk
        if not chunk or len(held) > _PREAMBLE_BYTES + len(statement):
            raise EOFError
    return held[place + len(statement) - 1 :]


async def _until_end(output: asyncio.StreamReader, held: bytes) -> AsyncIterator[bytes]:
    """The rows; ``held`` is what was read already, with the line feed before the first row, which is not handed on.

    The last bytes of what was read are held back, in case the end's mark begins there. Raises ``EOFError`` where it
    does not come.
    """
    first = 1
    while (place := held.find(_END)) < 0:
        keep = len(held) - len(_END) + 1
        if keep > first:
            yield held[first:keep]
            held, first = held[keep:], 0
        chunk = await _read(output)
        if not chunk:
            raise EOFError
        held += chunk
    if place + 1 > first:
        yield held[first : place + 1]


async def _read(output: asyncio.StreamReader) -> bytes:
    """The next `CHUNK_BYTES` or a little more; less at the end. ``pg_restore`` writes 4 kB at a time."""
    pieces: list[bytes] = []
    size = 0
    while size < CHUNK_BYTES and (piece := await output.read(CHUNK_BYTES)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


@contextlib.asynccontextmanager
async def _running(
    archive: Archive, entry: TocEntry
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """A ``pg_restore`` of this one entry, and its output; the process is gone at the end of the block."""
    program = archive.pg_restore
    # Before version 12 standard output was the default, and "-" a file of that name.
    to_stdout = ["--file=-"] if program.version >= (12,) else []
    wanted = _list_of(entry)
    try:
        process = await asyncio.create_subprocess_exec(
            program.path,
            "--data-only",
            "--no-owner",
            f"--use-list=/dev/fd/{wanted}",
            *to_stdout,
            archive.path,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=CHUNK_BYTES,
            pass_fds=(wanted,),
            env=environment(),
        )
    except OSError as error:
        raise SetupError(f"{program} cannot be run: {error.strerror or type(error).__name__}") from None
    finally:
        os.close(wanted)
    assert process.stdout is not None  # it was asked for
    try:
        yield process, process.stdout
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())


def _list_of(entry: TocEntry) -> int:
    """A pipe's end from which ``pg_restore`` reads that it shall restore this entry only; only the dump id counts."""
    reading, writing = os.pipe()
    os.write(writing, f"{entry.dump_id};\n".encode())
    os.close(writing)
    return reading


def _unreadable(archive: Archive, entry: TocEntry, why: str) -> SetupError:
    return SetupError(
        f"the rows of {entry.qualified_name} cannot be read from the archive {archive.path}: {why}. Take another backup"
    )
