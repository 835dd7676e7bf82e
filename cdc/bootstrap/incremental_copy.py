"""One range of a table whose target keeps its rows: what the target lacks of it is found, and collected.

Where the key is one integer, its keys are counted on both sides first, at the source under the snapshot; only parts
that differ are read. Counting spends nothing of the pace that was asked for, which is one of rows: it reads an index.
"""

from __future__ import annotations

import psycopg

from cdc.bootstrap.copying import Job, SnapshotTooOld, TargetAccess
from cdc.bootstrap.incremental_plan import Lacking
from cdc.bootstrap.incremental_ranges import Digest, KeyRange, KeyRanges, Part, differing, digests_sql, merged
from cdc.bootstrap.plan import TableCopy
from cdc.identifiers import quote, quote_qualified
from cdc.source import connection as source
from cdc.target import session as target


async def copy_lacking(
    job: Job, access: TargetAccess, copy: TableCopy, lacking: Lacking, part: Part, snapshot: str
) -> tuple[int, int]:
    """Collect what the target lacks of one range; returns how many rows that are, and the bytes that were read.

    They are durable in the staging table when it returns. Raises what `Job.copy` raises.
    """
    if isinstance(part, KeyRanges):
        found = await _compare(job, access, copy, lacking, part.ranges, snapshot)
        if not found:
            return 0, 0
        part = KeyRanges(part.column, found)
    return await job.copy(access, copy, part, snapshot, lacking.destination(copy))


async def _compare(
    job: Job,
    access: TargetAccess,
    copy: TableCopy,
    lacking: Lacking,
    ranges: tuple[KeyRange, ...],
    snapshot: str,
) -> tuple[KeyRange, ...]:
    """Those parts of the ranges in which the source has keys that the target may lack."""
    assert lacking.source_key is not None  # or there are no ranges of keys
    here = f"ONLY {quote_qualified(copy.route.source_schema, copy.route.source_table)}", quote(lacking.source_key)
    there = lacking.rows, quote(lacking.key[0])
    name = copy.route.source_name

    async def look(connection: source.Connection, session: target.Session) -> tuple[KeyRange, ...]:
        pending, found = list(ranges), list[KeyRange]()
        while pending:
            one = pending.pop()
            with source.source_errors(f"count the keys of {name}"):
                try:
                    cursor = await connection.execute(digests_sql(*here, one).encode())
                except psycopg.errors.UndefinedColumn:
                    raise SnapshotTooOld(f"{name}: a column is gone") from None
                ours = {number: Digest(*rest) for number, *rest in await cursor.fetchall()}
            with target.target_errors(f"counting the keys of {copy.route.target_name}", session.where):
                rows = await session.connection.fetch(digests_sql(*there, one)) if ours else []
            copied, compared = differing(one, ours, {number: Digest(*rest) for number, *rest in rows})
            found += copied
            pending += compared
        return merged(found)

    return await job.ask(access, copy, snapshot, look)
