"""How the stand-in sends an archive: whole, in ranges, slowly, cut, or not at all."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.scalingo.asgi import Request, Response
from tests.scalingo.faults import Downloads

_CHUNK_BYTES = 16 * 1024


@dataclass
class Address:
    """A download address that was given out."""

    archive: Path
    given_at: float
    uses: int = 0


def send_archive(request: Request, address: Address | None, downloads: Downloads) -> Response:
    """The answer to a download."""
    if "authorization" in request.headers:
        # As object stores do: an address that is signed, and a header beside it.
        return Response(400, "Only one auth mechanism allowed")
    if address is None or _has_expired(address, downloads):
        return Response(downloads.expired_status, "<Error><Code>AccessDenied</Code></Error>")
    if downloads.refuse:
        return Response(downloads.refuse.popleft(), "later")
    address.uses += 1
    size = address.archive.stat().st_size
    headers = {"content-type": "application/octet-stream"}
    tag = f'"{address.archive.name}-{address.archive.stat().st_mtime_ns}"'
    if downloads.has_etag:
        headers["etag"] = tag
    begin = 0
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if downloads.knows_ranges and asked and request.headers.get("if-range", tag) == tag:
        begin = int(asked[1])
        if begin >= size:
            return Response(416, "", {"content-range": f"bytes */{size}"})
        headers["content-range"] = f"bytes {begin}-{size - 1}/{size}"
    if downloads.has_length:
        headers["content-length"] = str(size - begin)
    return Response(206 if begin else 200, headers=headers, chunks=_chunks(address.archive, begin, downloads))


def _has_expired(address: Address, downloads: Downloads) -> bool:
    is_used_up = downloads.uses is not None and address.uses >= downloads.uses
    return is_used_up or time.monotonic() - address.given_at > downloads.address_lifetime_s


def _next(counts: deque[int]) -> int | None:
    return counts.popleft() if counts else None


async def _chunks(archive: Path, begin: int, downloads: Downloads) -> AsyncIterator[bytes]:
    """The bytes from ``begin`` on; an empty chunk asks for the connection to be cut."""
    cut, stall = _next(downloads.cut_after), _next(downloads.stall_after)
    ends = [count for count in (cut, stall) if count is not None]
    left = min(ends) if ends else None
    with archive.open("rb") as file:
        file.seek(begin)
        while chunk := file.read(_CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES)):
            yield chunk
            if left is not None:
                left -= len(chunk)
            if downloads.bytes_per_s is not None:
                await asyncio.sleep(len(chunk) / downloads.bytes_per_s)
            if left == 0:
                break
    if left is not None:
        if stall is not None:
            await asyncio.sleep(3600)
        yield b""
