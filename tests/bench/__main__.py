"""``make bench``: `cdc` beside PostgreSQL's own subscription, on the same servers, round by round.

Exit status: 0 when every promise of `tests.bench.verdict` is kept, 1 when one is missed or a measurement failed (a
result that is not equal to the source is a failure, however fast).
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

from rich.console import Console

from cdc.errors import SetupError
from tests.bench.chart import draw
from tests.bench.contents import Unequal
from tests.bench.figures import Kind, Record
from tests.bench.publish import publish
from tests.bench.run import LATENCY, Plan, measure
from tests.bench.tables import show
from tests.bench.verdict import judge
from tests.bench.workloads import WORKLOADS

_ROOT = Path(__file__).resolve().parents[2]

QUICK = Plan(rounds=1, size=0.1, seconds=5.0, readers=[kind for kind in Kind if kind is not Kind.TEXT])
"""A look of some minutes: one round of a tenth, without the subscription in text."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, judge. Returns the exit status."""
    options = parse(arguments)
    console = Console(stderr=False, highlight=False, width=None if sys.stdout.isatty() else 180)
    try:
        if options.read is not None:
            record = Record.read(options.read)
        else:
            record = measure(_plan(options), command(options), lambda line: console.print(line, markup=False))
    except (SetupError, Unequal, OSError, ValueError) as error:
        console.print(f"bench: {error}", style="red", markup=False)
        return 1
    judgements = judge(record)
    if options.quick:
        console.print("a quick run: the figures of backlogs this small are rough, and so is the verdict")
    show(record, judgements, console)
    if options.read is None:
        record.write(options.output, [{"line": str(line), "is_kept": line.is_kept} for line in judgements])
        console.print(f"all figures: {options.output}")
    draw(record, options.output.with_suffix(".png"))
    console.print(f"the chart: {options.output.with_suffix('.png')}")
    if options.publish:
        publish(record, _ROOT)
        console.print("README.md has these figures, docs/bench.png this chart")
    missed = [line for line in judgements if not line.is_kept]
    for line in missed:
        console.print(f"missed: {line}", style="red", markup=False)
    return 1 if missed else 0


def command(options: argparse.Namespace) -> str:
    """What measures the same again. It goes into the README: where this machine's files are is not a part of it."""
    words = ["--quick"] if options.quick else []
    for field in dataclasses.fields(Plan):
        value = getattr(options, field.name)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{field.name.replace('_', '-')}", *(shlex.quote(f"{one}") for one in values)]
    return f"make bench ARGS={shlex.quote(' '.join(words))}" if words else "make bench"


def _plan(options: argparse.Namespace) -> Plan:
    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(Plan)}
    given = {name: value for name, value in chosen.items() if value is not None}
    return dataclasses.replace(QUICK if options.quick else Plan(), **given)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, ``None`` for what is not said."""
    whole = Plan()
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of a tenth: some minutes, rough figures")
    parser.add_argument("--rounds", type=int, help=f"turns of each reader (default {whole.rounds})")
    parser.add_argument("--only", nargs="+", choices=[*WORKLOADS, LATENCY], help="measure these alone")
    parser.add_argument("--size", type=float, help="a share of the backlogs (default 1)")
    parser.add_argument("--targets", nargs="+", type=int, help="how many targets at once (default 1 3)")
    parser.add_argument(
        "--readers",
        nargs="+",
        type=Kind,
        choices=list(Kind),
        metavar="READER",
        help=f"of: {', '.join(map(repr, map(str, Kind)))}",
    )
    parser.add_argument(
        "--added-ms", nargs="+", type=float, help="milliseconds added to each round trip, 0 for none (default 0 2 10)"
    )
    parser.add_argument(
        "--seconds", type=float, help=f"how long latency is measured in a turn (default {whole.seconds:g})"
    )
    parser.add_argument("--rates", nargs="+", type=int, help="transactions a second meanwhile (default 200 2000)")
    parser.add_argument(
        "--output", type=Path, default=Path("build/bench.json"), help="where all figures go; the chart goes beside it"
    )
    parser.add_argument(
        "--read",
        type=Path,
        metavar="FILE",
        help="measure nothing: tables, verdict and chart of an earlier run's figures",
    )
    parser.add_argument("--publish", action="store_true", help="write figures and chart into README.md and docs/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
