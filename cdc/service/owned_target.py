"""A target that is ours: one session, its fence and positions, and the target transactions that move them.

An `OwnedTarget` lives as long as its session. Every change to the target's database goes through it, and every target
transaction that it makes ends with ``cdc.advance`` and COMMIT in one round trip: rows, positions of tables, counters
and the fence check commit together or not at all (invariants 1 and 4).

After any error the session is of no more use: its owner closes it, takes the target again and reads the position,
because a COMMIT whose answer was lost may have happened.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import structlog

from cdc.changes.relation import Relation
from cdc.changes.transaction import Part
from cdc.errors import CdcError, TableStopped
from cdc.lsn import Lsn
from cdc.observe.metrics import TargetMetrics
from cdc.routing.patterns import split
from cdc.routing.target_routes import TargetRoutes
from cdc.service.ending import Counters, Ending
from cdc.service.heartbeats import Heartbeats, heartbeat_in
from cdc.service.held_partitions import HeldPartitions
from cdc.service.known_columns import KnownColumns
from cdc.service.planning import Planning
from cdc.service.positions import Positions, TransactionsNeeded
from cdc.service.stopping import Stopping
from cdc.service.stops import Stops
from cdc.service.tracking import Tracking
from cdc.source.heartbeat import Heartbeat
from cdc.target import position, table_state
from cdc.target.applier import Applied, Applier, Plans
from cdc.target.generation import pipeline_of
from cdc.target.partition_record import HeldLeaves
from cdc.target.session import Session, target_errors

_log = structlog.get_logger(__name__)


class OwnedTarget:
    """One session on one target that has been taken. Made by `cdc.service.taking.take`."""

    def __init__(
        self,
        session: Session,
        owned: position.Ownership,
        routes: TargetRoutes,
        states: Sequence[table_state.TableState],
        partitions: Mapping[str, HeldLeaves],
        *,
        stops: Stops,
        metrics: TargetMetrics,
        heartbeats: Heartbeats,
    ) -> None:
        """``states`` are those of the tables that are loaded, with their ``partitions``; any other is left out.

        What is stored goes by the key that was taken; heartbeats carry the name of its pipeline.
        """
        assert owned.position is not None  # histories have been compared
        assert owned.history is not None
        self._session = session
        self._key = owned.key
        self._pipeline = pipeline_of(owned.key)
        self._incarnation = owned.history.incarnation
        self._fence = owned.fence
        self._routes = routes
        self.cut_over_heartbeat = owned.cut_over_heartbeat
        self.consistent_at = owned.consistent_at
        self.consistent_time = owned.consistent_time
        self._stops = stops
        self._metrics = metrics
        self._heartbeats = heartbeats
        config = routes.config
        named = (routes.route_of(*split(table)) for table in config.tables)
        self._applier = Applier(
            session, owned.target, follows=config.follows, routes=[route for route in named if route is not None]
        )
        self.tracking: Tracking | None = None
        self._applier.held.update(partitions)
        held_partitions = HeldPartitions(session, owned.key, self._applier.held)
        columns = KnownColumns(session, owned.key, owned.target, follows=config.follows)
        self.planning = Planning(self._applier, routes, owned.target, session.where, states, held_partitions, columns)
        self._counters = Counters()
        self.positions = Positions(
            owned.position, {state.source_name: state.position for state in states if state.position is not None}
        )
        self._stopping = Stopping(
            session,
            owned.key,
            routes,
            planning=self.planning,
            positions=self.positions,
            stops=stops,
            metrics=metrics,
        )

    @property
    def session(self) -> Session:
        """The session, for what is done between two batches (`cdc.service.requests`)."""
        return self._session

    @property
    def position(self) -> Lsn:
        """Up to where the target holds everything (tables that differ excepted)."""
        return self.positions.target

    async def record_state(self, state: str, error: str | None = None) -> None:
        """Say in the target, for ``cdc status``, how it is. Raises `FenceLost`."""
        await position.record_state(self._session, self._key, self._fence, state)
        await position.record_error(self._session, self._key, error)

    @asynccontextmanager
    async def fenced(self) -> AsyncIterator[None]:
        """A target transaction that moves no position, but that only the owner can commit."""
        connection = self._session.connection
        with target_errors("beginning a transaction", self._session.where):
            await connection.execute("BEGIN")
        try:
            yield
        except BaseException:
            if not connection.is_closed():
                with target_errors("rolling back", self._session.where):
                    await connection.execute("ROLLBACK")
            raise
        stay = position.advance_sql(self._key, self._fence, self.position, self.position)
        with target_errors("committing", self._session.where):
            await connection.execute(f"{stay}; COMMIT")

    # --- applying

    async def apply(self, parts: Sequence[Part]) -> None:
        """Apply whole transactions as one target transaction; durable when it returns.

        Raises `TableStopped`, `BatchRejected` and `TransactionsNeeded` with nothing applied.
        """

        async def once() -> AsyncIterator[Sequence[Part]]:
            yield parts

        if self.tracking is not None or not await self._apply_together(parts):
            await self.apply_large(once())

    async def _apply_together(self, parts: Sequence[Part]) -> bool:
        """Apply them in one round trip. False: nothing is applied, because that does not go."""
        started = time.monotonic()
        plans = await self._plans_for(parts)
        await self._applier.prepare(plans, parts)
        heartbeats = [found for part in parts if (found := self._heartbeat_in(part)) is not None]
        ended = [part.without_changes() for part in parts]
        ending = self._ending(ended, newest=heartbeats[-1] if heartbeats else None)
        if ending.unrecorded or self.planning.partitions.has_news or self.planning.columns.has_news:
            return False
        holds = self._holds if self.positions.tables else None
        done = await self._applier.apply_together(parts, plans, ending.statements, holds)
        if done is None:
            return False
        self._committed(ending)
        self._tell(done, self._counters.add(done), ended, sum(part.size for part in parts), started)
        return True

    async def apply_large(self, stretches: AsyncIterator[Sequence[Part]]) -> None:
        """Apply what comes, stretch by stretch, as one target transaction; durable when it returns.

        A stretch is forgotten as soon as it has been applied, so memory does not grow with the transaction.
        """
        connection = self._session.connection
        started = time.monotonic()
        ended: list[Part] = []
        newest: Heartbeat | None = None
        size = 0
        done = Applied()
        has_begun = False
        try:
            async for parts in stretches:
                plans = await self._plans_for(parts)
                if not has_begun:
                    await self._applier.prepare(plans, parts)
                    with target_errors("beginning a transaction", self._session.where):
                        await connection.execute("BEGIN")
                    has_begun = True
                await self.planning.partitions.record()
                # Most of the time no table differs from its target, which holds nothing of what it is given.
                holds = self._holds if self.positions.tables else None
                done += await self._applier.apply(parts, plans, holds)
                if self.tracking is not None:
                    await self.tracking.note(self._session, parts, self._applier, self.planning, self.positions)
                for part in parts:
                    size += part.size
                    newest = self._heartbeat_in(part) or newest
                    if part.is_last:
                        ended.append(part.without_changes())
            if self.tracking is not None:
                await self.tracking.before_commit(self._session, self._key, self.positions, ended)
        except CdcError:
            if self.tracking is not None:
                self.tracking.rolled_back()
            self.planning.rolled_back()
            if has_begun and not connection.is_closed():
                with target_errors("rolling back", self._session.where):
                    await connection.execute("ROLLBACK")
            raise
        total = self._counters.add(done)
        await self._commit(self._ending(ended, newest=newest))
        self.planning.partitions.committed()
        if self.tracking is not None:
            self.tracking.committed(self.planning)
        self._tell(done, total, ended, size, started)

    def _tell(self, done: Applied, total: Mapping[str, int], ended: Sequence[Part], size: int, started: float) -> None:
        self._metrics.batch_applied(
            transactions=sum(part.transaction_count for part in ended),
            inserts=total["inserted"],
            updates=total["updated"],
            deletes=total["deleted"],
            truncates=total["truncated"],
            size_bytes=size,
            duration_s=time.monotonic() - started,
            strict=done.was_strict,
        )

    async def advance_to(self, idle_at: Lsn) -> None:
        """Store that the stream holds nothing more before ``idle_at``."""
        with target_errors("storing the position", self._session.where):
            await self._session.connection.execute("BEGIN")
        await self._commit(self._ending([], idle_at=idle_at))

    async def save(self) -> None:
        """Write what waits for the next batch to travel with: counters, and tables that have stopped."""
        if self._counters.waiting or self._stops.unrecorded():
            self._counters.hurry()
            with target_errors("storing what waits", self._session.where):
                await self._session.connection.execute("BEGIN")
            await self._commit(self._ending([]))

    async def _plans_for(self, parts: Sequence[Part]) -> Plans:
        """The plans of all relations of this session. A relation that cannot be planned stops its table, here."""
        # A shape of before the table was loaded, or of after it was stopped, need not fit.
        new = [
            (relation, part)
            for part in parts
            for relation in part.relations
            if not (self.planning.knows(relation) or self.positions.skips(self.planning.table_of(relation), part))
        ]
        async with self.planning.looking_ahead(relation for relation, _ in new):
            for relation, part in new:
                await self._plan(relation, part)
        return self.planning.plans

    async def _plan(self, relation: Relation, part: Part) -> None:
        if self.planning.knows(relation) or self.positions.skips(self.planning.table_of(relation), part):
            return  # one that came before it has planned it, or stopped its table
        try:
            await self.planning.plan(relation)
        except TableStopped as error:
            if part.transaction_count > 1:
                self.planning.not_yet(relation)
                raise TransactionsNeeded from None
            table = self.planning.table_of(relation)
            self.stop(table, part.commit_lsn, error, relation)
            if not part.is_first:
                # What came earlier in this transaction may be in already, while it still fitted: all of it is read
                # again.
                error.source_table, error.commit_lsn = table, part.commit_lsn
                raise

    def _holds(self, relation: Relation, part: Part) -> bool:
        return self.positions.skips(self.planning.table_of(relation), part)

    # --- committing

    def _ending(self, ended: Sequence[Part], *, newest: Heartbeat | None = None, idle_at: Lsn | None = None) -> Ending:
        """What a target transaction stores at its end, when these transactions of the source are applied in it."""
        before = self.positions.target
        after, changed = self.positions.after(ended, idle_at)
        statements = [
            table_state.position_sql(self._key, split(table), held) for table, held in sorted(changed.items())
        ]
        cut_over_at = ended[-1] if newest is not None and self._cuts_over(newest) else None
        if cut_over_at is not None:
            statements += [
                table_state.cut_over_sql(self._key),
                position.cut_over_sql(self._key, self._fence, after, cut_over_at.commit_time_us),
            ]
        counts = self._counters.due()
        if counts:
            statements.append(table_state.count_sql(self._key, counts))
        # What a single table is catching up with says nothing of how far its target is.
        new = [part for part in ended if not part.commit_lsn < before]
        statements.append(
            position.advance_sql(
                self._key,
                self._fence,
                before,
                after,
                transactions=sum(part.transaction_count for part in new),
                commit_time_us=new[-1].commit_time_us if new else None,
                heartbeat_count=newest.count if newest else None,
                heartbeat_at=newest.at if newest else None,
            )
        )
        return Ending(tuple(statements), after, changed, counts, self._stops.unrecorded(), newest, cut_over_at)

    async def _commit(self, ending: Ending) -> None:
        """Advance and COMMIT in one round trip, with whatever else has to be stored."""
        for stop in ending.unrecorded:
            await self._stopping.record(stop, ending.changed)
        await self.planning.columns.record()
        with target_errors("committing", self._session.where):
            await self._session.connection.execute("; ".join([*ending.statements, "COMMIT"]))
        self._committed(ending)

    def _committed(self, ending: Ending) -> None:
        """It is durable: memory follows."""
        newest = ending.newest
        self.positions.advance(ending.after, ending.changed)
        for stop in ending.unrecorded:
            stop.is_recorded = True
        if ending.counts:
            self._counters.written()
        caught_up = [table for table, held in ending.changed.items() if held is None]
        self._stops.went_on(caught_up)
        self._metrics.position(ending.after)
        if newest is not None:
            latency_s = self._heartbeats.age_s(newest.count)
            age_s = latency_s if latency_s is not None else self._heartbeats.age_by_source_s(newest.at)
            if age_s is not None:
                self._metrics.heartbeat_held(age_s=age_s, latency_s=latency_s)
        if ending.cut_over_at is not None:
            self._cut_over(ending.after, ending.cut_over_at)

    def _heartbeat_in(self, part: Part) -> Heartbeat | None:
        """The last heartbeat of this pipeline in a part that the target does not hold yet."""
        return None if part.commit_lsn < self.positions.target else heartbeat_in(part, self._pipeline)

    def told_apart(self, parts: list[Part]) -> list[Part]:
        """The same parts, of one transaction each where it matters which of them it is."""
        return self.positions.told_apart(parts, by_tracking=self.tracking is not None)

    # --- the cut-over

    def ends_batch(self, part: Part) -> bool:
        """Whether the batch ends with this part, because the cut-over comes with it, or a chunk of rows."""
        if self.tracking is not None and self.tracking.ends_batch(part):
            return True
        heartbeat = None if self.cut_over_heartbeat is None else self._heartbeat_in(part)
        return heartbeat is not None and self._cuts_over(heartbeat)

    def _cuts_over(self, heartbeat: Heartbeat) -> bool:
        """Whether all that the target's backup may hold was committed before this heartbeat."""
        awaited = self.cut_over_heartbeat
        return awaited is not None and heartbeat.count >= awaited and heartbeat.incarnation == self._incarnation

    def _cut_over(self, at: Lsn, part: Part) -> None:
        """It is durable: from the next batch on every table is strict, those apart that stand behind the target."""
        self.cut_over_heartbeat = None
        self.consistent_at, self.consistent_time = at, position.time_of(part.commit_time_us)
        self._leave_out([table for table in self.planning.overlap if table in self.positions.tables])
        self.planning.set_overlap(())
        _log.info("past its backup", target=self._session.where, lsn=str(at), time=self.consistent_time.isoformat())

    def track(self, tracking: Tracking) -> None:
        """Tell ``tracking``, whose table is in overlap, what is applied."""
        self.tracking = tracking
        route = self._routes.route_of(*split(tracking.request.table))
        assert route is not None  # it was asked for
        self._applier.read_again.add((route.target_schema, route.target_table))
        self._applier.forget(route)
        self.planning.columns.being_read.add(tracking.request.table)

    def read_again(self, tracking: Tracking) -> None:
        """A table is in overlap now, and its rows are read again (`cdc resync`): what it was stopped by is over."""
        table = tracking.request.table
        self.track(tracking)
        self.positions.tables.pop(table, None)
        self._stops.remove(table)
        self._metrics.table_resumed(table)
        self.planning.set_overlap(self.planning.overlap | {table})

    def track_no_more(self) -> None:
        """Nothing is read again any more."""
        self.tracking = None
        self._applier.read_again.clear()

    def hold(self, table: str, why: CdcError) -> None:
        """Let ``table``, of which the target says durably that it is stopped, take nothing until it is released."""
        self.positions.stop(table, self.position)
        self._stops.hold(table, self.position, why)

    async def give_up(self, tables: Sequence[str]) -> None:
        """Leave tables (``schema.table``) out of the stream from now on; durable when it returns.

        They are recorded as copying, and hold the acknowledgement no longer. Call it between two batches.
        """
        async with self.fenced():
            await table_state.give_up(self._session, self._key, [split(table) for table in tables])
        self._leave_out(tables)

    def _leave_out(self, tables: Sequence[str]) -> None:
        self.planning.leave_out(tables)
        for table in tables:
            self.positions.tables.pop(table, None)
            self._stops.remove(table)
            self._metrics.table_resumed(table)
            _log.warning("table is left out of the stream; it is to be copied", table=table)

    # --- tables that stop alone

    def stop(self, table: str, commit_lsn: Lsn, error: CdcError, relation: Relation | None) -> None:
        """``table`` takes nothing from that transaction on; stored with the next commit."""
        self._stopping.stop(table, commit_lsn, error, relation)

    async def stop_for(self, table: str, commit_lsn: Lsn, error: CdcError) -> None:
        """Stop ``table`` for what applying met: a shape that does not fit any more, or a row that is refused."""
        await self._stopping.stop_for(table, commit_lsn, error)

    async def look_at_stops(self, pause_s: float) -> list[str]:
        """Look at the stopped tables whose time has come; return those that shall be tried again.

        They are recorded as streaming, behind their target; the stream has to be started anew for them. ``pause_s`` is
        how long that has to wait, because others need the stream as it is.
        """
        resumed = await self._stopping.that_fit_now(pause_s)
        if resumed or self._stops.unrecorded():
            await self.save()  # what waits here, such as counters, would be lost with this session
        if resumed:
            async with self.fenced():
                await self._stopping.resume(resumed)
            self._stopping.resumed(resumed)
        return resumed
