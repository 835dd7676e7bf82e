"""What depends on tables that are to be replaced: what can be carried over, and what stops the swap.

Plain views are made again over the new tables, foreign keys that cdc made between its own tables are made again, owned
sequences and publications go along. Everything else that a DROP of the old table would take with it, or that only the
old table has (a column, a check), was made by somebody else, and is never dropped (invariant 9): it becomes an
`Obstacle`, with the SQL that removes it and, where the catalog can say it, the SQL that makes it again afterwards.

`obstacles` can be asked before a load begins, so that one of twelve hours does not fail at its end. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import asyncpg

from cdc import statements
from cdc.errors import SetupError
from cdc.identifiers import quote, quote_qualified
from cdc.target.replaced_views import View, read_views, try_views
from cdc.target.session import Session, target_errors
from cdc.target.table_swap import RIGHTS, Name, Obstacle, Pair, TableSwap, read_pairs


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key that cdc made, from a table that stays to one that is replaced."""

    table: Name
    name: str
    definition: str

    @property
    def sql_name(self) -> str:
        """The table that it starts from."""
        return quote_qualified(*self.table)


@dataclass(frozen=True, slots=True)
class Dependents:
    """All that depends on the present tables. ``neighbours`` are tables that a foreign key joins to one of them.

    ``sequences``: each with its owner's table and column. ``publications``: each with the table that it publishes.
    """

    obstacles: tuple[Obstacle, ...]
    views: tuple[View, ...]
    foreign_keys: tuple[ForeignKey, ...]
    neighbours: tuple[Name, ...]
    sequences: tuple[tuple[Name, Name, str], ...]
    publications: tuple[tuple[str, Name], ...]


async def obstacles(session: Session, swaps: Sequence[TableSwap]) -> list[Obstacle]:
    """What would stop a swap of these tables as things are now, views that do not fit the new tables included.

    To be asked at the beginning of a run, too: new tables that do not exist yet are represented by
    `TableSwap.shape` and `TableSwap.constraints`. Changes nothing; takes no lock that anybody would notice.
    """
    with target_errors("reading what depends on the tables", session.where):
        pairs = await read_pairs(session.connection, session.server_version, swaps)
        found = await read_dependents(session.connection, pairs)
        refused = await try_views(session.connection, found.views, pairs)
    return [*found.obstacles, *refused]


def refusal(where: str, found: Sequence[Obstacle]) -> SetupError:
    """One error that lists all obstacles, its ``sql`` what to run before the swap, and after it."""
    lines = "".join(f"\n- {obstacle.table}: {obstacle.what}" for obstacle in found)
    before = list(dict.fromkeys(obstacle.remove for obstacle in found if obstacle.remove))
    after = list(dict.fromkeys(obstacle.restore for obstacle in found if obstacle.restore))
    sql = "\n".join(before)
    if after:
        sql += "\n-- and when the tables have been replaced:\n" + "\n".join(after)
    return SetupError(
        f"{where}: tables cannot be replaced by those that are loaded beside them, because of what depends on "
        f"them; nothing was changed:{lines}",
        sql=sql or None,
    )


async def read_dependents(connection: asyncpg.Connection, pairs: Sequence[Pair]) -> Dependents:
    """What depends on the present tables; the driver's errors pass."""
    present = {pair.present.oid: pair for pair in pairs if pair.present is not None}
    found = [obstacle for pair in pairs for obstacle in _own(pair)]
    rows = await connection.fetch(statements.load("target", "swap_dependents"), list(present))
    views: dict[int, str] = {}
    publications: list[tuple[str, Name]] = []
    for row in rows:
        pair = present[row["table_oid"]]
        match row["kind"]:
            case "view":
                views.setdefault(row["relation_oid"], pair.swap.name)
            case "publication relation" if row["publication_is_ours"] and not row["publication_is_partial"]:
                publications.append((row["publication"], pair.swap.present))
            case "publication relation":
                found.append(_publication(pair, row))
            case "foreign key" | "sequence" | "internal":
                pass  # read by name below, or part of one of those
            case kind:
                what = f"{kind} {row['identity']} depends on it"
                if kind == "view of its row type":
                    what = f"view {row['identity']} has a column of its row type, which another table does not have"
                found.append(Obstacle(pair.swap.name, what, row["remove"], row["restore"]))
    plain_views, refused = await read_views(connection, views)
    found += refused
    foreign_keys, neighbours, refused = await _read_constraints(connection, present)
    found += refused
    for row in await connection.fetch(statements.load("target", "swap_labels"), list(present)):
        found.append(
            Obstacle(
                present[row["table_oid"]].swap.name,
                f"the security label of {row['provider']} on {row['what']} is not carried over",
            )
        )
    found += await _taken_names(connection, pairs)
    sequences = [
        ((row["schema"], row["name"]), present[row["table_oid"]].swap.present, row["column_name"])
        for row in await connection.fetch(statements.load("target", "swap_sequences"), list(present))
    ]
    return Dependents(
        tuple(found), plain_views, foreign_keys, neighbours, tuple(sequences), tuple(dict.fromkeys(publications))
    )


