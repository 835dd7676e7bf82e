"""TRUNCATE on a target: the tables that the source emptied in one statement are emptied in one statement.

CASCADE is not repeated: the source says which of the published tables it reached, and a table of the target's own that
refers to them is not ours to empty (invariant 9). A foreign key of such a table makes PostgreSQL refuse the statement;
the rows are then deleted, which that key's own rules judge. They are deleted, too, where earlier changes of the same
batch wait for a deferred constraint or trigger: PostgreSQL does not truncate a table with such events (SQLSTATE 55006).
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from cdc.changes.transaction import Truncation
from cdc.target import dml, kept_rows
from cdc.target.rejection import Guard, Reason, Refused
from cdc.target.steps import parents_first
from cdc.target.table_plan import TablePlan


async def truncate(
    connection: asyncpg.Connection, guard: Guard, plans: Sequence[TablePlan], truncation: Truncation
) -> None:
    """Empty the tables of ``plans``. Raises `Refused` for a table that other relations are routed to, too.

    Where deleted rows stay they do so here, too; the time of the deletion is noted.
    """
    plans = await kept_rows.truncate(connection, guard, plans, truncation.commit_time_us)
    if not plans:
        return
    shapes = {(plan.shape.schema, plan.shape.name): plan.shape for plan in plans}
    for plan in plans:
        if plan.is_shared:
            raise Refused(plan.shape, Reason.SHARED_TRUNCATE)
    first = plans[0].shape
    statement = dml.truncate(list(shapes.values()), restart_identity=truncation.restart_identity)
    with guard(first):
        try:
            await connection.execute(f"SAVEPOINT cdc_truncate; {statement}")
        except (asyncpg.FeatureNotSupportedError, asyncpg.ObjectInUseError):
            await connection.execute("ROLLBACK TO SAVEPOINT cdc_truncate")
        else:
            await connection.execute("RELEASE SAVEPOINT cdc_truncate")
            return
    for name in reversed(parents_first({name: shape.references for name, shape in shapes.items()})):
        with guard(shapes[name]):
            await connection.execute(dml.delete_all(shapes[name]))
    await connection.execute("RELEASE SAVEPOINT cdc_truncate")
