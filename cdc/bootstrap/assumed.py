"""`cdc bootstrap --from none`: targets that already hold everything join the stream, and no row is copied.

For targets that were loaded some other way while nobody wrote to the source, or for tables that are empty on purpose.
The slot is created; where it starts is the targets' position, and every routed table is recorded as consistent from
there. Nothing is compared: what was written to the source between the load of a target and the slot's start is missing
there for good, and the summary says so. The first update of such a row stops its table.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from cdc.bootstrap.copying import hold_fence
from cdc.bootstrap.progress import LogLines, Progress, Summary
from cdc.bootstrap.run import LoadLane, Run, open_run
from cdc.bootstrap.tables import record_source
from cdc.config import Config
from cdc.errors import SetupError
from cdc.source.snapshot import Snapshot
from cdc.target.session import target_errors
from cdc.target.table_state import mark_streaming


async def bootstrap(config: Config, *, progress: Progress | None = None) -> Summary:
    """Join the targets of ``config`` to the stream as they are. Durable, and ready for `cdc run`, when it returns.

    Raises `SetupError` before ``cdc setup``, for a table that is missing on a target or cannot be written, and for one
    that an interrupted ``--from live`` left half copied; otherwise what `cdc.bootstrap.live.bootstrap` raises.
    """
    async with AsyncExitStack() as stack:
        run = await open_run(config, progress or LogLines(), stack, origin="none", must_be_empty=False)
        _refuse_half_copied(run)
        for lane in run.lanes:
            if run.has_work(lane):
                async with run.snapshot(lane) as snapshot:
                    await _assume(run, lane, snapshot)
        await run.set_ready()
        await run.records.end("done")
        return run.summary()


def _refuse_half_copied(run: Run) -> None:
    restored = [
        f"{state.target_name} of target {loading.name}"
        for loading in run.loadings.values()
        for state in loading.states.values()
        if state.is_overlap
    ]
    if restored:
        raise SetupError(
            f"a bootstrap from a backup was interrupted, and these tables are not joined to the stream yet: "
            f"{', '.join(restored)}. Run `cdc bootstrap --from backup`, which goes on with them"
        )
    half_copied = [
        f"{load.name} of target {loading.name}"
        for loading in run.loadings.values()
        for load in loading.remaining()
        if loading.was_begun(load)
    ]
    if half_copied:
        raise SetupError(
            f"a bootstrap from the live source was interrupted, and these tables hold a part of their rows only: "
            f"{', '.join(half_copied)}. Run `cdc bootstrap --from live`, which goes on with them"
        )


async def _assume(run: Run, lane: LoadLane, snapshot: Snapshot) -> None:
    """Record every table that is not recorded yet as consistent from the snapshot's LSN; one transaction a target."""
    lsn = snapshot.consistent_point
    sources = await run.read_sources()
    for loading in lane.loadings.values():
        loads = loading.remaining()
        if not loads:
            continue
        session = await loading.ready()
        with target_errors("recording the tables", session.where):
            async with session.connection.transaction():
                for load in loads:
                    for route in load.routes:
                        source = sources.get(route.source_name)
                        await mark_streaming(
                            session,
                            loading.aim.key,
                            route,
                            consistent_from=lsn,
                            source_oid=source.relation.oid if source else None,
                        )
                        if source is not None:
                            await record_source(session, loading.aim.key, route, source)
                await hold_fence(session.connection, loading.access)
        run.warnings.append(
            f"target {loading.name}: its tables ({len(loads)}) are taken to hold what the source held at {lsn}; "
            f"whatever was written to the source between their load and then is missing and will not be replicated"
        )
