"""Put tables that were loaded beside others in their place: one transaction, and no reader ever finds them empty.

What `swap` promises: the present tables, with everything in the ``cdc`` schema that says what they hold, are replaced
by the new generation's (`cdc.target.generation`) in one transaction, or nothing is. Plain views, grants, comments,
owner, options, publications and owned sequences are carried over; anything else that depends on a replaced table stops
it before anything is changed (`cdc.target.dependents`). Tables that cdc did not create are never replaced.

Why no change is lost or applied twice. Under the strongest lock on the present tables the old generation's row of
``cdc.target`` is locked: its position P cannot move any more, and the source keeps everything from P on, because the
old generation is what holds the slot's acknowledgement. The new generation's lane then runs until it stands at P or
later and ends; the row takes its position and the next fence. Whoever owned the old generation fails at its next
`cdc.advance`, takes the target again, and finds a position that its slot can serve. Rows before tables would be a
deadlock: a batch locks its tables first and the row last, and so does this.

Why readers do not suffer: `cdc.target.swap_lock`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import asyncpg
import tenacity

from cdc import statements
from cdc.errors import CdcError, TargetUnavailable
from cdc.identifiers import quote, quote_qualified
from cdc.lsn import Lsn
from cdc.target.carry_over import inheritance, missing_identity, own_sequences, publish_again
from cdc.target.dependents import Dependents, obstacles, read_dependents, refusal
from cdc.target.missing_indexes import missing_indexes
from cdc.target.session import Session, target_errors
from cdc.target.swap_lock import lock, lock_new, refuse_to_queue, relations_to_lock
from cdc.target.swap_record import CaughtUp, meet, record, refuse_incomplete
from cdc.target.table_swap import Name, Obstacle, Pair, TableSwap, read_pairs

CATCH_UP_S = 5.0
"""How long readers wait, at most, until the new generation has reached where the old one stands. The caller begins
when the lag is small, so it is tenths of a second."""

__all__ = ["CaughtUp", "SwapResult", "TableSwap", "swap"]

Say = Callable[[str], None]

GoOn = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class SwapResult:
    """What a swap did. ``position`` is where the tables stand, ``held_s`` how long readers had to wait."""

    position: Lsn
    tables: tuple[str, ...]
    views: tuple[str, ...]
    tries: int
    held_s: float


async def swap(
    session: Session,
    *,
    pipeline: str,
    swaps: Sequence[TableSwap],
    whole: bool,
    caught_up: CaughtUp,
    say: Say,
    go_on: GoOn | None = None,
    state: str = "streaming",
    catch_up_s: float = CATCH_UP_S,
    patience_s: float | None = None,
) -> SwapResult:
    """Replace the pipeline's tables by those of the generation beside them; durable when it returns.

    Args:
        session: A session of its own, in no transaction.
        pipeline: Whose present generation is replaced by that of its `generation_key`.
        swaps: The tables. A present one that does not exist yet is no difficulty: the new one is moved in.
        whole: The generation is one of all tables, and its position becomes the target's. Otherwise only these tables
            are replaced, each with a position of its own, and the target stays where it stands.
        caught_up: Gets the position that the old generation will never move on from (0 where it has none in the same
            history), waits until the new generation has reached it, ends its lane and returns its last position. It is
            cancelled after ``catch_up_s`` seconds and called again in a later try: it must leave the lane running when
            it is cancelled, and start it again when it finds it ended.
        say: Told what is waited for, and what else an operator should know.
        go_on: Lets the lane run on, which a try may have ended; called after each that another is to follow.
        state: The target's state afterwards, where a whole generation is swapped in.
        catch_up_s: How long readers may have to wait for ``caught_up``.
        patience_s: How long to go on trying to get the locks; for ever unless given.

    Raises `SetupError` for what only an operator can mend, before anything is changed, with the SQL;
    `TargetUnavailable` when the connection is lost, or patience is. Lost during COMMIT, it is in doubt: the row of the
    generation is gone if and only if it is done.
    """
    if found := await obstacles(session, swaps):
        raise refusal(session.where, found)
    tries, told = 0, ""

    def wait(state: tenacity.RetryCallState) -> None:
        nonlocal told
        error = state.outcome.exception() if state.outcome else None
        if error is not None and str(error) != told:
            told = str(error)
            say(told)

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, TargetUnavailable) and not session.connection.is_closed()
        ),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
        stop=tenacity.stop_never if patience_s is None else tenacity.stop_after_delay(patience_s),
        before_sleep=wait,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            tries += 1
            attempted = _Attempt(session, pipeline, swaps, whole, caught_up, say, state, catch_up_s)
            try:
                result, foreign_keys = await attempted.run()
            except TargetUnavailable:
                if go_on is not None and not session.connection.is_closed():
                    # The next try may come to nothing for hours, and the slot keeps what the lane does not stream.
                    await go_on()
                raise
    await _validate(session, foreign_keys, say)
    return SwapResult(result.position, result.tables, result.views, tries, result.held_s)


@dataclass(slots=True)
class _Attempt:
    """One try, in one transaction."""

    session: Session
    pipeline: str
    swaps: Sequence[TableSwap]
    whole: bool
    caught_up: CaughtUp
    say: Say
    state: str
    catch_up_s: float

    async def run(self) -> tuple[SwapResult, list[str]]:
        """The result, and the statements that validate foreign keys afterwards."""
        connection = self.session.connection
        with target_errors("replacing tables", self.session.where):
            found, pairs = await self._read()
            relations = await relations_to_lock(connection, found, pairs)
            await refuse_to_queue(connection, self.session.where, relations)
            transaction = connection.transaction(isolation="read_committed")
            await transaction.start()
            try:
                await lock(connection, self.session.where, found, pairs)
                held_since = time.monotonic()
                # What was made between the first look and the lock counts, too.
                found, pairs = await self._read()
                if not await relations_to_lock(connection, found, pairs) <= relations:
                    raise TargetUnavailable(f"{self.session.where}: what depends on the tables has just changed.")
                position = await meet(self.session, self.pipeline, self.caught_up, self.catch_up_s)
                await refuse_incomplete(self.session, self.pipeline, self.swaps)
                await lock_new(connection, pairs)
                await self._move(found, pairs)
                await record(connection, self.pipeline, self.swaps, self.state if self.whole else None)
            except BaseException:
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await transaction.rollback()
                raise
            await transaction.commit()
        held_s = time.monotonic() - held_since
        for name, table in found.publications:
            self.say(
                f"{self.session.where}: publication {name} has the new table {'.'.join(table)}; what is in it already "
                "was not published: whoever is fed from here has to load it again"
            )
        views = tuple(f"{view.schema}.{view.name}" for view in found.views)
        result = SwapResult(position, tuple(swap.name for swap in self.swaps), views, 1, held_s)
        return result, [
            f"ALTER TABLE {key.sql_name} VALIDATE CONSTRAINT {quote(key.name)}" for key in found.foreign_keys
        ]

    async def _read(self) -> tuple[Dependents, list[Pair]]:
        """What is there now. Raises `SetupError` for obstacles, and for a new table that is not there."""
        connection = self.session.connection
        pairs = await read_pairs(connection, self.session.server_version, self.swaps)
        found = await read_dependents(connection, pairs)
        problems = list(found.obstacles)
        for pair in pairs:
            if pair.new is None or pair.new.relkind != "r":
                problems.append(Obstacle(pair.swap.name, f"there is no table {'.'.join(pair.swap.new)}"))
                continue
            if missing := missing_identity(pair, await self._index_names(pair.new.oid)):
                problems.append(
                    Obstacle(
                        pair.swap.name,
                        f"its replica identity is index {missing}, which the table that takes its place lacks",
                        f"ALTER TABLE {quote_qualified(*pair.swap.present)} REPLICA IDENTITY DEFAULT;",
                    )
                )
        for index in await missing_indexes(self.session, self.swaps):
            what = f"index {index.name} is not on the table that takes its place"
            drop = f"DROP INDEX {quote_qualified(index.present[0], index.name)};"
            if index.constraint_type is not None:
                drop = f"ALTER TABLE {quote_qualified(*index.present)} DROP CONSTRAINT {quote(index.name)};"
            sql = f"{index.sql}\n-- or, where it is not wanted any more: {drop}"
            problems.append(Obstacle(".".join(index.present), what, sql))
        if problems:
            raise refusal(self.session.where, problems)
        return found, pairs

    async def _index_names(self, table: int) -> list[str]:
        rows = await self.session.connection.fetch(
            "SELECT x.relname::text AS name FROM pg_catalog.pg_index i"
            " JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = $1",
            table,
        )
        return [row["name"] for row in rows]

    async def _move(self, found: Dependents, pairs: Sequence[Pair]) -> None:
        connection = self.session.connection
        freed, owned = own_sequences(found.sequences)
        inherited = await inheritance(connection, pairs)
        replaced = [pair for pair in pairs if pair.present is not None]
        old_schemas = {pair.swap.old_schema for pair in replaced}
        await _execute(connection, [*freed, *(f"CREATE SCHEMA {quote(schema)}" for schema in sorted(old_schemas))])
        present_schemas = sorted({pair.swap.present[0] for pair in pairs})
        for schema in present_schemas:
            if not await connection.fetchval("SELECT pg_catalog.to_regnamespace($1) IS NOT NULL", quote(schema)):
                await connection.execute(f"CREATE SCHEMA {quote(schema)}")
        moves = [_set_schema(pair.swap.present, pair.swap.old_schema) for pair in replaced]
        moves += [_set_schema(pair.swap.new, pair.swap.present[0]) for pair in pairs]
        keys = [
            statement
            for key in found.foreign_keys
            for statement in (
                f"ALTER TABLE {key.sql_name} DROP CONSTRAINT {quote(key.name)}",
                f"ALTER TABLE {key.sql_name} ADD CONSTRAINT {quote(key.name)} "
                f"{key.definition.removesuffix(' NOT VALID')} NOT VALID",
            )
        ]
        await _execute(connection, [*moves, *inherited, *owned, *keys, *publish_again(found.publications)])
        problems = []
        for view in found.views:
            try:
                await connection.execute(view.replace_sql)
            except asyncpg.PostgresError as error:
                what = f"view {view.schema}.{view.name} cannot be made again over it (SQLSTATE {error.sqlstate})"
                problems.append(Obstacle(view.table, what, f"DROP VIEW {view.sql_name};"))
                break  # the transaction is over
        if problems:
            raise refusal(self.session.where, problems)
        if replaced:
            dropped = ", ".join(quote_qualified(pair.swap.old_schema, pair.swap.present[1]) for pair in replaced)
            await _execute(
                connection,
                [f"DROP TABLE {dropped}", *(f"DROP SCHEMA {quote(schema)}" for schema in sorted(old_schemas))],
            )
        await self._drop_empty({pair.swap.new[0] for pair in pairs})

    async def _drop_empty(self, schemas: set[str]) -> None:
        """The new tables' schemas go, unless somebody keeps something in one: that is not ours."""
        for schema in sorted(schemas):
            if await self.session.connection.fetchval(statements.load("target", "schema_holds_nothing"), quote(schema)):
                await self.session.connection.execute(f"DROP SCHEMA {quote(schema)}")
            else:
                self.say(f"{self.session.where}: schema {schema} stays, because something else is in it")


async def _validate(session: Session, statements_: Sequence[str], say: Say) -> None:
    """Foreign keys that were made again are enforced already; this only lets the planner trust them."""
    for statement in statements_:
        try:
            with target_errors("validating a foreign key", session.where):
                await session.connection.execute(statement)
        except CdcError as error:
            say(f"a foreign key is in force and not validated ({error}) {statement};")


async def _execute(connection: asyncpg.Connection, wanted: Sequence[str]) -> None:
    """Many statements in one round trip."""
    if wanted:
        await connection.execute(";\n".join(wanted))


def _set_schema(table: Name, schema: str) -> str:
    return f"ALTER TABLE {quote_qualified(*table)} SET SCHEMA {quote(schema)}"
