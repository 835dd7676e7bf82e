"""What a table of a following target gets besides rows: indexes, constraints, comments; and views and sequences.

Everything here only adds, and only where it is missing: what has the name already is left as it is, and the function
says so by returning false. Nobody who reads or writes meanwhile waits for long: a statement that needs a strong lock
gives up on it in time (`TargetUnavailable`; the caller tries again, hazard 16), constraints come NOT VALID and are
validated under a lock that readers and writers do not notice, and an index of a table that is being written to is built
CONCURRENTLY.

A connection that is cut in mid-statement (hazard 20: to a proxy a long CREATE INDEX is silence) leaves the server at
work. So every long statement is one that commits by itself, whoever still listens; and before anything is made, what a
session of ours is still busy with is waited for, and an index that came to nothing (not valid) is dropped. A unique
index that is not valid refuses rows all the same: none is left behind knowingly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import asyncpg

from cdc import statements
from cdc.errors import SetupError
from cdc.identifiers import quote, quote_list, quote_literal, quote_qualified
from cdc.target.new_types import create_schema
from cdc.target.session import FENCE_LOST_SQLSTATE, Session, target_errors

RUNNING_POLL_S = 2.0
"""Seconds between two looks at a statement that goes on without us. It was long enough for its connection to be cut."""

SEQUENCE_COMMENT = "Made by cdc: where the sequence of the source stood when this database was loaded"
"""How a sequence of ours is known: its position follows the source's with each load. Nobody else's does."""


@dataclass(frozen=True, slots=True)
class NewIndex:
    """An index to create; ``method`` is what stands behind USING."""

    schema: str
    table: str
    name: str
    is_unique: bool
    method: str

    @property
    def sql_table(self) -> str:
        """``"schema"."table"``."""
        return quote_qualified(self.schema, self.table)

    def beginning(self, *, concurrently: bool) -> str:
        """The statement up to its table: what tells it from every other one."""
        unique = "UNIQUE " if self.is_unique else ""
        how = "CONCURRENTLY " if concurrently else ""
        return f"CREATE {unique}INDEX {how}{quote(self.name)} ON {self.sql_table}"

    def sql(self, *, concurrently: bool = False) -> str:
        """The statement."""
        return f"{self.beginning(concurrently=concurrently)} USING {self.method}"


@dataclass(frozen=True, slots=True)
class NewConstraint:
    """A constraint to add: ``definition`` is its text, ``CHECK (…)`` or ``FOREIGN KEY …``, without NOT VALID.

    ``is_immediate``: it comes as it is, in one step (what builds an index of its own has no other way).
    """

    schema: str
    table: str
    name: str
    definition: str
    is_immediate: bool = False

    @property
    def sql_table(self) -> str:
        """``"schema"."table"``."""
        return quote_qualified(self.schema, self.table)

    @property
    def sql(self) -> str:
        """The statement that adds it."""
        later = "" if self.is_immediate else " NOT VALID"
        return f"ALTER TABLE {self.sql_table} ADD CONSTRAINT {quote(self.name)} {self.definition}{later}"

    @property
    def validate_sql(self) -> str:
        """The statement that looks whether the rows that are there satisfy it."""
        return f"ALTER TABLE {self.sql_table} VALIDATE CONSTRAINT {quote(self.name)}"


@dataclass(frozen=True, slots=True)
class NewSequence:
    """A sequence to create. ``type`` is bigint, integer or smallint; ``last_value`` `None`: it was never used."""

    schema: str
    name: str
    type: str
    start: int
    increment: int
    minimum: int
    maximum: int
    cache: int
    cycles: bool
    last_value: int | None

    @property
    def sql_name(self) -> str:
        """``"schema"."name"``."""
        return quote_qualified(self.schema, self.name)

    @property
    def sql(self) -> str:
        """The statements that create it and set its position."""
        statement = (
            f"CREATE SEQUENCE {self.sql_name} AS {self.type} START WITH {self.start} INCREMENT BY {self.increment}"
            f" MINVALUE {self.minimum} MAXVALUE {self.maximum} CACHE {self.cache}{' CYCLE' if self.cycles else ''};"
            f" COMMENT ON SEQUENCE {self.sql_name} IS {quote_literal(SEQUENCE_COMMENT)};"
        )
        return statement if self.last_value is None else f"{statement} {self.set_position_sql}"

    @property
    def set_position_sql(self) -> str:
        """The statement that sets its position to the source's."""
        return f"SELECT pg_catalog.setval({quote_literal(self.sql_name)}, {self.last_value}, true);"


def fence_sql(pipeline: str, fence: int) -> str:
    """A statement that fails (`FenceLost`) when the target is not ours any more; behind others, it undoes them."""
    return (
        f"DO $cdc$ BEGIN PERFORM FROM cdc.target WHERE pipeline = {quote_literal(pipeline)} AND fence = {fence}"
        f" FOR SHARE; IF NOT FOUND THEN RAISE EXCEPTION USING ERRCODE = '{FENCE_LOST_SQLSTATE}'; END IF; END $cdc$"
    )