def _own(pair: Pair) -> Iterable[Obstacle]:
    """What the two tables themselves have that stands in the way."""
    present, new, table = pair.present, pair.new, pair.swap.name
    if present is None:
        return
    if not pair.swap.created_by_cdc:
        yield Obstacle(
            table,
            "it was not created by cdc, so it is never replaced",
            f"ALTER TABLE {present.sql_name} RENAME TO …;",
        )
        return
    if pair.swap.route.keeps_deleted:
        yield Obstacle(
            table,
            'rows stay there that the source has deleted (deletes = "keep"), and a table that takes its place would '
            "not have them. To load everything again with them: stop the worker, run cdc teardown for this target, "
            'empty its other tables, give this one the mode "incremental" (bootstrap.modes), run cdc setup and cdc '
            "bootstrap",
        )
    if present.relkind != "r":
        yield Obstacle(table, "something that is no plain table has its name")
        return
    if not (present.is_ours and present.may_give):
        yield Obstacle(
            table, f"it belongs to {present.owner}, and {RIGHTS}", f"GRANT {quote(present.owner)} TO CURRENT_USER;"
        )
    if not present.may_create:
        yield Obstacle(
            table,
            f"the role that cdc connects as may not create tables in schema {present.schema}",
            f"GRANT CREATE ON SCHEMA {quote(present.schema)} TO CURRENT_USER;",
        )
    names: set[str] | None = None
    if new is not None:
        names = {column.name for column in new.columns}
    elif pair.swap.shape is not None:
        names = {column.name for column in pair.swap.shape.columns}
    filled = {column.name for column in new.columns if column.is_filled} if new is not None else set()
    for column in present.columns:
        alter = f"ALTER TABLE {present.sql_name}"
        if names is not None and column.name not in names:
            yield Obstacle(
                table,
                f"column {column.name} is not in the table that takes its place, and its values would be lost",
                f"{alter} DROP COLUMN {quote(column.name)};",
            )
        elif column.is_filled and column.name not in filled:
            yield Obstacle(
                table,
                f"column {column.name} is an identity or generated, which cdc did not make",
                f"{alter} ALTER COLUMN {quote(column.name)} DROP IDENTITY IF EXISTS, "
                f"ALTER COLUMN {quote(column.name)} DROP EXPRESSION IF EXISTS;",
            )


def _publication(pair: Pair, row: asyncpg.Record) -> Obstacle:
    """A publication that loses the table: somebody else's, or one whose columns or rows were chosen."""
    assert pair.present is not None  # it is published
    name, table = quote(row["publication"]), pair.present.sql_name
    reason = "publishes chosen columns or rows of it" if row["publication_is_ours"] else "belongs to another role"
    return Obstacle(
        pair.swap.name,
        f"publication {row['publication']} {reason}, and would lose it",
        f"ALTER PUBLICATION {name} DROP TABLE {table};",
        f"ALTER PUBLICATION {name} ADD TABLE {table};  -- with the columns and rows that it had",
    )


async def _read_constraints(
    connection: asyncpg.Connection, present: dict[int, Pair]
) -> tuple[tuple[ForeignKey, ...], tuple[Name, ...], list[Obstacle]]:
    """Foreign keys to be made again, tables at the other end of any, and checks and keys that would be lost."""
    rows = await connection.fetch(statements.load("target", "swap_constraints"), list(present))
    beside = {pair.new.oid: pair for pair in present.values() if pair.new is not None}
    there = {
        (beside[row["table_oid"]].swap.name, row["name"])
        for row in await connection.fetch(statements.load("target", "swap_constraints"), list(beside))
        if row["table_oid"] in beside
    }
    again, neighbours, refused = [], [], []
    for row in rows:
        name: Name = (row["schema"], row["table_name"])
        pair = present.get(row["table_oid"])
        alter = f"ALTER TABLE {quote_qualified(*name)}"
        remove = f"{alter} DROP CONSTRAINT {quote(row['name'])};"
        restore = f"{alter} ADD CONSTRAINT {quote(row['name'])} {row['definition']};"
        if pair is None:
            table = present[row["referenced_oid"]].swap.name
            neighbours.append(name)
            if row["is_cdcs"]:
                again.append(ForeignKey(name, row["name"], row["definition"]))
            else:
                what = f"foreign key {row['name']} of {row['schema']}.{row['table_name']} points to it"
                refused.append(Obstacle(table, what, remove, restore))
            continue
        if row["kind"] == "f" and row["referenced_oid"] not in present:
            neighbours.append((row["referenced_schema"], row["referenced_table"]))
        is_known = pair.new is not None or pair.swap.constraints is not None
        is_coming = (pair.swap.name, row["name"]) in there or row["name"] in (pair.swap.constraints or ())
        if is_known and not is_coming:
            kind = "foreign key" if row["kind"] == "f" else "check"
            what = f"{kind} {row['name']} is not on the table that takes its place"
            refused.append(Obstacle(pair.swap.name, what, remove, restore))
    return tuple(again), tuple(dict.fromkeys(neighbours)), refused


async def _taken_names(connection: asyncpg.Connection, pairs: Sequence[Pair]) -> list[Obstacle]:
    """Names of new indexes that something else has where they go: they would keep the whole table from moving."""
    coming = {pair.new.oid: pair for pair in pairs if pair.new is not None}
    rows = await connection.fetch(
        statements.load("target", "swap_taken_names"),
        list(coming),
        [pair.swap.present[0] for pair in coming.values()],
        [pair.present.oid for pair in pairs if pair.present is not None],
    )
    return [
        Obstacle(
            coming[row["table_oid"]].swap.name,
            f"something else in schema {row['schema']} has the name of its index {row['name']}",
            f"ALTER INDEX {quote_qualified(row['schema'], row['name'])} RENAME TO …;",
        )
        for row in rows
    ]
