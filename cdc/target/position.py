"""Where a target stands, and who owns it: one row of ``cdc.target`` (the design's invariants 3, 4 and 5).

The reasoning, once. A position is an end LSN: the target holds every source transaction that ends at or before it, and
nothing of any later one. It moves only inside the transaction that writes the rows it stands for, and only from where
the batch starts (`advance_sql`). So whatever happens to a COMMIT whose answer got lost, reading the position afterwards
says which of the two happened; and a batch that grew before it was retried cannot apply twice, because its start no
longer matches.

Two workers cannot both write, whatever they believe: `take` makes the fence one higher, in a row that the former
owner must update before it can commit. Either the former owner's update came first, and `take` waits for that
transaction and returns the position it left; or ours did, and its `cdc.advance` raises CDC01. Ending the former owner's
session first is for speed: its locks go with it.

A position means something in one history only: `check_history` compares before anything is replayed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg

from cdc import statements
from cdc.errors import ConfigurationError, FenceLost, SetupError, TargetLoading, TargetUnavailable
from cdc.identifiers import quote_literal
from cdc.lsn import Lsn
from cdc.target.generation import generation_key
from cdc.target.history import History
from cdc.target.session import Session, target_errors

TERMINATE_TIMEOUT_MS = 10_000
"""How long `take` waits for the former owner's session to be gone: ending one takes milliseconds, rolling back its
transaction no longer (PostgreSQL does not undo); longer means that it hangs in the operating system."""

_TAKE_ATTEMPTS = 5
"""How often `take` starts over when somebody else took the target meanwhile: one rival is a deploy, many a mistake."""

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Ownership:
    """A target that is ours until somebody takes it: what `take` found.

    ``key`` is the row's: the pipeline's name, or that of a generation beside. ``history`` and ``position`` are `None`
    together: the target has never been loaded. ``cut_over_heartbeat`` is the heartbeat that makes it exactly
    consistent; `None` once that has come, or where no backup was restored. ``consistent_time`` is by the source's
    clock.
    """

    key: str
    target: str
    fence: int
    state: str
    position: Lsn | None
    history: History | None
    cut_over_heartbeat: int | None
    consistent_at: Lsn | None
    consistent_time: datetime | None


@dataclass(frozen=True, slots=True)
class TargetState:
    """What status needs of the row; ``heartbeat_at`` is by the source's clock."""

    pipeline: str
    target: str
    state: str
    fence: int
    position: Lsn | None
    history: History | None
    consistent_at: Lsn | None
    transactions: int
    heartbeat_count: int | None
    heartbeat_at: datetime | None
    last_error: str | None
    last_error_at: datetime | None
    cut_over_heartbeat: int | None
    consistent_time: datetime | None
    only_tables: frozenset[str] | None


async def register(session: Session, pipeline: str, target: str, *, only_tables: Collection[str] | None = None) -> None:
    """Make the target's row where it is missing; ``only_tables`` are those of a generation that has not all of them.

    Raises `ConfigurationError` when it carries another target's name.
    """
    with target_errors("registering the target", session.where):
        name = await session.connection.fetchval(
            statements.load("target", "register"),
            pipeline,
            target,
            None if only_tables is None else sorted(only_tables),
        )
    if name != target:
        raise ConfigurationError(
            f"{session.where}: this database is already target {name!r} of pipeline {pipeline!r}, it cannot be target "
            f"{target!r} as well; correct one of the two DSNs, or rename the target here.",
            sql=f"UPDATE cdc.target SET target = {quote_literal(target)} WHERE pipeline = {quote_literal(pipeline)};",
        )


async def forget_unbegun(session: Session, pipeline: str) -> None:
    """Remove the row of a generation of some tables that has no position yet: nothing of it was loaded."""
    with target_errors("forgetting a load that did not begin", session.where):
        await session.connection.execute(
            "DELETE FROM cdc.target WHERE pipeline = $1 AND position IS NULL AND only_tables IS NOT NULL", pipeline
        )


async def read(session: Session, pipeline: str) -> TargetState | None:
    """The row of a pipeline, or `None` before setup."""
    with target_errors("reading the position", session.where):
        row = await session.connection.fetchrow(statements.load("target", "read_target"), pipeline)
    if row is None:
        return None
    position, history = _history(row["position"], row)
    return TargetState(
        pipeline=row["pipeline"],
        target=row["target"],
        state=row["state"],
        fence=row["fence"],
        position=position,
        history=history,
        consistent_at=None if row["consistent_at"] is None else Lsn.parse(row["consistent_at"]),
        transactions=row["transactions"],
        heartbeat_count=row["heartbeat_count"],
        heartbeat_at=row["heartbeat_at"],
        last_error=row["last_error"],
        last_error_at=row["last_error_at"],
        cut_over_heartbeat=row["cut_over_heartbeat"],
        consistent_time=row["consistent_time"],
        only_tables=None if row["only_tables"] is None else frozenset(row["only_tables"]),
    )


