"""TRUNCATE on a target: the tables that the source emptied in one statement are emptied in one statement.

CASCADE is not repeated: the source says which of the published tables it reached, and a table of the target's own that
refers to them is not ours to empty (invariant 9). A foreign key of such a table makes PostgreSQL refuse the statement;
the rows are then deleted, which that key's own rules judge. They are deleted, too, where earlier changes of the same
batch wait for a deferred constraint or trigger: PostgreSQL does not truncate a table with such events (SQLSTATE 55006).

The source names the leaves of a partitioned table, never the table itself. It is emptied where they are all that the
target holds. Where they are some, their rows are deleted, found by the bounds that the leaves had when their rows came
(hazard 15); and where a bound cannot tell them, the table has to be read again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import asyncpg

from cdc.changes.relation import Relation
from cdc.changes.transaction import Truncation
from cdc.routing.route import Route
from cdc.target import dml
from cdc.target.partition_record import Held, HeldLeaf
from cdc.target.rejection import Guard, Reason, Refused, Unfit
from cdc.target.steps import TargetName, parents_first
from cdc.target.table_plan import TablePlan
from cdc.target.table_shape import TableShape


class Truncations:
    """Carries out truncations inside the caller's transaction.

    ``held`` are the leaves that the target's tables hold. Both it and ``read_again``, the tables (``(schema, name)``)
    that are being read again whole, may change from batch to batch. To ``untold`` are added those of them (by the
    source's name) of which a truncation left rows here that nothing tells.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        guard: Guard,
        held: Held,
        read_again: Collection[TargetName],
        untold: set[str],
    ) -> None:
        self._connection = connection
        self._guard = guard
        self._held = held
        self._read_again = read_again
        self._untold = untold

    async def truncate(self, plans: Sequence[TablePlan], truncation: Truncation) -> None:
        """Empty the tables of ``plans``, or take out of them what the truncated leaves held.

        Where deleted rows stay they do so here, too; the time of the deletion is noted. Raises `Refused` for a table
        that other relations are routed to, too, and for a leaf whose rows cannot be told.
        """
        # Where rows stay and nothing notes when they were deleted, there is nothing to do.
        plans = [plan for plan in plans if not plan.shape.keeps_deleted or plan.shape.deleted_at is not None]
        for plan in plans:
            if plan.is_shared:
                raise Refused(plan.shape, Reason.SHARED_TRUNCATE)
        whole: dict[TargetName, TableShape] = {}
        for group in _by_table(plans):
            shape = group[0].shape
            if _is_whole(group, self._held):
                if shape.keeps_deleted:
                    with self._guard(shape):
                        await self._connection.execute(dml.note_deleted(shape, truncation.commit_time_us))
                else:
                    whole[shape.schema, shape.name] = shape
            else:
                for plan in group:
                    try:
                        await self._delete_leaf(plan, truncation.commit_time_us)
                    except Refused as refused:
                        is_read = shape.overlap and (shape.schema, shape.name) in self._read_again
                        if not is_read or refused.reason is not Reason.LEAF_TRUNCATE:
                            raise
                        self._untold.add(plan.source_table)
        if whole:
            await self._empty(whole, truncation)

    async def _delete_leaf(self, plan: TablePlan, commit_time_us: int) -> None:
        leaf = _held_leaf(plan, self._held)
        if leaf is None or not leaf.bound:
            raise Refused(plan.shape, Reason.LEAF_TRUNCATE)
        await self._connection.execute("SAVEPOINT cdc_leaf")
        try:
            with self._guard(plan.shape):
                columns = alike_columns(plan.relation, plan.route, plan.shape)
                await self._connection.execute(dml.delete_leaf(plan.shape, columns, leaf.bound, commit_time_us))
        except (Refused, Unfit) as error:
            await self._connection.execute("ROLLBACK TO SAVEPOINT cdc_leaf; RELEASE SAVEPOINT cdc_leaf")
            if isinstance(error, Refused) and error.server is not None and error.server.sqlstate.startswith("23"):
                raise
            # A column that is not here, a function that this server lacks: nothing here tells which rows they were.
            raise Refused(plan.shape, Reason.LEAF_TRUNCATE) from None
        await self._connection.execute("RELEASE SAVEPOINT cdc_leaf")

    async def _empty(self, shapes: dict[TargetName, TableShape], truncation: Truncation) -> None:
        statement = dml.truncate(list(shapes.values()), restart_identity=truncation.restart_identity)
        with self._guard(next(iter(shapes.values()))):
            try:
                await self._connection.execute(f"SAVEPOINT cdc_truncate; {statement}")
            except (asyncpg.FeatureNotSupportedError, asyncpg.ObjectInUseError):
                await self._connection.execute("ROLLBACK TO SAVEPOINT cdc_truncate")
            else:
                await self._connection.execute("RELEASE SAVEPOINT cdc_truncate")
                return
        for name in reversed(parents_first({name: shape.references for name, shape in shapes.items()})):
            with self._guard(shapes[name]):
                await self._connection.execute(dml.delete_all(shapes[name]))
        await self._connection.execute("RELEASE SAVEPOINT cdc_truncate")


def empties(plans: Sequence[TablePlan], held: Held) -> bool:
    """Whether a truncation of these leaves nothing in their tables: of each partitioned one, they are all leaves."""
    return all(_is_whole(group, held) for group in _by_table(plans))


def _by_table(plans: Sequence[TablePlan]) -> list[list[TablePlan]]:
    groups: dict[str, list[TablePlan]] = {}
    for plan in plans:
        groups.setdefault(plan.source_table, []).append(plan)
    return list(groups.values())


def _is_whole(plans: Sequence[TablePlan], held: Held) -> bool:
    leaves = {plan.relation.leaf.oid for plan in plans if plan.relation.leaf is not None}
    known = held.get(plans[0].source_table)
    return not leaves or (known is not None and leaves >= known.keys())


def _held_leaf(plan: TablePlan, held: Held) -> HeldLeaf | None:
    leaf = plan.relation.leaf
    return None if leaf is None else held.get(plan.source_table, {}).get(leaf.oid)


def alike_columns(relation: Relation, route: Route, shape: TableShape) -> list[tuple[str, str]] | None:
    """The columns that have the source's type here, by the names there and here: only those compare as they do there.

    `None`: those are all columns of the relation, each under its own name.
    """
    alike = {column.name for column in shape.columns if column.match_cast is None}
    pairs = [(column.name, route.target_column(column.name)) for column in relation.columns]
    found = [(source, there) for source, there in pairs if there is not None and there in alike]
    return None if len(found) == len(pairs) and all(source == there for source, there in found) else found
