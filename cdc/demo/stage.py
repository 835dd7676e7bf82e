"""The servers of the demo: a source and three targets, each a PostgreSQL server of its own.

Four servers rather than four databases of one: each has its own WAL, its own transactions and its own system
identifier, as in life, and what one does costs the others nothing but the machine. They are started side by side and
are up within a few seconds; together they take some 200 MB of disk, all of which is gone at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from cdc import statements
from cdc.config import Config
from cdc.demo import pipeline
from cdc.demo.postgres import Cluster

SETTINGS: dict[str, str | int] = {
    # The latency of a row is the difference of two commit times (`cdc.demo.latency`).
    "track_commit_timestamp": "on",
    "shared_buffers": "64MB",
    "max_wal_size": "2GB",
}
SOURCE_SETTINGS: dict[str, str | int] = {"wal_level": "logical", "max_slot_wal_keep_size": "4GB"}


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the demo plays. ``directory`` holds the configuration ``file`` and logs, and goes with the source's server.

    ``source`` and ``targets`` are connection strings; ``environ`` is what the commands are run with.
    """

    version: str
    source: str
    targets: dict[str, str]
    directory: Path
    file: Path
    environ: dict[str, str]
    config: Config


@contextmanager
def build() -> Iterator[Stage]:
    """Start the servers, fill the source, create the datamart's tables, write the configuration.

    At the end, however it comes, servers and files are gone. Raises `SetupError` when a server does not start.
    """
    clusters: list[Cluster] = []
    try:
        yield _fill(_start(clusters))
    finally:
        for cluster in clusters:
            cluster.close()


def _start(clusters: list[Cluster]) -> dict[str, Cluster]:
    def start(name: str) -> Cluster:
        cluster = Cluster(settings=SETTINGS | (SOURCE_SETTINGS if name == "source" else {}))
        clusters.append(cluster)
        cluster.start()
        return cluster

    names = ("source", *pipeline.TARGETS)
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(start, names), strict=True))


def _fill(clusters: dict[str, Cluster]) -> Stage:
    dsns = {name: cluster.create_database(name) for name, cluster in clusters.items()}
    version = ""
    for name, scripts in (("source", ("source", "rows")), ("datamart", ("datamart",))):
        with psycopg.connect(dsns[name], autocommit=True) as connection:
            version = str(connection.info.parameter_status("server_version")).split()[0]
            for script in scripts:
                connection.execute(statements.load("demo", script).encode())
    directory = clusters["source"].directory / "demo"
    directory.mkdir()
    file = directory / "cdc.toml"
    source = dsns.pop("source")
    environ = pipeline.environment(source, dsns)
    return Stage(version, source, dsns, directory, file, environ, pipeline.write(file, environ))
