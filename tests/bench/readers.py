"""The two that are compared: PostgreSQL's subscription, and `cdc` as a process of its own.

Each is used the same way: `prepare` creates its slot, before anything is written; `start` lets it read and returns when
its walsender streams; `stop` ends that; `remove` leaves nothing behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import psycopg

from cdc.errors import SetupError
from cdc.identifiers import quote, quote_list, quote_literal
from tests.bench.processes import Role
from tests.bench.servers import Servers

START_TIMEOUT_S = 60.0
"""A subscription's worker starts in milliseconds, ours in about a second; a loaded machine gets a minute."""

STOP_TIMEOUT_S = 30.0
"""`cdc run` promises twenty seconds."""

POLL_S = 0.002


class Reader(Protocol):
    """One that drains a slot into a target database."""

    @property
    def kind(self) -> str:
        """What the tables of figures call it."""

    def prepare(self) -> None:
        """Create the slot. Nothing is read from it yet."""

    def start(self) -> None:
        """Let it read; returns when its walsender streams."""

    def processes(self) -> dict[Role, list[int]]:
        """Who works for it right now. The first of "reader" is the one whose memory counts."""

    def check(self) -> None:
        """Raise `SetupError` when it has failed."""

    def stop(self) -> None:
        """Let it stop reading; its slot stays."""

    def remove(self) -> None:
        """Drop the slot and whatever else belongs to it."""

    def abandon(self) -> None:
        """After a failure: end the processes that would outlive the servers, and leave the rest as it is."""


