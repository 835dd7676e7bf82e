"""The archive of a backup, from the provider to a file from which rows can be restored.

`download` streams the provider's tar.gz straight into `cdc.bootstrap.archive.extract`, because the disk holds little:
only the `pg_dump` archive that is in it is kept. What it promises:

- a connection that is cut or stalls goes on where it stopped: with a range request where the server knows these (RFC
  9110, section 14; ``If-Range``, so that a range is never one of another file), else by skipping what is there already;
- the number of tries begins anew with every byte that arrives, so that a long download may be cut often;
- an address that has expired is asked for again;
- a file has its name only when it is complete, and then is not downloaded again.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path

import aiohttp
import tenacity
from pydantic import SecretStr
from yarl import URL

from cdc.bootstrap.archive.extract import extract
from cdc.bootstrap.backups import Backup, Backups
from cdc.bootstrap.progress import Progress, human_bytes
from cdc.bootstrap.provider_http import Unanswered, backoff_s, open_session, retry_after_s, unanswered
from cdc.errors import BackupUnavailable, CdcError, SetupError, TransientError
from cdc.observe import logs

STALL_S = 60.0
"""A connection that brings nothing for so long is given up and opened anew."""

WHOLE_TRIES = 3
"""Downloads from the beginning, of an archive that turns out broken although nothing was cut, or that was replaced: a
backup that is really broken stays so, and may be a hundred gigabytes."""

_EXPIRED = {401, 403, 404, 410}
"""What a server answers to an address that is too old, and also to one that is wrong."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_READ_BYTES = 1024 * 1024


def archive_file(directory: Path, backup: str) -> Path:
    """Where the archive of a backup (its id) is kept."""
    return directory / (re.sub(r"[^A-Za-z0-9_-]", "_", backup) + ".pgsql")


async def download(backups: Backups, backup: Backup, *, directory: Path, progress: Progress) -> Path:
    """The ``pg_dump`` archive of a backup that is done, as ``<directory>/<id of the backup>.pgsql``, mode 0600.

    The directory is created where it is missing. When it returns, the file is complete; a file of that name that was
    there already is complete, too, and taken as it is.

    Raises:
        BackupUnavailable: nothing arrives any more, after as many tries as ``bootstrap.max_retry_count`` allows.
        SetupError: the provider refuses, the archive is none, or the disk is full.
    """
    file = archive_file(directory, backup.id)
    partial = file.with_suffix(".part")
    if await asyncio.to_thread(file.exists):
        progress.say(f"backup {backup.id} was downloaded before: {file}")
        return file
    async with open_session() as session:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_begins_anew),
            wait=lambda state: backoff_s(state.attempt_number - 1),
            stop=tenacity.stop_after_attempt(WHOLE_TRIES),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                stream = _Stream(backups, backup, session, progress)
                try:
                    await asyncio.to_thread(_empty, partial)
                    async with aclosing(stream.chunks()) as chunks:
                        extracted = await extract(chunks, partial)
                    await asyncio.to_thread(extracted.replace, file)
                except OSError as error:
                    raise SetupError(
                        f"{directory}: {error.strerror}; a backup is kept there while it is restored, "
                        "bootstrap.directory names another place"
                    ) from None
                finally:
                    await stream.close()
                    await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
    if backup.size is not None and backup.size != stream.done:
        progress.say(
            f"backup {backup.id}: {human_bytes(stream.done)} were downloaded, Scalingo says {human_bytes(backup.size)}"
        )
    return file


def _begins_anew(error: BaseException) -> bool:
    """Whether to begin with the first byte: not where nothing arrives, which has been tried often enough."""
    return isinstance(error, TransientError) and not isinstance(error, Unanswered)


