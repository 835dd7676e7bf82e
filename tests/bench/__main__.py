"""``make bench``: `cdc` beside PostgreSQL's own subscription, on the same servers, round by round.

Exit status: 0 when every threshold of `tests.bench.verdict` is kept, 1 when one is missed or a measurement failed (a
result that is not equal to the source is a failure, however fast).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from cdc.errors import SetupError
from tests.bench import drain, latency
from tests.bench.contents import Unequal
from tests.bench.servers import servers
from tests.bench.verdict import Drained, Report
from tests.bench.workloads import Workload, bulk, pgbench

_WORKLOADS: dict[str, Callable[[float], Workload]] = {"bulk": bulk, "pgbench": pgbench}
_LATENCY = "latency"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, judge. Returns the exit status."""
    options = _options(arguments)
    console = Console(stderr=False, highlight=False, width=None if sys.stdout.isatty() else 160)
    wanted = options.only or [*_WORKLOADS, _LATENCY]
    try:
        report = _measure(options, wanted, console)
    except (SetupError, Unequal) as error:
        console.print(f"bench: {error}", style="red", markup=False)
        return 1
    report.print(console)
    report.write(options.output)
    console.print(f"all figures: {options.output}")
    return 1 if report.shortcomings() else 0


def _measure(options: argparse.Namespace, wanted: list[str], console: Console) -> Report:
    def say(line: str) -> None:
        console.print(line, markup=False)

    with servers() as running:
        machine = {**running.machine(), "load when it began": f"{os.getloadavg()[0]:.2f}"}
        drained = []
        for name, make in _WORKLOADS.items():
            if name in wanted:
                workload = make(options.size)
                drained.append(Drained(workload, drain.measure(running, workload, options.rounds, say)))
        latencies = []
        if _LATENCY in wanted:
            latencies = latency.measure(running, options.rounds, options.seconds, options.rate, say)
        return Report(machine, drained, latencies, options.rate)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each reader (default 3)")
    parser.add_argument("--only", nargs="+", choices=[*_WORKLOADS, _LATENCY], help="measure these alone")
    parser.add_argument("--size", type=float, default=1.0, help="a share of the backlogs, for a quick look (default 1)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="how long latency is measured in a turn (default 20)"
    )
    parser.add_argument("--rate", type=int, default=200, help="transactions a second meanwhile (default 200)")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), help="where all figures go")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