async def take(session: Session, key: str, *, loads: bool = True) -> Ownership:
    """Become the owner of a target: durable, and alone, when it returns.

    The session that takes is the one that must write. ``loads`` is said by a bootstrap; whoever else finds that the
    target is being loaded gets `TargetLoading`, and has disturbed nobody. Raises `SetupError` when the row is missing
    (cdc setup), `TargetUnavailable` when the former owner's session cannot be ended or a rival is faster each time.
    """
    connection = session.connection
    for _ in range(_TAKE_ATTEMPTS):
        with target_errors("ending the former owner's session", session.where):
            before = await connection.fetchrow(
                statements.load("target", "terminate_owner"), key, TERMINATE_TIMEOUT_MS, loads
            )
        if before is None:
            raise SetupError(f"{session.where}: it is not set up for pipeline {key!r}; run cdc setup.")
        if before["is_refused"]:
            raise TargetLoading(
                f"{session.where} is being loaded by `cdc bootstrap`, or that was interrupted: it is taken when it is "
                f"loaded (run `cdc bootstrap` again if none runs).",
                needs_nothing=before["is_empty"],
            )
        if before["is_gone"] is False:
            raise TargetUnavailable(
                f"{session.where}: the session of its former owner does not end within "
                f"{TERMINATE_TIMEOUT_MS // 1000} seconds; it is tried again."
            )
        with target_errors("taking the target", session.where):
            row = await connection.fetchrow(statements.load("target", "take"), key, before["fence"], loads)
        if row is not None:
            position, history = _history(row["position"], row)
            return Ownership(
                key,
                row["target"],
                row["fence"],
                row["state"],
                position,
                history,
                row["cut_over_heartbeat"],
                None if row["consistent_at"] is None else Lsn.parse(row["consistent_at"]),
                row["consistent_time"],
            )
    raise TargetUnavailable(
        f"{session.where}: other workers keep taking the target of pipeline {key!r}; run one worker only."
    )


def advance_sql(
    pipeline: str,
    fence: int,
    from_position: Lsn,
    to_position: Lsn,
    *,
    transactions: int = 0,
    commit_time_us: int | None = None,
    heartbeat_count: int | None = None,
    heartbeat_at: datetime | None = None,
) -> str:
    """The end of a target transaction, to be sent as ``f"{advance_sql(…)}; COMMIT"`` in one round trip.

    Raises CDC01 at the server (translated to `FenceLost`) before the COMMIT is reached, when the target is not ours or
    does not stand at ``from_position``. ``commit_time_us`` counts from 2000-01-01 UTC as in the stream. Numbers, LSNs,
    times and the pipeline's name only: no value of a row is in it.
    """
    commit_at = None if commit_time_us is None else time_of(commit_time_us)
    count = "NULL" if heartbeat_count is None else heartbeat_count
    return (
        f"SELECT cdc.advance({quote_literal(pipeline)}, {fence}, '{from_position}', '{to_position}', {transactions}, "
        f"{_timestamp(commit_at)}, {count}, {_timestamp(heartbeat_at)})"
    )


def cut_over_sql(pipeline: str, fence: int, at: Lsn, commit_time_us: int) -> str:
    """The target is exactly consistent at ``at``, from the commit of this target transaction on.

    To be sent before `advance_sql`, together with `cdc.target.table_state.cut_over_sql`.
    """
    return (
        f"UPDATE cdc.target SET cut_over_heartbeat = NULL, consistent_at = '{at}',"
        f" consistent_time = {_timestamp(time_of(commit_time_us))}"
        f" WHERE pipeline = {quote_literal(pipeline)} AND fence = {fence}"
    )


def time_of(commit_time_us: int) -> datetime:
    """A commit's time as in the stream (microseconds since 2000-01-01 UTC) as a time."""
    return _EPOCH + timedelta(microseconds=commit_time_us)


async def record_history(
    session: Session, pipeline: str, fence: int, history: History, position: Lsn, *, state: str = "loading"
) -> None:
    """Begin a history: the target is loaded from this source and slot, from ``position`` on. Raises `FenceLost`."""
    with target_errors("recording the start of the load", session.where):
        tag = await session.connection.execute(
            statements.load("target", "record_history"),
            pipeline,
            fence,
            str(position),
            history.system_identifier,
            history.timeline,
            history.slot,
            history.incarnation,
            state,
        )
    _must_match(tag, session)


async def record_timeline(session: Session, pipeline: str, fence: int, timeline: int) -> None:
    """Follow the source to a new timeline, after `check_history` allowed it. Raises `FenceLost`."""
    await _update(session, pipeline, fence, "timeline = $3", timeline)


async def record_state(
    session: Session,
    pipeline: str,
    fence: int,
    state: str,
    *,
    consistent_at: Lsn | None = None,
    consistent_time: datetime | None = None,
) -> None:
    """Set the target's state, and where it is given the LSN from which on it is consistent, with the source's time.

    Raises `FenceLost`.
    """
    await _update(
        session,
        pipeline,
        fence,
        "state = $3, consistent_at = coalesce($4::text::pg_lsn, consistent_at),"
        " consistent_time = CASE WHEN $4::text IS NULL THEN consistent_time ELSE $5::timestamptz END",
        state,
        None if consistent_at is None else str(consistent_at),
        consistent_time,
    )


