"""The backups of the source's database at Scalingo: which there are, a new one, waiting for it, where it is.

`open_backups` finds the database (an *addon* of the application) and yields its `Backups`. A database that cannot have
a backup which we could download is refused there, before anything is created anywhere.

Times are those of Scalingo's clock, which is not the source's: that a backup really began after a heartbeat is proved
by the heartbeat that is found in it, not here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import tenacity
from pydantic import AfterValidator, BaseModel, SecretStr, ValidationError

from cdc.bootstrap.provider_http import Unanswered, backoff_s
from cdc.bootstrap.scalingo import Scalingo, connect, field
from cdc.config import BootstrapConfig
from cdc.errors import BackupUnavailable, SetupError
from cdc.observe import logs

SAY_INTERVAL_S = 60.0
"""Between two sentences while a backup is being made; a new status is said at once."""

UNSEEN_LIMIT = 5
"""Looks in a row at a list without the backup before it is given up: a new one may take a moment to be listed."""

ASKS = 3
"""Requests for one new backup, where the answers to the earlier ones were lost and no backup came of them. Each is
tried again for itself as long as it cannot have arrived."""

_SHARED = "postgresql"
_DEDICATED = "postgresql-ng"
_FAILED = {"error", "cancelling", "cancelled"}
_ENDED = {"done", "error", "cancelled"}


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _none_when_not_yet(moment: datetime | None) -> datetime | None:
    """Services that are written in Go write a moment that has not come as the first of January of the year 1."""
    return None if moment is None or moment.year < 2000 else moment


_Moment = Annotated[datetime, AfterValidator(_aware)]


class _Listed(BaseModel):
    """A backup as Scalingo describes it; what else it says is left alone."""

    id: str
    created_at: _Moment
    started_at: Annotated[_Moment | None, AfterValidator(_none_when_not_yet)] = None
    name: str | None = None
    size: int | None = None
    status: str
    method: str | None = None


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup. ``size`` is in bytes and may be the archive's or what is in it; Scalingo does not say."""

    id: str
    created_at: datetime
    started_at: datetime | None
    name: str
    size: int | None
    status: str
    method: str | None

    @property
    def began_at(self) -> datetime:
        """No snapshot that the backup saw is older than this, by Scalingo's clock."""
        return self.started_at or self.created_at

    @property
    def is_done(self) -> bool:
        """Whether it can be downloaded."""
        return self.status == "done"

    @property
    def has_failed(self) -> bool:
        """Whether it will never be one that can be downloaded."""
        return self.status in _FAILED


@asynccontextmanager
async def open_backups(config: BootstrapConfig) -> AsyncIterator[Backups]:
    """The backups of the application's database.

    Raises:
        ConfigurationError: application or token are not given.
        SetupError: the token is refused, or there is no one database with backups that can be downloaded.
        BackupUnavailable: nobody answers.
    """
    async with connect(config) as scalingo:
        yield Backups(config, scalingo, await _find_database(scalingo))


