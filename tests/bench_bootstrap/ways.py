"""The ways from a source to a target that holds its rows and indexes, each as an operator would go it.

Each is a function of a `Turn`; it returns when the target is complete, and leaves nothing at the source. All have as
many jobs, on the same two servers. What a way does not answer for (what is set up once and for all, a backup that the
provider makes) is timed apart, in ``Turn.uncounted``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from cdc.errors import SetupError
from cdc.identifiers import quote, quote_literal
from tests.bench.servers import Servers
from tests.bench_bootstrap import cpu

PGCOPYDB_VARIABLE = "CDC_BENCH_PGCOPYDB"
"""Names the program ``pgcopydb`` where it is not on PATH."""

_POLL_S = 0.02


@dataclass(slots=True)
class Turn:
    """One turn of one way.

    ``name`` is free for whatever has to be created; ``directory`` is empty, and removed afterwards. ``uncounted`` are
    seconds that the turn took and the way does not answer for.
    """

    servers: Servers
    source: str
    target: str
    name: str
    jobs: int
    directory: Path
    uncounted: dict[str, float] = field(default_factory=dict)
    uncounted_cpu: Counter[str] = field(default_factory=Counter)

    @property
    def source_dsn(self) -> str:
        """The URL of the source's database."""
        return self.servers.source.dsn(self.source)

    @property
    def target_dsn(self) -> str:
        """The URL of the target's database."""
        return self.servers.target.dsn(self.target)

    def program(self, name: str) -> Path:
        """One of PostgreSQL's programs, of the servers' own version."""
        return self.servers.source.binaries / name

    @contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """Time the block apart."""
        before, began = cpu.used(self.servers), time.monotonic()
        yield
        self.uncounted[what] = time.monotonic() - began
        self.uncounted_cpu.update({role: used - before[role] for role, used in cpu.used(self.servers).items()})


@dataclass(frozen=True, slots=True)
class Way:
    """``missing`` says why it cannot be gone here; `None` when it can."""

    name: str
    title: str
    go: Callable[[Turn], None]
    missing: Callable[[Servers], str | None] = lambda _: None


def copy_live(turn: Turn) -> None:
    """`cdc bootstrap --from live`: in the end the slot is there, and `cdc run` can begin."""
    _configure(turn)
    with turn.apart("cdc setup"):
        _cdc(turn, "setup")
    _cdc(turn, "bootstrap", "--from", "live", "--jobs", str(turn.jobs))
    with turn.apart("cdc teardown"):
        _cdc(turn, "teardown", "--yes")


def restore_backup(turn: Turn) -> None:
    """`cdc bootstrap --from backup --file`, of an archive that is made between the slot and the restore."""
    archive = turn.directory / "backup.pgsql"
    _configure(turn)
    with turn.apart("cdc setup"):
        _cdc(turn, "setup")
    # Creates the slot and the heartbeat that the backup has to hold; then there is no backup yet.
    _cdc(turn, "bootstrap", "--from", "backup", "--file", str(archive), may_fail=True)
    with turn.apart("pg_dump -Fc"):
        _run([turn.program("pg_dump"), "--format=custom", f"--file={archive}", turn.source_dsn])
    _cdc(turn, "bootstrap", "--from", "backup", "--file", str(archive), "--jobs", str(turn.jobs))
    with turn.apart("cdc teardown"):
        _cdc(turn, "teardown", "--yes")


def dump_and_restore(turn: Turn) -> None:
    """``pg_dump -Fd -j``, uncompressed because that is quicker here, then ``pg_restore -j``."""
    archive = turn.directory / "archive"
    jobs = f"--jobs={turn.jobs}"
    _run(
        [turn.program("pg_dump"), "--format=directory", "--compress=0", jobs, f"--file={archive}", turn.source_dsn],
    )
    _run([turn.program("pg_restore"), jobs, f"--dbname={turn.target_dsn}", archive])


def clone(turn: Turn) -> None:
    """``pgcopydb clone``, which builds a table's indexes when its rows are there, and vacuums."""
    program = _pgcopydb()
    assert program is not None  # `_pgcopydb_is_missing` was asked
    # Its own runs of pg_dump and pg_restore have to be of the servers' version.
    path = os.pathsep.join([str(turn.servers.source.binaries), os.environ.get("PATH", "")])
    jobs = str(turn.jobs)
    words: list[str | Path] = [
        program,
        "clone",
        "--source",
        turn.source_dsn,
        "--target",
        turn.target_dsn,
        "--table-jobs",
        jobs,
    ]
    directory = turn.directory / "pgcopydb"
    _run(
        [*words, "--index-jobs", jobs, "--dir", directory],
        environment={"PATH": path, "PG_CONFIG": str(turn.program("pg_config")), "XDG_DATA_HOME": str(turn.directory)},
    )


