"""The models of the configuration: every key, its default and the reason for it.

All are frozen. What one key says about another is checked here; what only the source's catalog can tell (does the table
exist?) is checked by `cdc.routing.router`. A key that is not listed here is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, SecretStr, StringConstraints, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from cdc.config.bootstrap import BootstrapConfig, NotificationConfig, RefreshConfig
from cdc.config.units import FROZEN, Address, Dsn, Identifier, Names, Size, parse_address, split_names

PG_NAME_MAX = 63
"""Bytes of a name that PostgreSQL keeps; a slot's name is refused beyond."""

ALL_TARGETS = "all"
"""The ``target`` label of the metrics that all targets share. No target may have this name."""

SlotName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,63}$")]
TargetName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$", max_length=40)]
PipelineName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]


class SourceConfig(BaseModel):
    """The live database that changes are read from."""

    model_config = FROZEN

    dsn: Dsn
    """Connection string of the source: a URL or ``key=value``. The role needs REPLICATION. ``SOURCE_DATABASE_URL`` is
    taken where neither the file nor ``CDC_SOURCE__DSN`` gives one."""

    slot: SlotName = "cdc"
    """Name of the replication slot that the targets share."""

    publication: Identifier = "cdc"
    """Name of the publication of tables with a usable replica identity. A second one, named after it with
    ``_insert_only`` behind, takes the others."""

    manage_publications: bool = True
    """Whether ``cdc setup`` creates and alters the publications. Where somebody else does, `false`."""

    publications: Names = ()
    """With ``manage_publications = false``: the publications to follow. Left out, the one named ``publication``."""

    application_name: Annotated[str, StringConstraints(pattern=r"^[ -~]{1,63}$")] = Field(
        default_factory=lambda data: str(data.get("slot", "cdc"))
    )
    """What ``pg_stat_replication`` calls the worker; the slot's name unless given."""

    failover: bool = False
    """Whether standbys of PostgreSQL 17 or later keep the slots: they are created with ``failover``, and given it where
    they lack it."""

    @model_validator(mode="after")
    def _publications_agree(self) -> Self:
        if self.manage_publications and self.publications:
            raise ValueError("publications lists those that somebody else manages: set manage_publications = false")
        if self.manage_publications and len(self.insert_only_publication.encode()) > PG_NAME_MAX:
            longest = PG_NAME_MAX - len(insert_only_name(""))
            raise ValueError(f"publication has more than {longest} bytes: a second one is named after it")
        return self

    @property
    def insert_only_publication(self) -> str:
        """The second publication of ours."""
        return insert_only_name(self.publication)

    @property
    def publication_names(self) -> tuple[str, ...]:
        """The publications that the stream asks for."""
        if self.manage_publications:
            return (self.publication, self.insert_only_publication)
        return self.publications or (self.publication,)


class TableConfig(BaseModel):
    """One table that a target names: where it goes, and which of its columns, under which names.

    ``["id", "name"]`` is short for ``{ columns = ["id", "name"] }``; the columns are a list, or pairs of the source's
    name and the target's.
    """

    model_config = FROZEN

    to: str | None = None
    """The target's table as ``schema.table``; left out, the same as at the source. Owned targets only."""

    columns: dict[str, str] | None = None
    """Source column to target column, in the order given; left out, all columns (never for ``columns = "listed"``)."""

    deletes: Literal["apply", "keep"] = "apply"
    """``keep``: rows that are deleted (or truncated) at the source stay at the target."""

    deleted_at: Identifier | None = None
    """With ``deletes = "keep"``: the column of the target's table, a ``timestamptz`` or ``timestamp``, that notes when
    the source deleted a row, NULL as long as it has not. A target that follows gets it from `cdc`."""

    @model_validator(mode="before")
    @classmethod
    def _accept_a_list(cls, value: Any) -> Any:
        return {"columns": value} if isinstance(value, (list, tuple, str)) else value

    @field_validator("columns", mode="before")
    @classmethod
    def _accept_names(cls, value: Any) -> Any:
        value = split_names(value)
        if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
            doubles = sorted({name for name in value if value.count(name) > 1})
            if doubles:
                raise ValueError(f"names a column twice: {', '.join(doubles)}")
            return {name: name for name in value}
        return value

    @model_validator(mode="after")
    def _names_are_sound(self) -> Self:
        if self.to is not None:
            _check_qualified(self.to)
        if self.columns is not None:
            if not self.columns:
                raise ValueError("columns is empty: name at least one column, or leave the table out")
            names = list(self.columns.values())
            doubles = sorted({name for name in names if names.count(name) > 1})
            if doubles:
                raise ValueError(f"columns puts two source columns into one: {', '.join(doubles)}")
            if any(not name for pair in self.columns.items() for name in pair):
                raise ValueError("columns holds an empty name")
        if self.deleted_at is not None:
            if self.deletes != "keep":
                raise ValueError('deleted_at notes when a row that stays was deleted: it needs deletes = "keep"')
            if self.deleted_at in (self.columns or {}).values():
                raise ValueError(f'deleted_at = "{self.deleted_at}" is among the columns that the source fills')
        return self


