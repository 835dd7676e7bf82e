"""A run as tables for a terminal: a row for every contestant, medians over the rounds, ratios round by round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.bench.figures import ROLES, Contestant, Drain, Kind, Latency, Measured, Record, Role
from tests.bench.verdict import Judgement

_MB = 1_000_000


def show(record: Record, judgements: Sequence[Judgement], console: Console) -> None:
    """Print everything: what it ran on, the figures, the verdict."""
    what = {**record.versions, **record.machine, "load": "{:.1f} to {:.1f}".format(*record.loads)}
    console.print(", ".join(f"{name} {value}" for name, value in what.items()), markup=False)
    for link in record.links:
        console.print(
            f"{link.added_ms:g} ms added: a round trip takes {link.round_trip_ms:.2f} ms instead of "
            f"{link.direct_round_trip_ms:.2f}"
        )
    for added_ms in sorted({drain.added_ms for drain in record.drains}):
        for workload in record.workloads:
            if record.contestants(workload.name, added_ms):
                console.print(_drained(record, workload, added_ms))
    if record.latencies:
        console.print(_followed(record))
    if judgements:
        console.print(_verdict(judgements))


def against(contestant: Contestant) -> Contestant:
    """Whom a contestant is compared with."""
    if not contestant.kind.writes:
        return Contestant(Kind.RECVLOGICAL, 0)
    return Contestant(Kind.SUBSCRIPTION, contestant.targets)


def _drained(record: Record, workload: Measured, added_ms: float) -> Table:
    title = workload.title + (f", {added_ms:g} ms added to each round trip" if added_ms else "")
    table = _table(
        title,
        *("reader", "seconds", "with start", f"{workload.unit}/s", "ratio", "round by round"),
        *_COSTS,
    )
    for contestant in sorted(record.contestants(workload.name, added_ms), key=_order):
        drains = record.drained(workload.name, contestant, added_ms)
        ratios = record.ratios(workload.name, contestant, against(contestant), added_ms)
        table.add_row(
            str(contestant),
            f"{median(drain.seconds for drain in drains):.2f}",
            f"{median(drain.seconds_with_start for drain in drains):.2f}",
            f"{median(drain.rate for drain in drains):,.0f}",
            *_ratios(contestant, ratios),
            *_costs(drains, [workload.changes] * len(drains)),
        )
    return table


def _followed(record: Record) -> Table:
    table = _table(
        "latency from commit to visibility",
        *("added ms", "wanted/s", "reader", "written/s", "p50 ms", "p99 ms", "max ms"),
        *_COSTS,
    )
    for added_ms, rate, contestant in sorted(
        {(turn.added_ms, turn.asked_rate, turn.contestant) for turn in record.latencies},
        key=lambda key: (key[0], key[1], _order(key[2])),
    ):
        turns = record.followed(contestant, rate, added_ms)
        table.add_row(
            *(f"{added_ms:g}", f"{rate:,}", str(contestant), f"{median(turn.rate for turn in turns):,.0f}"),
            *(
                f"{median(values):.1f}"
                for values in zip(*((turn.p50_ms, turn.p99_ms, turn.max_ms) for turn in turns), strict=True)
            ),
            *_costs(turns, [turn.changes for turn in turns]),
        )
    return table


def _verdict(judgements: Iterable[Judgement]) -> Table:
    table = _table("verdict", "about", "wanted", "found", "")
    for judgement in judgements:
        table.add_row(
            *(judgement.about, judgement.wanted, judgement.found, "kept" if judgement.is_kept else "missed"),
            style=None if judgement.is_kept else "red",
        )
    return table


_COSTS = ("CPU s per million: worker", "source", "targets", "peak MB")


def _costs(turns: Sequence[Drain | Latency], changes: Sequence[int]) -> Iterator[str]:
    for role in ROLES:
        cost = median(per_million(turn.cpu_s, role, count) for turn, count in zip(turns, changes, strict=True))
        yield f"{cost:.2f}"
    peak = max(turn.peak_bytes for turn in turns)
    yield f"{peak / _MB:.0f}" if peak else ""


def per_million(cpu_s: dict[Role, float], role: Role, changes: int) -> float:
    """CPU seconds of a role for a million changes."""
    return cpu_s[role] * 1_000_000 / changes


def _ratios(contestant: Contestant, ratios: Sequence[float]) -> tuple[str, str]:
    if not ratios or contestant == against(contestant):
        return "", ""
    return f"{median(ratios):.2f}", ", ".join(f"{ratio:.2f}" for ratio in ratios)


def _order(contestant: Contestant) -> tuple[int, int]:
    return contestant.targets, list(Kind).index(contestant.kind)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        is_text = column in ("reader", "round by round", "about", "wanted", "found", "")
        table.add_column(column, justify="left" if is_text else "right")
    return table
