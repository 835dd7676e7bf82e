"""Rows that stay at the target after the source has deleted them (``deletes = "keep"``).

A route may name a column of the target's table that notes the *time* of the deletion, the commit's at the source; it is
NULL in every other row. What becomes of a row does not depend on how changes are batched:

- A delete notes the time in the row, or does nothing where no column notes it. So does TRUNCATE, for every row that is
  not noted as deleted yet.
- An insert of a key that the source uses again overwrites the row that stayed, and takes the time away. A row that is
  there and not noted as deleted is a contradiction, as ever; where nothing notes it nobody can tell, and an insert
  takes the place of whatever row is there.
- A change of the key moves the row, which was not deleted: nothing stays under its old key. A deleted row under its
  new key is replaced.
- An update or a delete finds rows that are not noted as deleted, only; it is an error if there is none. Where nothing
  notes it a delete is not looked at, and an update finds whatever row has the key.
- A row that the source inserts and deletes stays, too, be it in one transaction or in two: what a transaction did
  within itself is applied like everything else.
- Where rows are matched by all their values, a delete notes exactly one row of those that are equal and not noted yet.
  An insert is then a row of its own, whatever stayed.

The source's unique indexes besides the key do not hold over rows that stayed: `cdc` makes them over the others only,
or not at all (cdc.bootstrap.table_definitions).
"""

from __future__ import annotations

import asyncpg

from cdc.target import dml, overlap
from cdc.target.rejection import Guard
from cdc.target.row_counts import check_count, row_count
from cdc.target.table_shape import TableShape


async def insert(
    connection: asyncpg.Connection, guard: Guard, shape: TableShape, stage: str, low: int, high: int
) -> None:
    """Insert staged rows; each takes the place of a deleted row of its key. Raises `Refused` for a key that is live."""
    if shape.deleted_at is None:
        await overlap.upsert(connection, guard, shape, stage, low, high)
        return
    changed = 0
    for sql in dml.insert_over_deleted(shape, stage, low, high):
        with guard(shape):
            changed += row_count(await connection.execute(sql))
    check_count(shape, changed, high - low + 1)
