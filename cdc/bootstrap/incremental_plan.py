"""How a target's table gets the rows that it lacks, and keeps those that it has (``incremental``). Pure.

Missing rows are collected first: a range of the source's table travels into a temporary table, and what the target's
table lacks of it goes on into a staging table in the schema ``cdc``, in the same transaction. Only when all ranges have
been there are they put into the table, in the transaction that records it as streaming. So until then the table is as
it was found, however often a run is killed, and afterwards every row that we added is as the snapshot shows it: a row
that an earlier run had copied could have changed since.

The staging table is not UNLOGGED: a crash of the server must not take a part of it away from a run that goes on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cdc.bootstrap.copying import Destination
from cdc.bootstrap.incremental_ranges import KeyRange, KeyRanges, Part
from cdc.bootstrap.plan import TableCopy
from cdc.bootstrap.ranges import split
from cdc.errors import TableStopped
from cdc.identifiers import quote, quote_list, quote_qualified
from cdc.routing.route import Route
from cdc.source.catalog import SourceTable
from cdc.target.catalog import TargetTable
from cdc.target.schema import NewTable
from cdc.target.table_shape import TableShape

_INTEGERS = frozenset(("int2", "int4", "int8"))

_TRAVELLING = "cdc_incremental"
"""The temporary table of one range; a job has one at a time."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """What a target's table lacks of one source table: how it is found, and where it is collected.

    ``table`` is the target's, quoted, and ``rows`` the same where it is read: without tables that inherit from it.
    ``key`` are its columns that identify a row, ``matches`` is the condition that a row ``t`` of it has the key of a
    row ``r``. ``source_key`` is that column at the source where key ranges are compared before rows travel, `None`
    where every row travels; ``ranges`` are those of the whole table, as far as they were cut.
    """

    table: str
    rows: str
    staging: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    matches: str
    source_key: str | None
    ranges: tuple[KeyRange, ...] = ()

    def parts(self, copy: TableCopy, range_bytes: int) -> tuple[Part, ...]:
        """The pieces of work: each can be done by itself."""
        if self.source_key is None:
            return split(copy.pages, copy.total_bytes, range_bytes)
        return tuple(KeyRanges(quote(self.source_key), (one,)) for one in self.ranges)

    def create_sql(self) -> str:
        """Create the staging table, empty; what an earlier run collected goes, because it is older."""
        columns = quote_list(self.columns)
        return f"{self.drop_sql()}; CREATE TABLE {self.staging} AS SELECT {columns} FROM {self.table} WITH NO DATA"

    def destination(self, copy: TableCopy) -> Destination:
        """Where the rows of a piece go: through the temporary table, those that are missing into the staging table."""
        columns = quote_list(self.columns)
        travelling = f"pg_temp.{_TRAVELLING}"
        return Destination(
            "pg_temp",
            _TRAVELLING,
            self.columns,
            copy.format,
            f"copying what {copy.route.target_name} lacks of {copy.route.source_name}",
            before=f"CREATE TEMPORARY TABLE {_TRAVELLING} ON COMMIT DROP AS"
            f" SELECT {columns} FROM {self.staging} WITH NO DATA",
            after=f"INSERT INTO {self.staging} ({columns}) SELECT {columns} FROM {travelling} AS r"
            f" WHERE NOT EXISTS (SELECT FROM {self.rows} AS t WHERE {self.matches})",
        )

    def insert_sql(self) -> str:
        """Put everything that was collected into the table. A key that is there already stays as it is."""
        columns = quote_list(self.columns)
        return (
            f"INSERT INTO {self.table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {self.staging}"
            f" ON CONFLICT ({quote_list(self.key)}) DO NOTHING"
        )

    def drop_sql(self) -> str:
        """Drop the staging table, where it is."""
        return f"DROP TABLE IF EXISTS {self.staging}"


def staging_name(pipeline: str, schema: str, table: str) -> str:
    """The staging table of a target's table; every run of a pipeline calls it the same."""
    digest = hashlib.sha256("\0".join((pipeline, schema, table)).encode()).hexdigest()[:16]
    return f"cdc.incremental_{digest}"


