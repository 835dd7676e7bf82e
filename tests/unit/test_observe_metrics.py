"""The metrics as Prometheus reads them."""

from __future__ import annotations

import math
import re
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cdc.errors import ServerError, SlotInUse, TargetUnavailable
from cdc.observe import names
from cdc.observe.metrics import STATES, Metrics, TargetMetrics, error_labels


def read(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a scrape by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, target: str = "internal", **labels: str) -> float | None:
    """One sample of pipeline `cdc`, or `None` when it is not exposed."""
    return read(metrics).get((name, frozenset({"pipeline": "cdc", "target": target, **labels}.items())))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("cdc")


@pytest.fixture
def target(metrics: Metrics) -> TargetMetrics:
    return metrics.target("internal")


def exercise(metrics: Metrics) -> None:
    """Record everything that there is to record."""
    target, lane = metrics.target("internal"), metrics.lane()
    metrics.worker(version="1")
    target.batch_applied(transactions=1, inserts=1, size_bytes=1, duration_s=0.1)
    target.position(1)
    target.lag_bytes(1)
    target.heartbeat_held(age_s=0.1, latency_s=0.1)
    target.state("streaming")
    target.table_stopped("public.users", "shape")
    target.error(TargetUnavailable("down"))
    target.refreshed("public.by_day", duration_s=1.5)
    target.sequences_followed()
    lane.received(messages=1, size_bytes=1)
    lane.source_position(1)
    lane.spool(size_bytes=lambda: 1, transactions=lambda: 1)
    lane.spool_fallback(False)
    lane.slot("cdc", active=True, retained_bytes=1, safe_wal_size=1, wal_status="reserved", confirmed_flush_lsn=1)


def test_every_metric_is_labelled_by_pipeline_and_target_and_declared(metrics: Metrics) -> None:
    exercise(metrics)
    samples = read(metrics)
    assert all({"pipeline", "target"} <= {name for name, _ in labels} for _, labels in samples)
    assert {name for name, _ in samples} == {series for metric in names.METRICS for series in metric.series}


def test_names_follow_the_conventions_of_prometheus() -> None:
    for metric in names.METRICS:
        assert metric.name.startswith("cdc_")
        assert (metric.kind is names.MetricKind.COUNTER) == metric.name.endswith("_total")
        assert not metric.name.endswith(("_ms", "_kb", "_count", "_sum", "_bucket"))
        assert metric.help.endswith(".")
        assert list(metric.buckets) == sorted(set(metric.buckets))
    assert len({metric.name for metric in names.METRICS}) == len(names.METRICS)


def test_counters_are_zero_before_anything_happened(metrics: Metrics, target: TargetMetrics) -> None:
    assert value(metrics, "cdc_applied_rows_total", kind="delete") == 0
    assert value(metrics, "cdc_applied_batches_total", path="strict") == 0
    assert value(metrics, "cdc_retries_total") == 0
    assert value(metrics, "cdc_stopped_tables") == 0
    assert value(metrics, "cdc_target_up") == 0


def test_a_batch_is_counted_by_kind_and_path(metrics: Metrics, target: TargetMetrics) -> None:
    target.batch_applied(transactions=3, inserts=5, deletes=2, size_bytes=1000, duration_s=0.01)
    target.batch_applied(transactions=1, updates=1, truncates=1, size_bytes=10, duration_s=0.5, strict=True)
    assert value(metrics, "cdc_applied_transactions_total") == 4
    assert [value(metrics, "cdc_applied_rows_total", kind=k) for k in ("insert", "update", "delete", "truncate")] == [
        5,
        1,
        2,
        1,
    ]
    assert value(metrics, "cdc_applied_batches_total", path="fast") == 1
    assert value(metrics, "cdc_applied_batches_total", path="strict") == 1
    assert value(metrics, "cdc_batch_bytes_sum") == 1010
    assert value(metrics, "cdc_batch_duration_seconds_count") == 2


