"""Enrichment: a target's own SQL files, run once its tables are complete, while changes are streamed into them.

Each file is run once for each generation of the target (``cdc.enrichment``), in the order of names. Each statement
commits by itself, together with the note that it was run, so that a run which was killed goes on behind it; what cannot
run inside a transaction (CREATE INDEX CONCURRENTLY, VACUUM) is noted afterwards, and where that note is missing it is
looked what became of the index. Nobody waits for long: a statement that is not granted its lock in time is tried again
(hazard 16).

One run at a time works on a target, held by an advisory lock of its session: a session that was cut off (hazard 20)
keeps it until its statement has ended, and only then does the next one look what is there.

A file that fails stops nothing. The next run tries it again; `cdc enrich` is such a run. Unqualified names mean
``public``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

import asyncpg

from cdc.bootstrap import enrichment_files
from cdc.bootstrap.enrichment_files import EnrichmentFile, Statement
from cdc.bootstrap.tables import try_again
from cdc.config import Config, for_asyncpg
from cdc.errors import CdcError, SetupError, TargetUnavailable
from cdc.routing.patterns import split
from cdc.target import definitions
from cdc.target.definitions import NewIndex
from cdc.target.migrations import pending
from cdc.target.run_record import RunRecord
from cdc.target.session import Session, connect, target_errors

_LOCK = 0x636463_656E72  # "cdcenr"

LOCK_POLL_S = 1.0
"""Seconds between two looks whether the target is free. Waiting inside PostgreSQL would hold a snapshot, for which a
CREATE INDEX CONCURRENTLY of the other session would wait in turn."""

_NOT_IN_A_TRANSACTION = {"25001", "2D000"}
"""What says that a statement commits by itself: PreventInTransactionBlock, and COMMIT inside a procedure."""


async def enrich(
    config: Config,
    target: str,
    key: str,
    *,
    application_name: str,
    record: RunRecord | None,
    say: Callable[[str], None],
) -> list[str]:
    """Run the files of one target that were not run for the generation ``key`` yet (``cdc.target.pipeline``).

    Durable when it returns. Returns a warning for each file that failed, or has changed since it was run.
    """
    try:
        files = await asyncio.to_thread(enrichment_files.read, config.bootstrap.enrichment, target)
    except CdcError as error:
        return [f"target {target}: {error}"]
    run = _Run(for_asyncpg(config.targets[target].dsn.get_secret_value()), target, key, application_name, say)
    warnings: list[str] = []
    try:
        for name, text in files:
            warning = await _run_file(run, record, name, text)
            if warning is not None:
                warnings.append(warning)
    except TargetUnavailable as error:
        warnings.append(f"the enrichment of target {target} is not finished, `cdc enrich` goes on with it: {error}")
    finally:
        await run.close()
    return warnings


async def enrich_all(config: Config, targets: Collection[str] | None, say: Callable[[str], None]) -> list[str]:
    """Run what is not done of the enrichment of these targets, or of all; a worker may be at work.

    Returns warnings as `enrich` does. Raises `SetupError` for a target that is not set up, or was never loaded.
    """
    name = f"cdc enrich {config.pipeline}"
    warnings: list[str] = []
    for target in config.targets if targets is None else targets:
        dsn = for_asyncpg(config.targets[target].dsn.get_secret_value())
        session = await connect(dsn, application_name=name, target=target)
        try:
            if await pending(session):
                raise SetupError(f"{session.where} is not set up for this version of cdc: run `cdc setup` first")
            with target_errors("reading its state", session.where):
                state = await session.connection.fetchval(
                    "SELECT state FROM cdc.target WHERE pipeline = $1", config.pipeline
                )
        finally:
            await session.close()
        if state is None or state in ("new", "loading"):
            raise SetupError(f"target {target} is not loaded yet: its enrichment is run at the end of `cdc bootstrap`")
        warnings += await enrich(config, target, config.pipeline, application_name=name, record=None, say=say)
    return warnings


@dataclass(slots=True)
class _Run:
    """One run on one target, with at most one session; another one where that was lost."""

    dsn: str
    target: str
    key: str
    application_name: str
    say: Callable[[str], None]
    session: Session | None = None
    settings: list[str] = field(default_factory=list)

    async def ready(self) -> Session:
        """A session that holds the lock, and in which the file's settings are in force."""
        if self.session is not None and not self.session.connection.is_closed():
            return self.session
        session = self.session = await connect(self.dsn, application_name=self.application_name, target=self.target)
        with target_errors("beginning its enrichment", session.where):
            if session.triggers_disabled:
                # These are not the source's rows: triggers are meant to fire.
                await session.connection.execute("SET session_replication_role = origin")
            waited = False
            while not await session.connection.fetchval("SELECT pg_catalog.pg_try_advisory_lock($1)", _LOCK):
                if not waited:
                    self.say(f"target {self.target}: another session is at its enrichment, or was until it was cut off")
                waited = True
                await asyncio.sleep(LOCK_POLL_S)
            for sql in ("SET search_path = public", *self.settings):
                await session.connection.execute(sql)
        return session

    async def set_again(self, settings: Sequence[str]) -> None:
        """Bring into force what a file has set before it was interrupted."""
        self.settings += settings
        if settings and self.session is not None:
            await self.session.close()

    async def close(self) -> None:
        """End the session: nothing that a file has set reaches the next one."""
        session, self.session = self.session, None
        self.settings.clear()
        if session is not None:
            await session.close()


