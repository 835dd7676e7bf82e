"""Whether a target holds what the source holds: a fast wrong result is no result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg

from cdc.identifiers import quote

Digests = Mapping[str, tuple[int, str]]
"""By table: how many rows, and a number that is the same for the same rows."""


class Unequal(Exception):
    """A target's table differs from the source's. Holds the table and the two counts, no values."""


def digests(dsn: str, tables: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Count and digest tables.

    The digest is the sum of a hash of every row, which needs no order: pgbench's history has no key to sort by. Types
    without a hash (json) are in none of the workloads.
    """
    with psycopg.connect(dsn) as connection:
        found = {}
        for table in tables:
            query = f"SELECT count(*), coalesce(sum(hash_record_extended(t, 0)), 0)::text FROM public.{quote(table)} t"
            row = connection.execute(query.encode()).fetchone()
            assert row is not None
            found[table] = (int(row[0]), str(row[1]))
        return found


def require_equal(source: Digests, target_dsn: str) -> None:
    """Compare row counts and digests of all tables. Raises `Unequal` for the first that differs."""
    for table, theirs in digests(target_dsn, list(source)).items():
        if source[table] != theirs:
            raise Unequal(
                f"{table}: {source[table][0]:,} rows at the source, {theirs[0]:,} at the target, digests differ"
            )