def test_the_lag_grows_by_itself_until_the_next_heartbeat(metrics: Metrics, target: TargetMetrics) -> None:
    assert value(metrics, "cdc_lag_seconds") is None
    assert math.isnan(target.lag_seconds())
    target.heartbeat_held(age_s=10.0)
    first = value(metrics, "cdc_lag_seconds")
    time.sleep(0.01)
    second = value(metrics, "cdc_lag_seconds")
    assert first is not None
    assert second is not None
    assert 10.0 <= first < second < 20.0
    assert value(metrics, "cdc_heartbeat_latency_seconds_count") == 0
    target.heartbeat_held(age_s=0.002, latency_s=0.002)
    assert target.lag_seconds() < 5.0
    assert value(metrics, "cdc_heartbeat_latency_seconds_bucket", le="0.002") == 1


def test_a_target_is_in_one_state(metrics: Metrics, target: TargetMetrics) -> None:
    target.state("streaming")
    target.state("needs resync")
    values = {state: value(metrics, "cdc_target_state", state=state) for state in STATES}
    assert values == {state: float(state == "needs resync") for state in STATES}
    target.state("on holiday")
    assert value(metrics, "cdc_target_state", state="needs resync") == 0
    assert value(metrics, "cdc_target_state", state="on holiday") == 1


def test_a_stopped_table_is_shown_until_it_goes_on(metrics: Metrics, target: TargetMetrics) -> None:
    target.table_stopped("public.users", "shape")
    target.table_stopped("public.answers", "rejected")
    target.table_stopped("public.users", "rejected")
    assert value(metrics, "cdc_stopped_tables") == 2
    assert value(metrics, "cdc_table_stopped", table="public.users", reason="shape") is None
    assert value(metrics, "cdc_table_stopped", table="public.users", reason="rejected") == 1
    target.table_resumed("public.users")
    target.table_resumed("public.users")
    assert value(metrics, "cdc_stopped_tables") == 1
    assert value(metrics, "cdc_table_stopped", table="public.users", reason="rejected") is None


def test_an_error_is_counted_by_kind_and_sqlstate_class(metrics: Metrics, target: TargetMetrics) -> None:
    before = time.time()
    target.error(TargetUnavailable("the disk is full", server=ServerError("53100")))
    target.error(ValueError("alice@example.org"))
    assert value(metrics, "cdc_errors_total", error="target_unavailable", sqlstate_class="53") == 1
    assert value(metrics, "cdc_errors_total", error="value_error", sqlstate_class="") == 1
    assert "alice" not in metrics.render().decode()
    last = value(metrics, "cdc_last_error_timestamp_seconds")
    assert last is not None
    assert last >= before
    assert error_labels(SlotInUse("x")) == ("slot_in_use", "")


def test_the_slot_shows_its_headroom_only_where_there_is_a_limit(metrics: Metrics) -> None:
    lane = metrics.lane()
    lane.slot("cdc", active=True, retained_bytes=5, safe_wal_size=7, wal_status="extended", confirmed_flush_lsn=9)
    assert value(metrics, "cdc_slot_headroom_bytes", "all", slot="cdc") == 7
    assert value(metrics, "cdc_slot_wal_status", "all", slot="cdc", wal_status="extended") == 1
    assert value(metrics, "cdc_slot_wal_status", "all", slot="cdc", wal_status="lost") == 0
    lane.slot("cdc", active=False, retained_bytes=5, safe_wal_size=None, wal_status="lost", confirmed_flush_lsn=None)
    assert value(metrics, "cdc_slot_headroom_bytes", "all", slot="cdc") is None
    assert value(metrics, "cdc_slot_active", "all", slot="cdc") == 0
    lane.slot_gone("cdc")
    assert value(metrics, "cdc_slot_retained_bytes", "all", slot="cdc") is None
    assert value(metrics, "cdc_slot_wal_status", "all", slot="cdc", wal_status="lost") is None