async def record_cut_over(session: Session, pipeline: str, fence: int, heartbeat: int) -> None:
    """Say with which heartbeat the target will be exactly consistent: the second after the last one in its backup.

    Until the stream has brought it, nothing is known of when it will be. Raises `FenceLost`.
    """
    await _update(
        session,
        pipeline,
        fence,
        "cut_over_heartbeat = $3, consistent_at = NULL, consistent_time = NULL",
        heartbeat,
    )


async def forget_cut_over(session: Session, key: str, fence: int) -> None:
    """No heartbeat makes the target consistent: it is not loaded from a backup after all. Raises `FenceLost`."""
    await _update(session, key, fence, "cut_over_heartbeat = NULL")


async def record_lost(session: Session, pipeline: str) -> None:
    """Say that the target needs a resync, unless somebody is loading it already. Needs no fence."""
    with target_errors("recording the target's state", session.where):
        await session.connection.execute(
            "UPDATE cdc.target SET state = 'needs resync' WHERE pipeline = $1 AND state <> 'loading'", pipeline
        )


async def record_error(session: Session, pipeline: str, error: str | None) -> None:
    """Say in the target what went wrong, in one sentence of ours; `None` when it has passed. Needs no fence."""
    with target_errors("recording an error", session.where):
        await session.connection.execute(
            "UPDATE cdc.target SET last_error = $2, last_error_at = pg_catalog.clock_timestamp() WHERE pipeline = $1"
            if error is not None
            else "UPDATE cdc.target SET last_error = $2 WHERE pipeline = $1 AND last_error IS NOT NULL",
            pipeline,
            error,
        )


async def forget_load(session: Session, key: str, fence: int) -> None:
    """Forget how far a load had come that nothing can join to the stream any more: all its tables begin anew.

    Raises `FenceLost`.
    """
    connection = session.connection
    with target_errors("forgetting an interrupted load", session.where):
        async with connection.transaction():
            tag = await connection.execute(statements.load("target", "forget_load"), key, fence)
            await connection.execute(
                "UPDATE cdc.target_table SET state = 'copying', position = NULL, consistent_from = NULL, reason = NULL,"
                " mend = NULL, sqlstate = NULL, stopped_at = NULL WHERE pipeline = $1",
                key,
            )
            await connection.execute("DELETE FROM cdc.backup_load WHERE pipeline = $1", key)
    _must_match(tag, session)


async def forget(session: Session, pipeline: str) -> bool:
    """Remove everything that is known about a pipeline; true when no other pipeline is left in this database.

    A generation that stands beside is forgotten with it, and so are the records of its loads. Rows that refer to others
    go first, by hand: in a session that disables triggers no foreign key cascades. A schema that an older version made
    lacks some of the tables.
    """
    with target_errors("forgetting the pipeline", session.where):
        async with session.connection.transaction():
            await _forget_rows(session, [pipeline, generation_key(pipeline)])
            return not await session.connection.fetchval("SELECT EXISTS (SELECT FROM cdc.target)")


async def forget_beside(session: Session, pipeline: str) -> None:
    """Remove everything that is known about the generation beside, in the caller's transaction if there is one."""
    with target_errors("forgetting a load", session.where):
        async with session.connection.transaction():
            await _forget_rows(session, [generation_key(pipeline)])


async def _forget_rows(session: Session, keys: list[str]) -> None:
    connection = session.connection
    tables = [row["name"] for row in await connection.fetch(statements.load("target", "kept_by_pipeline"))]
    if "cdc.bootstrap_run" in tables:
        await connection.execute(
            "DELETE FROM cdc.bootstrap_step WHERE run IN (SELECT run FROM cdc.bootstrap_run WHERE pipeline = ANY ($1))",
            keys,
        )
    for table in tables:
        await connection.execute(f"DELETE FROM {table} WHERE pipeline = ANY ($1)", keys)


async def _update(session: Session, pipeline: str, fence: int, assignments: str, *values: object) -> None:
    with target_errors("recording the target's state", session.where):
        tag = await session.connection.execute(
            f"UPDATE cdc.target SET {assignments} WHERE pipeline = $1 AND fence = $2", pipeline, fence, *values
        )
    _must_match(tag, session)


def _must_match(command_tag: str, session: Session) -> None:
    if command_tag == "UPDATE 0":
        raise FenceLost(f"{session.where}: another worker has taken the target.")


def _history(position: str | None, row: asyncpg.Record) -> tuple[Lsn | None, History | None]:
    if position is None:
        return None, None
    history = History(row["system_identifier"], row["timeline"], row["slot"], UUID(str(row["incarnation"])))
    return Lsn.parse(position), history


def _timestamp(at: datetime | None) -> str:
    return "NULL" if at is None else f"'{at.astimezone(UTC).isoformat()}'"
