"""``make bench-bootstrap``: `cdc bootstrap` beside the other ways to fill a target, on the same servers and rows.

Exit status: 0 when `--from live` is at least as fast as each of the others, 1 when it is not or a measurement failed (a
target that does not equal the source is a failure, however fast).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from cdc.errors import SetupError
from tests.bench.servers import servers
from tests.bench_bootstrap import data
from tests.bench_bootstrap.contents import Unequal
from tests.bench_bootstrap.measure import measure
from tests.bench_bootstrap.verdict import Report
from tests.bench_bootstrap.ways import WAYS

MAINTENANCE_WORK_MEM = "512MB"
"""Of the target's server, for everybody: what one would give it for a restore. (pgcopydb asks for more by itself.)"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, judge. Returns the exit status."""
    options = _options(arguments)
    console = Console(stderr=False, highlight=False, width=None if sys.stdout.isatty() else 180)
    try:
        report = _measure(options, console)
    except (SetupError, Unequal) as error:
        console.print(f"bench-bootstrap: {error}", style="red", markup=False)
        return 1
    report.print(console)
    report.write(options.output)
    console.print(f"all figures: {options.output}")
    return 1 if report.shortcomings() else 0


def _measure(options: argparse.Namespace, console: Console) -> Report:
    def say(line: str) -> None:
        console.print(line, markup=False)

    with servers() as running:
        machine = {**running.machine(), "jobs": options.jobs, "load when it began": f"{os.getloadavg()[0]:.2f}"}
        running.target.configure(
            {"maintenance_work_mem": MAINTENANCE_WORK_MEM, "max_sync_workers_per_subscription": options.jobs}
        )
        running.target.reload()
        size = data.create(running.source.create_database("source"), options.size)
        machine["bytes"] = f"{size:,} in {len(data.TABLES)} tables"
        say(f"{machine['bytes']}, without their indexes")
        ways = [way for way in WAYS if not options.only or way.name in options.only]
        missing = {way.name: reason for way in ways if (reason := way.missing(running)) is not None}
        gone = [way for way in ways if way.name not in missing]
        return Report(machine, ways, measure(running, "source", gone, options.rounds, options.jobs, say), missing)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench_bootstrap", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default 3)")
    parser.add_argument("--jobs", type=int, default=4, help="jobs of each way (default 4: that of cdc and of pgcopydb)")
    parser.add_argument("--only", nargs="+", choices=[way.name for way in WAYS], help="measure these alone")
    parser.add_argument("--size", type=float, default=1.0, help="a share of the rows, for a quick look (default 1)")
    parser.add_argument("--output", type=Path, default=Path("build/bench-bootstrap.json"), help="where all figures go")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
