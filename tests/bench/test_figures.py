"""Medians, ratios and percentiles are of the right turns, and a file gives back what was measured."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench import runs
from tests.bench.figures import Contestant, Kind, Record, percentile
from tests.bench.tables import per_million, show
from tests.bench.verdict import judge

CDC, SUBSCRIPTION = Contestant(Kind.CDC, 1), Contestant(Kind.SUBSCRIPTION, 1)


def test_a_ratio_is_of_two_turns_of_one_round_and_workload() -> None:
    drains = [*runs.beside("bulk", 1, 2.0, 3.0), *runs.beside("bulk", 3, 7.0), *runs.beside("hot", 1, 9.0)]
    # A round that only one of the two has finished, and turns from afar, are no ratio of these.
    drains += [runs.drain("bulk", 3, CDC, 1.0), runs.drain("bulk", 1, SUBSCRIPTION, 1.0, added_ms=10.0)]
    assert runs.record(drains).ratios("bulk", CDC, SUBSCRIPTION) == [2.0, 3.0]


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
    assert percentile([1.0], 0.5) == 1.0


def test_cpu_is_told_for_a_million_changes() -> None:
    assert per_million({"worker": 1.0, "source": 3.0, "targets": 0.0}, "source", 500_000) == 6.0


def test_a_file_holds_every_turn_and_the_verdict_and_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench.json"
    record = runs.record(runs.beside("bulk", 1, 0.5, 0.6), [runs.latency(Kind.CDC, 200, 1.0, 2.0)])
    record.write(path, [str(line) for line in judge(record)])
    content = json.loads(path.read_text(encoding="utf-8"))
    assert len(content["drains"]) == 4
    assert content["drains"][1]["cpu_s"] == {"worker": 1.0, "source": 2.0, "targets": 3.0}
    assert content["loads"] == [0.5, 1.5]
    assert any("bulk" in line for line in content["verdict"])
    assert Record.read(path) == record


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="validation error"):
        Record.read(tmp_path / "other.json")


def test_the_tables_show_medians_ratios_and_what_was_missed() -> None:
    record = runs.record(
        [*runs.beside("bulk", 1, 0.5, 0.7, 0.6), *runs.listening("bulk", 0.5)], [runs.latency(Kind.CDC, 200, 1.0, 2.0)]
    )
    console = Console(file=io.StringIO(), width=220)
    show(record, judge(record), console)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "0.50, 0.70, 0.60" in said
    assert "0.60 times the subscription" in said
    assert "load 0.5 to 1.5" in said
    assert "missed" in said
