"""What the set by set way writes through: each statement by itself, or all of a batch together (`cdc.target.together`).

A `Change` is a statement that moves staged rows on. It is described, not spelled out, because the same one comes again
with every batch: only its ordinals differ.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import asyncpg

from cdc.target import dml
from cdc.target.rejection import Guard
from cdc.target.row_counts import check_count, row_count
from cdc.target.table_shape import TableShape


class Move(Enum):
    """What becomes of staged rows in their table."""

    DELETE = "delete"
    UPDATE = "update"
    INSERT = "insert"


@dataclass(frozen=True, slots=True)
class Change:
    """A statement that moves staged rows of one shape; an update leaves the places ``unchanged`` as they are.

    Each staged row changes exactly one row of the table; fewer may be changed where it ``may_fall_short``.
    """

    move: Move
    shape: TableShape
    unchanged: tuple[int, ...] = ()

    @property
    def may_fall_short(self) -> bool:
        """Whether a row may be gone already."""
        return self.move is Move.DELETE and self.shape.loses_rows

    def sql(self, stage: str, low: dml.Ordinal, high: dml.Ordinal) -> str | None:
        """The statement for the rows between two ordinals; `None` when it would change nothing."""
        match self.move:
            case Move.DELETE:
                return dml.delete(self.shape, stage, low, high)
            case Move.UPDATE:
                return dml.update(self.shape, stage, self.unchanged, low, high)
            case Move.INSERT:
                return dml.insert(self.shape, stage, low, high)


class Writing(Protocol):
    """Takes the statements of a batch, in their order."""

    async def copy(
        self, shape: TableShape, into: tuple[str, str], columns: Sequence[str], rows: AsyncIterator[bytes], count: int
    ) -> None:
        """Write ``count`` rows, in COPY's binary format, into the table of that schema and name.

        It is ``shape``'s own, or its staging table. Raises `Refused` and `Unfit`.
        """

    async def change(self, change: Change, stage: str, low: int, high: int) -> None:
        """Move the rows that were staged between two ordinals. Raises `Refused`, also when the count is not right."""


class OneByOne:
    """Each statement is sent by itself, and its answer waited for: so it is known which one is refused."""

    def __init__(self, connection: asyncpg.Connection, guard: Guard) -> None:
        self._connection = connection
        self._guard = guard

    async def copy(
        self, shape: TableShape, into: tuple[str, str], columns: Sequence[str], rows: AsyncIterator[bytes], count: int
    ) -> None:
        """Copy, and compare the count."""
        schema, name = into
        with self._guard(shape):
            tag = await self._connection.copy_to_table(
                name, schema_name=schema, columns=list(columns), source=rows, format="binary"
            )
        check_count(shape, row_count(tag), count)

    async def change(self, change: Change, stage: str, low: int, high: int) -> None:
        """Execute, and compare the count."""
        sql = change.sql(stage, low, high)
        if sql is None:
            return
        with self._guard(change.shape):
            changed = row_count(await self._connection.execute(sql))
        check_count(change.shape, changed, high - low + 1, may_fall_short=change.may_fall_short)
