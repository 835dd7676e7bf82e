"""The name, kind, labels and meaning of every metric: the one place that has them.

`cdc.observe.metrics` records them, the README's table is printed from them (``python -m cdc.observe.names``), and a
test holds the dashboard and the alert rules in ``ops/`` against them.

Every metric carries the labels ``pipeline`` and ``target``. What belongs to no single target (the source, the shared
slot, the worker) has ``target="all"``; the slot of a target that has a lane of its own carries that target's name.
Units are Prometheus' base units: seconds, bytes, and LSNs as bytes since the beginning of the WAL.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

BASE_LABELS = ("pipeline", "target")


class MetricKind(StrEnum):
    """What Prometheus calls the type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; ``labels`` are those besides pipeline and target, ``buckets`` a histogram's upper bounds."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def all_labels(self) -> tuple[str, ...]:
        """Pipeline, target, and the metric's own."""
        return BASE_LABELS + self.labels

    @property
    def series(self) -> tuple[str, ...]:
        """The names that a query can use: a histogram has three."""
        if self.kind is MetricKind.HISTOGRAM:
            return (f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count")
        return (self.name,)


# From under a millisecond, which a quiet pipeline reaches, to the minute after which somebody is called.
_LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
# From one small transaction to more than `max_batch_bytes` is usually set to.
_SIZE_BUCKETS = tuple(float(4**exponent) for exponent in range(4, 15))

# How far behind a target is
LAG_SECONDS = Metric(
    "cdc_lag_seconds",
    MetricKind.GAUGE,
    "Age of the newest heartbeat that the target holds; at rest it swings up to the heartbeat interval.",
)
LAG_BYTES = Metric("cdc_lag_bytes", MetricKind.GAUGE, "WAL of the source after the target's position.")
HEARTBEAT_LATENCY_SECONDS = Metric(
    "cdc_heartbeat_latency_seconds",
    MetricKind.HISTOGRAM,
    "Time from a heartbeat's commit at the source until the target has committed it, by the worker's clock alone.",
    buckets=_LATENCY_BUCKETS,
)
POSITION_BYTES = Metric("cdc_position_bytes", MetricKind.GAUGE, "The LSN up to which the target holds everything.")

# What is applied
APPLIED_ROWS = Metric(
    "cdc_applied_rows_total",
    MetricKind.COUNTER,
    "Changes that the target has committed; kind is insert, update, delete or truncate.",
    labels=("kind",),
)
APPLIED_TRANSACTIONS = Metric(
    "cdc_applied_transactions_total", MetricKind.COUNTER, "Source transactions that the target has committed."
)
APPLIED_BATCHES = Metric(
    "cdc_applied_batches_total",
    MetricKind.COUNTER,
    "Batches that the target has committed; path is fast or strict.",
    labels=("path",),
)
BATCH_BYTES = Metric(
    "cdc_batch_bytes", MetricKind.HISTOGRAM, "Size of an applied batch, as received.", buckets=_SIZE_BUCKETS
)
BATCH_DURATION_SECONDS = Metric(
    "cdc_batch_duration_seconds",
    MetricKind.HISTOGRAM,
    "Time to apply a batch, its commit included.",
    buckets=_LATENCY_BUCKETS,
)

# What waits
QUEUE_BYTES = Metric("cdc_queue_bytes", MetricKind.GAUGE, "Received changes that wait for the target.")
QUEUE_FULL = Metric("cdc_queue_full", MetricKind.GAUGE, "1 while the target's queue is full and holds up its lane.")

# What is wrong
STATE = Metric(
    "cdc_target_state", MetricKind.GAUGE, "1 for the state that the target is in, 0 for the others.", labels=("state",)
)
TARGET_UP = Metric("cdc_target_up", MetricKind.GAUGE, "1 while the worker is connected to the target and owns it.")
SOURCE_UP = Metric("cdc_source_up", MetricKind.GAUGE, "1 while the worker receives the stream of the source.")
ERRORS = Metric(
    "cdc_errors_total",
    MetricKind.COUNTER,
    "Errors, by kind and by the class (first two characters) of PostgreSQL's SQLSTATE, empty when there is none.",
    labels=("error", "sqlstate_class"),
)
LAST_ERROR_TIMESTAMP_SECONDS = Metric(
    "cdc_last_error_timestamp_seconds",
    MetricKind.GAUGE,
    "When the last error happened (Unix time, the worker's clock).",
)
RETRIES = Metric("cdc_retries_total", MetricKind.COUNTER, "Times that something transient was tried again.")
RECONNECTS = Metric("cdc_reconnects_total", MetricKind.COUNTER, "Times that a lost connection was opened again.")
STOPPED_TABLES = Metric("cdc_stopped_tables", MetricKind.GAUGE, "Tables of the target that are stopped.")
TABLE_STOPPED = Metric(
    "cdc_table_stopped",
    MetricKind.GAUGE,
    "1 for each table that is stopped, with the class of the reason.",
    labels=("table", "reason"),
)

# What is refreshed
REFRESHES = Metric(
    "cdc_refreshes_total",
    MetricKind.COUNTER,
    "Refreshes of materialized views on the target; outcome is done or failed.",
    labels=("outcome",),
)
REFRESH_DURATION_SECONDS = Metric(
    "cdc_refresh_duration_seconds",
    MetricKind.GAUGE,
    "How long the last refresh of a materialized view took that succeeded.",
    labels=("view",),
)
REFRESH_TIMESTAMP_SECONDS = Metric(
    "cdc_refresh_timestamp_seconds",
    MetricKind.GAUGE,
    "When a materialized view was last refreshed by this worker (Unix time, the worker's clock).",
    labels=("view",),
)

SEQUENCES_TIMESTAMP_SECONDS = Metric(
    "cdc_sequences_timestamp_seconds",
    MetricKind.GAUGE,
    "When the target's sequences were last seen to stand where the source's do, or set there (Unix time, the worker's "
    "clock).",
)

# The source
SOURCE_POSITION_BYTES = Metric(
    "cdc_source_position_bytes", MetricKind.GAUGE, "The end of the source's WAL, as the worker last heard of it."
)
RECEIVED_BYTES = Metric("cdc_received_bytes_total", MetricKind.COUNTER, "Bytes of the stream that were received.")
RECEIVED_MESSAGES = Metric("cdc_received_messages_total", MetricKind.COUNTER, "Messages of the stream.")
HEARTBEATS = Metric("cdc_heartbeats_total", MetricKind.COUNTER, "Heartbeats that the worker wrote at the source.")
SLOT_ACTIVE = Metric("cdc_slot_active", MetricKind.GAUGE, "1 while something reads from the slot.", labels=("slot",))
SLOT_RETAINED_BYTES = Metric(
    "cdc_slot_retained_bytes", MetricKind.GAUGE, "WAL that the source keeps for the slot.", labels=("slot",)
)
SLOT_HEADROOM_BYTES = Metric(
    "cdc_slot_headroom_bytes",
    MetricKind.GAUGE,
    "WAL that can still be written before the slot is lost (safe_wal_size); missing when max_slot_wal_keep_size is -1.",
    labels=("slot",),
)
SLOT_CONFIRMED_BYTES = Metric(
    "cdc_slot_confirmed_flush_bytes",
    MetricKind.GAUGE,
    "The LSN up to which the slot was told that everything is durable.",
    labels=("slot",),
)
SLOT_WAL_STATUS = Metric(
    "cdc_slot_wal_status",
    MetricKind.GAUGE,
    "1 for the slot's wal_status (reserved, extended, unreserved or lost), 0 for the others.",
    labels=("slot", "wal_status"),
)

SPOOL_BYTES = Metric(
    "cdc_spool_bytes",
    MetricKind.GAUGE,
    "What large transactions take on the worker's disk until they commit, compressed.",
)
SPOOL_TRANSACTIONS = Metric(
    "cdc_spool_transactions", MetricKind.GAUGE, "Large transactions that are received before their commit."
)
SPOOL_FALLBACK = Metric(
    "cdc_spool_fallback",
    MetricKind.GAUGE,
    "1 while large transactions are received after their commit, because the spool was full or its disk refused.",
)

# The worker
WORKER_INFO = Metric(
    "cdc_worker_info",
    MetricKind.GAUGE,
    "Always 1; what runs: its version.",
    labels=("version",),
)
WORKER_MEMORY_BYTES = Metric("cdc_worker_memory_bytes", MetricKind.GAUGE, "Resident memory of the worker.")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""Every metric, in the order of this file."""


def markdown_table() -> str:
    """The table of metrics for the README."""
    lines = ["| metric | type | labels besides `pipeline`, `target` | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for metric in METRICS
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown_table(), end="")