def needs_primary_key(shape: TableShape, table: TargetTable, wanted: NewTable | None) -> bool:
    """Whether the table gets the source's primary key first, because nothing there is unique over the rows' key.

    ``wanted`` is the table as `cdc` would have made it; `None` for a table of an owned target.
    """
    has_primary_key = any(key.is_primary for key in table.unique_keys)
    return wanted is not None and bool(wanted.primary_key) and not has_primary_key and not _is_keyed(shape)


def plan_lacking(
    source: SourceTable,
    copy: TableCopy,
    shape: TableShape,
    table: TargetTable,
    *,
    pipeline: str,
    target: str,
    follows: bool,
) -> Lacking:
    """How missing rows are found and collected; without the ranges, which take a look at the source.

    Raises `TableStopped` where nothing tells which rows are missing.
    """
    route = copy.route
    if not _is_keyed(shape) or "SELECT" not in table.privileges:
        raise _refusal(route, shape, table, target)
    key = tuple(shape.columns[place] for place in shape.key)
    return Lacking(
        table=table.sql_name,
        rows=f"ONLY {table.sql_name}" if table.relkind == "r" else table.sql_name,
        staging=staging_name(pipeline, table.schema, table.name),
        columns=copy.target_columns,
        key=tuple(column.name for column in key),
        matches=" AND ".join(f"t.{quote(column.name)} {column.equals} r.{quote(column.name)}" for column in key),
        source_key=_source_key(source, route, table, [column.name for column in key]) if follows else None,
    )


def several_routes(name: str, routes: tuple[Route, ...], target: str) -> TableStopped:
    """What is said of a table that more than one table of the source goes into."""
    sources = ", ".join(route.source_name for route in routes)
    return TableStopped(
        f'target {target}: table {name}: several tables of the source go into it ({sources}), and "incremental" '
        f"cannot tell whose rows are missing. Take them out of bootstrap.modes (BACKUP_MODE).",
        source_table=routes[0].source_name,
    )


def _is_keyed(shape: TableShape) -> bool:
    """Whether rows have a key, and the target a unique index of just that, whose columns travel."""
    return bool(shape.key) and shape.key_is_arbiter and all(shape.columns[place].is_written for place in shape.key)


def _source_key(source: SourceTable, route: Route, table: TargetTable, key: list[str]) -> str | None:
    """The one integer column at the source that is the key, with an index of it; `None` if it is anything else."""
    relation = source.relation
    indexed = {tuple(relation.columns[index].name for index in relation.key), source.primary_key}
    for column in relation.columns:
        there = table.column(key[0])
        if (
            [route.target_column(column.name)] == key
            and (column.name,) in indexed
            and there is not None
            and all(one.is_builtin and one.name in _INTEGERS for one in (column.type, there.type))
        ):
            return column.name
    return None


def _refusal(route: Route, shape: TableShape, table: TargetTable, target: str) -> TableStopped:
    where = f"target {target}: table {route.target_name} (from {route.source_name})"
    if "SELECT" not in table.privileges:
        return TableStopped(
            f"{where}: the role may not read it, so nobody knows which rows are missing.",
            sql=f"GRANT SELECT ON {table.sql_name} TO CURRENT_USER",
            source_table=route.source_name,
        )
    if not shape.key:
        return TableStopped(
            f'{where}: it has no key, and "incremental" cannot tell which rows are missing without one. Give the '
            f"source's table a primary key, or take it out of bootstrap.modes (BACKUP_MODE).",
            source_table=route.source_name,
        )
    names = [shape.columns[place].name for place in shape.key]
    return TableStopped(
        f'{where}: "incremental" needs a unique index there of just the columns that identify a row '
        f"({', '.join(names)}).",
        sql=f"CREATE UNIQUE INDEX CONCURRENTLY ON {quote_qualified(table.schema, table.name)} ({quote_list(names)})",
        source_table=route.source_name,
    )