IndexState = Literal["missing", "valid", "invalid", "taken"]


async def index_state(session: Session, index: NewIndex) -> IndexState:
    """What stands under the index's name: ``taken`` is something that is no index of its table."""
    with target_errors(f"looking for index {index.name}", session.where):
        row = await session.connection.fetchrow(statements.load("target", "definition_index"), index.schema, index.name)
    if row is None:
        return "missing"
    if (row["schema"], row["table"]) != (index.schema, index.table):
        return "taken"
    return "valid" if row["is_valid"] else "invalid"


async def create_index(
    session: Session, index: NewIndex, *, concurrently: bool = False, fence: str | None = None
) -> bool:
    """Create an index where it is missing; true when this call created it.

    ``concurrently``: nobody who writes waits for it; it commits in several steps, and cannot be fenced. Otherwise
    writers wait until it is there, and ``fence`` (`fence_sql`) is checked in its transaction. What an earlier try left
    unfinished is dropped first. Raises `SetupError` when the name belongs to something else, and what `target_errors`
    makes of the server's refusal; then nothing is left of it.
    """
    beginnings = [index.beginning(concurrently=how) for how in (False, True)]
    with target_errors(f"creating index {index.name} of {index.schema}.{index.table}", session.where):
        await wait_for_earlier(session, beginnings)
        state = await index_state(session, index)
        if state == "valid":
            return False
        if state == "taken":
            raise SetupError(
                f"{session.where}: index {index.name} of {index.schema}.{index.table} cannot be created: its name is "
                "taken there.",
                sql=f"ALTER INDEX {quote_qualified(index.schema, index.name)} RENAME TO …;",
            )
        if state == "invalid":
            await drop_index(session, index.schema, index.name)
        if concurrently:
            await run_alone(session, index.sql(concurrently=True), index)
        else:
            # One string, one transaction, which ends at the server even when its connection does not last so long.
            await session.connection.execute("; ".join(filter(None, (index.sql(), fence))))
    return True


async def run_alone(session: Session, sql: str, index: NewIndex | None = None) -> None:
    """Run what commits by itself and waits for others by design, holding nobody up: no time-out of ours ends that.

    ``index`` is what it builds: where it fails, nothing of that is left.
    """
    await session.connection.execute("SET lock_timeout = 0")
    try:
        await session.connection.execute(sql)
    except asyncpg.PostgresError:
        is_open = not session.connection.is_closed()
        if index is not None and is_open and await index_state(session, index) == "invalid":
            await drop_index(session, index.schema, index.name)
        raise
    finally:
        if not session.connection.is_closed():
            await session.connection.execute("RESET lock_timeout")


async def drop_index(session: Session, schema: str, name: str) -> None:
    """Drop an index that is not valid; nobody waits for that, and it waits as long as it takes."""
    await run_alone(session, f"DROP INDEX CONCURRENTLY IF EXISTS {quote_qualified(schema, name)}")


async def wait_for_earlier(session: Session, beginnings: Sequence[str]) -> None:
    """Return once no other session is at a statement that begins like one of these: one of ours, cut off."""
    query = statements.load("target", "definition_running")
    while await session.connection.fetchval(query, list(beginnings)):  # noqa: ASYNC110 - no server announces it
        await asyncio.sleep(RUNNING_POLL_S)


async def constraint_state(session: Session, constraint: NewConstraint) -> Literal["missing", "not valid", "valid"]:
    """Whether the table has a constraint of this name."""
    with target_errors(f"looking for constraint {constraint.name}", session.where):
        row = await session.connection.fetchrow(
            statements.load("target", "definition_constraint"), constraint.sql_table, constraint.name
        )
    if row is None:
        return "missing"
    return "valid" if row["convalidated"] else "not valid"


async def add_constraint(session: Session, constraint: NewConstraint, *, fence: str | None = None) -> bool:
    """Add a constraint where it is missing, and validate it; true when this call did.

    A constraint that the rows do not satisfy is taken away again before the error is raised: NOT VALID it would still
    refuse rows that are to come.
    """
    with target_errors(f"adding {constraint.name} to {constraint.schema}.{constraint.table}", session.where):
        await wait_for_earlier(session, [constraint.sql, constraint.validate_sql])
        state = await constraint_state(session, constraint)
        if state == "valid":
            return False
        if state == "missing":
            await session.connection.execute("; ".join(filter(None, (constraint.sql, fence))))
        if constraint.is_immediate:
            return True
        try:
            await session.connection.execute(constraint.validate_sql)
        except asyncpg.IntegrityConstraintViolationError:
            await session.connection.execute(
                f"ALTER TABLE {constraint.sql_table} DROP CONSTRAINT {quote(constraint.name)}"
            )
            raise
    return True


