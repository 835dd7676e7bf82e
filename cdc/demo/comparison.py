"""Compares every table of every target with the source: row by row, in the columns that the target asked for.

Each server computes a digest of every row from the text of its values, so that types of a target that is owned by
somebody else may differ as long as the values do not. What is compared is the multiset of digests: for a table with a
key that says the same as a comparison in the key's order, and it holds for tables without one, too. On a target whose
schema follows, a table or a column that nobody asked for is a mismatch as well.

Nothing here uses the code that replicates: plain connections and SQL, and the routes as the configuration gives them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from cdc.config import Config
from cdc.identifiers import quote, quote_qualified
from cdc.routing.route import Route
from cdc.routing.router import build_all_routes

_SETTINGS = "-c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=postgres -c extra_float_digits=3 -c bytea_output=hex"

_COLUMNS = """
SELECT n.nspname || '.' || c.relname, array_agg(a.attname::text ORDER BY a.attnum)
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'cdc')
 GROUP BY 1
"""

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Tables = Mapping[str, Sequence[str]]
"""``schema.table`` to its columns."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What was compared on one target: the tables, their rows at the source, and a sentence for each mismatch."""

    tables: int
    rows: int
    mismatches: tuple[str, ...]


async def compare(config: Config, source: str, targets: Mapping[str, str]) -> dict[str, Compared]:
    """Compare all targets with the source. Nothing may be written to it meanwhile."""
    async with await _connect(source) as connection:
        tables = await _tables(connection)
    routes = build_all_routes(config, tables)
    async with asyncio.TaskGroup() as tasks:
        found = {
            name: tasks.create_task(_compare_target(source, dsn, routes[name], tables, config.targets[name].follows))
            for name, dsn in targets.items()
        }
    return {name: task.result() for name, task in found.items()}


async def _compare_target(
    source_dsn: str, dsn: str, routes: Sequence[Route], tables: Tables, follows: bool
) -> Compared:
    mismatches: list[str] = []
    rows = 0
    async with await _connect(source_dsn) as source, await _connect(dsn) as target:
        there = await _tables(target)
        for route in routes:
            pairs = route.columns or tuple((column, column) for column in tables[route.source_name])
            lacking = {to for _, to in pairs}.difference(there.get(route.target_name, ()))
            if lacking:
                mismatches.append(f"{route.target_name} lacks {', '.join(sorted(lacking))}")
                continue
            count, difference = await _compare_table(source, target, route, pairs)
            rows += count
            mismatches += [f"{route.target_name} {difference}"] if difference else []
            if follows and len(there[route.target_name]) > len(pairs):
                mismatches.append(f"{route.target_name} has columns that nobody asked for")
        if follows:
            unasked = sorted(set(there).difference(route.target_name for route in routes))
            mismatches += [f"{name} is there, and nobody asked for it" for name in unasked]
    return Compared(len(routes), rows, tuple(mismatches))


async def _compare_table(
    source: Connection, target: Connection, route: Route, pairs: Sequence[tuple[str, str]]
) -> tuple[int, str | None]:
    """The number of rows at the source, and how the target differs, if it does."""
    rows = _digests(route.source_schema, route.source_table, (of for of, _ in pairs))
    copies = _digests(route.target_schema, route.target_table, (to for _, to in pairs))
    wanted, held = await asyncio.gather(_summary(source, rows), _summary(target, copies))
    if wanted == held:
        return wanted[0], None
    expected, found = await asyncio.gather(_multiset(source, rows), _multiset(target, copies))
    missing, surplus = (expected - found).total(), (found - expected).total()
    return wanted[0], f"differs: {missing} rows of the source are not there, and {surplus} rows are not the source's"


def _digests(schema: str, table: str, columns: Iterable[str]) -> str:
    values = ", ".join(f"{quote(column)}::text" for column in columns)
    return f"SELECT md5(ROW({values})::text) AS digest FROM {quote_qualified(schema, table)}"


async def _summary(connection: Connection, digests: str) -> tuple[int, str]:
    """How many rows there are, and one digest of all of theirs."""
    everything = "coalesce(md5(string_agg(digest, '' ORDER BY digest COLLATE \"C\")), '')"
    cursor = await connection.execute(f"SELECT count(*), {everything} FROM ({digests}) AS rows".encode())
    row = await cursor.fetchone()
    assert row is not None  # an aggregate
    return row[0], row[1]


async def _multiset(connection: Connection, digests: str) -> Counter[str]:
    cursor = await connection.execute(digests.encode())
    return Counter(digest for (digest,) in await cursor.fetchall())


async def _tables(connection: Connection) -> dict[str, list[str]]:
    return dict(await (await connection.execute(_COLUMNS)).fetchall())


async def _connect(dsn: str) -> Connection:
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True, options=_SETTINGS)
