"""From which columns of the source a target's table was loaded: ``cdc.target_table.source_columns``.

The stream names columns, and a target's column is found by its name. Where a name comes to mean another column of the
source's table (two names are swapped, a column is dropped and another one gets its name), rows that were there before
keep the values of the former column under it, and no message says so. So columns are remembered by number
(``pg_attribute.attnum``) on both sides: a column that is renamed on both sides is still the same pair.

What is compared and why is said in `cdc.service.known_columns`. The functions that write do it in the open transaction.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cdc import statements
from cdc.errors import TableStopped
from cdc.routing.route import Route
from cdc.target.session import Session, target_errors
from cdc.target.table_state import TableName


class ColumnsMoved(TableStopped):
    """Names of the source's columns mean others than those that the target's rows were loaded from."""


@dataclass(frozen=True, slots=True)
class TargetColumns:
    """A table of a target by its oid, and the numbers of its columns by their names; not of those that it computes."""

    oid: int
    numbers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ColumnRecord:
    """What one table holds.

    ``oid`` is the table's here, ``sources`` the numbers of the source's columns by those of the columns here that hold
    their values. ``mixed`` is the sentence with which the table stopped when it held values of several columns under
    one name: only a load ends that.
    """

    oid: int
    sources: Mapping[int, int] = field(default_factory=dict)
    mixed: str | None = None

    def extended(self, more: Mapping[int, int], there: TargetColumns) -> ColumnRecord:
        """The same with more pairs. Columns that the table here has no more are forgotten, and where one was moved."""
        present, moved = set(there.numbers.values()), set(more.values())
        kept = {here: of for here, of in self.sources.items() if here in present and of not in moved}
        return replace(self, sources={**kept, **more})

    def agrees(self, pairs: Mapping[int, int]) -> bool:
        """Whether rows that come by these pairs may be put beside those that are there."""
        return self.mixed is None and all(self.sources.get(here, of) == of for here, of in pairs.items())


def pairs(route: Route, source: Mapping[str, int], there: TargetColumns) -> dict[int, int]:
    """Which columns of the source (by name, with their numbers) go into which of the target's table, by number."""
    found = {}
    for name, number in source.items():
        to = route.target_column(name)
        if to is not None and to in there.numbers:
            found[there.numbers[to]] = number
    return found


async def read_columns_of(session: Session, names: Collection[TableName]) -> dict[TableName, TargetColumns]:
    """The columns of target's tables, now; one that is not there, or has no columns, is absent."""
    found: dict[TableName, TargetColumns] = {}
    columns: dict[TableName, dict[str, int]] = {}
    with target_errors("reading the catalog", session.where):
        rows = await session.connection.fetch(
            statements.load("target", "column_numbers"), [name[0] for name in names], [name[1] for name in names]
        )
    for row in rows:
        name = row["schema"], row["table_name"]
        columns.setdefault(name, {})[row["name"]] = row["number"]
        found[name] = TargetColumns(row["oid"], columns[name])
    return found


async def read_columns(session: Session, route: Route) -> TargetColumns | None:
    """The columns of the table that a route leads to, now; `None`: there is no table with columns."""
    name = route.target_schema, route.target_table
    return (await read_columns_of(session, [name])).get(name)


async def read_all(session: Session, pipeline: str, sources: Collection[TableName]) -> dict[TableName, ColumnRecord]:
    """What is recorded of tables; one of which nothing is yet is absent."""
    with target_errors("reading what tables hold", session.where):
        rows = await session.connection.fetch(
            statements.load("target", "column_records"),
            pipeline,
            [source[0] for source in sources],
            [source[1] for source in sources],
        )
    return {(schema, table): _record(json.loads(text)) for schema, table, text in rows}


async def read(session: Session, pipeline: str, source: TableName) -> ColumnRecord | None:
    """What is recorded of a table; `None`: nothing yet."""
    return (await read_all(session, pipeline, [source])).get(source)


def _record(found: dict[str, Any]) -> ColumnRecord:
    sources = {int(here): of for here, of in found["columns"].items()}
    return ColumnRecord(found["oid"], sources, found.get("mixed"))


async def write(session: Session, pipeline: str, source: TableName, record: ColumnRecord) -> None:
    """Record what a table holds, in the transaction that is open."""
    text = {"oid": record.oid, "columns": record.sources, **({"mixed": record.mixed} if record.mixed else {})}
    with target_errors(f"recording the columns of {'.'.join(source)}", session.where):
        await session.connection.execute(
            "UPDATE cdc.target_table SET source_columns = $4::text::jsonb"
            " WHERE pipeline = $1 AND source_schema = $2 AND source_table = $3",
            pipeline,
            *source,
            json.dumps(text),
        )


async def write_loaded(session: Session, pipeline: str, route: Route, source: Mapping[str, int]) -> None:
    """Record that all rows of a table were read from these columns of the source, in the transaction that is open."""
    there = await read_columns(session, route)
    if there is not None:
        record = ColumnRecord(there.oid, pairs(route, source, there))
        await write(session, pipeline, (route.source_schema, route.source_table), record)
