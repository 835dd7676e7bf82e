"""The databases of the stand-in, and their backups: a real ``pg_dump`` in a tar.gz."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import threading
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STATUSES = ("scheduled", "pending", "running", "done")
"""What a backup goes through."""


@dataclass
class Addon:
    """A database of the application. ``dsn`` is what ``pg_dump`` reads: the primary, or a standby of it."""

    id: str
    dsn: str
    provider: str = "postgresql"
    status: str = "running"

    def described(self) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "id": self.id,
            "app_id": "5343eccd646173000a140000",
            "resource_id": f"resource-{self.id}",
            "status": self.status,
            "addon_provider": {"id": self.provider, "name": "PostgreSQL"},
            "plan": {"id": "5343eccd646aa3012a140230", "name": "postgresql-business-1024"},
        }


@dataclass
class StoredBackup:
    """One backup, and the thread that makes it."""

    id: str
    addon: Addon
    created_at: datetime
    started_at: datetime | None = None
    archive: Path | None = None
    failure: str | None = None
    looks: deque[str] = field(default_factory=deque)
    """Statuses that are shown, one a look, before the real one is."""
    is_running: threading.Event = field(default_factory=threading.Event)
    is_made: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def status(self) -> str:
        """What a look at it shows; a status that was to be shown is used up."""
        if self.looks:
            return self.looks.popleft()
        if self.is_made.is_set():
            return "error" if self.failure else "done"
        return "running" if self.is_running.is_set() else "scheduled"

    def described(self, size_said: int | None) -> dict[str, Any]:
        """As the database API shows it: one look."""
        status = self.status
        size = self.archive.stat().st_size if self.archive is not None and status == "done" else None
        return {
            "id": self.id,
            "created_at": _moment(self.created_at),
            "started_at": _moment(self.started_at) if self.started_at else None,
            "name": f"{self.created_at:%Y%m%d%H%M%S}_my_app_3030",
            "size": size_said if size_said is not None and size is not None else size,
            "status": status,
            "database_id": f"resource-{self.addon.id}",
            "method": "manual",
        }

    def make(self, pg_dump: Path, directory: Path, may_begin: threading.Event) -> None:
        """Begin, in a thread, as soon as it may."""

        def work() -> None:
            may_begin.wait()
            self.started_at = datetime.now(UTC)
            self.is_running.set()
            try:
                self.archive = archive_of(self.addon.dsn, pg_dump, directory, self.id)
            except subprocess.CalledProcessError as error:
                self.failure = error.stderr.decode(errors="replace")
            finally:
                self.is_made.set()

        self.thread = threading.Thread(target=work, name=f"backup {self.id}")
        self.thread.start()


def archive_of(dsn: str, pg_dump: Path, directory: Path, name: str) -> Path:
    """A dump of a database in the custom format, in a tar.gz whose one member has an absolute path, as Scalingo's."""
    directory.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    dump = subprocess.run(
        [str(pg_dump), "--format=custom", f"--dbname={dsn}"], check=True, capture_output=True, env=environment
    ).stdout
    return packed(dump, directory / f"{name}.tar.gz", f"/var/lib/scalingo/backups/{name}.pgsql")


def packed(dump: bytes, archive: Path, member: str) -> Path:
    """A tar.gz with one member."""
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        entry = tarfile.TarInfo(member)
        entry.size = len(dump)
        tar.addfile(entry, io.BytesIO(dump))
    return archive


def _moment(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