class Backups:
    """The backups of one database. Made by `open_backups`."""

    def __init__(self, config: BootstrapConfig, scalingo: Scalingo, database: str) -> None:
        self.config = config
        self.scalingo = scalingo
        self.database = database
        self._path = f"/databases/{quote(database, safe='')}/backups"

    async def list(self) -> tuple[Backup, ...]:
        """All of them, the one that began last first."""
        content = await self.scalingo.ask_database(self.database, self._path, f"the backups of {self.database}")
        listed = field(content, "database_backups")
        backups = [_backup(item) for item in (listed if isinstance(listed, Sequence) else ())]
        return tuple(sorted(backups, key=lambda backup: backup.began_at, reverse=True))

    async def get(self, backup_id: str) -> Backup | None:
        """One of them; `None` when Scalingo has it no longer."""
        return next((backup for backup in await self.list() if backup.id == backup_id), None)

    async def new_backup(self) -> Backup:
        """Ask for a new backup.

        A request whose answer was lost is not repeated before it was looked for in the list: each manual backup evicts
        an older one.
        """
        known = {backup.id for backup in await self.list()}
        is_in_doubt = False

        async def ask() -> Backup:
            nonlocal is_in_doubt
            if is_in_doubt:
                fresh = [backup for backup in await self.list() if backup.id not in known]
                if fresh:
                    return fresh[0]
            is_in_doubt = True
            what = f"a new backup of {self.database}"
            content = await self.scalingo.ask_database(
                self.database, self._path, what, method="POST", is_repeatable=False
            )
            return _backup(field(content, "database_backup"))

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unanswered),
            wait=lambda state: backoff_s(state.attempt_number - 1),
            stop=tenacity.stop_after_attempt(ASKS),
            reraise=True,
        )
        return await retrying(ask)

    async def newest_backup_after(self, moment: datetime) -> Backup | None:
        """The backup that began last, if it began after ``moment``; also one that is being made, never one that failed.

        ``moment`` has a time zone.
        """
        usable = (backup for backup in await self.list() if not backup.has_failed)
        return next((backup for backup in usable if backup.began_at > moment), None)

    async def wait_until_done(self, backup: Backup, say: Callable[[str], None]) -> Backup:
        """Wait until it can be downloaded, and return it with its size. What it is doing is said every minute.

        A status that is not known yet is waited for like the others, and so is Scalingo, when it does not answer.

        Raises:
            SetupError: it failed, it was removed, or it took longer than ``bootstrap.backup_timeout_s``.
        """
        begin = time.monotonic()
        said_at = begin
        unseen = 0
        seen = backup
        say(f"backup {backup.id} of {self.database} is {seen.status}")
        while not seen.is_done:
            if seen.status in _ENDED:
                raise SetupError(
                    f"backup {backup.id} of {self.database} ended as {seen.status}: look at the database's page at "
                    "Scalingo, then start cdc bootstrap again"
                )
            if time.monotonic() - begin > self.config.backup_timeout_s:
                raise SetupError(
                    f"backup {backup.id} of {self.database} is still {seen.status} after "
                    f"{_minutes(self.config.backup_timeout_s)}: start cdc bootstrap again, which goes on waiting for "
                    "it, or allow more with bootstrap.backup_timeout_s"
                )
            await asyncio.sleep(self.config.backup_poll_s)
            before = seen.status
            try:
                found = await self.get(backup.id)
            except BackupUnavailable as error:
                logs.get(component="scalingo").warning("the backup goes on unseen", backup=backup.id, error=error)
                continue
            unseen = 0 if found else unseen + 1
            if unseen >= UNSEEN_LIMIT:
                raise SetupError(
                    f"backup {backup.id} of {self.database} is not in Scalingo's list any more: a newer one may have "
                    "evicted it; start cdc bootstrap again with a new one"
                )
            seen = found or seen
            if seen.status != before or time.monotonic() - said_at >= SAY_INTERVAL_S:
                said_at = time.monotonic()
                say(f"backup {backup.id} of {self.database} is {seen.status} after {_minutes(said_at - begin)}")
        return seen

    async def archive_url(self, backup: Backup) -> SecretStr:
        """Where its archive can be downloaded for some minutes, without further authentication: a secret.

        Raises `SetupError` when there is none, and `BackupUnavailable` when nobody answers.
        """
        path = f"{self._path}/{quote(backup.id, safe='')}/archive"
        content = await self.scalingo.ask_database(self.database, path, f"the archive of backup {backup.id}")
        url = field(content, "download_url")
        if not isinstance(url, str) or not url.startswith(("https://", "http://")):
            raise SetupError(f"Scalingo gives no address for the archive of backup {backup.id}")
        return SecretStr(url)


def _backup(item: Any) -> Backup:
    try:
        listed = _Listed.model_validate(item)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors(include_input=False))
    else:
        return Backup(
            id=listed.id,
            created_at=listed.created_at,
            started_at=listed.started_at,
            name=listed.name or "",
            size=listed.size,
            status=listed.status,
            method=listed.method,
        )
    raise SetupError(f"Scalingo describes a backup in a way that cdc does not know: {wrong}")


async def _find_database(scalingo: Scalingo) -> str:
    """The id of the addon whose backups count."""
    app, wanted = scalingo.app, scalingo.config.scalingo_addon
    content = await scalingo.ask(
        f"/apps/{quote(app, safe='')}/addons",
        f"the addons of the application {app}",
        hint="does bootstrap.scalingo_app (SCALINGO_APP) exist in this region, and is the API token one of a "
        "collaborator of it?",
    )
    listed = field(content, "addons")
    addons = [addon for addon in listed if isinstance(addon, dict)] if isinstance(listed, list) else []
    databases = {str(addon.get("id")): addon for addon in addons if _provider(addon) in (_SHARED, _DEDICATED)}
    names = ", ".join(f"{name} ({_provider(addon)})" for name, addon in sorted(databases.items())) or "none"
    if wanted is not None and wanted not in databases:
        raise SetupError(
            f"the application {app} has no PostgreSQL database {wanted} (bootstrap.scalingo_addon); it has: {names}"
        )
    if not databases:
        raise SetupError(f"the application {app} has no PostgreSQL database at Scalingo: use cdc bootstrap --from live")
    if wanted is None and len(databases) > 1:
        raise SetupError(
            f"the application {app} has several PostgreSQL databases, say which one is the source with "
            f"bootstrap.scalingo_addon: {names}"
        )
    chosen = wanted or next(iter(databases))
    addon = databases[chosen]
    if _provider(addon) == _DEDICATED:
        raise SetupError(
            f"{chosen} of the application {app} is a dedicated database ({_DEDICATED}), whose backups cannot be "
            "downloaded from Scalingo: use cdc bootstrap --from live"
        )
    if addon.get("status", "running") != "running":
        raise SetupError(
            f"the database {chosen} of the application {app} is {addon.get('status')}, not running: a backup needs it"
        )
    return chosen


def _provider(addon: dict[str, Any]) -> str:
    provider = addon.get("addon_provider")
    return str(provider.get("id")) if isinstance(provider, dict) else ""


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"
