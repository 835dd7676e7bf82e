"""What a swap changes in the ``cdc`` schema: the rows of a generation become the pipeline's.

Rows that refer to another are changed by hand, not by their foreign keys: in a session that disables triggers no
foreign key cascades. Everything here is a part of the swap's transaction (`cdc.target.swap`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import asyncpg

from cdc import statements
from cdc.errors import SetupError, TargetUnavailable
from cdc.lsn import Lsn
from cdc.target.generation import generation_key
from cdc.target.session import Session
from cdc.target.table_swap import TableSwap

CaughtUp = Callable[[Lsn], Awaitable[Lsn]]
"""Gets the position that the present generation will not leave any more; see `cdc.target.swap.swap`."""

_COLUMNS = "position::text AS position, system_identifier, incarnation, cut_over_heartbeat"


async def meet(session: Session, pipeline: str, caught_up: CaughtUp, catch_up_s: float) -> Lsn:
    """Hold the present generation where it stands, let the new one come there and end; where the new one stands.

    Both rows are locked when it returns. Raises `TargetUnavailable` when it takes longer than ``catch_up_s``.
    """
    connection, where, key = session.connection, session.where, generation_key(pipeline)
    old = await connection.fetchrow(f"SELECT {_COLUMNS} FROM cdc.target WHERE pipeline = $1 FOR UPDATE", pipeline)
    new = await connection.fetchrow(f"SELECT {_COLUMNS} FROM cdc.target WHERE pipeline = $1", key)
    if old is None or new is None or new["position"] is None:
        raise SetupError(f"{where}: there is no generation of pipeline {pipeline} that could be swapped in.")
    is_same_history = all(old[name] == new[name] for name in ("system_identifier", "incarnation"))
    stands_at = Lsn.parse(old["position"]) if old["position"] is not None and is_same_history else Lsn(0)
    try:
        async with asyncio.timeout(catch_up_s):
            ended_at = await caught_up(stands_at)
    except TimeoutError:
        raise TargetUnavailable(
            f"{where}: the new tables were not as far as the present ones within {catch_up_s:g} seconds; readers are "
            "let in, and it is tried again."
        ) from None
    new = await connection.fetchrow(f"SELECT {_COLUMNS} FROM cdc.target WHERE pipeline = $1 FOR UPDATE", key)
    if new is None or new["position"] is None or Lsn.parse(new["position"]) != ended_at or ended_at < stands_at:
        raise TargetUnavailable(f"{where}: the new tables do not stand where their lane ended; it is tried again.")
    return ended_at


async def refuse_incomplete(session: Session, pipeline: str, swaps: Sequence[TableSwap]) -> None:
    """Raise `SetupError` unless the generation has exactly these tables, and each is as good as the one it replaces."""
    key = generation_key(pipeline)
    rows = await session.connection.fetch(
        "SELECT source_schema || '.' || source_table AS name, state FROM cdc.target_table WHERE pipeline = $1", key
    )
    is_before_cut_over = await session.connection.fetchval(
        "SELECT cut_over_heartbeat IS NOT NULL FROM cdc.target WHERE pipeline = $1", key
    )
    states = {row["name"]: row["state"] for row in rows}
    wanted = [swap.route.source_name for swap in swaps]
    problems = [f"{name} ({states.get(name, 'not loaded')})" for name in wanted if states.get(name) != "streaming"]
    problems += [f"{name} (has no table to replace)" for name in sorted(set(states) - set(wanted))]
    if is_before_cut_over:
        problems.append("the cut-over is still to come")
    if problems:
        raise SetupError(
            f"{session.where}: what was loaded beside the present tables is not complete: {', '.join(problems)}; "
            "nothing was changed."
        )


async def record(connection: asyncpg.Connection, pipeline: str, swaps: Sequence[TableSwap], state: str | None) -> None:
    """Make the generation's rows the pipeline's. ``state`` is the target's afterwards; `None` for a part of its tables.

    The fence counts up, so that whoever owned the present generation cannot commit any more.
    """
    key = generation_key(pipeline)
    routes = [swap.route for swap in swaps]
    schemas, names = [route.source_schema for route in routes], [route.source_table for route in routes]
    await connection.execute(
        "DELETE FROM cdc.target_table t WHERE t.pipeline = $1 AND ($4 OR EXISTS (SELECT"
        " FROM unnest($2::text[], $3::text[]) AS w (schema, name)"
        " WHERE t.source_schema = w.schema AND t.source_table = w.name))",
        pipeline,
        schemas,
        names,
        state is not None,
    )
    await connection.execute(
        statements.load("target", "swap_take_tables"),
        pipeline,
        key,
        schemas,
        names,
        [route.target_schema for route in routes],
        state is None,
    )
    if state is None:
        await connection.execute("UPDATE cdc.target SET fence = fence + 1 WHERE pipeline = $1", pipeline)
        await connection.execute(statements.load("target", "swap_answer_resync"), pipeline, key, schemas, names)
    else:
        await connection.execute(statements.load("target", "swap_advance_whole"), pipeline, key, state)
        await connection.execute("DELETE FROM cdc.backup_load WHERE pipeline = $1", pipeline)
    await connection.execute("DELETE FROM cdc.backup_load WHERE pipeline = $1", key)
    # What the enrichment made of the present tables was carried over with them, so what is recorded of it stays true.
    await connection.execute(
        "UPDATE cdc.enrichment e SET pipeline = $1 WHERE e.pipeline = $2"
        " AND NOT EXISTS (SELECT FROM cdc.enrichment p WHERE p.pipeline = $1 AND p.file = e.file)",
        pipeline,
        key,
    )
    await connection.execute("DELETE FROM cdc.enrichment WHERE pipeline = $1", key)
    await connection.execute("DELETE FROM cdc.target WHERE pipeline = $1", key)