class SubscriptionReader:
    """PostgreSQL's own: binary, no initial copy, and otherwise as it comes (it commits asynchronously)."""

    kind = "subscription"

    def __init__(self, servers: Servers, *, source: str, target: str, name: str, tables: Sequence[str]) -> None:
        """``source`` and ``target`` are databases, ``name`` is that of subscription, slot and publication."""
        self._source, self._target, self._name, self._tables = source, target, name, tables
        self._servers = servers

    def prepare(self) -> None:
        """Create publication, subscription and slot."""
        self._at_source(f"CREATE PUBLICATION {quote(self._name)} FOR TABLE {quote_list(self._tables)}")
        dsn = self._servers.source.dsn(self._source)
        self._at_target(
            f"CREATE SUBSCRIPTION {quote(self._name)} CONNECTION {quote_literal(dsn)} PUBLICATION {quote(self._name)} "
            "WITH (enabled = false, create_slot = true, copy_data = false, binary = true)"
        )

    def start(self) -> None:
        """Enable it."""
        self._at_target(f"ALTER SUBSCRIPTION {quote(self._name)} ENABLE")
        wait_until_streaming(self._servers, self._name, self)

    def processes(self) -> dict[Role, list[int]]:
        """The apply worker reads and writes."""
        query = f"SELECT pid FROM pg_stat_subscription WHERE subname = {quote_literal(self._name)} AND pid IS NOT NULL"
        return {"reader": _pids(self._servers.target.dsn(), query), "walsender": walsenders(self._servers, self._name)}

    def check(self) -> None:
        """A subscription that fails starts again; what it says is in the target's log."""

    def stop(self) -> None:
        """Disable it."""
        self._at_target(f"ALTER SUBSCRIPTION {quote(self._name)} DISABLE")
        wait_until_free(self._servers, self._name)

    def remove(self) -> None:
        """Drop subscription, slot and publication."""
        self._at_target(f"DROP SUBSCRIPTION {quote(self._name)}")
        self._at_source(f"DROP PUBLICATION {quote(self._name)}")

    def abandon(self) -> None:
        """Its processes are the servers'."""

    def _at_source(self, statement: str) -> None:
        with psycopg.connect(self._servers.source.dsn(self._source), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _at_target(self, statement: str) -> None:
        with psycopg.connect(self._servers.target.dsn(self._target), autocommit=True) as connection:
            connection.execute(statement.encode())


class CdcReader:
    """`python -m cdc run` with one target that follows, as an operator would start it."""

    kind = "cdc"

    def __init__(self, servers: Servers, *, source: str, target: str, name: str, tables: Sequence[str]) -> None:
        """``source`` and ``target`` are databases, ``name`` is that of pipeline, slot and publication."""
        self._servers, self._source, self._target, self._name, self._tables = servers, source, target, name, tables
        self._directory = tempfile.TemporaryDirectory(prefix="cdc-bench-")
        self._file = Path(self._directory.name) / "cdc.toml"
        self._log = Path(self._directory.name) / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """`cdc setup`, and a bootstrap that copies nothing and creates the slot."""
        self._file.write_text(self._configuration(), encoding="utf-8")
        self._run("setup")
        self._run("bootstrap", "--from", "none")

    def start(self) -> None:
        """Start the worker."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command("run"),
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until_streaming(self._servers, self._name, self)

    def processes(self) -> dict[Role, list[int]]:
        """The worker reads; a backend of the target writes."""
        assert self._process is not None
        query = (
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' "
            f"AND datname = {quote_literal(self._target)} AND application_name LIKE 'cdc%'"
        )
        return {
            "reader": [self._process.pid],
            "walsender": walsenders(self._servers, self._name),
            "target backends": _pids(self._servers.target.dsn(), query),
        }

    def check(self) -> None:
        """Raise `SetupError` with the worker's last words when it has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise SetupError(f"cdc run ended with status {self._process.returncode}: {self._last_words()}")

    def stop(self) -> None:
        """SIGTERM, and wait for the orderly end."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise SetupError(f"cdc run did not end within {STOP_TIMEOUT_S:g} s: {self._last_words()}") from None
        self._process = None
        if status != 0:
            raise SetupError(f"cdc run ended with status {status}: {self._last_words()}")
        wait_until_free(self._servers, self._name)

    def remove(self) -> None:
        """`cdc teardown`."""
        self._run("teardown", "--yes")
        self._directory.cleanup()

    def abandon(self) -> None:
        """Kill the worker."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()

    def _run(self, *words: str) -> None:
        done = subprocess.run(
            self._command(*words),
            check=False,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            raise SetupError(f"cdc {' '.join(words)} failed: {done.stdout[-2000:]}")

    def _last_words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cdc", "--config", str(self._file), *words]

    def _configuration(self) -> str:
        include = ", ".join(f'"public.{table}"' for table in self._tables)
        return f"""
            pipeline = "{self._name}"
            [source]
            dsn = "{self._servers.source.dsn(self._source)}"
            slot = "{self._name}"
            publication = "{self._name}"
            [targets.bench]
            dsn = "{self._servers.target.dsn(self._target)}"
            schema = "follow"
            include = [{include}]
            [worker]
            metrics_address = "127.0.0.1:0"
            [logs]
            format = "json"
        """


def walsenders(servers: Servers, slot: str) -> list[int]:
    """The process at the source that streams a slot, if one does."""
    return _pids(
        servers.source.dsn(),
        "SELECT sender.pid FROM pg_stat_replication AS sender "
        "JOIN pg_replication_slots AS slot ON slot.active_pid = sender.pid "
        f"WHERE slot.slot_name = {quote_literal(slot)} AND sender.state IN ('catchup', 'streaming')",
    )


def wait_until_streaming(servers: Servers, slot: str, reader: Reader) -> None:
    """Wait until a walsender streams the slot. Raises `SetupError` after a minute."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with psycopg.connect(servers.source.dsn(), autocommit=True) as connection:
        query = (
            "SELECT 1 FROM pg_stat_replication AS sender "
            "JOIN pg_replication_slots AS slot ON slot.active_pid = sender.pid "
            f"WHERE slot.slot_name = {quote_literal(slot)} AND sender.state IN ('catchup', 'streaming')"
        )
        while connection.execute(query.encode()).fetchone() is None:
            reader.check()
            if time.monotonic() > deadline:
                raise SetupError(f"the {reader.kind} does not stream after {START_TIMEOUT_S:g} s")
            time.sleep(POLL_S)


def wait_until_free(servers: Servers, slot: str) -> None:
    """Wait until nobody reads the slot any more. Raises `SetupError` after a minute."""
    deadline = time.monotonic() + START_TIMEOUT_S
    query = f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = {quote_literal(slot)} AND active"
    while _pids(servers.source.dsn(), query):
        if time.monotonic() > deadline:
            raise SetupError(f"the slot {slot} is still in use after {START_TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def _environment() -> dict[str, str]:
    """Ours, without what somebody may have configured for another pipeline."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CDC_")}


def _pids(dsn: str, query: str) -> list[int]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [int(row[0]) for row in connection.execute(query.encode()).fetchall()]


READERS: tuple[type[SubscriptionReader] | type[CdcReader], ...] = (SubscriptionReader, CdcReader)
"""In the order of the first round."""