async def _run_file(run: _Run, record: RunRecord | None, name: str, text: str) -> str | None:
    """Run what is left of a file; returns a warning where that was not all. Raises `TargetUnavailable`."""
    what = f"target {run.target}: {name} of its enrichment"
    try:
        file = enrichment_files.parse(name, text)
        state = await try_again(partial(_state, run, file))
        if state.is_applied:
            if state.digest == file.digest:
                return None
            return (
                f"{what} has changed since it was run, and is not run again: what is new belongs into a file of its own"
            )
        if state.lacking:
            run.say(f"{what} is left out: it needs {', '.join(state.lacking)}, which is not there")
            return None
        async with AsyncExitStack() as stack:
            if record is not None:
                await stack.enter_async_context(record.step("enrichment", name))
            await _run_statements(run, file, state.is_begun)
        run.say(f"{what} is done")
    except CdcError as error:
        if isinstance(error, TargetUnavailable) and error.server is None:
            raise
        return f"{what} could not be run, `cdc enrich` tries it again: {error}"
    finally:
        await run.close()
    return None


@dataclass(frozen=True, slots=True)
class _State:
    """What a target says of a file. ``lacking`` are tables that it needs and that are not there."""

    is_begun: bool
    is_applied: bool
    digest: str | None
    lacking: Sequence[str]


async def _state(run: _Run, file: EnrichmentFile) -> _State:
    session = await run.ready()
    with target_errors(f"reading what became of {file.name}", session.where):
        row = await session.connection.fetchrow(
            "SELECT digest, applied_at FROM cdc.enrichment WHERE pipeline = $1 AND file = $2", run.key, file.name
        )
    lacking = await definitions.lacking_relations(session, [split(name) for name in file.needs])
    return _State(
        row is not None,
        row is not None and row["applied_at"] is not None,
        None if row is None else row["digest"],
        [".".join(name) for name in lacking],
    )


async def _run_statements(run: _Run, file: EnrichmentFile, is_begun: bool) -> None:
    done = await try_again(partial(_begin, run, file))
    if file.is_transaction:
        await try_again(partial(_run_whole, run, file))
        return
    await run.set_again([statement.text for statement in file.statements[:done] if statement.is_setting])
    for number in range(done, len(file.statements)):
        await _run_statement(run, file, number, is_again=is_begun and number == done)
    session = await run.ready()
    with target_errors(f"recording {file.name}", session.where):
        await session.connection.execute(_END, run.key, file.name)


_END = "UPDATE cdc.enrichment SET applied_at = pg_catalog.clock_timestamp() WHERE pipeline = $1 AND file = $2"


async def _begin(run: _Run, file: EnrichmentFile) -> int:
    """Record that the file is run; returns how many of its statements have been run already.

    Where one of these is another one now, all are run: somebody has mended what failed.
    """
    session = await run.ready()
    with target_errors(f"recording {file.name}", session.where):
        done: list[str] = await session.connection.fetchval(
            "INSERT INTO cdc.enrichment AS e (pipeline, file, digest, refreshes) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (pipeline, file) DO UPDATE SET digest = $3, refreshes = $4,"
            " done = CASE WHEN e.done = ($5::text[])[:pg_catalog.cardinality(e.done)] THEN e.done ELSE '{}' END"
            " RETURNING done",
            run.key,
            file.name,
            file.digest,
            list(file.refreshes),
            [statement.digest for statement in file.statements],
        )
    return len(done)


async def _run_whole(run: _Run, file: EnrichmentFile) -> None:
    session = await run.ready()
    with target_errors(f"running {file.name}", session.where):
        async with session.connection.transaction():
            # Holds off a second try whose first one, unanswered, was committed.
            if await session.connection.fetchval(
                "SELECT applied_at FROM cdc.enrichment WHERE pipeline = $1 AND file = $2 FOR UPDATE", run.key, file.name
            ):
                return
            for statement in file.statements:
                await session.connection.execute(statement.text)
            await session.connection.execute(_END, run.key, file.name)


async def _run_statement(run: _Run, file: EnrichmentFile, number: int, *, is_again: bool) -> None:
    statement = file.statements[number]
    tries = 0

    async def attempt() -> None:
        nonlocal tries
        tries += 1
        session = await run.ready()
        with target_errors(f"running statement {number + 1} of {file.name}", session.where):
            if await session.connection.fetchval(_DONE, run.key, file.name) > number:
                return
            try:
                async with session.connection.transaction():
                    await session.connection.execute(statement.text)
                    await session.connection.execute(_NOTE, run.key, file.name, statement.digest)
            except asyncpg.PostgresError as error:
                if error.sqlstate not in _NOT_IN_A_TRANSACTION:
                    raise
            else:
                return
            await _run_alone(session, statement, is_again=is_again or tries > 1)
            await session.connection.execute(_NOTE, run.key, file.name, statement.digest)

    await try_again(attempt)
    if statement.is_setting:
        run.settings.append(statement.text)


_DONE = "SELECT pg_catalog.cardinality(done) FROM cdc.enrichment WHERE pipeline = $1 AND file = $2"
_NOTE = "UPDATE cdc.enrichment SET done = done || $3::text WHERE pipeline = $1 AND file = $2"


async def _run_alone(session: Session, statement: Statement, *, is_again: bool) -> None:
    """Run what cannot be undone together with its note. ``is_again``: an earlier try may have come to its end."""
    found = statement.concurrent_index
    index = None if found is None else NewIndex(*found, is_unique=False, method="")
    if index is not None:
        state = await definitions.index_state(session, index)
        if state == "invalid":
            await definitions.drop_index(session, index.schema, index.name)
        elif state == "valid" and is_again:
            return
    await definitions.run_alone(session, statement.text, index)
