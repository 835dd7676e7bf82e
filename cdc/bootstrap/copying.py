"""One range of one table, from the source to a target: bytes, unparsed, in one transaction on either side.

What `Job.copy` promises when it returns: the rows of the range, as the snapshot shows them, are in the target exactly
once, and durable. However often it had to try: a try that failed left nothing, because its rows are one transaction of
the target; a COMMIT without an answer is asked after by a token that it wrote, never repeated blindly.

On the source a range is a short REPEATABLE READ READ ONLY transaction that imports the shared snapshot. A rewrite of
the table (`ALTER TYPE`, a volatile default) or a TRUNCATE that is younger than the snapshot would make it read no rows,
without an error (hazard 23): under the table's lock the file that the snapshot's catalog names must be the one that is
there now. Where it is not, or the snapshot is gone, or a column is, `SnapshotTooOld` says so: the table is then copied
again from a newer one.

`Job.write` is the target's half by itself; the rows of a backup go the same way (cdc.bootstrap.restoring).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, TypeVar
from uuid import UUID, uuid4

import asyncpg
import psycopg
import tenacity

from cdc import statements
from cdc.bootstrap.courtesy import Copies
from cdc.bootstrap.incremental_ranges import Part
from cdc.bootstrap.pace import Pace
from cdc.bootstrap.pipe import read_copy
from cdc.bootstrap.plan import TableCopy
from cdc.errors import CdcError, FenceLost, TargetUnavailable, TransientError
from cdc.identifiers import quote_qualified
from cdc.source import connection as source
from cdc.target import session as target
from cdc.target.row_counts import row_count
from cdc.target.suspects import NOBODY, Suspects

T = TypeVar("T")

LOCK_TIMEOUT_S = 10
"""How long a copy waits for its table's ACCESS SHARE lock. It holds nothing meanwhile, but a queue behind a DDL
statement is no place to stay for hours: the try ends, and the next one begins after a jittered wait."""

TRIES = 30
"""How often a range is tried before the run gives up. Waits grow to half a minute, so this outlasts a restart, a
fail-over or a long migration (about ten minutes), and a run that gave up resumes with the tables that remain."""


FORGET_S = 5.0
"""How long the end of a run waits for a target to tidy up there; the next run does it, too."""


class InDoubt(TargetUnavailable):
    """Nobody could be asked what became of a COMMIT: to write its rows again could write them twice."""


class SnapshotTooOld(Exception):
    """The table cannot be read through this snapshot: it was rewritten or changed since, or the snapshot is gone.

    Never leaves this package.
    """


@dataclass(frozen=True, slots=True)
class TargetAccess:
    """How a job reaches one target: its DSN, its name, and the fence that shows the target is still ours."""

    name: str
    dsn: str
    pipeline: str
    fence: int


@dataclass(frozen=True, slots=True)
class Destination:
    """Where bytes of COPY go: a table of the target, its columns in the order of the bytes, and the bytes' format.

    ``encoding`` is that of text, by PostgreSQL's name, where it is not the connection's. ``what`` names the work in
    messages: ``copying public.a into public.a``. ``before`` and ``after`` are statements of the same transaction; where
    there is one after the rows, the rows that it writes are those that count. ``suspects`` are columns that may be what
    is refused.
    """

    schema: str
    table: str
    columns: tuple[str, ...]
    format: Literal["binary", "text"]
    what: str
    encoding: str | None = None
    before: str | None = None
    after: str | None = None
    suspects: Suspects = NOBODY


def in_tries() -> tenacity.AsyncRetrying:
    """Try again after a jittered wait, `TRIES` times at most, while that can help and the target is ours."""
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(
            lambda e: isinstance(e, TransientError) and not isinstance(e, (FenceLost, InDoubt))
        ),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
        stop=tenacity.stop_after_attempt(TRIES),
        reraise=True,
    )


@dataclass(slots=True)
class Job:
    """One of the workers that copy in parallel: at most one connection to the source and one to each target.

    Connections are opened when they are needed and given up after any failure. ``pace`` limits what is read from the
    source; jobs share it.
    """

    source_dsn: str
    application_name: str
    copies: Copies
    pace: Pace | None = None
    _source: source.Connection | None = None
    _targets: dict[str, target.Session] = field(default_factory=dict)
    _tokens: dict[str, UUID] = field(default_factory=dict)
    """Of each target: the token that the last range left there."""

    async def copy(
        self,
        access: TargetAccess,
        copy: TableCopy,
        part: Part,
        snapshot: str,
        destination: Destination | None = None,
    ) -> tuple[int, int]:
        """Copy one range, into the table of its route unless another ``destination`` is given; returns rows and bytes.

        Raises `SnapshotTooOld`, `FenceLost` when somebody else has taken the target, the last `TransientError` after
        `TRIES`, `InDoubt`, and what cannot pass at once.
        """
        return await in_tries()(self._try, access, copy, part, snapshot, destination or _destination(copy))

    async def ask(
        self,
        access: TargetAccess,
        copy: TableCopy,
        snapshot: str,
        question: Callable[[source.Connection, target.Session], Awaitable[T]],
    ) -> T:
        """What ``question`` returns: asked of the source, as the snapshot shows the table, and of the target.

        It is tried again as a copy is, and raises the same.
        """
        return await in_tries()(self._ask, access, copy, snapshot, question)

    async def write(
        self, access: TargetAccess, destination: Destination, chunks: AsyncIterator[bytes]
    ) -> tuple[int, int]:
        """Write ``chunks`` into a table, in one transaction that holds the fence; returns rows and bytes.

        The rows are durable when it returns, and not there when it raises: what ``chunks`` raises, `FenceLost`, or an
        error of the target's. Only after `InDoubt` they may be there: the run that comes next begins the table anew.
        """
        session = await self.session(access)
        connection = session.connection
        token = uuid4()
        size = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            async for chunk in chunks:
                size += len(chunk)
                yield chunk

        with target.target_errors(destination.what, session.where, destination.suspects.told):
            transaction = connection.transaction()
            await transaction.start()
            try:
                xid: str = await connection.fetchval(
                    statements.load("target", "copy_mark_range"),
                    token,
                    self._tokens.get(access.name),
                    access.pipeline,
                    access.fence,
                )
                if destination.before is not None:
                    await connection.execute(destination.before)
                status = await connection.copy_to_table(
                    destination.table,
                    schema_name=destination.schema,
                    columns=list(destination.columns),
                    source=counted(),
                    format=destination.format,
                    encoding=destination.encoding,
                )
                if destination.after is not None:
                    status = await connection.execute(destination.after)
                await hold_fence(connection, access)
            except BaseException:
                await _abandon(session, transaction)
                raise
        try:
            await transaction.commit()
        except Exception as error:
            if not target.is_driver_error(error):
                raise
            rows_of = f"{destination.schema}.{destination.table}"
            failure = target.translate(error, f"committing rows of {rows_of}", session.where)
            backend = connection.get_server_pid()
            connection.terminate()
            if not isinstance(failure, TargetUnavailable):
                raise failure from None
            await self._resolve(access, token, xid, backend, failure)
        self._tokens[access.name] = token
        return row_count(status), size

    async def session(self, access: TargetAccess) -> target.Session:
        """This job's session on a target."""
        session = self._targets.get(access.name)
        if session is None or session.connection.is_closed():
            session = await target.connect(access.dsn, application_name=self.application_name, target=access.name)
            self._targets[access.name] = session
        return session

    async def close(self) -> None:
        """Remove the tokens of the last ranges where that is possible at once, and close every connection."""
        await self._drop_source()
        sessions, tokens = self._targets.copy(), self._tokens.copy()
        self._targets.clear()
        self._tokens.clear()
        for name, session in sessions.items():
            if name in tokens and session.is_idle:
                with suppress(CdcError), target.target_errors("forgetting a range", session.where):
                    await session.connection.execute(
                        statements.load("target", "copy_forget_range"), tokens[name], timeout=FORGET_S
                    )
            await session.close()

    async def _try(
        self, access: TargetAccess, copy: TableCopy, part: Part, snapshot: str, destination: Destination
    ) -> tuple[int, int]:
        async def write(connection: source.Connection, _: target.Session) -> tuple[int, int]:
            return await self.write(access, destination, _read(connection, copy, part, self.pace))

        return await self._ask(access, copy, snapshot, write)

    async def _ask(
        self,
        access: TargetAccess,
        copy: TableCopy,
        snapshot: str,
        question: Callable[[source.Connection, target.Session], Awaitable[T]],
    ) -> T:
        # The target first: a transaction at the source does not wait for it then.
        session = await self.session(access)
        if self._source is None:
            self._source = await source.connect(self.source_dsn, application_name=self.application_name)
        try:
            with self.copies.copying(self._source):
                await _begin(self._source, copy, snapshot)
                answer = await question(self._source, session)
            await self._source.execute("COMMIT")
        except (CdcError, SnapshotTooOld, asyncio.CancelledError):
            # Whatever state it is in, maybe in the middle of a COPY: a new connection costs less than finding out.
            await self._drop_source()
            raise
        except psycopg.Error:
            # Only the COMMIT of a transaction that read: nothing depends on it.
            await self._drop_source()
        return answer

    async def _resolve(self, access: TargetAccess, token: UUID, xid: str, backend: int, failure: CdcError) -> None:
        """Find out what became of a COMMIT that got no answer; raise ``failure`` when its rows are not there."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(TargetUnavailable),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=30),
            stop=tenacity.stop_after_attempt(TRIES),
        )
        try:
            was_lost: bool = await retrying(self._was_lost, access, token, xid, backend)
        except tenacity.RetryError:
            raise InDoubt(
                f"{failure} It could not be asked whether the rows are there. Run `cdc bootstrap` again: it goes on "
                "with this table anew."
            ) from None
        if was_lost:
            raise failure

    async def _was_lost(self, access: TargetAccess, token: UUID, xid: str, backend: int) -> bool:
        session = await self.session(access)
        with target.target_errors("asking what became of a COMMIT", session.where):
            await session.connection.execute(statements.load("target", "copy_end_backend"), backend, xid)
            transaction = session.connection.transaction()
            await transaction.start()
            row = await session.connection.fetchrow(statements.load("target", "copy_was_lost"), token)
            # Never committed: asked again after an answer was lost, it would find the token that it wrote itself.
            await transaction.rollback()
        return row is not None

    async def _drop_source(self) -> None:
        connection, self._source = self._source, None
        if connection is not None:
            await connection.close()


def _destination(copy: TableCopy) -> Destination:
    route = copy.route
    what = f"copying {route.source_name} into {route.target_name}"
    if not copy.target_columns:
        # COPY without a list of columns would mean all of them.
        into = quote_qualified(route.target_schema, route.target_table)
        return Destination(
            "pg_temp",
            "cdc_rows",
            (),
            copy.format,
            what,
            before="CREATE TEMPORARY TABLE cdc_rows () ON COMMIT DROP",
            after=f"INSERT INTO {into} SELECT FROM pg_temp.cdc_rows",
        )
    return Destination(
        route.target_schema, route.target_table, copy.target_columns, copy.format, what, suspects=copy.suspects
    )


async def hold_fence(connection: asyncpg.Connection, access: TargetAccess) -> None:
    """Keep the target ours until the transaction that is open on ``connection`` ends. Raises `FenceLost`."""
    if await connection.fetchrow(statements.load("target", "copy_hold_fence"), access.pipeline, access.fence) is None:
        raise FenceLost(f"target {access.name} was taken by another worker or bootstrap; this one ends")


async def _begin(connection: source.Connection, copy: TableCopy, snapshot: str) -> None:
    """Import the snapshot, lock the table, and see that the snapshot still shows its rows (hazard 23)."""
    name = quote_qualified(copy.route.source_schema, copy.route.source_table)
    with source.source_errors(f"copy {copy.route.source_name}"):
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            await connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'".encode())
        except (psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedObject):
            raise SnapshotTooOld(f"{copy.route.source_name}: the snapshot is gone") from None
        try:
            await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'".encode())
            await connection.execute(f"LOCK TABLE {copy.rows_name} IN ACCESS SHARE MODE".encode())
            parameters = {
                "table": name,
                "leaves": copy.leaf_marks,
                "names": list(copy.numbers),
                "numbers": list(copy.numbers.values()),
            }
            cursor = await connection.execute(statements.load("source", "copy_is_readable"), parameters)
            row = await cursor.fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            raise SnapshotTooOld(f"{copy.route.source_name}: the table is gone") from None
    if row is None or row[0] is not True:
        partitions = "" if copy.leaf_marks is None else ", or its partitions are others"
        raise SnapshotTooOld(
            f"{copy.route.source_name}: the table was rewritten or emptied after the snapshot, or names of its columns "
            f"mean others{partitions}"
        )


async def _read(connection: source.Connection, copy: TableCopy, part: Part, pace: Pace | None) -> AsyncIterator[bytes]:
    """The bytes of a range. Translates here, because the target's driver passes on what a source of bytes raises."""
    with source.source_errors(f"copy {copy.route.source_name}"):
        try:
            async for chunk in read_copy(connection, copy.statement(part), pace):
                yield chunk
        except psycopg.errors.UndefinedColumn:
            raise SnapshotTooOld(f"{copy.route.source_name}: a column is gone") from None


async def _abandon(session: target.Session, transaction: asyncpg.transaction.Transaction) -> None:
    """Roll back; where that fails the connection is of no more use."""
    try:
        await transaction.rollback()
    except Exception as error:
        if not target.is_driver_error(error):
            raise
        session.connection.terminate()
