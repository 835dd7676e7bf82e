"""The source's tables as the stream shows them: without the rows and columns that a publication leaves out.

Our own publications leave nothing out (invariant 6). Those that somebody else manages may have row filters and column
lists, and send generated columns (PostgreSQL 18). A copy of a table must agree with its stream: a row that the filter
hides would stay at a target for ever, since the source never says that it is gone, and a column that is not sent would
never change. So everything that plans or copies a table reads it here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from cdc import statements
from cdc.config import SourceConfig
from cdc.errors import SetupError
from cdc.source.catalog import SourceTable, read_tables
from cdc.source.connection import Connection, source_errors

Parts = tuple[Sequence[tuple[str, list[str] | None]], str | None]
"""What is sent of a table: by each publication which columns (`None`: it cannot say), and the row filter of all."""

GENERATED_ARE_SENT = 180000
"""The first version that publishes generated columns."""


async def read_published_tables(
    connection: Connection, source: SourceConfig, names: Collection[str] | None = None
) -> list[SourceTable]:
    """What `cdc.source.catalog.read_tables` gives, narrowed to what the publications of ``source`` send.

    Tables that none of them holds are as they are. Raises `SetupError` where publications send different columns of one
    table, because PostgreSQL ends such a stream.
    """
    tables = await read_tables(connection, names)
    if source.manage_publications:
        return tables
    parameters = {"names": list(source.publication_names)}
    with source_errors("list the rows and columns that it publishes"):
        cursor = await connection.execute(statements.load("source", "published_parts"), parameters)
        parts = {name: (columns, row_filter) for name, columns, row_filter in await cursor.fetchall()}
    for table in tables:
        _refuse_narrowed_leaves(table, parts)
    sends_generated = connection.info.server_version >= GENERATED_ARE_SENT
    return [
        _narrowed(table, *parts[table.name], sends_generated=sends_generated) if table.name in parts else table
        for table in tables
    ]


def _refuse_narrowed_leaves(table: SourceTable, parts: Mapping[str, Parts]) -> None:
    """Raise `SetupError` where the leaves of a table are sent in part: a copy through its root would not agree."""
    if table.name in parts:
        return
    stored = {column.name for column in table.relation.columns}
    for leaf in table.leaves:
        nothing_left_out: Parts = ((), None)
        columns, row_filter = parts.get(leaf.name, nothing_left_out)
        lists = [names for _, names in columns if names is not None]
        if row_filter is not None or any(not stored <= set(names) for names in lists):
            raise SetupError(
                f"the publications leave out rows or columns of {leaf.name}, a partition of {table.name}, which is "
                "copied as a whole: publish all of it, or the whole table with publish_via_partition_root, or name the "
                "partitions one by one"
            )


def _narrowed(
    table: SourceTable,
    columns: Sequence[tuple[str, list[str] | None]],
    row_filter: str | None,
    *,
    sends_generated: bool,
) -> SourceTable:
    generated = {column.name for column in table.generated}
    sent = {publication: _sent(names, generated if not sends_generated else ()) for publication, names in columns}
    first, *others = sent.values()
    if any(names != first for names in others):
        raise SetupError(
            f"the publications {', '.join(sent)} send different columns of {table.name}, and PostgreSQL cannot stream "
            f"them together: give it the same column list in each, or follow only one of them (source.publications)"
        )
    if first is not None:
        table = table.with_columns(first)
    return replace(table, row_filter=row_filter)


def _sent(names: list[str] | None, generated: Collection[str]) -> frozenset[str] | None:
    """The columns that are sent, `None` where the server does not know of column lists."""
    return None if names is None else frozenset(names) - frozenset(generated)
