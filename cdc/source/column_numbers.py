"""Which columns tables of the source have now, by number. See `cdc.changes.column_numbers`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cdc import statements
from cdc.changes.column_numbers import ColumnNumbers
from cdc.lsn import Lsn
from cdc.source.connection import Connection, source_errors


@dataclass(frozen=True, slots=True)
class ColumnsSeen:
    """The columns of tables, by the table's oid. What had made them so was committed before ``lsn``."""

    lsn: Lsn
    tables: Mapping[int, ColumnNumbers]


NOTHING_SEEN = ColumnsSeen(Lsn(0), {})
"""Before the first look."""


async def read_column_numbers(connection: Connection, tables: Collection[int]) -> ColumnsSeen:
    """Ask for the columns of tables (oids), in one query. A table that is gone is not in the answer."""
    if not tables:
        return NOTHING_SEEN
    with source_errors("ask which columns its tables have"):
        cursor = await connection.execute(statements.load("source", "column_numbers"), {"tables": sorted(tables)})
        rows = await cursor.fetchall()
    return ColumnsSeen(
        max((Lsn.parse(str(lsn)) for *_, lsn in rows), default=Lsn(0)),
        {oid: ColumnNumbers(numbers, frozenset(computed)) for oid, numbers, computed, _ in rows},
    )
