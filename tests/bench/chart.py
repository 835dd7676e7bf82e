"""A run as one picture, for whoever has never heard of this program: how many times as fast, and how late.

Above, a bar per workload for one and for three targets: how many times the rate of as many of PostgreSQL's own
subscriptions. A line across a bar is what is promised; a thin line shows the slowest and the fastest round. Below, how
long a row takes from its commit until somebody sees it.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.bench.figures import Contestant, Kind, Latency, Record
from tests.bench.verdict import MAX_P50_MS, MAX_P99_MS, min_ratio

LABELS = {
    "bulk": "inserts, 1,000\na transaction",
    "pgbench": "pgbench's\ntransaction",
    "single": "one insert\na transaction",
    "toast": "updates of\nTOASTed rows",
    "hot": "updates of the\nsame 1,000 keys",
    "deletes": "deletes, 1,000\na transaction",
    "big": "one huge\ntransaction",
    "tables": "40 tables\nat random",
    "backlog": "backlog of\nall kinds",
}

_LEAST_MS = 0.4
"""Where the scale of milliseconds begins."""

# A number stands at the foot of its bar, where no mark of a promise is in its way.
_NUMBER: Any = {"ha": "center", "va": "bottom", "fontsize": 8}

_COLOURS = {1: "#8fb8de", 3: "#1f5a99"}
_SUBSCRIPTION, _CDC, _MARK = "#b8b8b8", "#1f5a99", "#c0392b"
_BAR = 0.38

# The legend stands between the title and what it explains.
_TITLE: Any = {"loc": "left", "fontweight": "bold", "pad": 26}
_LEGEND: Any = {"frameon": False, "loc": "lower left", "bbox_to_anchor": (-0.005, 0.995), "ncols": 3, "borderpad": 0.2}

# The same picture wherever it is drawn, and text that can be read on a page.
_STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def draw(record: Record, path: Path) -> None:
    """Write the picture as PNG; a part without figures is left out, and without any there is no file."""
    parts = [
        part for part, is_there in ((_ratios, _has_ratios(record)), (_latencies, bool(_rates(record)))) if is_there
    ]
    if not parts:
        return
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 0.9 + 3.9 * len(parts)), layout="constrained")
        for axes, part in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True):
            part(record, axes)
        figure.supxlabel(_footnote(record), fontsize=7.5, color="#555555", x=0.01, ha="left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Software": None})


def _footnote(record: Record) -> str:
    rounds = record.options.get("rounds", "?")
    return "; ".join(
        [
            f"PostgreSQL {record.versions.get('postgresql', '?')}",
            f"source, targets and cdc share {record.machine['cores']} cores",
            f"median of {rounds} round{'' if rounds == 1 else 's'}, thin lines: slowest and fastest",
            "every target is compared with the source afterwards",
            record.began_at[:10],
        ]
    )


def _has_ratios(record: Record) -> bool:
    return any(_ratio(record, workload.name, targets) for workload in record.workloads for targets in _targets(record))


def _targets(record: Record) -> list[int]:
    return sorted({drain.contestant.targets for drain in record.drains if drain.contestant.kind is Kind.CDC})


def _ratio(record: Record, workload: str, targets: int) -> list[float]:
    return record.ratios(workload, Contestant(Kind.CDC, targets), Contestant(Kind.SUBSCRIPTION, targets))


def _ratios(record: Record, axes: Any) -> None:
    names = [workload.name for workload in record.workloads]
    counts = _targets(record)
    has_mark = False
    for offset, targets in enumerate(counts):
        shift = (offset - (len(counts) - 1) / 2) * _BAR
        has_bar = False
        for place, name in enumerate(names):
            ratios = _ratio(record, name, targets)
            if not ratios:
                continue
            x, height = place + shift, median(ratios)
            others = (
                "1 target, beside its subscription"
                if targets == 1
                else f"{targets} targets, beside {targets} subscriptions"
            )
            axes.bar(x, height, _BAR * 0.94, color=_COLOURS.get(targets, "#666666"), label="" if has_bar else others)
            has_bar = True
            axes.vlines(x, min(ratios), max(ratios), color="#222222", linewidth=1)
            axes.text(x, 0.04, f"{height:.2f}", color=_ink(targets == 1), **_NUMBER)
            wanted = min_ratio(name, targets)
            if wanted is not None:
                label = "" if has_mark else "what it must reach"
                axes.hlines(wanted, x - _BAR * 0.47, x + _BAR * 0.47, color=_MARK, linewidth=2, label=label)
                has_mark = True
    axes.axhline(1, color="#222222", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.text(
        len(names) - 0.4, 1, " as fast as\n PostgreSQL's\n subscription", va="center", fontsize=7.5, color="#555555"
    )
    axes.set_xticks(range(len(names)), [LABELS.get(name, name) for name in names])
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("times as fast")
    axes.set_title(
        "How fast cdc drains a backlog, in rates of PostgreSQL's own subscription (higher is better)",
        **_TITLE,
    )
    _explain(axes)


def _explain(axes: Any) -> None:
    """The legend: bars first, the mark last."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        entries = sorted(zip(handles, labels, strict=True), key=lambda entry: entry[1].startswith("what"))
        axes.legend(*zip(*entries, strict=True), **_LEGEND)


def _ink(is_light: bool) -> str:
    return "#222222" if is_light else "#ffffff"


def _rates(record: Record) -> list[int]:
    return sorted({turn.asked_rate for turn in record.latencies if not turn.added_ms})


def _latencies(record: Record, axes: Any) -> None:
    groups = [(rate, percentile) for rate in _rates(record) for percentile in ("p50", "p99", "max")]
    top = 0.0
    has_mark = False
    for offset, (kind, colour) in enumerate(((Kind.SUBSCRIPTION, _SUBSCRIPTION), (Kind.CDC, _CDC))):
        has_bar = False
        for place, (rate, name) in enumerate(groups):
            turns = record.followed(Contestant(kind, 1), rate)
            if not turns:
                continue
            values = [_of(turn, name) for turn in turns]
            x, height = place + (offset - 0.5) * _BAR, median(values)
            label = (
                "PostgreSQL's subscription (commits asynchronously)"
                if kind is Kind.SUBSCRIPTION
                else "cdc (commits durably)"
            )
            axes.bar(x, height, _BAR * 0.94, color=colour, label="" if has_bar else label)
            has_bar = True
            axes.vlines(x, min(values), max(values), color="#222222", linewidth=1)
            axes.text(x, _LEAST_MS * 1.08, f"{height:.1f}", color=_ink(kind is Kind.SUBSCRIPTION), **_NUMBER)
            top = max(top, *values)
            wanted = {"p50": MAX_P50_MS, "p99": MAX_P99_MS}.get(name, {}).get(rate)
            if kind is Kind.CDC and wanted is not None:
                mark = "" if has_mark else "what it must stay under"
                axes.hlines(wanted, x - _BAR * 0.47, x + _BAR * 0.47, color=_MARK, linewidth=2, label=mark)
                has_mark, top = True, max(top, wanted)
    axes.set_yscale("log")
    axes.set_ylim(_LEAST_MS, max(10.0, top * 1.2))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(range(len(groups)), [f"{_SAID[name]}\n{rate:,} transactions/s" for rate, name in groups])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("milliseconds")
    axes.set_title("From the commit at the source until a target shows it (lower is better)", **_TITLE)
    _explain(axes)


_SAID = {"p50": "half of them within", "p99": "99 of 100 within", "max": "the slowest"}


def _of(turn: Latency, name: str) -> float:
    return {"p50": turn.p50_ms, "p99": turn.p99_ms, "max": turn.max_ms}[name]
