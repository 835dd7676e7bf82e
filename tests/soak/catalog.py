"""``python -m tests.soak.catalog``: whether the target's catalogs grow under an hour of changes.

A worker applies batches of all sizes into twenty tables: single rows, and ten to ten thousand inserts, updates and
deletes, so that staging tables fill and are emptied all the time. Every minute it prints, as JSON, how large the
system catalogs of the target are, those of `cdc` (schema ``cdc``), and the worker. Autovacuum runs as it does
everywhere. Exit status 1 when a catalog is larger at the end than what it was after a third of the time by more than
`MOST_GROWTH_BYTES`, or when source and target differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time

from cdc.demo.postgres import Cluster, find_binaries
from tests.conftest import SETTINGS
from tests.database import Database, unique_name
from tests.pipeline import Pipeline, follow

TABLES = 20
SIZES = (1, 1, 1, 1, 1, 10, 100, 1_000, 10_000)
MOST_GROWTH_BYTES = 1024 * 1024
DEADLINE_S = 600.0

SIZE_OF_CATALOGS = """
SELECT n.nspname || '.' || c.relname, pg_total_relation_size(c.oid)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND n.nspname IN ('pg_catalog', 'cdc') AND pg_total_relation_size(c.oid) > 0
"""
SUMS = "; ".join(f"SELECT count(*), sum(hashtext(t::text)) FROM t{table} t" for table in range(TABLES))


def main() -> int:
    """Run, print, judge. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.catalog", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between two transactions of the source")
    options = parser.parse_args()
    return asyncio.run(_run(options.minutes * 60, options.pause))


async def _run(seconds: float, pause_s: float) -> int:
    settings = {**SETTINGS, "max_wal_size": "4GB", "autovacuum": "on"}
    with Cluster(binaries=find_binaries(None), settings=settings) as cluster:
        source, target = (Database(cluster, unique_name(name)) for name in ("source", "target"))
        source.execute(
            "; ".join(f"CREATE TABLE t{table} (id bigint PRIMARY KEY, a text, b int)" for table in range(TABLES))
        )
        async with Pipeline(source, {"internal": follow(target)}) as pipeline:
            await pipeline.load()
            await pipeline.start(fresh=True)
            began = noted = time.monotonic()
            seen: list[dict[str, int]] = []
            written = 0
            while time.monotonic() - began < seconds:
                source.execute(_transaction(written))
                written += 1
                if time.monotonic() - noted >= min(60.0, seconds / 6):
                    noted = time.monotonic()
                    seen.append(dict(target.fetch(SIZE_OF_CATALOGS)))
                    largest = dict(sorted(seen[-1].items(), key=lambda item: -item[1])[:6])
                    memory = pipeline.worker.peak_rss_bytes()
                    note = {"minute": round((noted - began) / 60, 1), "transactions": written, "memory_bytes": memory}
                    print(json.dumps({**note, "all_bytes": sum(seen[-1].values()), **largest}), flush=True)
                await asyncio.sleep(pause_s)
            await pipeline.caught_up(deadline_s=DEADLINE_S)
            are_equal = all(source.fetch(one) == target.fetch(one) for one in SUMS.split("; "))
        early, late = seen[len(seen) // 3], seen[-1]
        grown = {name: size - early.get(name, 0) for name, size in late.items() if size > early.get(name, 0)}
        print(json.dumps({"equal": are_equal, "grown_bytes": grown}), flush=True)
        return 0 if are_equal and max(grown.values(), default=0) <= MOST_GROWTH_BYTES else 1


def _transaction(number: int) -> str:
    """Inserts, updates and deletes of one size, in one table."""
    chance = random.Random(number)
    table, size, first = chance.randrange(TABLES), chance.choice(SIZES), chance.randrange(50_000)
    match chance.choice(("insert", "update", "update", "delete")):
        case "insert":
            return (
                f"INSERT INTO t{table} SELECT g, md5(g::text), {number} FROM generate_series({first}, {first + size}) g"
                f" ON CONFLICT (id) DO UPDATE SET b = {number}"
            )
        case "update":
            return f"UPDATE t{table} SET b = {number}, a = a || 'x' WHERE id BETWEEN {first} AND {first + size}"
        case _:
            return f"DELETE FROM t{table} WHERE id BETWEEN {first} AND {first + size // 4}"


if __name__ == "__main__":
    sys.exit(main())
