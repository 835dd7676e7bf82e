"""What is replicated: tables with the same content on both sides, and what is written to them.

Every workload ends with one row in `END_TABLE`. Both readers apply in commit order, so whoever sees that row on a
target sees everything before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from cdc.demo.postgres import Cluster
from tests.bench.servers import Servers, run_pgbench

_HERE = Path(__file__).parent

END_TABLE = "bench_end"

PGBENCH_SCALE = 10
"""A million accounts: updates hit a row again now and then, as in life, and not all the time."""

WRITERS = 4
"""Connections that write pgbench's transactions at once, so that transactions interleave in the WAL."""

ROWS_PER_BULK_TRANSACTION = 1000


@dataclass(frozen=True, slots=True)
class Workload:
    """A backlog to be drained.

    ``amount`` is in ``unit``; ``tables`` (all of the schema public) are replicated; ``create`` makes them in an empty
    database, ``write`` writes the backlog, without the last row.
    """

    name: str
    title: str
    unit: str
    amount: int
    tables: tuple[str, ...]
    create: Callable[[Servers, str], None]
    write: Callable[[Servers, str], None]

    def create_template(self, servers: Servers, cluster: Cluster) -> str:
        """Create, on one server, the database that those of the measurements are copies of; returns its name."""
        name = f"{self.name}_template"
        dsn = cluster.create_database(name)
        self.create(servers, dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f"CREATE TABLE {END_TABLE} (id integer PRIMARY KEY)".encode())
            connection.execute("VACUUM ANALYZE")
        return name


def write_end(dsn: str, number: int) -> None:
    """Commit a row of the end table, durably, and with it everything before."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"INSERT INTO {END_TABLE} VALUES ({number})".encode())


def sees_end(target: psycopg.Connection[tuple[object, ...]], number: int) -> bool:
    """Whether that row is visible on a target."""
    query = f"SELECT 1 FROM {END_TABLE} WHERE id = {number}"
    return target.execute(query.encode()).fetchone() is not None


def bulk(size: float = 1.0) -> Workload:
    """500 transactions of 1,000 inserts into ``answers``: a primary key and an index, eleven columns."""
    transactions = max(1, round(500 * size))

    def write(servers: Servers, dsn: str) -> None:
        run_pgbench(servers.pgbench, _quick(dsn), ["-n", "-c", 1, "-t", transactions, "-f", _HERE / "bulk.sql"])

    return Workload(
        name="bulk",
        title=f"{transactions} transactions of {ROWS_PER_BULK_TRANSACTION:,} inserts into answers",
        unit="rows",
        amount=transactions * ROWS_PER_BULK_TRANSACTION,
        tables=("answers", END_TABLE),
        create=create_answers,
        write=write,
    )


def pgbench(size: float = 1.0) -> Workload:
    """100,000 of pgbench's standard transactions: three updates and an insert into a table without a key."""
    each = max(1, round(100_000 * size / WRITERS))

    def create(servers: Servers, dsn: str) -> None:
        run_pgbench(servers.pgbench, dsn, ["-i", "-q", "-s", PGBENCH_SCALE])

    def write(servers: Servers, dsn: str) -> None:
        run_pgbench(servers.pgbench, _quick(dsn), ["-n", "-c", WRITERS, "-j", 2, "-t", each, "-M", "prepared"])

    return Workload(
        name="pgbench",
        title=f"{each * WRITERS:,} of pgbench's standard transactions, scale {PGBENCH_SCALE}",
        unit="transactions",
        amount=each * WRITERS,
        tables=("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history", END_TABLE),
        create=create,
        write=write,
    )


def create_answers(_: Servers, dsn: str) -> None:
    """The tables of the workloads ``bulk`` and ``steady``."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute((_HERE / "answers.sql").read_bytes())


def _quick(dsn: str) -> str:
    """Writing a backlog is not what is measured: its commits do not wait for the disk. The end row's does, for all."""
    return f"{dsn}?options=-csynchronous_commit%3Doff"
