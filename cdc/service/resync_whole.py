"""A small table read again whole, from one exact snapshot, while its changes wait in the slot.

The table is stopped first: it keeps its position, and the slot what comes after that. The snapshot is that of a
temporary slot, so its LSN is exact, and not before the table's position. Its rows are staged in the target and put in
the place of the old ones in one transaction, which records the LSN; the stream then starts anew and brings the table
what was committed since. Nothing is merged, so unique values may have moved between rows.

A worker that dies meanwhile leaves the table where it stood: the next one lets it go on, and begins anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from cdc.bootstrap.pipe import read_copy
from cdc.errors import SourceUnavailable, TableStopped
from cdc.lsn import Lsn
from cdc.service.resync_plan import Layout
from cdc.service.resync_steps import Errand
from cdc.service.tracking import ChunkLost
from cdc.source import chunks
from cdc.source.connection import source_errors
from cdc.source.snapshot import exported_snapshot
from cdc.target import merge, table_state
from cdc.target import resync_request as requests
from cdc.target.partition_record import held_all
from cdc.target.resync_request import Request
from cdc.target.session import target_errors

if TYPE_CHECKING:
    from cdc.service.owned_target import OwnedTarget

_log = structlog.get_logger(__name__)

HELD = "it is being read again (cdc resync); the worker lets it go on afterwards"


async def copy(errand: Errand, request: Request) -> None:
    """Replace the rows of the table; when it returns that is durable, and the stream is about to start anew."""
    layout = await errand.look(request)
    await errand.do(lambda owned: _hold(errand, owned, request, layout))
    source = errand.config.source
    async with exported_snapshot(
        source.dsn.get_secret_value(),
        f"cdc_resync_{uuid4().hex[:12]}",
        temporary=True,
        application_name=f"{source.application_name} resync",
    ) as snapshot:
        layout, rows = await _stage(errand, request, snapshot.name)
    _log.info("resync has its rows", target=errand.target, table=request.table, lsn=str(snapshot.consistent_point))
    if not await errand.do(lambda owned: _replace(errand, owned, request, layout, rows, snapshot.consistent_point)):
        raise ChunkLost("the table did not wait")


async def _hold(errand: Errand, owned: OwnedTarget, request: Request, layout: Layout) -> None:
    """Let the table take nothing more, durably; it keeps the position that it has."""
    state = await table_state.read(owned.session, errand.key)
    is_loaded = any(found.source_name == request.table and found.state != "copying" for found in state)
    async with owned.fenced():
        await errand.execute(owned, layout.tables.create())
        if is_loaded:
            stands = owned.positions.of(request.table)
            await table_state.stop(owned.session, errand.key, layout.route, position=stands, reason=HELD)
    owned.hold(request.table, TableStopped(HELD))


async def _stage(errand: Errand, request: Request, snapshot: str) -> tuple[Layout, int]:
    """Copy the table as the snapshot shows it into the staging table."""
    connection, session = errand.connection, errand.session
    try:
        await chunks.begin(connection, request.source_schema, request.source_table, import_from=snapshot)
        layout = await errand.look(request)
        statement = layout.read.copy(None, None, (), is_range=True)

        async def pieces() -> AsyncIterator[bytes]:
            with source_errors(f"copy {request.table}"):
                async for piece in read_copy(connection, statement):
                    yield piece

        with target_errors(f"staging rows of {request.table}", session.where):
            async with session.connection.transaction():
                await session.connection.execute(layout.tables.create())
                tag = await session.connection.copy_to_table(
                    layout.tables.rows.removeprefix("cdc."),
                    schema_name="cdc",
                    columns=list(layout.columns),
                    source=pieces(),
                    format=layout.copy.format,
                )
                await session.connection.execute(f"ANALYZE {layout.tables.rows}")
        with source_errors("end a copy"):
            await connection.execute("COMMIT")
    except chunks.Rewritten:
        raise SourceUnavailable(f"{request.table} was rewritten or emptied after the snapshot") from None
    finally:
        await connection.close()
    return layout, int(tag.rpartition(" ")[2])


async def _replace(errand: Errand, owned: OwnedTarget, request: Request, layout: Layout, rows: int, at: Lsn) -> bool:
    """Put the staged rows in the place of the table's, and let the table go on from ``at``.

    False, with nothing done: the target was taken anew meanwhile, and the table (one that was never loaded) is held no
    more. When the target refuses the rows all is rolled back, and the request ends with that; the target streams on.
    """
    session = owned.session
    held = owned.positions.tables.get(request.table)
    if held is None or held.stopped_from is None or held.held > at:
        return False
    async with owned.fenced():
        with target_errors(f"replacing rows of {request.table}", session.where):
            await merge.replace_all(session.connection, layout.tables, where=session.where)
            await session.connection.execute(merge.drop(request.request))
        await table_state.mark_streaming(
            session, errand.key, layout.route, consistent_from=at, source_oid=layout.source.relation.oid
        )
        await owned.planning.columns.loaded(layout.route, layout.source.sent_numbers)
        if layout.source.relkind == "p":
            await owned.planning.partitions.write(request.table, held_all(layout.source.leaves, layout.route))
        await requests.record(
            session,
            request.request,
            state=requests.FINISHING,
            row_count=rows,
            chunk_count=1,
            consistent_from=str(at),
        )
    if layout.source.relkind == "p":
        owned.planning.partitions.follow(request.table, held_all(layout.source.leaves, layout.route))
        owned.planning.replan([request.table])
    errand.delivery.release(request.table)
    return True
