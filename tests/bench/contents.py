"""Whether a target holds what the source holds: a fast wrong result is no result."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from cdc.identifiers import quote


class Unequal(Exception):
    """A target's table differs from the source's. Holds the table and the two counts, no values."""


def require_equal(source_dsn: str, target_dsn: str, tables: Sequence[str]) -> None:
    """Compare row counts and digests of all tables. Raises `Unequal` for the first that differs.

    The digest is the sum of a hash of every row, which needs no order: pgbench's history has no key to sort by.
    """
    for table in tables:
        ours, theirs = _digest(source_dsn, table), _digest(target_dsn, table)
        if ours != theirs:
            raise Unequal(f"{table}: {ours[0]:,} rows at the source, {theirs[0]:,} at the target, digests differ")


def _digest(dsn: str, table: str) -> tuple[int, str]:
    query = f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM public.{quote(table)} AS t"
    with psycopg.connect(dsn, options="-c timezone=UTC") as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0]), str(row[1])
