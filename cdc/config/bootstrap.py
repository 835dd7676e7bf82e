"""The models of what concerns the initial load, and what else happens seldom: refreshes and notifications."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, SecretStr, StringConstraints, field_validator

from cdc.config.units import FROZEN, HookAddress, HttpAddress, Schedule


class BootstrapConfig(BaseModel):
    """The initial load: where a backup comes from, and how it is restored."""

    model_config = FROZEN

    scalingo_app: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")] | None = None
    """The Scalingo application whose PostgreSQL addon has the backups. ``SCALINGO_APP`` is taken where nothing else
    gives it."""

    scalingo_api_token: SecretStr | None = None
    """API token of a collaborator of that application. ``SCALINGO_API_TOKEN`` is taken where nothing else gives it."""

    scalingo_addon: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")] | None = None
    """Id of the addon (``ad-…``), where the application has several databases."""

    scalingo_region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$")] = "osc-fr1"
    """The region, which the addresses are made of."""

    scalingo_auth_url: HttpAddress = "https://auth.scalingo.com/v1"
    """Where an API token is exchanged."""

    scalingo_api_url: HttpAddress | None = None
    """The API of the region; ``https://api.<region>.scalingo.com/v1`` unless given."""

    scalingo_database_api_url: HttpAddress | None = None
    """The database API; ``https://db-api.<region>.scalingo.com/api`` unless given, and the place that Scalingo is
    moving it to where that one is gone."""

    scalingo_database_token: Literal["addon", "user"] = "addon"
    """Whose token the database API takes: the addon's, or the user's, as in the place that Scalingo is moving it to."""

    backup_timeout_s: float = Field(default=6 * 3600.0, gt=0)
    """Seconds that a new backup may take. A backup of Pix took an hour and a half."""

    backup_poll_s: float = Field(default=12.0, gt=0)
    """Seconds between two looks at a backup that is being made: Scalingo allows 60 requests a minute in all."""

    max_retry_count: int = Field(default=10, ge=1)
    """Tries of a step that can be tried again. ``MAX_RETRY_COUNT`` is taken where nothing else gives it."""

    restore_jobs: int = Field(default=4, ge=1, le=64)
    """Tables restored, or indexes built, at once. ``PG_RESTORE_JOBS`` is taken where nothing else gives it."""

    foreign_keys: bool = False
    """Whether targets that follow get the source's foreign keys. They cost time and protect nothing that the source has
    not checked. ``RESTORE_FK_CONSTRAINTS`` is taken where nothing else gives it."""

    missing_extensions: Literal["refuse", "skip"] = "refuse"
    """What to do when a target lacks an extension that its tables or indexes use: refuse before anything is loaded, or
    leave out what needs it."""

    pg_restore: Path | None = None
    """The ``pg_restore`` to use; found on PATH, or in the wheel of the embedded servers, unless given."""

    directory: Path | None = None
    """Where a downloaded backup is kept while it is restored; the system's place for temporary files unless given."""

    modes: dict[str, Literal["incremental", "none"]] = Field(default_factory=dict)
    """Tables (``schema.table``, or a name of the schema ``public``) that are not loaded like the others. ``none``: left
    out of every target, and of the stream. ``incremental``: rows that a target has stay, missing ones are copied from
    the live source. ``BACKUP_MODE`` (JSON) is taken where nothing else gives it."""

    enrichment: Path = Path("sql/enrich")
    """The directory with a directory for each target, whose ``*.sql`` run once after its load."""

    @field_validator("modes")
    @classmethod
    def _qualify(cls, modes: dict[str, str]) -> dict[str, str]:
        qualified: dict[str, str] = {}
        for name, mode in modes.items():
            full = name if "." in name else f"public.{name}"
            if not all(part.strip() for part in full.split(".", 1)):
                raise ValueError(
                    f'"{name}" is no table: write schema.table, or the name of a table of the schema public'
                )
            if qualified.setdefault(full, mode) != mode:
                raise ValueError(f'gives two modes to "{full}": "{name}" is the same table')
        return qualified


class RefreshConfig(BaseModel):
    """What is refreshed at fixed times."""

    model_config = FROZEN

    schedule: Schedule = "10 5 * * *"
    """Cron expression (UTC) at which the materialized views of the enrichment are refreshed. ``SCHEDULE`` is taken
    where nothing else gives it."""


class NotificationConfig(BaseModel):
    """Somebody who is told, with a POST, when a bootstrap or a refresh is done."""

    model_config = FROZEN

    url: HookAddress
    """Where the POST goes. Whoever knows it can call it, so it is shown as its host only."""

    token: SecretStr | None = None
    """Sent as a bearer token."""
