"""The verdict of ``make bench-bootstrap`` can be bad, and a target that lacks something is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from cdc.demo.postgres import Cluster
from tests.bench_bootstrap import contents, data
from tests.bench_bootstrap.contents import Contents, Unequal
from tests.bench_bootstrap.measure import Time
from tests.bench_bootstrap.verdict import Report
from tests.bench_bootstrap.ways import LIVE, WAYS


def report(live: list[float], dump: list[float]) -> Report:
    rounds = range(1, len(live) + 1)
    cpu_s = {"own": 1.0, "source": 1.0, "target": 1.0}
    times = [
        Time(number, way, seconds, {}, cpu_s)
        for way, taken in ((LIVE, live), ("pg_dump", dump))
        for number, seconds in zip(rounds, taken, strict=True)
    ]
    ways = [way for way in WAYS if way.name in (LIVE, "pg_dump", "pgcopydb")]
    return Report({"cores": 2}, ways, times, {"pgcopydb": "not installed"})


def test_a_live_copy_that_is_as_fast_as_the_others_has_no_shortcomings() -> None:
    assert report([10.0, 10.0, 30.0], [10.0, 11.0, 12.0]).shortcomings() == []


def test_a_live_copy_that_is_slower_than_another_way_is_a_shortcoming() -> None:
    assert report([12.0, 13.0, 5.0], [10.0, 10.0, 10.0]).shortcomings() == [
        "cdc live takes 1.20 of the time of pg_dump, at most 1 is wanted"
    ]


def test_every_turn_and_what_is_missing_are_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench-bootstrap.json"
    report([5.0, 6.0], [10.0, 10.0]).write(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["ways"]["pg_dump"]["ratios_of_live"] == [0.5, 0.6]
    assert len(content["ways"][LIVE]["turns"]) == 2
    assert content["missing"] == {"pgcopydb": "not installed"}
    assert content["shortcomings"] == []


def test_thirteen_indexes_are_compared_and_every_row() -> None:
    with Cluster() as cluster:
        source = _filled(cluster, "source")
        assert len(source.indexes) == 13
        _filled(cluster, "equal").require_equal(source)
        with pytest.raises(Unequal, match="indexes missing"):
            _filled(cluster, "bare", "DROP INDEX answers_assessmentid_index").require_equal(source)
        with pytest.raises(Unequal, match="assessments: "):
            _filled(cluster, "other", "UPDATE assessments SET state = 'started' WHERE id = 1").require_equal(source)


def _filled(cluster: Cluster, name: str, change: str = "SELECT 1") -> Contents:
    dsn = cluster.create_database(name)
    data.create(dsn, 0.0001)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(change.encode())
    return contents.read(dsn, data.TABLES)
