"""Which file each table of the source is in: the way to see that a backup may have missed a table's rows (hazard 23).

A rewrite (`ALTER TYPE`, a volatile default) and a TRUNCATE give a table another file, and neither is MVCC-safe: a dump
whose snapshot is older reads no rows of it, without an error. Who compares the files before the backup began with those
afterwards sees every table to which that may have happened; VACUUM FULL and CLUSTER look the same, and harm nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from cdc import statements
from cdc.source.connection import Connection, source_errors


@dataclass(frozen=True, slots=True)
class Filenode:
    """A table's oid (``pg_class.oid``), the number of its file (``pg_relation_filenode``), and that of its attributes.

    Dropped ones count, too: a column that is dropped and added again, with nothing but its values lost, adds one.
    """

    oid: int
    filenode: int
    attributes: int


async def read_filenodes(connection: Connection) -> dict[str, Filenode]:
    """Every permanent table of users, by ``schema.table``. One that is being created or dropped may be missing."""
    with source_errors("read the files of its tables"):
        cursor = await connection.execute(statements.load("source", "filenodes"))
        rows = await cursor.fetchall()
    return {name: Filenode(oid, file, attributes) for name, oid, file, attributes in rows if file is not None}
