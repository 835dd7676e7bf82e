"""Readers without a target: how fast a walsender can speak, and how fast `cdc` can listen.

`RecvlogicalReader` is PostgreSQL's own ``pg_recvlogical`` to /dev/null: nobody reads a slot faster. `NullReader` is
`tests.bench.null_target`: `cdc`'s own receiving and decoding, and nothing behind it. Both ask the same plugin for the
same, and both are at their end when they meet the first message behind the backlog.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable

from cdc.errors import SetupError
from cdc.identifiers import quote, quote_list, quote_literal
from tests.bench.readers import (
    STOP_TIMEOUT_S,
    Reader,
    Task,
    environment,
    execute,
    wait_until_free,
    wait_until_streaming,
)

_Process = subprocess.Popen[bytes]


class ProgramReader:
    """A program that reads one slot until an LSN; slot and publication are named like the task."""

    def __init__(
        self, task: Task, command: Callable[[Task, str], list[str]], has_read_all: Callable[[_Process], bool]
    ) -> None:
        """``command`` takes the task and the LSN; ``has_read_all`` looks at the process, and must not wait for it."""
        self._task, self._command, self._has_read_all = task, command, has_read_all
        self._process: _Process | None = None

    @property
    def pid(self) -> int | None:
        """The program's."""
        return self._process.pid if self._process is not None else None

    def prepare(self) -> None:
        """Create publication and slot."""
        task = self._task
        execute(task.source_dsn, f"CREATE PUBLICATION {quote(task.name)} FOR TABLE {quote_list(task.tables)}")
        execute(task.source_dsn, f"SELECT pg_create_logical_replication_slot({quote_literal(task.name)}, 'pgoutput')")

    def start(self, until: str) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            self._command(self._task, until),
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        wait_until_streaming(self._task.servers, [self._task.name], self)

    def has_read_all(self) -> bool:
        """Whether it is at its end."""
        return self._process is not None and self._has_read_all(self._process)

    def check(self) -> None:
        """What it has to say is asked for at its end."""

    def stop(self) -> None:
        """Wait for its end. Raises `SetupError` when it failed, or says that it has read less than there was."""
        if self._process is None:
            return
        try:
            said, complained = self._process.communicate(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, complained = self._process.communicate()
        status, self._process = self._process.returncode, None
        if status != 0:
            raise SetupError(f"{self._task.contestant} ended with status {status}: {complained.decode()[-2000:]}")
        if said and int(said) < self._task.changes:
            raise SetupError(
                f"{self._task.contestant} has met {int(said):,} messages of {self._task.changes:,} changes"
            )
        wait_until_free(self._task.servers, [self._task.name])

    def remove(self) -> None:
        """Drop slot and publication."""
        task = self._task
        execute(task.source_dsn, f"SELECT pg_drop_replication_slot({quote_literal(task.name)})")
        execute(task.source_dsn, f"DROP PUBLICATION {quote(task.name)}")

    def abandon(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def recvlogical(task: Task) -> Reader:
    """``pg_recvlogical`` to /dev/null. It ends by itself."""
    return ProgramReader(task, _recvlogical, has_ended)


def null_target(task: Task) -> Reader:
    """`cdc`'s receiving and decoding. It says when it is done, and lives on until it has been measured."""
    return ProgramReader(task, _null_target, _has_spoken)


def _recvlogical(task: Task, until: str) -> list[str]:
    # What `cdc` asks for (`cdc.source.replication`).
    options = (
        *("proto_version=2", "streaming=on", f"publication_names={task.name}"),
        *("binary=true", "messages=true"),
    )
    return [
        *(str(task.servers.source.binaries / "pg_recvlogical"), "--start", "--no-loop", "--file", "/dev/null"),
        *("--endpos", until, "--slot", task.name, "--dbname", task.source_dsn),
        *(word for option in options for word in ("--option", option)),
    ]


def _null_target(task: Task, until: str) -> list[str]:
    return [sys.executable, "-m", "tests.bench.null_target", task.source_dsn, task.name, until]


def _has_spoken(process: _Process) -> bool:
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0)[0])


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, without waiting for it: the kernel keeps its CPU seconds until somebody does."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
