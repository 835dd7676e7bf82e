"""An exported snapshot that is exactly the state at a new slot's start, kept alive for as long as it is needed.

A slot's own export dies with the next command on the connection that made it, and that connection cannot be kept busy:
proxies cut it when it is idle (hazard 20). So a normal session imports the snapshot in a transaction, exports it again,
and asks something once a minute; the name that it yields can be imported by any number of sessions until the block
ends.

`read_past_start` proves that a new slot can be decoded at all, before a bootstrap relies on it (hazard 26).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

from cdc.errors import SourceUnavailable
from cdc.lsn import INVALID_LSN, Lsn
from cdc.source.connection import Connection, connect, source_errors
from cdc.source.replication import ReplicationConnection
from cdc.source.slot import read_slot

KEEP_ALIVE_S = 60
"""Well below the 30 minutes of the proxies that we met, and below the 5 of stricter ones."""

START_PREFIX = "cdc.start"
"""The prefix of the logical message that `read_past_start` looks for."""

_START_TIMEOUT_S = 300
"""The message is close behind the slot's start, but one large transaction may lie between."""

_RELEASE_TIMEOUT_S = 30
_RELEASE_POLL_S = 0.02
"""The server notices a closed replication connection at once, and tells nobody: the slot has to be looked at."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was committed before ``consistent_point`` and nothing else; ``name`` is for ``SET TRANSACTION SNAPSHOT``."""

    name: str
    slot: str
    consistent_point: Lsn


@asynccontextmanager
async def exported_snapshot(
    dsn: str, slot: str, *, temporary: bool, application_name: str, failover: bool = False
) -> AsyncIterator[Snapshot]:
    """Create ``slot`` and yield the snapshot of its start, alive until the block ends.

    A permanent slot stays, also when the block fails. A temporary one is gone before the block begins: it is only the
    way to a snapshot with a known LSN. Waits for the transactions that run now. The snapshot holds back VACUUM on the
    source. When its session is lost, the block is cancelled and `SourceUnavailable` raised.
    """
    failure: BaseException | None = None
    session = await connect(dsn, application_name=application_name)
    try:
        async with await ReplicationConnection.open(dsn, application_name) as walsender:
            created = await walsender.create_slot(slot, temporary=temporary, failover=failover, snapshot="export")
            name = await _export_again(session, created.snapshot or "")
        async with asyncio.TaskGroup() as group:
            alive = group.create_task(_keep_alive(session))
            yield Snapshot(name, slot, created.consistent_point)
            alive.cancel()
    except BaseExceptionGroup as failures:
        # The block's own error, or the session's: either ends the other. Raised below, so that it keeps its own cause.
        failure = failures.exceptions[0]
    finally:
        await session.close()
    if failure is not None:
        raise failure


async def _export_again(session: Connection, snapshot: str) -> str:
    with source_errors("import the slot's snapshot"):
        await session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        await session.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'".encode())
        cursor = await session.execute("SELECT pg_export_snapshot()")
        row = await cursor.fetchone()
    if row is None:
        raise SourceUnavailable("the source did not export the snapshot")
    return str(row[0])


async def _keep_alive(session: Connection) -> None:
    while True:
        await asyncio.sleep(KEEP_ALIVE_S)
        with source_errors("keep the snapshot"):
            await session.execute("SELECT 1")


async def read_past_start(dsn: str, slot: str, publications: Sequence[str], *, application_name: str) -> None:
    """Stream a slot from its start until a message that is written now has come, acknowledging nothing.

    When it returns the slot is free again and stands where it stood. Raises `StreamPoisoned` when it can never be
    decoded: drop it and create another.
    """
    token = uuid4().hex
    async with await connect(dsn, application_name=application_name) as session:
        with source_errors("write a message into its WAL"):
            await session.execute("SELECT pg_logical_emit_message(true, %s, %s)", (START_PREFIX, token))
        async with await ReplicationConnection.open(dsn, application_name) as walsender:
            await walsender.start(slot, publications)
            try:
                async with asyncio.timeout(_START_TIMEOUT_S):
                    await _wait_for(walsender, token.encode())
            except TimeoutError:
                reason = f"the source did not reach the present in the slot {slot} within {_START_TIMEOUT_S} s"
                raise SourceUnavailable(reason) from None
        await wait_until_free(session, slot)


async def _wait_for(walsender: ReplicationConnection, token: bytes) -> None:
    while True:
        messages, keepalives = await walsender.receive()
        if any(message[:1] == b"M" and message.endswith(token) for message in messages):
            return
        if any(keepalive.reply_requested for keepalive in keepalives):
            await walsender.send_status(INVALID_LSN, INVALID_LSN, INVALID_LSN)


async def wait_until_free(connection: Connection, slot: str) -> None:
    """Wait until no session streams from the slot (or it is gone). Raises `SourceUnavailable` after half a minute."""
    try:
        async with asyncio.timeout(_RELEASE_TIMEOUT_S):
            while True:
                state = await read_slot(connection, slot)
                if state is None or not state.active:
                    return
                await asyncio.sleep(_RELEASE_POLL_S)
    except TimeoutError:
        raise SourceUnavailable(f"the slot {slot} is still in use after {_RELEASE_TIMEOUT_S} s") from None
