"""What the catalogs of both sides say of a table that is to be read again, and what follows from it.

Everything is looked at anew for each chunk, in the transaction that reads it, so that rows, columns and types belong
together. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdc import statements
from cdc.bootstrap.plan import TableCopy, plan_copy
from cdc.changes.relation import DataType
from cdc.config import Config
from cdc.errors import SetupError
from cdc.routing.patterns import split
from cdc.routing.route import Route
from cdc.routing.target_routes import TargetRoutes
from cdc.service.resync_way import Facts
from cdc.service.tracking import key_form
from cdc.source.catalog import SourceTable
from cdc.source.chunks import KeyColumn, TableRead
from cdc.source.connection import Connection, source_errors
from cdc.source.publication import operations_of, read_published
from cdc.source.published import read_published_tables
from cdc.target.catalog import TargetTable, read_table
from cdc.target.merge import ResyncTables, fixed_columns
from cdc.target.remedies import resync_command
from cdc.target.schema import NewTable, new_table
from cdc.target.session import Session, target_errors
from cdc.target.table_plan import plan_table
from cdc.target.table_shape import TableShape
from cdc.target.table_state import TableName, TableState
from cdc.target.truncation import alike_columns


@dataclass(frozen=True, slots=True)
class Layout:
    """A table as it is on both sides: how it is read there and merged here.

    ``facts`` decide the way.
    """

    source: SourceTable
    route: Route
    shape: TableShape
    copy: TableCopy
    read: TableRead
    tables: ResyncTables
    facts: Facts

    @property
    def is_alike(self) -> bool:
        """Whether each column of the source is here under the same name and of the same type."""
        return alike_columns(self.source.relation, self.route, self.shape) is None

    @property
    def form(self) -> str:
        """The form in which its keys are streamed."""
        return key_form(self.shape)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that travel, as the target calls them."""
        return self.copy.target_columns


def route_for(config: Config, target: str, source: TableName) -> Route:
    """Where the table goes. Raises `SetupError` where the configuration that this process has read says nowhere."""
    route = TargetRoutes(config.targets[target]).route_of(*source)
    if route is None:
        raise SetupError(
            f"target {target}: the configuration that the worker has read does not route {'.'.join(source)} there; "
            "restart the worker when it has been added"
        )
    return route


async def read_source(connection: Connection, config: Config, target: str, route: Route) -> SourceTable:
    """The table at the source. Raises `SetupError` when it is not there, or not published as it has to be."""
    tables = await read_published_tables(connection, config.source, [route.source_name])
    found = {table.name: table for table in tables}
    source = found.get(route.source_name)
    if source is None:
        raise SetupError(f"the source has no table {route.source_name}")
    if not source.is_publishable:
        raise SetupError(f"{source.name} {source.why_not}; it cannot be replicated")
    source.refuse_alike()
    published = await read_published(connection, config.source.publication_names)
    operations = operations_of(published, source) or frozenset()
    wanted = {"insert", "update", "delete"} if source.usable_identity else {"insert"}
    if not wanted <= operations:
        if not config.source.manage_publications:
            raise SetupError(
                f"the source does not publish {source.name} in full: whoever manages its publications has to add that"
            )
        raise SetupError(
            f"the source does not publish {source.name} in full: run `cdc setup`, and then this again",
            sql=f"cdc setup && {resync_command(source.name, target)}",
        )
    return source


def table_to_create(route: Route, source: SourceTable) -> NewTable:
    """What a following target gets that has no such table."""
    return new_table(
        route,
        source.relation,
        not_null=source.not_null,
        primary_key=source.primary_key,
        primary_key_name=source.primary_key_name,
        collations=source.collations,
        generated=source.generated,
    )


async def look(
    connection: Connection,
    session: Session,
    config: Config,
    *,
    target: str,
    route: Route,
    source: SourceTable,
    request: int,
    state: TableState | None,
    within: str | None = None,
) -> Layout:
    """Put both sides together. Raises `TableStopped` where the rows cannot be written as they are.

    ``within``: only those that fulfil this condition are read; every name in it means the same on both sides.

    `SetupError` where a row that differs could only be deleted and written anew, and more hangs on it.
    """
    config_of = config.targets[target]
    with target_errors("reading the catalog", session.where):
        table = await read_table(session.connection, route.target_schema, route.target_table)
    routes = TargetRoutes(config_of)
    named = [found for name in config_of.tables if (found := routes.route_of(*split(name))) is not None]
    into = [other for other in named if other.target_name == route.target_name and other != route]
    shape = plan_table(
        source.relation,
        route,
        table,
        target=target,
        follows=config_of.follows,
        triggers_disabled=session.triggers_disabled,
        is_shared=bool(into),
    ).shape
    if shape.holds_more and shape.rewritten:
        raise fixed_columns(session.where, shape)
    copy = plan_copy(
        route,
        source,
        table,
        target=target,
        follows=config_of.follows,
        triggers_disabled=session.triggers_disabled,
    )
    assert table is not None  # the plans refuse a table that does not exist
    names = _key_names(route, shape, source)
    order = await _index_order(connection, source, names)
    places = [shape.key[names.index(name)] for name in order or names]
    key = tuple(KeyColumn(name, _column_type(source, name)) for name in order or names)
    facts = Facts(
        target=target,
        key=[
            (_column_type(source, name), _target_type(table, shape, place))
            for name, place in zip(names, shape.key, strict=True)
        ],
        has_index=order is not None,
        has_other_unique=await _has_other_unique(session, table, shape),
        is_shared=bool(into),
        may_be_swapped=config_of.follows and state is not None and state.created_by_cdc,
        keeps_deleted=route.keeps_deleted,
    )
    read = TableRead(
        route.source_schema,
        route.source_table,
        source.rows_name,
        copy.expressions,
        key,
        copy.format,
        row_filter=source.row_filter,
        within=within,
    )
    return Layout(source, route, shape, copy, read, ResyncTables(request, shape, tuple(places), within), facts)


def _key_names(route: Route, shape: TableShape, source: SourceTable) -> list[str]:
    """The source's names of the key's columns, in the order of the shape's key."""
    by_target = {route.target_column(column.name): column.name for column in source.relation.columns}
    return [by_target[shape.columns[place].name] for place in shape.key]


async def _index_order(connection: Connection, source: SourceTable, names: Sequence[str]) -> list[str] | None:
    """The key's columns in the order of an index of the source's that has exactly these; `None`: there is none."""
    if not names:
        return None
    parameters = {"table": source.relation.oid, "columns": list(names)}
    with source_errors("list the indexes of a table"):
        cursor = await connection.execute(statements.load("source", "key_order"), parameters)
        row = await cursor.fetchone()
    return None if row is None else list(row[0])


async def _has_other_unique(session: Session, table: TargetTable, shape: TableShape) -> bool:
    key = [shape.columns[place].name for place in shape.key]
    with target_errors("reading the catalog", session.where):
        return bool(
            await session.connection.fetchval(statements.load("target", "resync_unique_indexes"), table.sql_name, key)
        )


def _column_type(source: SourceTable, name: str) -> DataType:
    return next(column.type for column in source.relation.columns if column.name == name)


def _target_type(table: TargetTable, shape: TableShape, place: int) -> DataType:
    column = table.column(shape.columns[place].name)
    assert column is not None
    return column.type
