"""``python -m tests.soak``: one transaction of ten million rows, and the memory of the worker meanwhile.

Small transactions are written behind it while it runs and after it has committed. Printed as JSON, for each way of
having it (streamed into the spool; after its commit): rows, seconds to write it, seconds from its commit until it is
visible at the target, the most memory and spool of the worker, and whether source and target are equal. Exit status 1
when they are not, when a small transaction overtook it, or when the worker took more than 300 MB. How long the small
ones take while it is written says how far the walsender is behind whoever writes: they come behind it in the WAL.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from cdc.demo.postgres import Cluster, find_binaries
from tests.conftest import SETTINGS
from tests.database import Database, unique_name
from tests.pipeline import Pipeline, follow

MOST_MEMORY_BYTES = 300_000_000
DEADLINE_S = 3600.0
SAMPLE_S = 0.2

TABLES = """
CREATE TABLE answers (
    id bigint PRIMARY KEY, value text, result text, "challengeId" text, "createdAt" timestamptz, "timeSpent" int,
    "assessmentId" bigint, "isFocusedOut" boolean, timeout int, "resultDetails" text
);
CREATE TABLE log (id bigserial PRIMARY KEY, written timestamptz DEFAULT clock_timestamp())
"""
LARGE = """
INSERT INTO answers SELECT g, md5(g::text), CASE g %% 3 WHEN 0 THEN 'ko' ELSE 'ok' END, 'rec' || (g * 7919 %% 100000),
       now(), g %% 300, g / 20, g %% 50 = 0, NULL, NULL FROM generate_series(1, %s::bigint) g
"""
SUMS = "SELECT count(*), sum(id), sum(hashtext(a::text)) FROM answers a"


def main() -> int:
    """Measure, print, judge. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--ways", nargs="+", choices=["spool", "none"], default=["spool", "none"])
    parser.add_argument("--directory", type=Path, help="where the servers and the spool are (default: the system's)")
    options = parser.parse_args()
    is_good = True
    for way in options.ways:
        figures = asyncio.run(_measure(options.rows, way == "spool", options.directory))
        print(json.dumps(figures), flush=True)
        is_good &= bool(figures["equal"]) and bool(figures["in_order"])
        is_good &= int(str(figures["peak_memory_bytes"])) <= MOST_MEMORY_BYTES
    return 0 if is_good else 1


async def _measure(rows: int, with_spool: bool, directory: Path | None) -> dict[str, object]:
    settings = {**SETTINGS, "max_wal_size": "16GB"}
    with (
        tempfile.TemporaryDirectory(dir=directory) as spool,
        Cluster(binaries=find_binaries(None), settings=settings, parent=directory) as cluster,
    ):
        source, target = (Database(cluster, unique_name(name)) for name in ("source", "target"))
        source.execute(TABLES)
        worker = {"spool_directory": spool} if with_spool else {"max_spool_bytes": 0}
        async with Pipeline(source, {"internal": follow(target)}, worker=worker) as pipeline:
            await pipeline.load()
            await pipeline.start(fresh=True)
            return {"way": "spool" if with_spool else "none", "rows": rows, **await _pass(pipeline, rows)}


async def _pass(pipeline: Pipeline, rows: int) -> dict[str, object]:
    source, target, worker = pipeline.source, pipeline.targets["internal"], pipeline.worker
    most_spooled, longest_s, is_over = 0.0, 0.0, asyncio.Event()

    async def watch() -> None:
        nonlocal most_spooled
        while not is_over.is_set():
            with suppress(OSError):  # it does not answer in time on a machine that is busy
                most_spooled = max(most_spooled, await worker.metric("cdc_spool_bytes"))
            await asyncio.sleep(SAMPLE_S)

    async def write_small_ones() -> None:
        """One after another, while the large one is written: how long each takes to be visible."""
        nonlocal longest_s
        while not is_over.is_set():
            began = time.monotonic()
            (number,) = source.fetch("INSERT INTO log DEFAULT VALUES RETURNING id")[0]
            seen = "SELECT count(*) FROM log WHERE id = %s"
            while not is_over.is_set() and not target.fetchval(seen, number):  # noqa: ASYNC110 - no table announces
                await asyncio.sleep(0.01)
            longest_s = max(longest_s, time.monotonic() - began)
            await asyncio.sleep(SAMPLE_S)

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch())
        async with source.session(autocommit=False) as session:
            small = tasks.create_task(write_small_ones())
            began = time.monotonic()
            await session.execute(LARGE, (rows,))
            written_s = time.monotonic() - began
            is_over.set()
            await small
            before = longest_s
            await session.commit()
        is_over.clear()
        watching.cancel()
        watching = tasks.create_task(watch())
        committed = time.monotonic()
        # Behind its commit: whoever sees one of these sees all of the large one.
        (last,) = source.fetch("INSERT INTO log DEFAULT VALUES RETURNING id")[0]
        seen = "SELECT (SELECT count(*) FROM log WHERE id = %s), EXISTS (SELECT FROM answers WHERE id = 1)"
        in_order = True
        while True:
            is_behind, is_large = target.fetch(seen, last)[0]
            in_order &= is_large or not is_behind
            if is_behind:
                break
            if time.monotonic() - committed > DEADLINE_S:
                raise SystemExit("the transaction did not arrive in an hour")
            await asyncio.sleep(0.05)
        visible_s = time.monotonic() - committed
        is_over.set()
    await pipeline.caught_up(deadline_s=DEADLINE_S)
    return {
        "written_s": round(written_s, 1),
        "visible_after_commit_s": round(visible_s, 1),
        "longest_small_one_meanwhile_s": round(before, 2),
        "peak_memory_bytes": worker.peak_rss_bytes(),
        "most_spooled_bytes": int(most_spooled),
        "in_order": in_order,
        "equal": source.fetch(SUMS) == target.fetch(SUMS),
    }


if __name__ == "__main__":
    sys.exit(main())
