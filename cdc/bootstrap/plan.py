"""What is to be copied: which columns of a source table go where, and how they travel. Pure.

A column passes in PostgreSQL's binary format as it is wherever both sides read the same bytes. Where an owned target
has another type, the source casts to it before it sends; the cast names the type without its length or precision, which
the target's COPY applies as an assignment would: what is too long is refused, not cut. One column whose type has no
binary form, or whose values hold oids that the target does not know, makes its table travel as text, which names types
and objects. What cannot be written at all is refused by the same plan that the stream's rows go by
(`cdc.target.table_plan`). Only columns that the route names are in the statement: what a target must not get never
leaves the source (invariant 7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from cdc.bootstrap.incremental_ranges import Part
from cdc.changes.relation import DataType
from cdc.identifiers import quote, quote_qualified
from cdc.routing.route import Route
from cdc.source.catalog import SourceTable
from cdc.target.catalog import TargetTable
from cdc.target.conversion import conversion
from cdc.target.suspects import NOBODY, Suspects, suspects
from cdc.target.table_plan import plan_table


@dataclass(frozen=True, slots=True)
class TableCopy:
    """One source table into one target table.

    ``expressions`` are SQL, one per column of ``target_columns``, in their order. ``references`` are the tables, schema
    and name, that foreign keys of the target's table point to, as far as they fire. ``pages`` and ``total_bytes``
    (TOAST included) measure the source table. ``rows_name`` is where its rows are read; of a partitioned table
    ``leaf_marks`` say which leaves are expected. Only rows that satisfy ``row_filter`` are sent by the stream, and
    copied. ``suspects`` are columns that may be what the target refuses. ``numbers`` are those of the columns that
    travel, by their names at the source.
    """

    route: Route
    expressions: tuple[str, ...]
    target_columns: tuple[str, ...]
    format: Literal["binary", "text"]
    references: frozenset[tuple[str, str]]
    pages: int
    total_bytes: int
    rows_name: str
    leaf_marks: Sequence[str] | None = None
    row_filter: str | None = None
    suspects: Suspects = NOBODY
    numbers: Mapping[str, int] = field(default_factory=dict, hash=False)

    def statement(self, part: Part) -> str:
        """The COPY that reads one range at the source. Children by inheritance are tables of their own."""
        conditions = [one for one in (self.row_filter, part.condition()) if one]
        if len(conditions) > 1:
            conditions = [f"({one})" for one in conditions]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        columns = ", ".join(self.expressions)
        return f"COPY (SELECT {columns} FROM {self.rows_name}{where}) TO STDOUT (FORMAT {self.format})"


@dataclass(frozen=True, slots=True)
class Load:
    """One target table with the routes that fill it: several source tables may go into one table of an owned target.

    It is the unit that is complete or is not: emptied, copied from one snapshot, given its primary key.
    """

    schema: str
    table: str
    routes: tuple[Route, ...]

    @property
    def name(self) -> str:
        """``schema.table`` at the target, unquoted."""
        return f"{self.schema}.{self.table}"


def group_routes(routes: Sequence[Route]) -> tuple[Load, ...]:
    """The loads that fill the tables of these routes, in the order of their first route."""
    groups: dict[tuple[str, str], list[Route]] = {}
    for route in routes:
        groups.setdefault((route.target_schema, route.target_table), []).append(route)
    return tuple(Load(schema, table, tuple(of)) for (schema, table), of in groups.items())


def plan_copy(
    route: Route, source: SourceTable, table: TargetTable | None, *, target: str, follows: bool, triggers_disabled: bool
) -> TableCopy:
    """How ``source`` is copied into ``table``.

    Columns of the target that are not routed keep their defaults; generated ones compute themselves. Raises
    `TableStopped` with a sentence and the SQL when its rows cannot be written there.
    """
    plan = partial(
        plan_table, source.relation, route, table, target=target, follows=follows, triggers_disabled=triggers_disabled
    )
    shape = plan().shape
    assert table is not None  # the plan refuses a table that does not exist
    expressions: list[str] = []
    names: list[str] = []
    travelling: set[str] = set()
    is_binary = True
    for column in source.relation.columns:
        name = route.target_column(column.name)
        there = None if name is None else table.column(name)
        if there is None or there.generated:
            continue
        expressions.append(quote(column.name) + _cast(column.type, there.type))
        names.append(there.name)
        travelling.add(column.name)
        way = conversion(column.type, there.type, as_text=not column.type.has_binary)
        is_binary &= column.type.has_binary and there.type.has_binary and (way is None or way.translate is None)
    if not is_binary:
        plan(flipped=[index for index, column in enumerate(source.relation.columns) if column.type.has_binary])
    return TableCopy(
        route=route,
        expressions=tuple(expressions),
        target_columns=tuple(names),
        format="binary" if is_binary else "text",
        references=shape.references,
        pages=source.pages,
        total_bytes=source.bytes,
        rows_name=source.rows_name,
        leaf_marks=source.leaf_marks,
        row_filter=source.row_filter,
        suspects=suspects(source.relation, travelling),
        numbers={name: source.numbers[name] for name in sorted(travelling) if name in source.numbers},
    )


def _cast(source: DataType, target: DataType) -> str:
    """What follows a column at the source so that its bytes are what the target's type reads; often nothing."""
    way = conversion(source, target, as_text=not source.has_binary)
    if way is None or way.is_direct or not source.has_binary:
        return ""
    plain, wanted = source.plain, target.plain
    if plain.kind == "e" or wanted.kind == "e":
        # An enum's binary form is its label, and so is a text's.
        return "::pg_catalog.text"
    return f"::{quote_qualified(wanted.schema, wanted.name)}"
