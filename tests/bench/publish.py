"""The figures of a run in README.md, between its two marks, and its chart in docs/bench.png."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.bench.chart import draw
from tests.bench.figures import Contestant, Kind, Measured, Record
from tests.bench.tables import per_million
from tests.bench.verdict import FAR_MS, judge

_MARKED = re.compile(r"(<!-- bench:begin.*?-->\n).*?(<!-- bench:end -->)", re.DOTALL)

CHART = Path("docs/bench.png")


def publish(record: Record, root: Path) -> None:
    """Write both. Raises ``ValueError`` where README.md has no marks."""
    readme = root / "README.md"
    text, count = _MARKED.subn(
        lambda found: found[1] + "\n".join(section(record)) + "\n" + found[2], readme.read_text(encoding="utf-8")
    )
    if count != 1:
        raise ValueError(
            f"{readme} has {count} places between <!-- bench:begin --> and <!-- bench:end -->, one is wanted"
        )
    readme.write_text(text, encoding="utf-8")
    draw(record, root / CHART)


def section(record: Record) -> Iterator[str]:
    """The lines between the marks."""
    rounds = record.options.get("rounds", "?")
    yield (
        f"![How fast cdc drains a backlog beside PostgreSQL's own subscription, and how late it is]({CHART.as_posix()})"
    )
    yield ""
    yield (
        f"`{record.command}`, {rounds} round{'' if rounds == 1 else 's'} (of the largest two a third), on "
        f"{record.began_at[:10]}: "
        f"{record.machine['cores']} cores for source, targets and worker together, PostgreSQL "
        f"{record.versions['postgresql']}, Python {record.versions['python']}, load average "
        f"{record.loads[0]:.1f} when it began, {record.took_s / 60:.0f} minutes. Medians; "
        "ratios are the medians of the rounds' ratios:"
    )
    yield ""
    yield from _throughput(record)
    yield from _latency(record)
    yield from _in_words(record)
    missed = [str(line) for line in judge(record) if not line.is_kept]
    if missed:
        yield "Of what it must reach, this run missed:"
        yield ""
        yield from (f"- {line}" for line in missed)
    else:
        yield "This run reached all that it must reach (`tests/bench/verdict.py`)."


def _throughput(record: Record) -> Iterator[str]:
    if not record.workloads:
        return
    yield (
        "| | `cdc` | against a subscription | against three, with three targets | null target of `pg_recvlogical` "
        "| CPU s per million changes: worker, source, target |"
    )
    yield "|---|---|---|---|---|---|"
    for workload in record.workloads:
        ours = record.drained(workload.name, Contestant(Kind.CDC, 1))
        cells = [
            f"{median(drain.rate for drain in ours):,.0f} {workload.unit}/s" if ours else "",
            _ratio(record, workload, Kind.CDC, Kind.SUBSCRIPTION, 1),
            _ratio(record, workload, Kind.CDC, Kind.SUBSCRIPTION, 3),
            _share(record, workload),
            ", ".join(
                f"{median(per_million(drain.cpu_s, role, workload.changes) for drain in ours):.1f}"
                for role in ("worker", "source", "targets")
            )
            if ours
            else "",
        ]
        yield f"| {workload.title} | {' | '.join(cells)} |"
    yield ""


def _ratio(record: Record, workload: Measured, ours: Kind, theirs: Kind, targets: int) -> str:
    ratios = record.ratios(workload.name, Contestant(ours, targets), Contestant(theirs, targets))
    return f"{median(ratios):.2f}" if ratios else ""


def _share(record: Record, workload: Measured) -> str:
    ratios = record.ratios(workload.name, Contestant(Kind.NULL, 0), Contestant(Kind.RECVLOGICAL, 0))
    return f"{median(ratios):.0%}" if ratios else ""


def _latency(record: Record) -> Iterator[str]:
    keys = sorted({(turn.added_ms, turn.asked_rate) for turn in record.latencies})
    if not keys:
        return
    yield "| from commit to visibility: p50, p99, max | PostgreSQL's subscription | `cdc` |"
    yield "|---|---|---|"
    for added_ms, rate in keys:
        away = f", {added_ms:g} ms added to each round trip" if added_ms else ""
        cells = []
        for kind in (Kind.SUBSCRIPTION, Kind.CDC):
            turns = record.followed(Contestant(kind, 1), rate, added_ms)
            figures = [
                [turn.p50_ms for turn in turns],
                [turn.p99_ms for turn in turns],
                [turn.max_ms for turn in turns],
            ]
            cells.append(", ".join(f"{median(values):.1f} ms" for values in figures) if turns else "")
        yield f"| {rate:,} transactions/s{away} | {cells[0]} | {cells[1]} |"
    yield ""


def _in_words(record: Record) -> Iterator[str]:
    words = []
    for workload in record.workloads:
        turns = record.drained("backlog", Contestant(Kind.CDC, 1)) if workload.name == "backlog" else []
        if turns:
            seconds = median(drain.seconds for drain in turns)
            words.append(f"A backlog of {workload.changes:,} changes is drained in {seconds:,.0f} s.")
    far = record.drained("bulk", Contestant(Kind.CDC, 1), FAR_MS)
    if far:
        rate = median(drain.rate for drain in far)
        words.append(
            f"With {FAR_MS:g} ms added to every round trip to its target `cdc` applies {rate:,.0f} rows/s of bulk."
        )
    peaks = [drain.peak_bytes for drain in record.drains if drain.contestant.kind is Kind.CDC]
    peaks += [latency.peak_bytes for latency in record.latencies if latency.contestant.kind is Kind.CDC]
    if peaks:
        words.append(f"The worker took at most {max(peaks) / 1e6:.0f} MB.")
    if words:
        yield from words
        yield ""
