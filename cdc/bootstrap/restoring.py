"""One table out of a backup into a target: which tables can go that way, and how their rows do.

`plan_restore` is pure. A backup's rows are older than where the stream begins, so whatever it says of a table has to be
true of it now, or the stream could not be laid over them: the same table, the same columns, a key. And what happened
in between is replayed over rows that may have it already (the design's section 5, "Overlap mode"): nothing at the
target may refuse a state that the source had only for a while. A table that does not fit is copied live, and the
sentence says why.

`restore` goes the way of a live copy: one transaction of the target, with the fence, tried again until it is known to
be there once (cdc.bootstrap.copying). A row's columns that the route does not name are taken out on the way
(cdc.bootstrap.archive.projection), so they never reach the target.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import asyncpg

from cdc import statements
from cdc.bootstrap.archive.copy_statement import copy_columns
from cdc.bootstrap.archive.projection import project_rows
from cdc.bootstrap.archive.rows import Archive, read_rows
from cdc.bootstrap.archive.toc import Toc, TocEntry
from cdc.bootstrap.copying import Destination, Job, TargetAccess, in_tries
from cdc.bootstrap.text_forms import reads_text
from cdc.routing.route import Route
from cdc.source.catalog import SourceTable
from cdc.target.catalog import TargetTable
from cdc.target.suspects import NOBODY, Suspects, suspects
from cdc.target.table_plan import plan_table
from cdc.target.table_shape import TableShape

_CLIENT_ENCODINGS = frozenset(("BIG5", "GB18030", "GBK", "JOHAB", "SHIFT_JIS_2004", "SJIS", "UHC"))
"""Encodings that a server cannot have and ``pg_dump --encoding`` can write (PostgreSQL's manual, "Character Set
Support"): a byte that looks like a backslash can be half a character there, so rows cannot be taken apart by bytes."""


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """What refuses a second row at the target. ``columns`` are those that have to be equal for it, as far as known."""

    name: str
    columns: frozenset[str]


@dataclass(frozen=True, slots=True)
class TableRestore:
    """The rows of ``entry`` into the target's table of ``route``.

    ``indices`` are the places of the wanted columns in an archived row, in the order of ``target_columns``; `None` when
    rows go as they are. ``encoding`` is PostgreSQL's name for that of the rows, `None` for UTF8. ``suspects`` are
    columns that may be what the target refuses.
    """

    route: Route
    entry: TocEntry
    target_columns: tuple[str, ...]
    indices: tuple[int, ...] | None
    encoding: str | None = None
    suspects: Suspects = NOBODY


async def read_uniques(
    connection: asyncpg.Connection, tables: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], tuple[UniqueIndex, ...]]:
    """All unique indexes and exclusion constraints of these tables ``(schema, name)`` of a target.

    The driver's errors pass: the caller knows what it was doing, and translates (`target_errors`).
    """
    wanted = list(dict.fromkeys(tables))
    found: dict[tuple[str, str], tuple[UniqueIndex, ...]] = dict.fromkeys(wanted, ())
    rows = await connection.fetch(
        statements.load("target", "restore_uniques"), [schema for schema, _ in wanted], [name for _, name in wanted]
    )
    for row in rows:
        index = UniqueIndex(row["index_name"], frozenset(row["columns"]))
        found[row["schema"], row["name"]] += (index,)
    return found


