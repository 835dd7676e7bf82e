"""What a database holds, in a form that can be compared: a fast wrong result is no result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from cdc.identifiers import quote


class Unequal(Exception):
    """A target does not hold what the source holds. Names the table, no values."""


@dataclass(frozen=True, slots=True)
class Contents:
    """``rows`` and digests by table; ``indexes`` are the valid ones, by table, without their names."""

    rows: dict[str, tuple[int, str]]
    indexes: frozenset[str]

    def require_equal(self, source: Contents) -> None:
        """Raise `Unequal` where this is not what the source has."""
        for table, (count, digest) in source.rows.items():
            ours, our_digest = self.rows[table]
            if (ours, our_digest) != (count, digest):
                raise Unequal(f"{table}: {count:,} rows at the source, {ours:,} at the target, digests differ")
        missing = source.indexes - self.indexes
        extra = self.indexes - source.indexes
        if missing or extra:
            raise Unequal(f"indexes missing: {sorted(missing)}, indexes too many: {sorted(extra)}")


def read(dsn: str, tables: Sequence[str]) -> Contents:
    """Count and digest all rows, and list the indexes.

    The digest is the sum of a hash of every row, which needs no order.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = {}
        for table in tables:
            query = (
                f"SELECT count(*), coalesce(sum(hash_record_extended(t, 0)), 0)::text FROM public.{quote(table)} AS t"
            )
            row = connection.execute(query.encode()).fetchone()
            assert row is not None
            rows[table] = (int(row[0]), str(row[1]))
        found = connection.execute(
            "SELECT c.relname || ': ' || regexp_replace(pg_get_indexdef(i.indexrelid), 'INDEX \\S+ ON', 'INDEX ON')"
            " || CASE WHEN i.indisprimary THEN ' (primary key)' ELSE '' END"
            " FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid"
            " WHERE c.relnamespace = 'public'::regnamespace AND i.indisvalid"
        ).fetchall()
    return Contents(rows, frozenset(str(row[0]) for row in found))
