"""Heartbeats: one row of the source that counts up, and the same number in the stream.

A heartbeat is one transaction that updates the row of its pipeline in ``cdc.heartbeat`` and emits a logical message
with the same content. Whoever finds the message in the stream knows the source's clock at that place (hazard 21);
whoever finds the row in a backup knows which heartbeat the backup holds. The row also carries the incarnation, an id of
ours that a position is bound to (invariant 5): it is drawn once, and a source that was set up anew has another one.

`ensure` needs CREATE on the database once; `beat` needs UPDATE and SELECT on the table. The table is never published.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from cdc import statements
from cdc.errors import ProtocolError, SetupError
from cdc.identifiers import quote
from cdc.source.connection import Connection, source_errors

PREFIX = "cdc.heartbeat"
"""The prefix of the logical message."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The ``count``-th heartbeat of a pipeline, ``at`` the source's clock."""

    pipeline: str
    count: int
    at: datetime
    incarnation: UUID


async def table_oid(connection: Connection) -> int:
    """The oid of ``cdc.heartbeat``. Raises `SetupError` where there is none."""
    with source_errors("look for its table cdc.heartbeat"):
        cursor = await connection.execute("SELECT 'cdc.heartbeat'::regclass::oid::int8")
        row = await cursor.fetchone()
    assert row is not None  # a query without a table has one row
    return int(row[0])


async def ensure(connection: Connection, pipeline: str) -> Heartbeat:
    """Create schema, table and the pipeline's row where they are missing; what is there stays as it is.

    Needs CREATE on the database only while the table is missing; raises `SetupError` with the SQL otherwise.
    """
    if not await _exists(connection):
        try:
            with source_errors("create the schema cdc and the table cdc.heartbeat"):
                async with connection.transaction():
                    if not await _schema_exists(connection):
                        await connection.execute(statements.load("source", "heartbeat_schema"))
                    await connection.execute(statements.load("source", "heartbeat_table"))
        except SetupError as error:
            database, user = connection.info.dbname, connection.info.user
            error.sql = f"GRANT CREATE ON DATABASE {quote(database)} TO {quote(user)};"
            raise
    with source_errors("write the heartbeat's row"):
        await connection.execute(statements.load("source", "heartbeat_row"), {"pipeline": pipeline})
    heartbeat = await read(connection, pipeline)
    if heartbeat is None:
        raise SetupError(f"the heartbeat of pipeline {pipeline} vanished while it was set up: run `cdc setup` again")
    return heartbeat


async def read(connection: Connection, pipeline: str) -> Heartbeat | None:
    """The pipeline's last heartbeat; `None` when the source is not set up for it."""
    if not await _exists(connection):
        return None
    with source_errors("read the heartbeat"):
        cursor = await connection.execute(statements.load("source", "heartbeat_read"), {"pipeline": pipeline})
        row = await cursor.fetchone()
    return None if row is None else Heartbeat(*row)


async def beat(connection: Connection, pipeline: str) -> Heartbeat:
    """Commit the next heartbeat. Raises `SetupError` when the source is not set up for the pipeline."""
    parameters = {"pipeline": pipeline, "prefix": PREFIX}
    with source_errors("write a heartbeat"):
        cursor = await connection.execute(statements.load("source", "heartbeat_beat"), parameters)
        row = await cursor.fetchone()
    if row is None:
        raise SetupError(f"the source has no heartbeat for pipeline {pipeline}: run `cdc setup`")
    return Heartbeat(*row[:4])


def parse(content: bytes) -> Heartbeat:
    """Read the content of a logical message with prefix `PREFIX`. Raises `ProtocolError` when it is none of ours."""
    try:
        fields = json.loads(content)
        return Heartbeat(
            str(fields["pipeline"]),
            int(fields["count"]),
            datetime.fromisoformat(fields["at"]),
            UUID(fields["incarnation"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ProtocolError(
            f"a logical message with prefix {PREFIX} is not a heartbeat: does another program use this prefix?"
        ) from None


async def drop(connection: Connection, pipeline: str) -> bool:
    """Remove the pipeline's row; the table with the last row, and the schema when nothing else is in it.

    False when there was nothing to remove.
    """
    if not await _exists(connection):
        return False
    with source_errors("drop the heartbeat"):
        async with connection.transaction():
            await connection.execute("LOCK TABLE cdc.heartbeat IN ACCESS EXCLUSIVE MODE")
            cursor = await connection.execute("DELETE FROM cdc.heartbeat WHERE pipeline = %s", (pipeline,))
            remains = await connection.execute("SELECT 1 FROM cdc.heartbeat LIMIT 1")
            if await remains.fetchone() is None:
                await connection.execute("DROP TABLE cdc.heartbeat")
                if await _schema_is_empty(connection):
                    await connection.execute("DROP SCHEMA cdc")
    return cursor.rowcount > 0


async def _exists(connection: Connection) -> bool:
    with source_errors("look for the table cdc.heartbeat"):
        cursor = await connection.execute(statements.load("source", "heartbeat_exists"))
        return await cursor.fetchone() is not None


async def _schema_exists(connection: Connection) -> bool:
    cursor = await connection.execute("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = 'cdc'")
    return await cursor.fetchone() is not None


async def _schema_is_empty(connection: Connection) -> bool:
    """Nothing depends on a schema that holds nothing: every object in it does."""
    cursor = await connection.execute(statements.load("source", "schema_is_empty"))
    return await cursor.fetchone() is not None
