"""The strongest lock on tables that people read all day, without any of them noticing (hazard 16).

Whoever waits for the strongest lock makes all later readers wait behind it. So we look first who uses the tables, and
do not queue behind a transaction that stays. And all locks together are waited for less long than
``deadlock_timeout``: a reader that holds one of the relations and waits for another is ended by PostgreSQL as the
victim of a deadlock after that time, and not before. Views are locked before tables, as their readers do. Autovacuum is
sent away beforehand, with a lock that keeps nobody from reading and writing: it gives way after ``deadlock_timeout``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import asyncpg

from cdc import statements
from cdc.errors import TargetUnavailable
from cdc.identifiers import quote_literal, quote_qualified
from cdc.target.dependents import Dependents
from cdc.target.table_swap import Pair

LOCK_WAIT_SHARE = 0.8
"""Of ``deadlock_timeout`` (1 s unless somebody changed it): how long all locks together are waited for."""

LONGEST_LOCK_WAIT_S = 2.0
"""However long ``deadlock_timeout`` is: a person at a dashboard should not notice."""

LOOK_S = 0.3
"""Between two looks at who uses the tables: who is there both times, in the same transaction, is not worth queueing
behind."""

LATER_LOCKS_S = 5.0
"""How long a statement behind that waits for a lock: on new tables, which nobody reads, and on bookkeeping."""


async def relations_to_lock(connection: asyncpg.Connection, found: Dependents, pairs: Sequence[Pair]) -> set[int]:
    """The oids of replaced tables, of views over them, and of tables that a foreign key joins to one."""
    rows = await connection.fetch(
        "SELECT c.oid FROM unnest($1::text[], $2::text[]) AS w (schema, name)"
        " JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema"
        " JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name",
        [schema for schema, _ in found.neighbours],
        [name for _, name in found.neighbours],
    )
    replaced = {pair.present.oid for pair in pairs if pair.present is not None}
    return replaced | {view.oid for view in found.views} | {row["oid"] for row in rows}


async def refuse_to_queue(connection: asyncpg.Connection, where: str, relations: Collection[int]) -> None:
    """Raise `TargetUnavailable` while a transaction that is not about to end uses one of the relations."""
    query = statements.load("target", "swap_holders")
    before = {row["holder"] for row in await connection.fetch(query, list(relations))}
    if not before:
        return
    await asyncio.sleep(LOOK_S)
    for row in await connection.fetch(query, list(relations)):
        if row["holder"] not in before:
            continue
        holder = "a prepared transaction"
        if row["pid"] is not None:
            holder = f"process {row['pid']} (SELECT pg_terminate_backend({row['pid']}) would end it)"
        raise TargetUnavailable(
            f"{where}: the tables are replaced once nobody uses them for a moment; {row['relation']} is in use by "
            f"{holder}, which is waited for."
        )


async def lock(connection: asyncpg.Connection, where: str, found: Dependents, pairs: Sequence[Pair]) -> None:
    """Lock all of it in the open transaction. Raises `TargetUnavailable` when time is up: the caller rolls back."""
    tables = [pair.present.sql_name for pair in pairs if pair.present is not None]
    deadlock_ms = await connection.fetchval(
        "SELECT (extract(epoch FROM pg_catalog.current_setting('deadlock_timeout')::interval) * 1000)::int"
    )
    await connection.execute(f"SET LOCAL lock_timeout = {int(LATER_LOCKS_S * 1000) + int(deadlock_ms)}")
    if tables:
        await connection.execute(f"LOCK TABLE {', '.join(tables)} IN SHARE UPDATE EXCLUSIVE MODE")
    neighbours = [quote_qualified(*name) for name in found.neighbours]
    strongest = [*tables, *(name for name in neighbours if name not in tables)]
    wanted = [view.lock_sql for view in found.views]
    if strongest:
        wanted.append(f"LOCK TABLE {', '.join(strongest)} IN ACCESS EXCLUSIVE MODE")
    if wanted:
        budget_ms = min(int(deadlock_ms * LOCK_WAIT_SHARE), int(LONGEST_LOCK_WAIT_S * 1000))
        await connection.execute(f"SET LOCAL statement_timeout = {max(1, budget_ms)}")
        # One statement, because the time limit counts for each anew.
        body = "".join(f"{statement};\n" for statement in wanted)
        try:
            await connection.execute(f"DO {quote_literal(f'BEGIN {body} END')}")
        except asyncpg.QueryCanceledError:
            raise TargetUnavailable(
                f"{where}: the tables are replaced once nobody uses them for a moment, and they were in use for longer "
                f"than {budget_ms} milliseconds; readers go first, and it is tried again."
            ) from None
        await connection.execute("SET LOCAL statement_timeout = 0")
    await connection.execute(f"SET LOCAL lock_timeout = {int(LATER_LOCKS_S * 1000)}")


async def lock_new(connection: asyncpg.Connection, pairs: Sequence[Pair]) -> None:
    """Lock the new tables, too: nobody reads them, but an index may be under way on one."""
    names = ", ".join(pair.new.sql_name for pair in pairs if pair.new is not None)
    await connection.execute(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")
