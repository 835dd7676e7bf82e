"""Who reads a stream: what all readers have in common. They are in `subscription`, `worker` and `ceiling`.

Each is used the same way: `prepare` creates its slots, before anything is written; `start` lets it read and returns
when its walsenders stream; `stop` ends that; `remove` leaves nothing behind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import psycopg

from cdc.errors import SetupError
from cdc.identifiers import quote_literal
from tests.bench.figures import Contestant
from tests.bench.servers import Servers

START_TIMEOUT_S = 60.0
"""A subscription's worker starts in milliseconds, ours in about a second; a loaded machine gets a minute."""

STOP_TIMEOUT_S = 30.0
"""`cdc run` promises twenty seconds."""

POLL_S = 0.001


@dataclass(frozen=True, slots=True)
class Task:
    """What a reader is given: a source database, target databases, tables, and a name for its slots and the like.

    ``changes`` is how many rows it will have met in the end (0: nobody knows).
    ``source_port`` and ``target_port`` are where it connects to: a server's, or a slow link's.
    """

    servers: Servers
    contestant: Contestant
    name: str
    source: str
    targets: Sequence[str]
    tables: Sequence[str]
    changes: int
    source_port: int
    target_port: int

    @property
    def source_dsn(self) -> str:
        """The source, directly."""
        return self.servers.source.dsn(self.source)

    def reach_source(self) -> str:
        """The source, by way of the link if there is one."""
        return self.source_dsn.replace(f":{self.servers.source.port}/", f":{self.source_port}/")

    def target_dsn(self, name: str) -> str:
        """A target, directly."""
        return self.servers.target.dsn(name)

    def reach_target(self, name: str) -> str:
        """A target, by way of the link if there is one."""
        return self.target_dsn(name).replace(f":{self.servers.target.port}/", f":{self.target_port}/")


class Reader(Protocol):
    """One that drains slots."""

    @property
    def pid(self) -> int | None:
        """The process whose CPU and memory are the worker's; ``None`` where the servers do all."""

    def prepare(self) -> None:
        """Create the slots. Nothing is read from them yet."""

    def start(self, until: str) -> None:
        """Let it read; returns when its walsenders stream. ``until``: the LSN at which those without targets end."""

    def has_read_all(self) -> bool:
        """Whether one without targets has passed ``until``; those with targets are asked by what is visible there."""

    def check(self) -> None:
        """Raise `SetupError` when it has failed."""

    def stop(self) -> None:
        """Let it stop reading; its slots stay."""

    def remove(self) -> None:
        """Drop the slots and whatever else belongs to it."""

    def abandon(self) -> None:
        """After a failure: end the processes that would outlive the servers, and leave the rest as it is."""


def wait_until_streaming(servers: Servers, slots: Sequence[str], reader: Reader) -> None:
    """Wait until a walsender streams each slot, or the reader is at its end already. Raises `SetupError` in time."""
    deadline = time.monotonic() + START_TIMEOUT_S
    names = ", ".join(map(quote_literal, slots))
    query = (
        "SELECT count(*) FROM pg_stat_replication AS sender "
        "JOIN pg_replication_slots AS slot ON slot.active_pid = sender.pid "
        f"WHERE slot.slot_name IN ({names}) AND sender.state IN ('catchup', 'streaming')"
    )
    with psycopg.connect(servers.source.dsn(), autocommit=True) as connection:
        while connection.execute(query.encode()).fetchone() != (len(slots),):
            reader.check()
            if reader.has_read_all():
                return
            if time.monotonic() > deadline:
                raise SetupError(f"{', '.join(slots)}: nobody streams after {START_TIMEOUT_S:g} s")
            time.sleep(POLL_S)


def wait_until_free(servers: Servers, slots: Sequence[str]) -> None:
    """Wait until nobody reads the slots any more. Raises `SetupError` after a minute."""
    deadline = time.monotonic() + START_TIMEOUT_S
    names = ", ".join(map(quote_literal, slots))
    query = f"SELECT FROM pg_replication_slots WHERE slot_name IN ({names}) AND active"
    with psycopg.connect(servers.source.dsn(), autocommit=True) as connection:
        while connection.execute(query.encode()).fetchone() is not None:
            if time.monotonic() > deadline:
                raise SetupError(f"{', '.join(slots)}: still in use after {START_TIMEOUT_S:g} s")
            time.sleep(POLL_S)


def execute(dsn: str, statement: str) -> None:
    """Run one statement outside of a transaction."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


def environment() -> dict[str, str]:
    """Ours, without what somebody may have configured for another pipeline."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith("CDC_") or name == "CDC_UNCOMPILED"
    }