class TargetConfig(BaseModel):
    """A database that changes are applied to, and what it wants of the source."""

    model_config = FROZEN

    dsn: Dsn
    """Connection string of the target: a URL or ``key=value``. ``DATABASE_URL`` is taken where there is one target and
    neither the file nor the environment gives its ``dsn``."""

    schema_mode: Literal["follow", "owned"] = Field(default="follow", alias="schema")
    """``follow``: `cdc` creates the tables, under the source's names. ``owned``: somebody else does, and `cdc` never
    changes them."""

    columns: Literal["all", "listed"] = Field(
        default_factory=lambda data: "listed" if data.get("schema_mode") == "owned" else "all"
    )
    """``listed``: only columns that ``tables`` names ever leave the source. ``all`` (the default of a target that
    follows): every column of the included tables, also those added later. An owned target is always ``listed``."""

    include: Names = ()
    """Patterns of tables to take, ``schema.table`` with ``*`` and ``?``; each stands for whole names, so that
    ``public.answers`` never takes ``public.element-answers``."""

    exclude: Names = ()
    """Patterns of tables that ``include`` must not take. A table named in ``tables`` is taken all the same."""

    tables: dict[str, TableConfig] = Field(default_factory=dict)
    """Tables by their exact name, ``"schema.table"``, with what is wanted of them."""

    on_error: Literal["stop", "quarantine_table"] = "stop"
    """What to do with a transaction that the target's constraints refuse: hold the whole target (the default, because
    it skips nothing), or set the table aside and go on with the others."""

    sequences: Literal["once", "sync"] = "once"
    """``once``: the sequences of the tables stand where they stood at the source when the target was loaded. ``sync``:
    their positions follow, so that the target can take the source's place. Only for a target that follows."""

    @field_validator("include", "exclude")
    @classmethod
    def _patterns_are_qualified(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            _check_qualified(pattern, what="pattern")
        return patterns

    @field_validator("tables")
    @classmethod
    def _tables_are_qualified(cls, tables: dict[str, TableConfig]) -> dict[str, TableConfig]:
        for name in tables:
            _check_qualified(name, quoted=True)
        return tables

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.is_owned and self.columns == "all":
            raise ValueError('columns = "all" needs schema = "follow": an owned target gets the columns that it names')
        if self.is_owned and self.sequences == "sync":
            raise ValueError('sequences = "sync" needs schema = "follow": sequences of an owned target are not ours')
        if not self.include and not self.tables:
            raise ValueError("asks for no table: give include patterns, or name tables")
        if self.columns == "listed":
            if self.include:
                raise ValueError(
                    "include names no columns, and this target gets listed columns only: "
                    'name each table under tables, as in tables."schema.table" = ["id", "name"]'
                )
            for name, table in self.tables.items():
                if table.columns is None:
                    raise ValueError(f'tables."{name}" lists no columns, and this target gets listed columns only')
        self._check_shared_tables()
        if not self.is_owned:
            for name, table in self.tables.items():
                renamed = table.to not in (None, name) or any(a != b for a, b in (table.columns or {}).items())
                if renamed:
                    raise ValueError(
                        f'tables."{name}" renames, but a target whose schema follows has the source\'s names: '
                        'use schema = "owned"'
                    )
        return self

    def _check_shared_tables(self) -> None:
        """Nobody can tell by a row which table it came from, so what becomes of deleted ones is one thing for all."""
        first: dict[str, tuple[str, TableConfig]] = {}
        for name, table in self.tables.items():
            other, there = first.setdefault(table.to or name, (name, table))
            if (there.deletes, there.deleted_at) != (table.deletes, table.deleted_at):
                raise ValueError(
                    f'tables."{other}" and tables."{name}" go into one table, {table.to or name}: they need '
                    "the same deletes and the same deleted_at"
                )

    def without(self, tables: tuple[str, ...]) -> Self:
        """The same target without some tables (``schema.table``), whichever way it asks for them.

        Raises ``ValueError`` where none is left.
        """
        named = {name: table for name, table in self.tables.items() if name not in tables}
        exclude = tuple(dict.fromkeys((*self.exclude, *tables)))
        if not named and not self.include:
            raise ValueError("without any table: bootstrap.modes leaves out all that it names")
        return self.model_copy(update={"tables": named, "exclude": exclude})

    @property
    def is_owned(self) -> bool:
        """Whether somebody else changes the target's tables, and `cdc` never does."""
        return self.schema_mode == "owned"

    @property
    def follows(self) -> bool:
        """Whether `cdc` creates and changes the target's tables after the source's."""
        return self.schema_mode == "follow"


class WorkerConfig(BaseModel):
    """The always-on process: its memory, its patience, what it shows."""

    model_config = FROZEN

    max_batch_bytes: Size = Field(default=8 * 1024**2, ge=64 * 1024)
    """Most bytes of changes that are applied as one target transaction, and that one stretch of a large transaction
    holds. Beyond some megabytes a larger batch is no faster and only takes memory (and locks for longer)."""

    max_queue_bytes: Size = Field(default=32 * 1024**2, ge=64 * 1024)
    """Most bytes of changes that wait for one target. When it is full, the reader pauses. What Python adds to the
    changes counts, too. What several targets wait for is held once, so that with targets that want the same
    tables the worker's memory is about this, once, and three times ``max_batch_bytes`` for each target: its batch, and
    the rows of that batch taken apart while they are applied (measured: up to twice as much again)."""

    max_spool_bytes: Size = Field(default=1024**3, ge=0)
    """Most bytes that large transactions take on the worker's disk, compressed, until they commit: all together. Beyond
    it, and where the disk is full, they are read after their commit instead, as with 0; then they take no disk here.
    The default is some 20 million rows of ten columns (46 bytes each were measured)."""

    spool_directory: Path | None = None
    """Where that is; the system's directory for temporary files unless given. A directory in memory is no good: what
    is there counts as memory."""

    heartbeat_interval_s: float = Field(default=1.0, ge=0.1, le=3600)
    """Seconds between two heartbeats at the source: how fine the lag in seconds is. One costs an update of one row."""

    status_interval_s: float = Field(default=1.0, ge=0.1, le=30)
    """Seconds between two messages to the source about what is durable. It must stay well under ``wal_sender_timeout``
    (60 s) whatever is being applied (hazard 4); one a second also frees WAL soon."""

    partition_interval_s: float = Field(default=5.0, ge=0.1, le=3600)
    """Seconds between two looks at the partitions of the source's partitioned tables, because ATTACH and DETACH are not
    streamed, and at the columns of all, because a name that means another column is not. One look is two queries of the
    catalog, for the tables that targets have loaded."""

    metrics_address: Address = "0.0.0.0:9187"
    """Where ``/metrics``, ``/healthz`` and ``/readyz`` listen."""

    metrics_password: SecretStr | None = None
    """When given, ``/metrics`` asks for it (HTTP basic authentication, any user name): for platforms where the port is
    public."""

    connect_timeout_s: float = Field(default=10.0, gt=0, le=600)
    """Seconds that opening a connection to a target may take."""

    lock_timeout_s: float = Field(default=5.0, ge=0, le=3600)
    """Seconds that a statement on a target waits for a lock before the batch is rolled back and tried again: whoever
    queues behind us must not wait for the report that we wait for (hazard 16)."""

    detach_after_s: float = Field(default=60.0, gt=0)
    """Seconds for which the others wait for a target whose queue is full: long enough for a lock or a checkpoint there,
    short enough that the others stay fresh. After that the lane goes on without it; what it lacks stays in the slot,
    and so the source keeps its WAL, until it is back."""

    sequence_interval_s: float = Field(default=60.0, ge=0.1, le=3600)
    """Seconds between two looks at the source's sequences, for targets with ``sequences = "sync"``: how far their
    positions may be behind the rows. One costs two queries of the source's catalog."""

    @property
    def metrics_host_and_port(self) -> tuple[str, int]:
        """``metrics_address``, taken apart."""
        return parse_address(self.metrics_address)


class LogsConfig(BaseModel):
    """What is written to stderr. Never a row value, never a secret."""

    model_config = FROZEN

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe lines that are written."""

    format: Literal["auto", "json", "console"] = "auto"
    """``auto``: for people on a terminal, one JSON object a line elsewhere."""


class Config(BaseSettings):
    """Everything that is in force for one pipeline. Made by `cdc.config.load`; directly in tests."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        env_prefix="CDC_",
        env_nested_delimiter="__",
    )

    pipeline: PipelineName = "cdc"
    """Name of this pipeline: the label of its metrics, and its key in the targets. Two pipelines into one target need
    two names."""

    source: SourceConfig
    """The live database."""

    targets: dict[TargetName, TargetConfig] = Field(min_length=1)
    """The databases that are fed from it, by name."""

    worker: WorkerConfig = Field(default_factory=WorkerConfig)
    """The always-on process."""

    bootstrap: BootstrapConfig = Field(default_factory=BootstrapConfig)
    """The initial load."""

    refresh: RefreshConfig = Field(default_factory=RefreshConfig)
    """What is refreshed at fixed times."""

    notifications: tuple[NotificationConfig, ...] = ()
    """Who is told when a bootstrap or a refresh is done. ``NOTIFICATIONS`` (JSON) is taken where nothing else gives
    them."""

    logs: LogsConfig = Field(default_factory=LogsConfig)
    """What is written to stderr."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given counts; the environment is read in one place, `cdc.config.loading`."""
        return (init_settings,)

    @field_validator("targets")
    @classmethod
    def _no_target_is_all(cls, targets: dict[str, TargetConfig]) -> dict[str, TargetConfig]:
        if ALL_TARGETS in targets:
            raise ValueError(
                f'holds a target named "{ALL_TARGETS}", which is the label of the metrics that belong to no single '
                "target; choose another name"
            )
        return targets

    @model_validator(mode="after")
    def _leave_out(self) -> Self:
        """Tables that are ``none`` are excluded everywhere, also where a target names them."""
        left_out = tuple(table for table, mode in self.bootstrap.modes.items() if mode == "none")
        if left_out:
            targets: dict[str, TargetConfig] = {}
            for name, target in self.targets.items():
                try:
                    targets[name] = target.without(left_out)
                except ValueError as error:
                    raise ValueError(f"leaves the target {name} {error}") from None
            # The model is frozen for everybody but its own validation.
            object.__setattr__(self, "targets", targets)
        return self

    @model_validator(mode="after")
    def _lane_slots_have_room(self) -> Self:
        for name in self.targets:
            if len(self.source.slot) + len(f"__{name}__new") > PG_NAME_MAX:
                raise ValueError(
                    f"source.slot and the target {name} are too long together: the slots of a lane are named "
                    f"<slot>__<target> and <slot>__<target>__new, and have at most {PG_NAME_MAX} characters"
                )
        return self


def insert_only_name(publication: str) -> str:
    """The second publication of ours, for tables without a usable replica identity, is named after the first."""
    return f"{publication}_insert_only"


def _check_qualified(name: str, *, what: str = "table", quoted: bool = False) -> None:
    """Raise ``ValueError`` unless the name has a schema and a table."""
    schema, dot, table = name.partition(".")
    if not dot or not schema or not table:
        shown = f'tables."public.{name}"' if quoted else f'"public.{name}"'
        raise ValueError(f'"{name}" is no {what} of the form schema.table: write for example {shown}')
