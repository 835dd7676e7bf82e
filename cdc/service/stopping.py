"""Stopping one table of a target, and letting it go on: what memory, the metrics and the target's catalog say of it.

`cdc.service.stops.Stops` remembers which tables stand and why, as long as the worker lives; a `Stopping` belongs to one
session on the target, and does with them what needs that.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from cdc.changes.relation import Relation
from cdc.errors import CdcError, ReadAgain, TableStopped
from cdc.lsn import Lsn
from cdc.observe.metrics import TargetMetrics
from cdc.routing.patterns import split
from cdc.routing.target_routes import TargetRoutes
from cdc.service.planning import Planning
from cdc.service.positions import Positions
from cdc.service.stops import Stop, Stops
from cdc.target import resync_request, table_state
from cdc.target.column_record import ColumnsMoved
from cdc.target.session import Session

_log = structlog.get_logger(__name__)


class Stopping:
    """The stopped tables of one target, in one session on it."""

    def __init__(
        self,
        session: Session,
        key: str,
        routes: TargetRoutes,
        *,
        planning: Planning,
        positions: Positions,
        stops: Stops,
        metrics: TargetMetrics,
    ) -> None:
        """``key`` is the row of ``cdc.target``; ``stops`` stand already where the stream has stopped them before."""
        self._session = session
        self._key = key
        self._routes = routes
        self._planning = planning
        self._positions = positions
        self._stops = stops
        self._metrics = metrics
        for name, stop in stops.current.items():
            held = positions.tables.get(name)
            positions.stop(name, stop.commit_lsn if held is None else held.held)

    def stop(self, table: str, commit_lsn: Lsn, error: CdcError, relation: Relation | None) -> None:
        """``table`` takes nothing from that transaction on; not stored yet."""
        self._positions.stop(table, commit_lsn)
        self._stops.add(table, commit_lsn, error, relation)
        self._metrics.error(error)
        is_shape = relation is not None or isinstance(error, ColumnsMoved)
        is_read = isinstance(error, ReadAgain)
        self._metrics.table_stopped(table, "resync" if is_read else "shape" if is_shape else "rejected")
        _log.error("table stopped", table=table, reason=str(error), sql=error.sql, lsn=str(commit_lsn))

    async def stop_for(self, table: str, commit_lsn: Lsn, error: CdcError) -> None:
        """Stop ``table`` for what applying met: a shape that does not fit any more, or a row that is refused."""
        relation = error.relation if isinstance(error, TableStopped) else None
        if isinstance(error, TableStopped) and isinstance(relation, Relation):
            error = await self._planning.explain(error, relation)
        self.stop(table, commit_lsn, error, relation if isinstance(relation, Relation) else None)

    async def record(self, stop: Stop, changed: Mapping[str, Lsn | None]) -> None:
        """Say in the target that a table has stopped, in the open transaction, which stores the positions ``changed``.

        What goes on when its rows have been read again is asked for in the same.
        """
        table = split(stop.table)
        route = self._routes.route_of(*table)
        if route is None:
            return
        await table_state.stop(
            self._session,
            self._key,
            route,
            position=changed.get(stop.table) or self._positions.tables[stop.table].held,
            reason=str(stop.error),
            mend=stop.error.sql,
            sqlstate=stop.error.server.sqlstate if stop.error.server else None,
        )
        if isinstance(stop.error, ReadAgain):
            await resync_request.ask(self._session, self._key, table, None, by_itself=True)

    async def that_fit_now(self, pause_s: float) -> list[str]:
        """Those whose time has come, and that are to be tried again; in ``pause_s`` at the earliest.

        One that does not fit for another reason than before is told to the target with the next commit.
        """
        due = self._stops.due()
        if pause_s > 0:
            for stop in due:
                self._stops.look_later(stop, pause_s)
            return []
        return [stop.table for stop in due if await self._fits_now(stop)]

    async def resume(self, tables: list[str]) -> None:
        """They are streaming again, behind their target: in the open transaction. Call `resumed` when it is durable."""
        for table in tables:
            await table_state.resume(self._session, self._key, split(table))

    def resumed(self, tables: list[str]) -> None:
        """They are recorded as streaming."""
        for table in tables:
            self._stops.remove(table)
            self._metrics.table_resumed(table)

    async def _fits_now(self, stop: Stop) -> bool:
        try:
            if stop.relation is not None:
                await self._planning.plan_again(stop.relation)
            elif isinstance(stop.error, ColumnsMoved):
                await self._planning.look_again(stop.table)
        except TableStopped as error:
            self._stops.look_later(stop)
            if str(error) != str(stop.error):
                stop.error, stop.is_recorded = error, False
            return False
        return True