def subscribe(turn: Turn) -> None:
    """PostgreSQL's own subscription: its initial copy into bare tables, then keys and indexes by ``pg_restore -j``."""
    archive = turn.directory / "schema"
    _run([turn.program("pg_dump"), "--format=custom", "--schema-only", f"--file={archive}", turn.source_dsn])
    restore: list[str | Path] = [turn.program("pg_restore"), f"--dbname={turn.target_dsn}", archive]
    _run([*restore, "--section=pre-data"])
    with turn.apart("publication"):
        _execute(turn.source_dsn, f"CREATE PUBLICATION {quote(turn.name)} FOR ALL TABLES")
    _execute(
        turn.target_dsn,
        f"CREATE SUBSCRIPTION {quote(turn.name)} CONNECTION {quote_literal(turn.source_dsn)} "
        f"PUBLICATION {quote(turn.name)} WITH (binary = true)",
    )
    with psycopg.connect(turn.target_dsn, autocommit=True) as connection:
        while connection.execute("SELECT 1 FROM pg_subscription_rel WHERE srsubstate <> 'r'").fetchone():
            time.sleep(_POLL_S)
    _run([*restore, "--section=post-data", f"--jobs={turn.jobs}"])
    with turn.apart("dropping it"):
        _execute(turn.target_dsn, f"DROP SUBSCRIPTION {quote(turn.name)}")
        _execute(turn.source_dsn, f"DROP PUBLICATION {quote(turn.name)}")


def _pgcopydb() -> str | None:
    return os.environ.get(PGCOPYDB_VARIABLE) or shutil.which("pgcopydb")


def _pgcopydb_is_missing(servers: Servers) -> str | None:
    program = _pgcopydb()
    if program is None:
        return f"not installed: put pgcopydb on PATH, or name it in {PGCOPYDB_VARIABLE}"
    done = subprocess.run([program, "--version"], check=False, capture_output=True, text=True)
    known = re.search(r"compatible with Postgres (.*)", done.stdout + done.stderr)
    major = str(servers.machine()["postgresql"]).partition(".")[0]
    if known is not None and major not in re.findall(r"\d+", known[1]):
        return f"the one that is installed speaks to PostgreSQL {known[1]}, not to {major}"
    return None


LIVE = "cdc live"

WAYS = (
    Way(LIVE, "cdc bootstrap --from live", copy_live),
    Way("cdc backup", "cdc bootstrap --from backup --file", restore_backup),
    Way("pg_dump", "pg_dump -Fd -j, pg_restore -j", dump_and_restore),
    Way("pgcopydb", "pgcopydb clone", clone, _pgcopydb_is_missing),
    Way("subscription", "subscription, then pg_restore -j of its indexes", subscribe),
)
"""In the order of the first round."""


def _configure(turn: Turn) -> None:
    (turn.directory / "cdc.toml").write_text(
        f"""
            pipeline = "{turn.name}"
            [source]
            dsn = "{turn.source_dsn}"
            slot = "{turn.name}"
            publication = "{turn.name}"
            [targets.bench]
            dsn = "{turn.target_dsn}"
            schema = "follow"
            include = ["public.*"]
            [bootstrap]
            pg_restore = "{turn.program("pg_restore")}"
            directory = "{turn.directory}"
        """,
        encoding="utf-8",
    )


def _cdc(turn: Turn, *words: str, may_fail: bool = False) -> None:
    command = [sys.executable, "-m", "cdc", "--config", str(turn.directory / "cdc.toml"), *words]
    _run(command, may_fail=may_fail)


def _run(command: Sequence[str | Path], *, environment: dict[str, str] | None = None, may_fail: bool = False) -> None:
    """Run a program to its end. Raises `SetupError` with its last words when it fails."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("CDC_", "PG"))}
    done = subprocess.run(
        [str(word) for word in command],
        check=False,
        env={**ours, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0 and not may_fail:
        name = " ".join(map(str, command[:6]))
        raise SetupError(f"{name} … ended with status {done.returncode}: {done.stdout[-2000:]}")


def _execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())
