"""Positions of sequences follow the source's (``sequences = "sync"``), so that a target can take the source's place.

`differing` looks at what the target has, `bring` makes it what the source has. Only sequences that `cdc` made are
touched (it knows them by their comment), and missing ones are made. What the source has dropped stays.

``setval`` does not roll back: PostgreSQL moves a sequence at once and for everybody, whatever becomes of the
transaction. So nobody may do it who has lost the target: the owner's row is locked first, and until the end. A position
that was set by a transaction which then failed is one that the source had, and the next look finds it in place.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass

import asyncpg

from cdc import statements
from cdc.errors import FenceLost
from cdc.identifiers import quote_literal, quote_qualified
from cdc.target.definitions import SEQUENCE_COMMENT, NewSequence
from cdc.target.new_types import create_schema
from cdc.target.session import Session, target_errors

AT_ONCE = 500
"""How many sequences one statement names: a UNION is nested as deep as it is long."""


@dataclass(frozen=True, slots=True)
class SequencePosition:
    """A sequence as the source has it, and where it stands there; the definition's own ``last_value`` is not used."""

    definition: NewSequence
    last_value: int
    is_called: bool

    @property
    def alter_sql(self) -> str:
        """The statement that gives a present one the source's definition. It may have to stand within new bounds."""
        new = self.definition
        return (
            f"ALTER SEQUENCE {new.sql_name} AS {new.type} START WITH {new.start} RESTART WITH {self.last_value}"
            f" INCREMENT BY {new.increment} MINVALUE {new.minimum} MAXVALUE {new.maximum} CACHE {new.cache}"
            f" {'CYCLE' if new.cycles else 'NO CYCLE'}"
        )


@dataclass(frozen=True, slots=True)
class Differing:
    """What is not as at the source: to be made, to be altered, to be set; and what is not ours (``schema.name``)."""

    missing: tuple[SequencePosition, ...]
    altered: tuple[SequencePosition, ...]
    moved: tuple[SequencePosition, ...]
    foreign: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.altered or self.moved)

    @property
    def count(self) -> int:
        """How many sequences there are to touch."""
        return len(self.missing) + len(self.altered) + len(self.moved)


async def differing(session: Session, wanted: Several[SequencePosition]) -> Differing:
    """Compare the target's sequences with what they are to be; changes nothing."""
    with target_errors("reading the sequences", session.where):
        rows = await session.connection.fetch(
            statements.load("target", "sequences"),
            [one.definition.schema for one in wanted],
            [one.definition.name for one in wanted],
        )
        there = {(row["schema"], row["name"]): row for row in rows}
        unused = [
            one.definition
            for one in wanted
            if not one.is_called
            and (row := there.get((one.definition.schema, one.definition.name))) is not None
            and row["comment"] == SEQUENCE_COMMENT
            and row["is_sequence"]
        ]
        begins = await _read_unused(session.connection, unused)
    missing, altered, moved, foreign = [], [], [], []
    for one in wanted:
        name = (one.definition.schema, one.definition.name)
        row = there.get(name)
        if row is None:
            missing.append(one)
        elif not row["is_sequence"] or row["comment"] != SEQUENCE_COMMENT:
            foreign.append(".".join(name))
        elif _is_other(row, one.definition):
            altered.append(one)
        elif (row["last_value"] if one.is_called else begins[name]) != one.last_value:
            moved.append(one)
    return Differing(tuple(missing), tuple(altered), tuple(moved), tuple(foreign))


async def bring(session: Session, key: str, found: Differing) -> None:
    """Make and set sequences, in the open transaction of the target's owner. Raises `FenceLost` before it touches any.

    The positions stay as they were set even if the transaction is rolled back.
    """
    connection = session.connection
    with target_errors("setting the positions of sequences", session.where):
        if await connection.fetchrow(statements.load("target", "hold_ownership"), key) is None:
            raise FenceLost(f"{session.where}: another worker has taken the target.")
        for one in found.missing:
            await create_schema(connection, one.definition.schema)
            await connection.execute(one.definition.sql)
        for one in found.altered:
            await connection.execute(one.alter_sql)
        every = (*found.missing, *found.altered, *found.moved)
        for first in range(0, len(every), AT_ONCE):
            await connection.execute(_set_sql(every[first : first + AT_ONCE]))


async def _read_unused(
    connection: asyncpg.Connection, sequences: Several[NewSequence]
) -> dict[tuple[str, str], int | None]:
    """The value that each hands out next, if it has handed out none; `None` for one that has."""
    found: dict[tuple[str, str], int | None] = {}
    for first in range(0, len(sequences), AT_ONCE):
        some = sequences[first : first + AT_ONCE]
        query = " UNION ALL ".join(
            f"SELECT {number} AS number, CASE WHEN NOT is_called THEN last_value END AS value FROM "
            + quote_qualified(sequence.schema, sequence.name)
            for number, sequence in enumerate(some)
        )
        for row in await connection.fetch(query):
            found[some[row["number"]].schema, some[row["number"]].name] = row["value"]
    return found


def _set_sql(positions: Several[SequencePosition]) -> str:
    """The statement that sets positions, as rows: there may be more of them than a SELECT can have columns."""
    rows = ", ".join(
        f"({quote_literal(one.definition.sql_name)}, {one.last_value}::bigint, {str(one.is_called).lower()})"
        for one in positions
    )
    return (
        "SELECT pg_catalog.setval(v.name::pg_catalog.regclass, v.last_value, v.is_called) "
        f"FROM (VALUES {rows}) AS v (name, last_value, is_called)"
    )


def _is_other(row: asyncpg.Record, new: NewSequence) -> bool:
    names = ("type", "start", "increment", "minimum", "maximum", "cache", "cycles")
    return any(row[name] != getattr(new, name) for name in names)
