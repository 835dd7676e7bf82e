"""Recording what a pipeline does, for Prometheus.

A `Metrics` belongs to one worker. It hands out one `TargetMetrics` per target and one `LaneMetrics` per lane; their
methods are called once per batch or more rarely, never per row, and cost a few microseconds. No method takes a row
value, and no label is unbounded: their values come from the configuration and the source's catalog.

Names and meanings: `cdc.observe.names`.
"""

from __future__ import annotations

import math
import re
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cdc.config import ALL_TARGETS
from cdc.errors import CdcError
from cdc.observe import names
from cdc.observe.names import Metric, MetricKind

# The `_created` series of every counter and histogram are noise that no query of ours uses, under names we do not list.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it unannotated

STATES = ("new", "loading", "streaming", "retrying", "stopped", "needs resync")
"""The states of a target that are always exposed; another one appears when it is set."""

WAL_STATUSES = ("reserved", "extended", "unreserved", "lost")
"""The values of ``pg_replication_slots.wal_status``."""


class Metrics:
    """All metrics of one pipeline's worker, in a registry of their own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, pipeline: str, *, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._pipeline = pipeline
        self._instruments = {metric.name: _instrument(metric, self.registry) for metric in names.METRICS}
        self._targets: dict[str, TargetMetrics] = {}
        self._lanes: dict[str, LaneMetrics] = {}

    def target(self, name: str) -> TargetMetrics:
        """The metrics of one target; the same object each time, its counters exposed as 0 from the first call on."""
        if name not in self._targets:
            self._targets[name] = TargetMetrics(_Scope(self._instruments, self._pipeline, name))
        return self._targets[name]

    def lane(self, target: str = ALL_TARGETS) -> LaneMetrics:
        """The metrics of the shared lane, or of the lane that ``target`` has to itself."""
        if target not in self._lanes:
            self._lanes[target] = LaneMetrics(_Scope(self._instruments, self._pipeline, target))
        return self._lanes[target]

    def end_lane(self, target: str) -> None:
        """``target`` has no lane to itself any more: what was said of that lane and its slot is not exposed longer."""
        lane = self._lanes.pop(target, None)
        if lane is not None:
            lane.close()

    def worker(self, *, version: str) -> None:
        """Say what runs, and show its memory from now on."""
        scope = _Scope(self._instruments, self._pipeline, ALL_TARGETS)
        scope.gauge(names.WORKER_INFO, version).set(1)
        scope.gauge(names.WORKER_MEMORY_BYTES).set_function(resident_memory_bytes)

    def render(self) -> bytes:
        """The text that Prometheus scrapes, of type `content_type`."""
        return generate_latest(self.registry)


class TargetMetrics:
    """What the worker tells about one target."""

    def __init__(self, scope: _Scope) -> None:
        self._scope = scope
        self._rows = {kind: scope.counter(names.APPLIED_ROWS, kind) for kind in _ROW_KINDS}
        self._transactions = scope.counter(names.APPLIED_TRANSACTIONS)
        self._fast = scope.counter(names.APPLIED_BATCHES, "fast")
        self._strict = scope.counter(names.APPLIED_BATCHES, "strict")
        self._batch_bytes = scope.histogram(names.BATCH_BYTES)
        self._batch_duration = scope.histogram(names.BATCH_DURATION_SECONDS)
        self._latency = scope.histogram(names.HEARTBEAT_LATENCY_SECONDS)
        self._queue_bytes = scope.gauge(names.QUEUE_BYTES)
        self._queue_full = scope.gauge(names.QUEUE_FULL)
        self._up = scope.gauge(names.TARGET_UP)
        for outcome in ("done", "failed"):
            scope.counter(names.REFRESHES, outcome)
        self._states = {state: scope.gauge(names.STATE, state) for state in STATES}
        self._stopped_tables = scope.gauge(names.STOPPED_TABLES)
        self._stopped: dict[str, str] = {}
        self._trouble = _Trouble(scope)
        self._heartbeat_born: float | None = None

    def batch_applied(
        self,
        *,
        transactions: int,
        inserts: int = 0,
        updates: int = 0,
        deletes: int = 0,
        truncates: int = 0,
        size_bytes: int,
        duration_s: float,
        strict: bool = False,
    ) -> None:
        """A batch has been committed, durably; ``size_bytes`` as it was received."""
        self._transactions.inc(transactions)
        for kind, count in zip(_ROW_KINDS, (inserts, updates, deletes, truncates), strict=True):
            if count:
                self._rows[kind].inc(count)
        (self._strict if strict else self._fast).inc()
        self._batch_bytes.observe(size_bytes)
        self._batch_duration.observe(duration_s)

    def position(self, lsn: int) -> None:
        """The target holds everything up to ``lsn``."""
        self._scope.gauge(names.POSITION_BYTES).set(lsn)

    def lag_bytes(self, lag: int) -> None:
        """The source's WAL has grown to ``lag`` bytes after the target's position."""
        self._scope.gauge(names.LAG_BYTES).set(max(0, lag))

    def heartbeat_held(self, *, age_s: float, latency_s: float | None = None) -> None:
        """The newest heartbeat that the target holds is ``age_s`` seconds old now.

        Take the age from one clock: the worker's monotonic one for a heartbeat that this worker wrote, the source's
        (its ``now()`` less the heartbeat's time) for one that it found (hazard 21). From then on the lag grows by
        itself, so that a worker that hangs is seen. ``latency_s`` is how long the heartbeat took from its commit at the
        source to the target's commit, where this worker wrote it.
        """
        is_first = self._heartbeat_born is None
        self._heartbeat_born = time.monotonic() - max(0.0, age_s)
        if is_first:
            self._scope.gauge(names.LAG_SECONDS).set_function(self.lag_seconds)
        if latency_s is not None:
            self._latency.observe(max(0.0, latency_s))

    def lag_seconds(self) -> float:
        """The age of the newest heartbeat that the target holds; NaN before one is known."""
        return math.nan if self._heartbeat_born is None else time.monotonic() - self._heartbeat_born

    def state(self, state: str) -> None:
        """The target is in ``state`` from now on (one of `STATES`)."""
        if state not in self._states:
            self._states[state] = self._scope.gauge(names.STATE, state)
        for name, gauge in self._states.items():
            gauge.set(name == state)

    def up(self, is_up: bool) -> None:
        """Whether the worker is connected to the target and owns it."""
        self._up.set(is_up)

    def queue(self, size_bytes: int, *, is_full: bool) -> None:
        """What waits for the target."""
        self._queue_bytes.set(size_bytes)
        self._queue_full.set(is_full)

    def refreshed(self, view: str, *, duration_s: float) -> None:
        """A materialized view (``schema.name``) of the target was refreshed."""
        self._scope.counter(names.REFRESHES, "done").inc()
        self._scope.gauge(names.REFRESH_DURATION_SECONDS, view).set(duration_s)
        self._scope.gauge(names.REFRESH_TIMESTAMP_SECONDS, view).set_to_current_time()

    def sequences_followed(self) -> None:
        """The target's sequences stand where the source's stood when they were last read."""
        self._scope.gauge(names.SEQUENCES_TIMESTAMP_SECONDS).set_to_current_time()

    def refresh_failed(self, error: BaseException) -> None:
        """A materialized view was not refreshed; only the kind of error is kept."""
        self._scope.counter(names.REFRESHES, "failed").inc()
        self.error(error)

    def table_stopped(self, table: str, reason: str) -> None:
        """A source table (``schema.table``) is stopped here; ``reason`` is a class of reasons in one word."""
        self.table_resumed(table)
        self._stopped[table] = reason
        self._scope.gauge(names.TABLE_STOPPED, table, reason).set(1)
        self._stopped_tables.set(len(self._stopped))

    def table_resumed(self, table: str) -> None:
        """The table goes on; nothing happens when it was not stopped."""
        reason = self._stopped.pop(table, None)
        if reason is not None:
            self._scope.remove(names.TABLE_STOPPED, table, reason)
            self._stopped_tables.set(len(self._stopped))

    def error(self, error: BaseException) -> None:
        """Something went wrong on the way to this target; only the kind of error and its SQLSTATE class are kept."""
        self._trouble.error(error)

    def retried(self) -> None:
        """Something transient is tried again."""
        self._trouble.retries.inc()

    def reconnected(self) -> None:
        """A lost connection to the target has been opened again."""
        self._trouble.reconnects.inc()


class LaneMetrics:
    """What the worker tells about one lane: the stream of the source, and its slot."""

    def __init__(self, scope: _Scope) -> None:
        self._scope = scope
        self._up = scope.gauge(names.SOURCE_UP)
        self._received_bytes = scope.counter(names.RECEIVED_BYTES)
        self._received_messages = scope.counter(names.RECEIVED_MESSAGES)
        self._heartbeats = scope.counter(names.HEARTBEATS)
        self._trouble = _Trouble(scope)
        self._slots: set[str] = set()

    def up(self, is_up: bool) -> None:
        """Whether the stream is being received."""
        self._up.set(is_up)

    def received(self, *, messages: int, size_bytes: int) -> None:
        """So much came from the source; call it per read of the socket, not per message."""
        self._received_messages.inc(messages)
        self._received_bytes.inc(size_bytes)

    def spool(self, *, size_bytes: Callable[[], float], transactions: Callable[[], float]) -> None:
        """What tells, whenever it is asked, how much of a stream waits on disk for its commit."""
        self._scope.gauge(names.SPOOL_BYTES).set_function(size_bytes)
        self._scope.gauge(names.SPOOL_TRANSACTIONS).set_function(transactions)

    def spool_fallback(self, is_on: bool) -> None:
        """Whether large transactions are received after their commit, for want of a spool."""
        self._scope.gauge(names.SPOOL_FALLBACK).set(is_on)

    def heartbeat_written(self) -> None:
        """A heartbeat has been committed at the source."""
        self._heartbeats.inc()

    def source_position(self, lsn: int) -> None:
        """The end of the source's WAL."""
        self._scope.gauge(names.SOURCE_POSITION_BYTES).set(lsn)

    def slot(
        self,
        name: str,
        *,
        active: bool,
        retained_bytes: int | None,
        safe_wal_size: int | None,
        wal_status: str | None,
        confirmed_flush_lsn: int | None,
    ) -> None:
        """What ``pg_replication_slots`` says of a slot; a number that the server does not give is not exposed."""
        self._slots.add(name)
        self._scope.gauge(names.SLOT_ACTIVE, name).set(active)
        for metric, value in (
            (names.SLOT_RETAINED_BYTES, retained_bytes),
            (names.SLOT_HEADROOM_BYTES, safe_wal_size),
            (names.SLOT_CONFIRMED_BYTES, confirmed_flush_lsn),
        ):
            if value is None:
                self._scope.remove(metric, name)
            else:
                self._scope.gauge(metric, name).set(value)
        for status in WAL_STATUSES:
            self._scope.gauge(names.SLOT_WAL_STATUS, name, status).set(status == wal_status)

    def slot_gone(self, name: str) -> None:
        """The slot does not exist any more: it is exposed as not active, everything else about it disappears."""
        self._scope.gauge(names.SLOT_ACTIVE, name).set(0)
        for metric in (names.SLOT_RETAINED_BYTES, names.SLOT_HEADROOM_BYTES, names.SLOT_CONFIRMED_BYTES):
            self._scope.remove(metric, name)
        for status in WAL_STATUSES:
            self._scope.remove(names.SLOT_WAL_STATUS, name, status)

    def forget_slot(self, name: str) -> None:
        """The slot does not exist any more, as it should be: nothing is exposed about it."""
        self.slot_gone(name)
        self._scope.remove(names.SLOT_ACTIVE, name)
        self._slots.discard(name)

    def close(self) -> None:
        """The lane is over. What went wrong in it stays counted: its target shares these counters."""
        for name in list(self._slots):
            self.forget_slot(name)
        for metric in _OF_A_LANE:
            self._scope.remove(metric)

    def error(self, error: BaseException) -> None:
        """Something went wrong between the source and the worker."""
        self._trouble.error(error)

    def retried(self) -> None:
        """Something transient is tried again."""
        self._trouble.retries.inc()

    def reconnected(self) -> None:
        """A lost replication connection has been opened again."""
        self._trouble.reconnects.inc()


def error_labels(error: BaseException) -> tuple[str, str]:
    """The kind of an error (``target_unavailable``) and its SQLSTATE class (``08``, or nothing)."""
    kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(error).__name__).lower()
    server = error.server if isinstance(error, CdcError) else None
    return kind, server.sqlstate[:2] if server is not None else ""


