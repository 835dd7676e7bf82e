"""Run the tests against real servers for each pair of versions: ``python -m tests.matrix 14:18 18:14 -- -n 3``.

A pair is the source's major version and the target's. Without one all supported pairs run: each version with itself,
the oldest to the newest and the newest to the oldest. What follows ``--`` goes to pytest; where a path is among it,
only that is run. Servers are found or fetched (`tests.matrix.installations`). A pair that fails does not keep the next
from running; the exit status is 1 when one failed, 2 when a version is not to be had. What pytest said of a pair is in
``.cache/matrix``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from cdc.demo.postgres import BINARIES_VARIABLE
from tests.matrix.installations import MAJORS, InstallationError, binaries_of
from tests.servers import TARGET_BINARIES_VARIABLE

ROOT = Path(__file__).resolve().parents[2]

CACHE = ROOT / ".cache"

TESTS = ("tests/integration", "tests/model")
"""The tests that speak to servers; the others are the same on every version."""

PAIRS = (*((major, major) for major in MAJORS), (MAJORS[0], MAJORS[-1]), (MAJORS[-1], MAJORS[0]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one pair. ``status`` is pytest's; ``failed`` are names, ``skipped`` reasons with their number."""

    pair: str
    status: int
    passed: int
    failed: tuple[str, ...]
    skipped: Counter[str]
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether tests ran and none failed."""
        return self.status == 0 and self.passed > 0 and not self.failed

    def line(self) -> str:
        """The pair in one line."""
        verdict = "ok" if self.is_good else "FAILED" if self.failed else f"FAILED: pytest ended with {self.status}"
        return (
            f"{self.passed:5} passed {len(self.failed):4} failed {self.skipped.total():4} skipped "
            f"{self.seconds:6.0f} s  {verdict}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pairs: the exit status."""
    words, pytest_arguments = _split(sys.argv[1:] if arguments is None else list(arguments))
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pairs", nargs="*", type=_pair, metavar="SOURCE:TARGET", help="for example 14:18; default: all")
    pairs: list[tuple[int, int]] = parser.parse_args(words).pairs or list(PAIRS)
    try:
        places = {major: binaries_of(major, CACHE / "postgresql") for major in sorted({*sum(pairs, ())})}
    except InstallationError as error:
        print(f"test-matrix: {error}", file=sys.stderr)
        return 2
    # Started in the background, a shell makes us ignore what the tests of Ctrl-C send to processes of theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outcomes = []
    for source, target in pairs:
        pair = f"{source}:{target}"
        print(f"{pair:6}", end="", flush=True)
        outcome = _run(pair, places[source], places[target], pytest_arguments)
        print(outcome.line(), flush=True)
        for name in outcome.failed:
            print(f"         {name}", flush=True)
        outcomes.append(outcome)
    _show(outcomes)
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Ours, and those for pytest."""
    return (words, []) if "--" not in words else (words[: words.index("--")], words[words.index("--") + 1 :])


def _pair(text: str) -> tuple[int, int]:
    source, _, target = text.partition(":")
    known = {str(major): major for major in MAJORS}
    if source not in known or target not in known:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a pair of versions {MAJORS[0]} to {MAJORS[-1]} such as 14:18"
        )
    return known[source], known[target]


def _run(pair: str, source: Path, target: Path, arguments: Sequence[str]) -> Outcome:
    """Run pytest for one pair and read what it reports."""
    directory = CACHE / "matrix"
    directory.mkdir(parents=True, exist_ok=True)
    log, report = (directory / f"{pair.replace(':', '-')}.{kind}" for kind in ("log", "xml"))
    report.unlink(missing_ok=True)
    paths = [] if any((ROOT / word.partition("::")[0]).exists() for word in arguments) else TESTS
    command = [sys.executable, "-m", "pytest", "--verbose", f"--junitxml={report}", "--override-ini=junit_logging=no"]
    environment = {**os.environ, BINARIES_VARIABLE: str(source), TARGET_BINARIES_VARIABLE: str(target)}
    begun = time.monotonic()
    with log.open("wb") as file:
        done = subprocess.run(
            [*command, *arguments, *paths], cwd=ROOT, env=environment, stdout=file, stderr=file, check=False
        )
    passed, failed, skipped = _read(report)
    return Outcome(pair, done.returncode, passed, failed, skipped, time.monotonic() - begun)


def _read(report: Path) -> tuple[int, tuple[str, ...], Counter[str]]:
    """Of pytest's JUnit report: how many passed, which failed, and how many were skipped for which reason."""
    passed, failed, skipped = 0, dict[str, None](), Counter[str]()
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            skip = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                failed[f"{case.get('classname')}::{case.get('name')}"] = None
            elif skip is not None:
                skipped[skip.get("message") or "no reason"] += 1
            else:
                passed += 1
    return passed, tuple(failed), skipped


def _show(outcomes: Sequence[Outcome]) -> None:
    print(f"\n{'source:target':15}{'passed':>7}{'failed':>7}{'skipped':>8}{'seconds':>8}")
    for one in outcomes:
        numbers = f"{one.passed:7}{len(one.failed):7}{one.skipped.total():8}{one.seconds:8.0f}"
        print(f"{one.pair:15}{numbers}{'' if one.is_good else '  FAILED'}")
    for reason in sorted({reason for one in outcomes for reason in one.skipped}):
        numbers_of = ", ".join(f"{one.pair} {one.skipped[reason]}" for one in outcomes if one.skipped[reason])
        print(f"skipped, {reason}: {numbers_of}")
    print(f"What pytest said is in {(CACHE / 'matrix').relative_to(ROOT)}.")


if __name__ == "__main__":
    raise SystemExit(main())
