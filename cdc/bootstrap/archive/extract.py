"""A provider's archive, a ``.tar.gz`` with one dump in it: unpacked while it arrives.

Disk is small where this runs, so the ``.tar.gz`` itself is never stored: its bytes go through a pipe to a thread that
unpacks them (`tarfile` and `gzip` block), and what the thread has not taken holds the download up. Of the member's
path, which may be absolute, only the last part is used: nothing is ever written outside the given directory. The file
is readable by us alone, and has its name only when it is complete and gzip's checksum was right.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from cdc.errors import BackupUnavailable, SetupError

SUFFIX = ".pgsql"
"""What the one member of an archive ends in that is a dump."""

_GZIP = b"\x1f\x8b"
_BUFFER_BYTES = 1024 * 1024
_PIECE_BYTES = 256 * 1024


async def extract(chunks: AsyncIterable[bytes], directory: Path) -> Path:
    """Unpack the dump out of a ``.tar.gz``, whose bytes are ``chunks``, into ``directory``; returns where it is.

    A file of that name is replaced, at the end. Raises what ``chunks`` raises; `BackupUnavailable` when the archive
    breaks off or is damaged, so that it can be downloaded again; `SetupError` when it does not hold exactly one dump,
    or the disk is full. Nothing is left in the directory then.
    """
    reading, writing = os.pipe()
    unpacking = asyncio.get_running_loop().run_in_executor(None, _unpack, reading, directory)
    try:
        await _pour(chunks, writing)
    finally:
        # The pipe's end is closed, so the thread comes to its end, too.
        await asyncio.wait([unpacking])
        failure = unpacking.exception()
    if failure is not None:
        raise failure
    return unpacking.result()


async def local_archive(path: Path, directory: Path) -> Path:
    """The dump in a local file: the file itself, or, out of a ``.tar.gz``, one in ``directory``.

    Raises `SetupError` for a file that cannot be read, and for a ``.tar.gz`` that is not whole or holds no dump.
    Whether another file is an archive is left to `cdc.bootstrap.archive.toc.read_toc`.
    """
    try:
        with await asyncio.to_thread(path.open, "rb") as file:
            if await asyncio.to_thread(file.read, len(_GZIP)) != _GZIP:
                return path
            file.seek(0)
            return await extract(_chunks(file), directory)
    except IsADirectoryError:
        return path
    except BackupUnavailable:
        raise SetupError(f"{path} is cut short or damaged: copy or download it again") from None
    except OSError as error:
        raise SetupError(f"the archive {path} cannot be read: {error.strerror or type(error).__name__}") from None


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read, _BUFFER_BYTES):
        yield chunk


async def _pour(chunks: AsyncIterable[bytes], writing: int) -> None:
    """Write everything into the pipe and close it; ends early when nobody reads it any more.

    Writing blocks while the pipe is full, so it is done in a thread. It ends in any case: either the other thread goes
    on reading, or it has given up and closed its end.
    """
    loop = asyncio.get_running_loop()
    write: asyncio.Future[None] | None = None
    try:
        async for piece in _gathered(chunks):
            write = loop.run_in_executor(None, _write, writing, piece)
            await asyncio.wait([write])
            if write.exception() is not None:
                return
    finally:
        if write is not None and not write.done():
            await asyncio.wait([write])
        os.close(writing)


async def _gathered(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces that are worth the way to another thread."""
    pieces: list[bytes] = []
    size = 0
    async for chunk in chunks:
        pieces.append(chunk)
        size += len(chunk)
        if size >= _PIECE_BYTES:
            yield b"".join(pieces)
            pieces.clear()
            size = 0
    yield b"".join(pieces)


def _write(writing: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(writing, rest) :]


def _unpack(reading: int, directory: Path) -> Path:
    """Read the archive off the pipe to its end. In a thread."""
    with io.BufferedReader(io.FileIO(reading), _BUFFER_BYTES) as pipe:
        try:
            start = pipe.peek(len(_GZIP))[: len(_GZIP)]
            if start and not _GZIP.startswith(start):
                raise SetupError("the archive is no .tar.gz: it does not begin as gzip's files do")
            with gzip.GzipFile(fileobj=pipe) as unpacked:
                return _only_dump(unpacked, directory)
        except tarfile.ReadError:
            raise SetupError("the archive is no .tar.gz: what gzip has compressed is not a tar file") from None
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise BackupUnavailable("the archive breaks off or is damaged: it has to be downloaded again") from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise SetupError(
                    f"there is no room in {directory} for the unpacked archive: set bootstrap.directory to a place "
                    f"that has"
                ) from None
            raise SetupError(
                f"the archive cannot be unpacked into {directory}: {error.strerror or type(error).__name__}"
            ) from None


def _only_dump(unpacked: gzip.GzipFile, directory: Path) -> Path:
    """Write the one dump of the tar file into the directory, and read to the end, where gzip's checksum stands."""
    if not unpacked.peek(1):
        raise EOFError
    found: str | None = None
    part: Path | None = None
    try:
        with tarfile.open(fileobj=unpacked, mode="r|", bufsize=_BUFFER_BYTES) as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if not member.isfile() or not name.endswith(SUFFIX):
                    continue
                if found is not None:
                    raise SetupError(f"the archive holds several dumps ({found}, {name}, …), and one is expected")
                found, part = name, directory / f"{name}.part"
                _save(tar.extractfile(member), part)
        while unpacked.read(_BUFFER_BYTES):
            continue
        if found is None or part is None:
            raise SetupError(f"the archive holds no dump: no file in it ends in {SUFFIX}")
        return part.replace(directory / found)
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _save(content: IO[bytes] | None, path: Path) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "wb") as file:
        if content is not None:
            shutil.copyfileobj(content, file, _BUFFER_BYTES)
