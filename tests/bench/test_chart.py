"""The chart is drawn of whatever was measured, and README.md takes figures between its marks only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import runs
from tests.bench.chart import LABELS, draw
from tests.bench.figures import Contestant, Kind
from tests.bench.publish import publish
from tests.bench.workloads import WORKLOADS

PNG = b"\x89PNG\r\n\x1a\n"
README = "before\n<!-- bench:begin (said once) -->\nold figures\n<!-- bench:end -->\nafter\n"


def test_every_workload_has_a_label() -> None:
    assert set(LABELS) == set(WORKLOADS)


def test_a_chart_of_everything_and_one_of_a_part_are_drawn(tmp_path: Path) -> None:
    drains = [turn for name in WORKLOADS for targets in (1, 3) for turn in runs.beside(name, targets, 1.2, 1.5)]
    latencies = [runs.latency(kind, rate, 2.0, 8.0) for kind in (Kind.SUBSCRIPTION, Kind.CDC) for rate in (200, 2000)]
    for name, record in (
        ("whole.png", runs.record(drains, latencies)),
        ("bars.png", runs.record(runs.beside("hot", 1, 1.2))),
        ("latency.png", runs.record(latencies=latencies[-1:])),
    ):
        draw(record, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(PNG)


def test_without_figures_there_is_no_chart(tmp_path: Path) -> None:
    draw(runs.record(), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_figures_are_published_between_the_marks(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    record = runs.record(
        [
            *(*runs.beside("bulk", 1, 1.3), *runs.beside("bulk", 3, 1.9), *runs.listening("bulk", 0.9)),
            *runs.beside("backlog", 1, 2.0),
            runs.drain("bulk", 1, Contestant(Kind.CDC, 1), 60_000.0, added_ms=10.0, peak_bytes=123_000_000),
        ],
        [runs.latency(Kind.CDC, 200, 2.0, 8.0)],
    )
    for _ in range(2):
        publish(record, tmp_path)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert text.startswith("before\n<!-- bench:begin (said once) -->\n![")
        assert text.endswith("<!-- bench:end -->\nafter\n")
    assert "old figures" not in text
    assert "| the workload bulk | 1,300 rows/s | 1.30 | 1.90 | 90% | 1.0, 2.0, 3.0 |" in text
    assert "A backlog of 1,000,000 changes is drained in 500 s.\n" in text
    assert "With 10 ms added to every round trip to its target `cdc` applies 60,000 rows/s of bulk.\n" in text
    assert "The worker took at most 123 MB.\n" in text
    assert "| 200 transactions/s |  | 2.0 ms, 8.0 ms, 16.0 ms |" in text
    assert "- bulk, 3 targets: 1.90 times 3 subscriptions, wanted is at least 2 times 3 subscriptions" in text
    assert (tmp_path / "docs" / "bench.png").read_bytes().startswith(PNG)


def test_a_readme_without_the_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has 0 places"):
        publish(runs.record(), tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "nothing here\n"
