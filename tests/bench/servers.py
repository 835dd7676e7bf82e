"""The two servers of a run, one source and one target, set up as servers that keep data are.

`run_pgbench` writes all workloads: it is a process of its own, quick, and what everybody compares with.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from cdc.demo.postgres import Cluster, find_binaries
from cdc.errors import SetupError
from cdc.identifiers import quote

_BOTH: dict[str, str | int] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    # A checkpoint in the middle of one reader's turn would be the other one's advantage.
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "max_connections": 100,
}
_SOURCE: dict[str, str | int] = {
    **_BOTH,
    "wal_level": "logical",
    "max_replication_slots": 40,
    "max_wal_senders": 40,
    "track_commit_timestamp": "on",
}
_TARGET: dict[str, str | int] = {
    **_BOTH,
    "wal_level": "replica",
    "max_worker_processes": 40,
    "max_logical_replication_workers": 20,
    "max_replication_slots": 40,  # a subscription's origin takes one
    "track_commit_timestamp": "on",
}


@dataclass(frozen=True, slots=True)
class Servers:
    """Where everything of a run happens. ``pgbench`` is the program."""

    source: Cluster
    target: Cluster
    pgbench: Path

    def machine(self) -> dict[str, str | int]:
        """What the figures were taken on."""
        with psycopg.connect(self.source.dsn()) as connection:
            version = connection.execute("SHOW server_version").fetchone()
        assert version is not None
        return {
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
            "postgresql": str(version[0]),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        }

    def checkpoint(self) -> None:
        """Start the next measurement as the one before it: nothing dirty, full-page images still to be written."""
        for cluster in (self.source, self.target):
            with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
                connection.execute("CHECKPOINT")


@contextmanager
def servers(binaries: Path | None = None) -> Iterator[Servers]:
    """Start both, and remove them at the end. Raises `SetupError` where there is no PostgreSQL with pgbench."""
    found = find_binaries(binaries)
    for program in ("pgbench", "pg_recvlogical"):
        if not (found / program).is_file():
            raise SetupError(f"there is no {program} in {found}: name a directory that has it, in CDC_TEST_PG_BIN")
    with Cluster(binaries=found, settings=_SOURCE) as source, Cluster(binaries=found, settings=_TARGET) as target:
        yield Servers(source, target, source.binaries / "pgbench")


def clone_database(cluster: Cluster, template: str, name: str) -> str:
    """Create a database with the content of another one, and return its URL."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        # Its files are copied: through the WAL, as 15 and later do, every copy would come before the stream.
        strategy = " STRATEGY file_copy" if connection.info.server_version >= 150000 else ""
        connection.execute(f"CREATE DATABASE {quote(name)} TEMPLATE {quote(template)}{strategy}".encode())
    return cluster.dsn(name)


def drop_database(cluster: Cluster, name: str) -> None:
    """Drop a database and whoever is connected to it."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {quote(name)} WITH (FORCE)".encode())


def start_pgbench(program: Path, dsn: str, arguments: Sequence[str | int | Path]) -> subprocess.Popen[str]:
    """Start pgbench on a database. `finish_pgbench` waits for it."""
    return subprocess.Popen(
        [str(program), *map(str, arguments), dsn],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish_pgbench(process: subprocess.Popen[str]) -> None:
    """Wait for pgbench. Raises `SetupError` with its last words when it failed."""
    output, _ = process.communicate()
    if process.returncode != 0:
        raise SetupError(f"pgbench failed: {output[-1000:]}")


def run_pgbench(program: Path, dsn: str, arguments: Sequence[str | int | Path]) -> None:
    """Run pgbench to its end."""
    finish_pgbench(start_pgbench(program, dsn, arguments))