def _empty(directory: Path) -> None:
    """An empty directory that only we can read."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)


class _Stream:
    """The bytes of one archive, in order, each once, over as many connections as it takes."""

    def __init__(self, backups: Backups, backup: Backup, session: aiohttp.ClientSession, progress: Progress) -> None:
        self.done = 0
        self._backups = backups
        self._backup = backup
        self._session = session
        self._progress = progress
        self._log = logs.get(component="download", backup=backup.id)
        self._address: SecretStr | None = None
        self._validator: str | None = None
        self._total: int | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._to_skip = 0

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The archive, in pieces of some size."""
        while chunk := await self._next():
            self.done += len(chunk)
            self._progress.download(self.done, self._total)
            yield chunk

    async def close(self) -> None:
        """Give the connection up."""
        if self._response is not None:
            self._response.close()
            self._response = None

    async def _next(self) -> bytes:
        """The next piece; empty at the end."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unanswered),
            wait=_wait_s,
            stop=tenacity.stop_after_attempt(self._backups.config.max_retry_count),
            before_sleep=self._say_cut,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                if self._address is None:
                    self._address = await self._backups.archive_url(self._backup)
                address = URL(self._address.get_secret_value(), encoded=True)
                try:
                    async with asyncio.timeout(STALL_S):
                        return await self._read(address)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    failure = unanswered(error, address)
                await self.close()
                # Outside the handler: aiohttp's error knows the address, which is a secret.
                raise failure
        raise AssertionError("tenacity either returns or raises")

    async def _read(self, address: URL) -> bytes:
        while True:
            if self._response is None:
                self._response = await self._open(address)
            if self._response.status == 416:
                return b""
            chunk = await self._response.content.read(_READ_BYTES)
            skipped = min(self._to_skip, len(chunk))
            self._to_skip -= skipped
            if not chunk or skipped < len(chunk):
                return chunk[skipped:]

    async def _open(self, address: URL) -> aiohttp.ClientResponse:
        """A connection whose body goes on at or before what is done."""
        headers = {"Accept-Encoding": "identity"}
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if self._validator is not None:
                headers["If-Range"] = self._validator
        response = await self._session.get(
            address,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=STALL_S),
            read_bufsize=_READ_BYTES,
        )
        try:
            self._judge(response.status, response.headers)
        except CdcError:
            response.close()
            raise
        return response

    def _judge(self, status: int, headers: Mapping[str, str]) -> None:
        """Refuse what is not the archive, and note how much of the body that follows is here already."""
        name = f"backup {self._backup.id}"
        if status in _EXPIRED:
            self._address = None
            raise Unanswered(f"the address of {name} is not valid any more (HTTP {status})")
        if status == 429 or status >= 500:
            raise Unanswered(
                f"the download of {name} is refused for now (HTTP {status})", wait_s=retry_after_s(headers)
            )
        if status == 416 and headers.get("Content-Range") == f"bytes */{self.done}":
            return  # it had been cut behind its last byte
        if status not in (200, 206, 416) or (status != 200 and not self.done):
            raise SetupError(f"the download of {name} is refused (HTTP {status})")
        begin, total = _extent(status, headers)
        validator = _validator(headers)
        has_changed = (
            begin > self.done
            or (None not in (self._total, total) and self._total != total)
            or (None not in (self._validator, validator) and self._validator != validator)
        )
        if has_changed:
            raise BackupUnavailable(f"the archive of {name} has changed while it was downloaded")
        self._total = self._total if total is None else total
        self._validator = self._validator if validator is None else validator
        self._to_skip = self.done - begin

    def _say_cut(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self._log.warning("the download is interrupted and goes on", bytes=self.done, error=error)


def _extent(status: int, headers: Mapping[str, str]) -> tuple[int, int | None]:
    """Where in the archive a body begins, and the archive's length where the server tells.

    A body that does not say where it begins cannot be joined to anything: it counts as one of another archive.
    """
    length = headers.get("Content-Length", "")
    if status == 200:
        return 0, int(length) if length.isdigit() else None
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if found is None:
        raise BackupUnavailable("the server of the backups does not say which part of the archive it sends")
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _validator(headers: Mapping[str, str]) -> str | None:
    """What tells one version of a file from another: a strong ``ETag``, or when it was modified (RFC 9110, 13.1.5)."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _wait_s(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait_s if isinstance(error, Unanswered) else None
    return backoff_s(state.attempt_number - 1) if asked is None else asked
