"""Where the sequences of the source stand: those that tables own or take a column's default from.

A position is ``last_value`` and ``is_called``, as the sequence itself has them: with ``CACHE`` it may be ahead of every
value that was handed out, never behind. A row gets its value before it is inserted, so a position that is read covers
every row that had been committed by then.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from cdc import statements
from cdc.identifiers import quote_qualified
from cdc.source.connection import Connection, source_errors

AT_ONCE = 500
"""How many sequences one query looks into: a UNION is nested as deep as it is long."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence, and where it stands: the next value is ``last_value``, or, when ``is_called``, the one after it.

    ``last_value`` is `None` for one that the role may not read.
    """

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
    is_called: bool = True

    @property
    def sql_name(self) -> str:
        """``"schema"."name"``."""
        return quote_qualified(self.schema, self.name)


@dataclass(frozen=True, slots=True)
class SequenceUse:
    """The column of a table that owns a sequence or takes its default from it. One sequence may have several."""

    table_oid: int
    table_schema: str
    table: str
    column: str
    sequence: Sequence


async def read_sequences(connection: Connection, table_oids: Collection[int] | None = None) -> list[SequenceUse]:
    """Every sequence that these tables use, or all do, by the table's name; a second query for those not used yet.

    Raises `SourceUnavailable` where one is dropped meanwhile, too.
    """
    with source_errors("read its sequences"):
        tables = None if table_oids is None else list(table_oids)
        cursor = await connection.execute(statements.load("source", "sequences"), {"tables": tables})
        rows = await cursor.fetchall()
        uses = [SequenceUse(row[0], row[1], row[2], row[3], Sequence(*row[4:14])) for row in rows]
        unused = {
            use.sequence.sql_name
            for use, row in zip(uses, rows, strict=True)
            if use.sequence.last_value is None and row[14]
        }
        # What was never used, or begins anew, shows its position only itself.
        positions: dict[str, tuple[int, bool]] = {}
        every = sorted(unused)
        for first in range(0, len(every), AT_ONCE):
            names = every[first : first + AT_ONCE]
            query = " UNION ALL ".join(
                f"SELECT {number}, last_value, is_called FROM {name}" for number, name in enumerate(names)
            )
            cursor = await connection.execute(query.encode())
            positions |= {names[number]: (last, called) for number, last, called in await cursor.fetchall()}
    return [_placed(use, positions.get(use.sequence.sql_name)) for use in uses]


def _placed(use: SequenceUse, position: tuple[int, bool] | None) -> SequenceUse:
    if position is None:
        return use
    last_value, is_called = position
    return replace(use, sequence=replace(use.sequence, last_value=last_value, is_called=is_called))
