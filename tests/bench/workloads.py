"""What is replicated: tables with the same content on both sides, and what is written to them.

Every workload ends with one row in `END_TABLE`. All readers apply in commit order, so whoever sees that row on a
target sees everything before it. What is written, and how much, is the same in every round of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from cdc.demo.postgres import Cluster
from tests.bench.servers import Servers, run_pgbench

_SCRIPTS = Path(__file__).parent / "scripts"

END_TABLE = "bench_end"

PGBENCH_SCALE = 10
"""A million accounts: updates hit a row again now and then, as in life, and not all the time."""

WRITERS = 4
"""Connections that write small transactions at once, so that they interleave in the WAL. Those that write many rows
each come one after the other: they would wait for each other's rows."""

ROWS_PER_BULK_TRANSACTION = 1000
TABLES = 40


@dataclass(frozen=True, slots=True)
class Workload:
    """A backlog to be drained.

    ``amount`` is in ``unit``, ``changes`` are rows; ``tables`` (all of the schema public) are replicated; ``create``
    makes them in an empty database, ``write`` writes the backlog, without the last row.
    """

    name: str
    title: str
    unit: str
    amount: int
    changes: int
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


def write_end(dsn: str, number: int) -> str:
    """Commit a row of the end table, durably, and with it everything before; returns the LSN where it begins."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        connection.execute(f"INSERT INTO {END_TABLE} VALUES ({number})".encode())
    assert row is not None
    return str(row[0])


def sees_end(target: psycopg.Connection[tuple[object, ...]], number: int) -> bool:
    """Whether that row is visible on a target."""
    query = f"SELECT 1 FROM {END_TABLE} WHERE id = {number}"
    return target.execute(query.encode()).fetchone() is not None


def bulk(size: float = 1.0) -> Workload:
    """500 transactions of 1,000 inserts into ``answers``: a primary key and an index, eleven columns."""
    transactions = max(1, round(500 * size))
    return Workload(
        name="bulk",
        title=f"{transactions:,} transactions of {ROWS_PER_BULK_TRANSACTION:,} inserts into answers",
        unit="rows",
        amount=transactions * ROWS_PER_BULK_TRANSACTION,
        changes=transactions * ROWS_PER_BULK_TRANSACTION,
        tables=("answers", END_TABLE),
        create=create_answers,
        write=_by_pgbench("bulk", transactions),
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
        changes=each * WRITERS * 4,
        tables=("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history", END_TABLE),
        create=create,
        write=write,
    )


def single(size: float = 1.0) -> Workload:
    """200,000 transactions of one insert."""
    each = max(1, round(200_000 * size / WRITERS))
    return Workload(
        name="single",
        title=f"{each * WRITERS:,} transactions of one insert into answers",
        unit="transactions",
        amount=each * WRITERS,
        changes=each * WRITERS,
        tables=("answers", END_TABLE),
        create=create_answers,
        write=_by_pgbench("single", each, writers=WRITERS),
    )


def toast(size: float = 1.0) -> Workload:
    """200,000 updates of rows with 8 kB out of line, which mostly stay as they are and are then not sent."""
    transactions = max(1, round(20_000 * size))
    return Workload(
        name="toast",
        title=f"{transactions * 10:,} updates of wide rows with a TOASTed column, one in twenty changes it",
        unit="rows",
        amount=transactions * 10,
        changes=transactions * 10,
        tables=("documents", END_TABLE),
        create=_by_script("documents"),
        write=_by_pgbench("toast", transactions),
    )


def hot(size: float = 1.0) -> Workload:
    """300,000 updates of the same 1,000 rows."""
    transactions = max(1, round(3_000 * size))
    return Workload(
        name="hot",
        title=f"{transactions * 100:,} updates over 1,000 keys, 100 in a transaction",
        unit="rows",
        amount=transactions * 100,
        changes=transactions * 100,
        tables=("counters", END_TABLE),
        create=_by_script("counters"),
        write=_by_pgbench("hot", transactions),
    )


def deletes(size: float = 1.0) -> Workload:
    """500 transactions that delete 1,000 rows each; a tenth of the table stays."""
    transactions = max(1, round(500 * size))
    return Workload(
        name="deletes",
        title=f"{transactions:,} transactions of 1,000 deletes from answers",
        unit="rows",
        amount=transactions * 1000,
        changes=transactions * 1000,
        tables=("answers", END_TABLE),
        create=_filled_answers(transactions * 1100),
        write=_by_pgbench("deletes", transactions),
    )


def big(size: float = 1.0) -> Workload:
    """One transaction of 5 million inserts."""
    rows = max(1, round(5_000_000 * size))

    def write(_: Servers, dsn: str) -> None:
        _execute(_quick(dsn), "big", rows=rows)

    return Workload(
        name="big",
        title=f"one transaction of {rows:,} inserts into answers",
        unit="rows",
        amount=rows,
        changes=rows,
        tables=("answers", END_TABLE),
        create=create_answers,
        write=write,
    )


def tables(size: float = 1.0) -> Workload:
    """50,000 transactions of an insert and an update, each in one of 40 tables at random."""
    each = max(1, round(50_000 * size / WRITERS))

    def create(_: Servers, dsn: str) -> None:
        for number in range(1, TABLES + 1):
            _execute(dsn, "forty", number=number)

    return Workload(
        name="tables",
        title=f"{each * WRITERS:,} transactions of an insert and an update in {TABLES} tables at random",
        unit="transactions",
        amount=each * WRITERS,
        changes=each * WRITERS * 2,
        tables=(*(f"entries_{number}" for number in range(1, TABLES + 1)), END_TABLE),
        create=create,
        write=_by_pgbench("random_tables", each, writers=WRITERS, mode="simple"),
    )


def backlog(size: float = 1.0) -> Workload:
    """5 million changes of every kind, 1,000 in a transaction: what has gathered while nobody read."""
    transactions = max(1, round(5_000 * size))
    return Workload(
        name="backlog",
        title=f"a backlog of {transactions * 1000:,} changes: 60 % inserts, 30 % updates, 10 % deletes",
        unit="rows",
        amount=transactions * 1000,
        changes=transactions * 1000,
        tables=("answers", END_TABLE),
        create=_filled_answers(60_000),
        write=_by_pgbench("backlog", transactions),
    )


WORKLOADS: dict[str, Callable[[float], Workload]] = {
    "bulk": bulk,
    "pgbench": pgbench,
    "single": single,
    "toast": toast,
    "hot": hot,
    "deletes": deletes,
    "big": big,
    "tables": tables,
    "backlog": backlog,
}
"""By name, in the order in which they are measured."""


def create_answers(_: Servers, dsn: str) -> None:
    """The tables of the workloads that write answers."""
    _execute(dsn, "answers")


def steady_script() -> Path:
    """What pgbench runs while latency is measured."""
    return _SCRIPTS / "steady.sql"


def _filled_answers(rows: int) -> Callable[[Servers, str], None]:
    def create(servers: Servers, dsn: str) -> None:
        create_answers(servers, dsn)
        _execute(dsn, "fill", rows=rows)

    return create


def _by_script(name: str) -> Callable[[Servers, str], None]:
    return lambda _servers, dsn: _execute(dsn, name)


def _by_pgbench(
    script: str, transactions: int, *, writers: int = 1, mode: str = "prepared"
) -> Callable[[Servers, str], None]:
    """Each writer writes ``transactions``; in the mode "simple" variables can be a part of a name."""
    file = _SCRIPTS / f"{script}.sql"

    def write(servers: Servers, dsn: str) -> None:
        run_pgbench(servers.pgbench, _quick(dsn), ["-n", "-c", writers, "-t", transactions, "-M", mode, "-f", file])

    return write


def _execute(dsn: str, script: str, **numbers: int) -> None:
    """Run a script, with numbers in the places that are named like them."""
    text = (_SCRIPTS / f"{script}.sql").read_text(encoding="utf-8")
    for name, number in numbers.items():
        text = text.replace(f":{name}", f"{number:d}")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(text.encode())


def _quick(dsn: str) -> str:
    """Writing a backlog is not what is measured: its commits do not wait for the disk. The end row's does, for all."""
    return f"{dsn}?options=-csynchronous_commit%3Doff"