def resident_memory_bytes() -> float:
    """The memory of this process: what it has now on Linux, the most it ever had elsewhere."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return float(pages * resource.getpagesize())


_OF_A_LANE = (
    names.SOURCE_UP,
    names.RECEIVED_BYTES,
    names.RECEIVED_MESSAGES,
    names.HEARTBEATS,
    names.SOURCE_POSITION_BYTES,
    names.SPOOL_BYTES,
    names.SPOOL_TRANSACTIONS,
    names.SPOOL_FALLBACK,
)

_ROW_KINDS = ("insert", "update", "delete", "truncate")


class _Trouble:
    """What targets and lanes count alike when something goes wrong."""

    def __init__(self, scope: _Scope) -> None:
        self._scope = scope
        self.retries = scope.counter(names.RETRIES)
        self.reconnects = scope.counter(names.RECONNECTS)

    def error(self, error: BaseException) -> None:
        self._scope.counter(names.ERRORS, *error_labels(error)).inc()
        self._scope.gauge(names.LAST_ERROR_TIMESTAMP_SECONDS).set_to_current_time()


_Instrument = Counter | Gauge | Histogram


def _instrument(metric: Metric, registry: CollectorRegistry) -> _Instrument:
    match metric.kind:
        case MetricKind.COUNTER:
            return Counter(metric.name, metric.help, metric.all_labels, registry=registry)
        case MetricKind.GAUGE:
            return Gauge(metric.name, metric.help, metric.all_labels, registry=registry)
        case MetricKind.HISTOGRAM:
            return Histogram(metric.name, metric.help, metric.all_labels, registry=registry, buckets=metric.buckets)


class _Scope:
    """The instruments with the labels ``pipeline`` and ``target`` filled in."""

    def __init__(self, instruments: dict[str, _Instrument], pipeline: str, target: str) -> None:
        self._instruments = instruments
        self._labels = (pipeline, target)

    def counter(self, metric: Metric, *values: str) -> Counter:
        return cast(Counter, self._child(metric, values))

    def gauge(self, metric: Metric, *values: str) -> Gauge:
        return cast(Gauge, self._child(metric, values))

    def histogram(self, metric: Metric, *values: str) -> Histogram:
        return cast(Histogram, self._child(metric, values))

    def remove(self, metric: Metric, *values: str) -> None:
        """Expose the series no longer; nothing happens when it was not exposed."""
        with suppress(KeyError):
            self._instruments[metric.name].remove(*self._labels, *values)

    def _child(self, metric: Metric, values: tuple[str, ...]) -> _Instrument:
        return self._instruments[metric.name].labels(*self._labels, *values)