def test_a_lane_of_its_own_is_told_from_the_shared_one(metrics: Metrics) -> None:
    metrics.lane().received(messages=10, size_bytes=1000)
    metrics.lane("internal").received(messages=1, size_bytes=100)
    metrics.lane().heartbeat_written()
    metrics.lane().retried()
    metrics.lane().reconnected()
    metrics.lane().up(True)
    metrics.lane().error(SlotInUse("another worker", server=ServerError("55006")))
    assert value(metrics, "cdc_received_bytes_total", "all") == 1000
    assert value(metrics, "cdc_received_bytes_total", "internal") == 100
    assert value(metrics, "cdc_heartbeats_total", "all") == 1
    assert value(metrics, "cdc_source_up", "all") == 1
    assert value(metrics, "cdc_source_up", "internal") == 0
    assert value(metrics, "cdc_errors_total", "all", error="slot_in_use", sqlstate_class="55") == 1


def test_target_and_lane_of_one_name_count_errors_together(metrics: Metrics) -> None:
    metrics.target("internal").error(SlotInUse("a"))
    metrics.lane("internal").error(SlotInUse("b"))
    assert value(metrics, "cdc_errors_total", error="slot_in_use", sqlstate_class="") == 2


def test_the_worker_says_what_runs_and_how_large_it_is(metrics: Metrics) -> None:
    metrics.worker(version="0.1.0")
    assert value(metrics, "cdc_worker_info", "all", version="0.1.0") == 1
    memory = value(metrics, "cdc_worker_memory_bytes", "all")
    assert memory is not None
    assert memory > 1_000_000


def test_queue_and_connection_are_shown(metrics: Metrics, target: TargetMetrics) -> None:
    target.queue(123, is_full=True)
    target.up(True)
    target.retried()
    target.reconnected()
    target.position(42)
    target.lag_bytes(-5)
    assert value(metrics, "cdc_queue_bytes") == 123
    assert value(metrics, "cdc_queue_full") == 1
    assert value(metrics, "cdc_target_up") == 1
    assert value(metrics, "cdc_retries_total") == 1
    assert value(metrics, "cdc_reconnects_total") == 1
    assert value(metrics, "cdc_position_bytes") == 42
    assert value(metrics, "cdc_lag_bytes") == 0


def test_the_table_for_the_readme_lists_every_metric() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", names.markdown_table(), re.MULTILINE)
    assert listed == [metric.name for metric in names.METRICS]


def test_a_refresh_is_timed_and_a_failed_one_is_counted_as_an_error(metrics: Metrics, target: TargetMetrics) -> None:
    target.refreshed("public.by_day", duration_s=1.5)
    target.refresh_failed(TargetUnavailable("down"))
    text = metrics.render().decode()
    for outcome in ("done", "failed"):
        assert f'cdc_refreshes_total{{outcome="{outcome}",pipeline="cdc",target="internal"}} 1.0' in text
    assert 'cdc_refresh_duration_seconds{pipeline="cdc",target="internal",view="public.by_day"} 1.5' in text
    assert 'cdc_errors_total{error="target_unavailable"' in text


def test_a_lane_that_is_over_is_not_shown_as_one_that_does_not_stream() -> None:
    metrics = Metrics("cdc")
    lane = metrics.lane("internal")
    lane.up(True)
    lane.slot(
        "cdc__internal", active=True, retained_bytes=1, safe_wal_size=2, wal_status="reserved", confirmed_flush_lsn=3
    )
    lane.error(SlotInUse("another worker", server=ServerError("55006")))
    metrics.end_lane("internal")
    metrics.end_lane("internal")
    text = metrics.render().decode()
    assert "cdc__internal" not in text
    assert 'cdc_source_up{pipeline="cdc",target="internal"}' not in text
    assert 'error="slot_in_use"' in text, "what went wrong stays counted"
    metrics.lane("internal").up(True)
    assert 'cdc_source_up{pipeline="cdc",target="internal"} 1.0' in metrics.render().decode()