def unique_constraint(index: NewIndex, *, is_deferrable: bool, is_deferred: bool) -> NewConstraint:
    """The constraint that is made of a unique index that is there."""
    deferral = " DEFERRABLE" * is_deferrable + " INITIALLY DEFERRED" * is_deferred
    definition = f"UNIQUE USING INDEX {quote(index.name)}{deferral}"
    return NewConstraint(index.schema, index.table, index.name, definition, is_immediate=True)


def foreign_key_definition(
    columns: Sequence[str],
    parent: tuple[str, str],
    parent_columns: Sequence[str],
    *,
    is_match_full: bool,
    has_period: bool,
) -> str:
    """A foreign key that never acts on rows and is checked at COMMIT: that is where the source has made it hold."""
    return (
        f"FOREIGN KEY ({_key(columns, has_period)}) REFERENCES {quote_qualified(*parent)}"
        f" ({_key(parent_columns, has_period)}){' MATCH FULL' if is_match_full else ''} DEFERRABLE INITIALLY DEFERRED"
    )


def _key(columns: Sequence[str], has_period: bool) -> str:
    if not has_period:
        return quote_list(columns)
    return ", ".join([*map(quote, columns[:-1]), f"PERIOD {quote(columns[-1])}"])


async def missing_comments(
    session: Session, schema: str, name: str, comments: Sequence[tuple[str, str, str]], *, is_view: bool = False
) -> list[str]:
    """The statements that comment on what of a relation has no comment yet.

    ``comments`` are kind, name and text. The kind is ``table`` (the relation itself, whatever it is), ``column``,
    ``index`` or ``constraint``; what the relation lacks is left out.
    """
    with target_errors(f"looking for comments on {schema}.{name}", session.where):
        query = statements.load("target", "definition_uncommented")
        rows = await session.connection.fetch(query, quote_qualified(schema, name))
    free = {(row["kind"], row["name"]) for row in rows}
    return [
        f"COMMENT ON {_commented(schema, name, kind, part, is_view=is_view)} IS {quote_literal(text)}"
        for kind, part, text in comments
        if (kind, part) in free
    ]


def _commented(schema: str, relation: str, kind: str, name: str, *, is_view: bool) -> str:
    sql_name = quote_qualified(schema, relation)
    if kind == "column":
        return f"COLUMN {sql_name}.{quote(name)}"
    if kind == "constraint":
        return f"CONSTRAINT {quote(name)} ON {sql_name}"
    if kind == "index":
        return f"INDEX {quote_qualified(schema, name)}"
    return f"{'VIEW' if is_view else 'TABLE'} {sql_name}"


async def lacking_relations(session: Session, names: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those relations, schema and name, that the target does not have."""
    wanted = sorted(names)
    with target_errors("looking for relations", session.where):
        rows = await session.connection.fetch(
            "SELECT w.schema, w.name FROM unnest($1::text[], $2::text[], $3::text[]) AS w (schema, name, sql)"
            " WHERE to_regclass(w.sql) IS NULL",
            [schema for schema, _ in wanted],
            [name for _, name in wanted],
            [quote_qualified(schema, name) for schema, name in wanted],
        )
    return [(row["schema"], row["name"]) for row in rows]


async def create_view(session: Session, schema: str, name: str, sql: str) -> bool:
    """Run ``sql``, which creates a view, where nothing has its name; true when it was created."""
    with target_errors(f"creating view {schema}.{name}", session.where):
        if not await lacking_relations(session, [(schema, name)]):
            return False
        async with session.connection.transaction():
            await create_schema(session.connection, schema)
            await session.connection.execute(sql)
    return True


async def sequence_sql(session: Session, sequence: NewSequence) -> str | None:
    """What there is to do about a sequence: create it, move one of ours on to where the source's stands, or nothing.

    What has the name and was not made here is left as it is (invariant 9).
    """
    with target_errors(f"looking for sequence {sequence.schema}.{sequence.name}", session.where):
        found = await session.connection.fetchrow(
            statements.load("target", "definition_sequence"), sequence.schema, sequence.name
        )
    if found is None:
        return sequence.sql
    is_ours = found["is_sequence"] and found["comment"] == SEQUENCE_COMMENT
    return None if not is_ours or sequence.last_value in (None, found["last_value"]) else sequence.set_position_sql


async def set_sequence(session: Session, sequence: NewSequence) -> bool:
    """Do what `sequence_sql` says, in one transaction; true when there was something to do."""
    sql = await sequence_sql(session, sequence)
    if sql is not None:
        with target_errors(f"creating sequence {sequence.schema}.{sequence.name}", session.where):
            async with session.connection.transaction():
                await create_schema(session.connection, sequence.schema)
                await session.connection.execute(sql)
    return sql is not None
