"""Archives of a database, made by a real ``pg_dump``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cdc.bootstrap.archive.rows import Archive, open_archive
from tests.database import Database

PIX_ARCHIVE = Path(__file__).resolve().parents[2] / "shared" / "data" / "pix-2020.pgsql"


def dump(binaries: Path, database: Database, path: Path, *options: str) -> Path:
    """Dump a database into a file in the custom format."""
    command = [str(binaries / "pg_dump"), "--format=custom", *options, f"--file={path}", database.dsn]
    subprocess.run(command, check=True, env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL)
    return path


def opened(binaries: Path, database: Database, path: Path, *options: str) -> Archive:
    """Dump a database and open the archive."""
    return open_archive(dump(binaries, database, path, *options), None)
