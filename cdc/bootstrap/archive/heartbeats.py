"""Which heartbeat of each pipeline a backup holds: what joins it to the stream.

The row of a pipeline in ``cdc.heartbeat`` (cdc.source.heartbeat) is in a backup like any other, as the backup's
snapshot saw it. Columns are taken by their names in the archive's COPY statement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from cdc.bootstrap.archive.copy_statement import copy_columns
from cdc.bootstrap.archive.rows import Archive, read_rows
from cdc.errors import SetupError

_COLUMNS = ("pipeline", "count", "at", "incarnation", "system_identifier")

_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)

_MEANS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
"""What stands behind a backslash in COPY's text format (PostgreSQL's manual, COPY); others stand for themselves."""


@dataclass(frozen=True, slots=True)
class BackupHeartbeat:
    """The last heartbeat of a pipeline that a backup holds, and the server that the heartbeat's row was written on.

    ``table_oid`` is the oid that the table ``cdc.heartbeat`` has in the database that was backed up.
    """

    pipeline: str
    count: int
    at: datetime
    incarnation: UUID
    system_identifier: str
    table_oid: int


async def read_heartbeats(archive: Archive) -> dict[str, BackupHeartbeat]:
    """The heartbeats in an archive, by pipeline; none when it does not hold the table ``cdc.heartbeat``.

    Raises `SetupError` when they cannot be read.
    """
    entry = archive.toc.table_data("cdc", "heartbeat")
    if entry is None:
        return {}
    columns = copy_columns(entry)
    async with aclosing(read_rows(archive, entry)) as chunks:
        data = b"".join([chunk async for chunk in chunks])
    try:
        places = [columns.index(name) for name in _COLUMNS]
        found = [_heartbeat([row[place] for place in places], entry.oid) for row in parse_rows(data)]
    except (ValueError, TypeError, IndexError):
        raise SetupError(
            f"the archive {archive.path} holds a table cdc.heartbeat that is not one of this version of cdc"
        ) from None
    return {heartbeat.pipeline: heartbeat for heartbeat in found}


def parse_rows(data: bytes) -> Iterator[list[str | None]]:
    """The values of rows in COPY's text format, decoded. For small tables: a row of many costs microseconds."""
    for row in data.split(b"\n")[:-1]:
        yield [None if field == b"\\N" else _unescape(field).decode() for field in row.split(b"\t")]


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: _MEANS.get(match[1], match[1]), field)


def _heartbeat(values: list[str | None], table_oid: int) -> BackupHeartbeat:
    pipeline, count, at, incarnation, system_identifier = values
    if pipeline is None or count is None or at is None or incarnation is None or system_identifier is None:
        raise ValueError
    moment, drawn = datetime.fromisoformat(at), UUID(incarnation)
    return BackupHeartbeat(pipeline, int(count), moment, drawn, system_identifier, table_oid)