def plan_restore(
    route: Route,
    source: SourceTable,
    toc: Toc,
    table: TargetTable | None,
    uniques: Sequence[UniqueIndex],
    *,
    target: str,
    follows: bool,
    triggers_disabled: bool,
) -> TableRestore | str:
    """How the rows of ``source`` in a backup get into ``table``, or a sentence why they have to be copied live.

    Args:
        route: What the target wants of the table.
        source: The table as the source has it now.
        toc: What the backup holds.
        table: The target's table, before its primary key is built where `cdc` created it.
        uniques: Everything at the target that refuses a second row (`read_uniques`).
        target: The target's name, for messages.
        follows: Whether the target's schema follows the source's.
        triggers_disabled: Whether foreign keys and triggers do not fire in our sessions.

    Raises:
        TableStopped: its rows cannot be written there at all, as `cdc.bootstrap.plan.plan_copy` raises it.
    """
    shape = plan_table(
        source.relation, route, table, target=target, follows=follows, triggers_disabled=triggers_disabled
    ).shape
    assert table is not None  # the plan refuses a table that does not exist
    entry = toc.table_data(route.source_schema, route.source_table)
    if entry is None:
        return "the backup does not hold its rows"
    reason = _not_the_same(source, toc, entry)
    if reason is None:
        reason = _not_to_be_overlapped(source, route, table, shape, uniques, follows, triggers_disabled)
    if reason is not None:
        return reason
    if toc.encoding in _CLIENT_ENCODINGS:
        return f"the backup is in {toc.encoding}, an encoding that no server has"
    indices: list[int] = []
    names: list[str] = []
    for index, column in enumerate(source.relation.columns):
        name = route.target_column(column.name)
        there = None if name is None else table.column(name)
        if there is None or there.generated:
            continue
        if not reads_text(column.type, there.type):
            return (
                f"its column {there.name} is {there.type.sql} there and {column.type.sql} at the source, and the text "
                f"of one is not always that of the other"
            )
        indices.append(index)
        names.append(there.name)
    as_they_are = len(indices) == len(source.relation.columns)
    return TableRestore(
        route=route,
        entry=entry,
        target_columns=tuple(names),
        indices=None if as_they_are else tuple(indices),
        encoding=None if toc.encoding == "UTF8" else toc.encoding,
        suspects=suspects(source.relation, [source.relation.columns[index].name for index in indices]),
    )


async def restore(
    job: Job,
    access: TargetAccess,
    archive: Archive,
    table: TableRestore,
    *,
    copied: Callable[[int], None] | None = None,
) -> tuple[int, int]:
    """Copy a table's rows out of the archive into the target; returns rows and bytes, as they were written.

    All of them are durable when it returns, and none is there when it raises. ``copied`` is told the bytes of each
    chunk; a try that fails has told some, and its successor tells them again. Raises `SetupError` when the archive does
    not give the rows, `FenceLost`, the last `TransientError` after `cdc.bootstrap.copying.TRIES`, and what the target
    refuses for good.
    """
    return await in_tries()(_try, job, access, archive, table, copied)


async def _try(
    job: Job, access: TargetAccess, archive: Archive, table: TableRestore, copied: Callable[[int], None] | None
) -> tuple[int, int]:
    route = table.route
    destination = Destination(
        route.target_schema,
        route.target_table,
        table.target_columns,
        "text",
        f"restoring {route.source_name} into {route.target_name}",
        table.encoding,
        suspects=table.suspects,
    )
    await job.session(access)  # before there is a process that would wait for it
    async with aclosing(read_rows(archive, table.entry)) as rows:
        chunks: AsyncIterator[bytes] = rows if table.indices is None else project_rows(rows, table.indices)
        return await job.write(access, destination, chunks if copied is None else _told(chunks, copied))


async def _told(chunks: AsyncIterator[bytes], copied: Callable[[int], None]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        copied(len(chunk))
        yield chunk


def _not_the_same(source: SourceTable, toc: Toc, entry: TocEntry) -> str | None:
    """Why the backup's table is not the one that the source has now.

    The order of the columns counts, too: a column that was dropped and added again is the last one.
    """
    if toc.table(source.relation.schema, source.relation.name) is None:
        return "the backup does not create it: it belongs to an extension, of whose rows a backup may hold a part only"
    if entry.oid != source.relation.oid:
        return "it was created anew since the backup"
    if entry.copy_statement is None:
        return "the backup holds its rows as INSERT statements"
    if copy_columns(entry) != tuple(column.name for column in source.relation.columns):
        return "its columns are not those that it had in the backup"
    return None


def _not_to_be_overlapped(
    source: SourceTable,
    route: Route,
    table: TargetTable,
    shape: TableShape,
    uniques: Sequence[UniqueIndex],
    follows: bool,
    triggers_disabled: bool,
) -> str | None:
    """Why changes that the rows may hold already cannot be replayed over them."""
    if not shape.key:
        return "it has no key"
    key = {shape.columns[place].name for place in shape.key}
    refusing = next((index for index in uniques if not key <= index.columns), None)
    if refusing is not None:
        return f"{refusing.name} may refuse what the source had for a while only"
    primary_key = {route.target_column(name) for name in source.primary_key}
    if follows and primary_key and None not in primary_key and not key <= primary_key:
        return "its primary key is not what identifies its rows in the stream"
    if (table.foreign_keys or table.referenced_by) and not triggers_disabled:
        return "foreign keys there may refuse what the source had for a while only"
    firing = next((trigger for trigger in table.triggers if trigger.fires(as_replica=triggers_disabled)), None)
    if firing is not None:
        return f"its trigger {firing.name} would fire again for rows that are there"
    return None
