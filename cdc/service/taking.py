"""To take a target: become its owner, and see whether what it holds belongs to what the source is now.

Everything is compared before anything is applied (invariant 5): the target's position with the source's history, and
each table's own position with what the slot still has. What a former worker left stopped is tried again, because a
restart is what people do after mending.

A target that is being loaded belongs to the bootstrap that loads it, from its first step to its last: a worker does not
touch it, and neither does it take one that was never loaded, because a bootstrap may be about to begin.

No table may go on behind what this stream has brought already, because nobody would ever bring it what lies between. A
table goes on behind its target's position in three cases:

- It catches up: the stream began before its position, and each batch moved that. What it lacks is still in memory.
- Somebody else has loaded it, or let it go on, while nothing of this stream was applied. All is still in memory.
- It was stopped while batches went by, and the target says that it goes on: it was let go on, or its rows were replaced
  (`cdc resync`), and then the session, perhaps with the answer to the COMMIT, was lost before the stream was restarted.
  What went by is in the slot only.

What stops this worker remembers does not tell them apart: it may be forgotten, or be of before a swap. What does is the
last transaction that left memory (`cdc.service.queue.PartQueue.gone`): in the first two cases the table's position is
behind it, in the third it is not (`cdc.service.positions.Positions.lacking`). `cdc.service.delivery` asks that after
each take, before anything is applied, and restarts the stream. So here a stop is over as soon as the target says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from cdc.errors import ResyncNeeded, TableStopped
from cdc.observe.metrics import TargetMetrics
from cdc.routing.target_routes import TargetRoutes
from cdc.service.heartbeats import Heartbeats
from cdc.service.owned_target import OwnedTarget
from cdc.service.stops import Stops
from cdc.target import partition_record, position, resync_request, table_state
from cdc.target.history import SourceHistory, check_history
from cdc.target.position import Ownership
from cdc.target.remedies import load_table_again
from cdc.target.session import Session
from cdc.target.table_state import TableState

_log = structlog.get_logger(__name__)


async def take(
    session: Session,
    key: str,
    routes: TargetRoutes,
    history: SourceHistory,
    *,
    loads: bool,
    stops: Stops,
    metrics: TargetMetrics,
    heartbeats: Heartbeats,
) -> OwnedTarget:
    """Become the owner of one generation of the target (``key``), and see what it holds.

    ``loads`` is said by the bootstrap that loads it, and keeps it marked as such; whoever else finds it being loaded
    gets `TargetLoading`. Raises `ResyncNeeded` when the position does not belong to ``history``; the target's row says
    so, too.
    """
    if not loads:
        await _refuse_unloaded(session, key, history)
    owned = await position.take(session, key, loads=loads)
    refusal = check_history(session.where, owned.history, owned.position, history, target=owned.target)
    if refusal is not None:
        await position.record_state(session, key, owned.fence, "needs resync")
        await position.record_error(session, key, str(refusal))
        raise refusal
    states = await table_state.read(session, key)
    held = await partition_record.read(session, key)
    parts = {leaf.qualified_name for leaves in held.values() for leaf in leaves.values()}
    gone = [
        state
        for state in states
        if routes.route_of(state.source_schema, state.source_table) is None or state.source_name in parts
    ]
    loaded = [state for state in states if state.state != "copying" and state not in gone]
    forked = [state for state in loaded if _is_beyond_the_fork(state, owned, history)]
    cut_off = [state for state in loaded if state not in forked and _is_cut_off(state, owned, history)]
    reachable = [state for state in loaded if state not in cut_off and state not in forked]
    mended = {state.source_name for state in reachable if state.state != "stopped"} & stops.recorded()
    for table in mended | (set(stops.current) - {state.source_name for state in reachable}):
        stops.remove(table)  # somebody has had it loaded again, or has left it out
        metrics.table_resumed(table)
    if not loads and owned.cut_over_heartbeat is None:
        await _look_at_reads(session, key, reachable, stops, metrics)
    target = OwnedTarget(session, owned, routes, reachable, held, stops=stops, metrics=metrics, heartbeats=heartbeats)
    resumed = [state for state in reachable if state.state == "stopped" and state.source_name not in stops.current]
    if resumed or cut_off or gone or forked:
        async with target.fenced():
            for state in gone:
                # Hazard 27: from now on it misses changes, so if it ever comes back it has to be loaded again.
                await table_state.forget(session, key, (state.source_schema, state.source_table))
                why = "is part of a partitioned table now" if state.source_name in parts else "is no longer configured"
                _log.warning(f"table {why}; its rows stay as they are", table=state.source_name)
            for state in resumed:
                await table_state.resume(session, key, (state.source_schema, state.source_table))
            await _stop_cut_off(session, owned, routes, cut_off, metrics)
            await table_state.give_up(session, key, [(state.source_schema, state.source_table) for state in forked])
    for state in forked:
        _log.error(
            "table holds rows of a timeline that has ended; its changes are left out until it is loaded again",
            table=state.source_name,
            mend=load_table_again(state.source_name, owned.target),
        )
    if owned.history is not None and owned.history.timeline != history.timeline:
        await position.record_timeline(session, key, owned.fence, history.timeline)
    await target.record_state("loading" if loads else "streaming")
    await _show_lag(session, key, metrics, heartbeats)
    return target


async def _look_at_reads(
    session: Session, key: str, states: Sequence[TableState], stops: Stops, metrics: TargetMetrics
) -> None:
    """Let nothing go on that a failed `cdc resync` has left in overlap, and everything that waits for none.

    In overlap nobody would see what the table lacks.
    """
    open_requests = {request.table: request.state for request in await resync_request.read_open(session, key)}
    for state in states:
        table, serving = state.source_name, open_requests.get(state.source_name)
        if state.state != "stopped" or serving == resync_request.COPYING:
            continue
        if state.stopped_in_overlap and serving not in resync_request.IN_CHUNKS:
            assert state.position is not None  # every stopped table has one
            stops.hold(table, state.position, TableStopped(state.reason or "", sql=state.mend))
            metrics.table_stopped(table, "resync")
        elif table in stops.held() and serving is None:
            stops.release(table)


async def _refuse_unloaded(session: Session, key: str, history: SourceHistory) -> None:
    """Raise `ResyncNeeded` for a target that was never loaded, without taking it: a bootstrap may have it by now."""
    state = await position.read(session, key)
    if state is None or state.position is not None or state.state == "loading":
        return
    refusal = check_history(session.where, None, None, history, target=state.target)
    assert refusal is not None
    await position.record_error(session, key, str(refusal))
    raise refusal


async def say_if_lost(session: Session, key: str, history: SourceHistory) -> ResyncNeeded | None:
    """Say in a target that was loaded if ``history`` has lost it: for a slot from which nobody can stream.

    Nothing is taken: whoever loads the target just now goes on. Returns what was said.
    """
    state = await position.read(session, key)
    if state is None or state.position is None or state.state == "loading":
        return None
    refusal = check_history(session.where, state.history, state.position, history, target=state.target)
    if refusal is not None:
        await position.record_lost(session, key)
        await position.record_error(session, key, str(refusal))
    return refusal


def _is_cut_off(state: TableState, owned: Ownership, history: SourceHistory) -> bool:
    """Whether a table stands where the slot no longer reaches: the server would silently start later."""
    if state.position is None or owned.position is None or history.confirmed_lsn is None:
        return False
    return state.position < min(owned.position, history.confirmed_lsn)


def _is_beyond_the_fork(state: TableState, owned: Ownership, history: SourceHistory) -> bool:
    """Whether a table, loaded ahead of its target, holds rows of after the point at which its timeline ended.

    After a fail-over they are of another history, and what the new one wrote there instead would be skipped.
    """
    if owned.history is None or owned.history.timeline == history.timeline or state.position is None:
        return False
    ended = next((lsn for timeline, lsn in history.switch_points if timeline == owned.history.timeline), None)
    return ended is not None and state.position > ended


async def _stop_cut_off(
    session: Session, owned: Ownership, routes: TargetRoutes, tables: Sequence[TableState], metrics: TargetMetrics
) -> None:
    for state in tables:
        route = routes.route_of(state.source_schema, state.source_table)
        if route is None or state.position is None:
            continue
        reason = (
            f"{session.where}: table {state.target_name} stands at {state.position}, and nothing leads from there to "
            f"what the slot has: load it again ({load_table_again(state.source_name, owned.target)})."
        )
        metrics.table_stopped(state.source_name, "cut_off")
        _log.error("table stopped", table=state.source_name, reason=reason)
        await table_state.stop(session, owned.key, route, position=state.position, reason=reason)


async def _show_lag(session: Session, key: str, metrics: TargetMetrics, heartbeats: Heartbeats) -> None:
    """Show how late the target is from the start, before it holds a heartbeat of this worker's."""
    state = await position.read(session, key)
    if state is not None and state.heartbeat_at is not None:
        age_s = heartbeats.age_by_source_s(state.heartbeat_at)
        if age_s is not None:
            metrics.heartbeat_held(age_s=age_s)
