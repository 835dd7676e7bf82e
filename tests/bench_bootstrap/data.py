"""What is copied: six tables, thirteen indexes, and at the size 1 a little more than 2 GB of rows.

The rows are made by the server, from numbers and their digests, so they are the same each time.
"""

from __future__ import annotations

from pathlib import Path

import psycopg

_HERE = Path(__file__).parent

_WHEN = "timestamptz '2024-01-01 00:00+00' + n * interval '7 seconds'"

_ROWS: dict[str, tuple[int, str]] = {
    "answers": (
        7_500_000,
        "n, 'an answer of some words, ' || n, CASE n % 3 WHEN 0 THEN 'ko' ELSE 'ok' END, n * 37 % 1000000, "
        f"'rec' || md5((n % 800)::text), {_WHEN}, {_WHEN}, NULL, "
        "CASE n % 5 WHEN 0 THEN E'null\\n\\n' END, n % 600, n % 50 = 0",
    ),
    "knowledge-elements": (
        3_000_000,
        f"n, CASE n % 4 WHEN 0 THEN 'direct' ELSE 'inferred' END, 'validated', {_WHEN}, n * 2, n % 1000000, "
        "'skill' || md5((n % 1500)::text), (n % 60) / 10.0, n * 7919 % 600000, 'competence' || n % 16",
    ),
    # Digests cannot be compressed, so these values are kept outside the table's pages, as long ones are.
    "knowledge-element-snapshots": (
        80_000,
        f"n, n, {_WHEN}, (SELECT jsonb_agg(jsonb_build_object('skill', md5((n * 40 + k)::text), 'pix', k % 5, "
        "'status', 'validated')) FROM generate_series(1, 50) AS k)",
    ),
    "assessments": (
        1_000_000,
        f"n, NULL, {_WHEN}, {_WHEN}, n * 7919 % 600000, 'COMPETENCE_EVALUATION', 'completed', 'competence' || n % 16, "
        "false, n % 500000",
    ),
    "users": (
        600_000,
        "n, 'First name ' || n % 5000, 'Last name ' || n % 90000, 'user' || n || '@' || md5(n::text) || '.example', "
        f"{_WHEN}, {_WHEN}, true, n % 20 = 0, 'fr'",
    ),
    "campaign-participations": (
        500_000,
        f"n, n % 4000, {_WHEN}, n * 7919 % 600000, 'SHARED', (n % 100) / 100.0, n % 60",
    ),
}
"""By table: how many rows at the size 1, and what is selected for each ``n``."""

TABLES = tuple(_ROWS)


def create(dsn: str, size: float) -> int:
    """Fill an empty database; returns the bytes of the tables, TOAST included and indexes not."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute((_HERE / "tables.sql").read_bytes())
        for table, (rows, values) in _ROWS.items():
            count = max(1, round(rows * size))
            query = f'INSERT INTO "{table}" SELECT {values} FROM generate_series(1::bigint, {count}) AS n'
            connection.execute(query.encode())
        connection.execute((_HERE / "indexes.sql").read_bytes())
        connection.execute("VACUUM ANALYZE")
        row = connection.execute(
            "SELECT sum(pg_table_size(oid)) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        ).fetchone()
    assert row is not None
    return int(row[0])
