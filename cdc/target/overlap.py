"""Overlap mode: changes streamed over rows that may hold them already (DESIGN, section 5).

A table that was restored from a backup holds the source as the backup's snapshot saw it, and the stream begins before
that: it brings again what the table holds, and goes on with what it lacks. Nobody knows where the one ends and the
other begins. So every change is applied in such a way that once the stream has passed the snapshot, each row is what
it was in the source. Why that is so, for a key whose row in the snapshot is R:

- If nothing brought R to its key since the stream began, every change of the key since then is an update of R. What an
  update sends is set; what it does not send (unchanged TOAST values, hazard 6) is R's own.
- If an insert brought it, or a change of the key that sends all values, the row is written as a whole: an *upsert*.
  Rows that were there before it under the same key are of no account; updates and deletes of theirs may find nothing.
- If a change of the key from k to k2 brought it that lacks values, these must come from R. Before that change nobody
  had k2 in the source: whatever the stream did to k2 before has removed the target's row, or noted its deletion. So if
  k2 is there, and not noted, the stream has not touched it, and it is the snapshot's: R, or a row that comes to k2
  later in a way that is listed here, too. *k2 takes what was sent and keeps the rest, and k goes.*
- If k2 is not there, the rows cannot tell what to do. Either the snapshot is older than the change, and k is R, to be
  moved. Or it is newer, and R was under k2 until the stream removed it, or is under a third key by now, while k is
  another row that has taken the old key: to move it would give R the values of that row, without an error. (Rows that
  exchange their keys, or move up by one, do that.) Such a change is `Reason.UNDECIDED`: the table has to be copied
  live. So it is if k2 is there where deleted rows stay and nothing notes which: it may be one that stayed.
- Where two rows of the source may hold one key for a while (`TableShape.shares_keys`), and the target's row must live
  on, k2 may be another row that is still to move, not R. If k is there as well, the change is `Reason.UNDECIDED`,
  whatever it sends; and so is a change of a row whose place an insert has taken (`TableShape.takes_places`).

A row that is noted as deleted does not count, and makes way for one that moves to its key.

"Older" and "newer" hold for the changes of each key and each row by themselves, since those wait for each other at the
source: a snapshot sees all of them up to some point, also where it misses an earlier commit of other rows (hazard 22).

The functions run in the caller's transaction, on rows that are staged. They raise `Refused`, and `Unfit`.
"""

from __future__ import annotations

from collections.abc import Collection

import asyncpg

from cdc.target import dml
from cdc.target.rejection import Guard, Reason, Refused
from cdc.target.row_counts import check_count, row_count
from cdc.target.table_shape import TableShape


async def upsert(
    connection: asyncpg.Connection, guard: Guard, shape: TableShape, stage: str, low: int, high: int
) -> None:
    """Insert whole rows, or give their values to the rows that have their keys."""
    expected = high - low + 1
    await _execute(connection, guard, shape, dml.renew(shape, stage, (), low, high))
    if shape.key_is_arbiter:
        changed = await _execute(connection, guard, shape, dml.upsert(shape, stage, low, high))
    else:
        changed = await _execute(connection, guard, shape, dml.update(shape, stage, (), low, high))
        changed += await _execute(connection, guard, shape, dml.insert(shape, stage, low, high))
    # Where no column can be set, a row that is there is not counted.
    check_count(shape, changed, expected, may_fall_short=dml.update(shape, stage, (), low, high) is None)


async def update(
    connection: asyncpg.Connection,
    guard: Guard,
    shape: TableShape,
    stage: str,
    unchanged: Collection[int],
    low: int,
    high: int,
) -> None:
    """Update rows, except for the places ``unchanged``; a row that is not there is left alone."""
    await _execute(connection, guard, shape, dml.renew(shape, stage, unchanged, low, high))
    changed = await _execute(connection, guard, shape, dml.update(shape, stage, unchanged, low, high))
    check_count(shape, changed, high - low + 1, may_fall_short=True)


async def delete(
    connection: asyncpg.Connection, guard: Guard, shape: TableShape, stage: str, low: int, high: int
) -> None:
    """Delete rows; one that is not there is no error. Where deleted rows stay, note it, if anything does."""
    if shape.keeps_deleted and shape.deleted_at is None:
        return
    changed = await _execute(connection, guard, shape, dml.delete(shape, stage, low, high))
    check_count(shape, changed, high - low + 1, may_fall_short=True)


async def change_key(
    connection: asyncpg.Connection,
    guard: Guard,
    shape: TableShape,
    stage: str,
    unchanged: Collection[int],
    ordinal: int,
    *,
    is_read_again: bool = False,
) -> None:
    """Apply one staged change of a key from the old to the new one.

    Raises `Refused` with `Reason.UNDECIDED` where values are not sent and the new key is not there; but a row that
    ``is_read_again`` at its new key (`cdc resync`) is moved if it is there, because what it lacks comes later.
    """
    if not unchanged and not shape.keeps_rows:
        await _execute(connection, guard, shape, dml.delete_old(shape, stage, ordinal, ordinal, but_new=False))
        await upsert(connection, guard, shape, stage, ordinal, ordinal)
        return
    with guard(shape):
        is_there = await connection.fetchval(dml.key_exists(shape, stage, ordinal, ordinal))
        was_there = (
            is_there
            and shape.shares_keys
            and await connection.fetchval(dml.key_exists(shape, stage, ordinal, ordinal, old=True))
        )
    may_have_stayed = is_there and unchanged and shape.keeps_deleted and shape.deleted_at is None
    if (was_there or may_have_stayed) and not is_read_again:
        raise Refused(shape, Reason.UNDECIDED)
    if is_there:
        await _execute(connection, guard, shape, dml.delete_old(shape, stage, ordinal, ordinal, but_new=True))
        sql = dml.take_over(shape, stage, unchanged, ordinal, ordinal)
    elif unchanged and not is_read_again:
        raise Refused(shape, Reason.UNDECIDED)
    else:
        if shape.clears_the_way:
            await _execute(connection, guard, shape, dml.delete_in_the_way(shape, stage, ordinal, ordinal))
        sql = dml.change_key(shape, stage, unchanged, ordinal, ordinal)
    changed = await _execute(connection, guard, shape, sql)
    check_count(shape, changed, 1, may_fall_short=True)
    if changed or is_there:
        await _execute(connection, guard, shape, dml.renew(shape, stage, unchanged, ordinal, ordinal))
    elif not unchanged:
        await upsert(connection, guard, shape, stage, ordinal, ordinal)


async def _execute(connection: asyncpg.Connection, guard: Guard, shape: TableShape, sql: str | None) -> int:
    """Run a statement, if there is one; the number of rows that it changed."""
    if sql is None:
        return 0
    with guard(shape):
        return row_count(await connection.execute(sql))
