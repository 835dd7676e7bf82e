"""The column that notes when the source deleted a row which stays at the target: what a table has to have for it.

A following target gets it with its table. Where the table is there already, somebody has to add it: nothing of a table
that exists is changed here (invariant 9).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cdc.changes.relation import DataType
from cdc.identifiers import quote, quote_qualified
from cdc.routing.route import Route
from cdc.target.catalog import TargetTable

TIMESTAMPTZ = DataType(oid=1184, schema="pg_catalog", name="timestamptz", sql="timestamp with time zone")
"""What it is where `cdc` creates it. (Its oid is the same on every server.)"""

_TYPES = ("timestamptz", "timestamp")


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why the column cannot serve, in a sentence, and what mends it."""

    sentence: str
    sql: str | None


def unfit(route: Route, table: TargetTable, filled: Collection[str]) -> Unfit | None:
    """What is wrong with the column that the route names; ``filled`` are those that the source's rows fill."""
    name = route.deleted_at
    assert name is not None  # asked only for a route that names one
    alter = f"ALTER TABLE {quote_qualified(route.target_schema, route.target_table)}"
    column = table.column(name)
    if name in filled:
        return Unfit(
            f"its column {name}, which is to note when rows were deleted (deleted_at), is one that the source's table "
            "fills; name another in the configuration.",
            None,
        )
    if column is None:
        return Unfit(
            f"it lacks column {name}, which is to note when rows were deleted (deleted_at).",
            f"{alter} ADD COLUMN {quote(name)} timestamptz",
        )
    what = f"its column {name}, which is to note when rows were deleted (deleted_at),"
    alter = f"{alter} ALTER COLUMN {quote(name)}"
    if not (column.type.is_builtin and column.type.name in _TYPES):
        return Unfit(f"{what} is of type {column.type.sql}, and not timestamptz or timestamp.", None)
    if column.generated:
        return Unfit(f"{what} is generated; name another in the configuration.", None)
    if column.not_null:
        return Unfit(f"{what} is NOT NULL, and it has to be NULL in all other rows.", f"{alter} DROP NOT NULL")
    if column.has_default:
        return Unfit(f"{what} has a default, and it has to be NULL in all other rows.", f"{alter} DROP DEFAULT")
    return None
