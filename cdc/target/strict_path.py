"""In the source's order: the way of a transaction that the fast path could not apply.

Runs are replayed one after another, each as `cdc.target.row_replay` can. What the source could do and the target's
constraints forbid in between is met in two ways. Constraints that can be deferred are, until the transaction's end.
And where a foreign key that cannot be deferred objects (the source's could, so it let a child come before its parent),
that table waits: all its further changes queue up, in their order, and are tried again after the others have gone on.
Changes of one table never overtake each other, so the only difference to the source's order is one between tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdc.changes.transaction import Kind, Run, Truncation
from cdc.target.rejection import Refused
from cdc.target.row_replay import RowReplay
from cdc.target.steps import RoutedPart, TargetName, truncated_plans
from cdc.target.table_plan import TablePlan
from cdc.target.truncation import Truncations


@dataclass(slots=True)
class _Pending:
    """Changes that wait for their turn."""

    plan: TablePlan
    kind: Kind
    rows: Sequence[bytes]
    commit_time_us: int


class StrictPath:
    """Replays one part in order, inside the caller's transaction and savepoint."""

    def __init__(self, replay: RowReplay, truncations: Truncations) -> None:
        self._replay = replay
        self._truncations = truncations

    async def apply(self, routed: RoutedPart) -> None:
        """Apply a part. Raises `Refused` for the first row that cannot be applied, with its plan and kind."""
        self._replay.begin()
        waiting: dict[TargetName, list[_Pending]] = {}
        for change in routed.part.changes:
            if isinstance(change, Run):
                plan = routed.plans.get(change.relation)
                if plan is not None:
                    await self._take(_Pending(plan, change.kind, change.rows, change.commit_time_us), waiting)
            elif isinstance(change, Truncation):
                plans = truncated_plans(routed, change)
                if plans:
                    await self._finish(waiting)
                    await self._truncations.truncate(plans, change)
        await self._finish(waiting)

    async def _take(self, pending: _Pending, waiting: dict[TargetName, list[_Pending]]) -> None:
        table = (pending.plan.shape.schema, pending.plan.shape.name)
        if table in waiting:
            waiting[table].append(pending)
            return
        try:
            await self._replay.apply(pending.plan, pending.kind, pending.rows, pending.commit_time_us)
        except Refused as refused:
            if not refused.waits_for_others:
                raise
            pending.rows = pending.rows[refused.done :]
            waiting[table] = [pending]

    async def _finish(self, waiting: dict[TargetName, list[_Pending]]) -> None:
        """Try what waits, again and again, as long as something goes on."""
        while waiting:
            applied, refusal = 0, None
            for table, queue in list(waiting.items()):
                try:
                    while queue:
                        await self._replay.apply(queue[0].plan, queue[0].kind, queue[0].rows, queue[0].commit_time_us)
                        queue.pop(0)
                        applied += 1
                except Refused as refused:
                    if not refused.waits_for_others:
                        raise
                    queue[0].rows = queue[0].rows[refused.done :]
                    applied += refused.done
                    refusal = refusal or refused
                else:
                    del waiting[table]
            if refusal is not None and not applied:
                raise refusal
