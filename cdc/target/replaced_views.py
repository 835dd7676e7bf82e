"""Plain views over tables that are replaced: what makes them again, and whether that will work, tried, not guessed.

``CREATE OR REPLACE VIEW`` refuses a view whose columns would change their types, and a definition may name a column or
an operator that the new table does not have. So each view is made once as a temporary one, over empty temporary tables
of the new shape, and its columns are compared; all of it is rolled back. Names do the redirecting: with the replaced
tables' schemas in the search path the server prints a view's definition with their bare names, and temporary tables of
those names come first when it is read again. No lock is taken that anybody would notice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from cdc import statements
from cdc.identifiers import quote, quote_list, quote_literal, quote_qualified
from cdc.target.schema import create_table_sql
from cdc.target.table_swap import RIGHTS, Name, Obstacle, Pair

_COLUMNS = """
SELECT a.attname::text AS name, a.atttypid AS type, a.atttypmod AS modifier, a.attcollation AS collation,
       pg_catalog.format_type(a.atttypid, a.atttypmod) AS sql
  FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_TRIAL = "cdc_view_trial"


@dataclass(frozen=True, slots=True)
class View:
    """A plain view over a replaced ``table``, as it was before that table moved. ``definition`` names every schema."""

    table: str
    oid: int
    schema: str
    name: str
    owner: str
    options: tuple[str, ...]
    definition: str
    columns: tuple[str, ...]

    @property
    def sql_name(self) -> str:
        """``"schema"."view"``."""
        return quote_qualified(self.schema, self.name)

    @property
    def replace_sql(self) -> str:
        """CREATE OR REPLACE VIEW: owner and grants of the view stay, options are those that are named here."""
        columns = f" ({quote_list(self.columns)})" if self.columns else ""
        pairs = [option.partition("=") for option in self.options]
        options = (
            f" WITH ({', '.join(f'{name} = {quote_literal(value)}' for name, _, value in pairs)})" if pairs else ""
        )
        return f"CREATE OR REPLACE VIEW {self.sql_name}{columns}{options} AS\n{self.definition}"

    @property
    def lock_sql(self) -> str:
        """Takes the strongest lock on the view alone (LOCK TABLE takes its tables along), and changes nothing."""
        return f"ALTER VIEW {self.sql_name} OWNER TO {quote(self.owner)}"


async def read_views(
    connection: asyncpg.Connection, tables: Mapping[int, str]
) -> tuple[tuple[View, ...], list[Obstacle]]:
    """Plain views by oid, each with the replaced table that it reads; and why some of them cannot be replaced."""
    views, refused = [], []
    for row in await connection.fetch(statements.load("target", "swap_views"), list(tables)):
        table, name = tables[row["oid"]], f"view {row['schema']}.{row['name']}"
        view = View(
            table,
            row["oid"],
            row["schema"],
            row["name"],
            row["owner"],
            tuple(row["options"]),
            row["definition"],
            tuple(row["columns"]),
        )
        if row["is_temporary"]:
            refused.append(Obstacle(table, f"temporary {name} of another session reads it; it goes with that session"))
        elif not row["is_ours"]:
            refused.append(
                Obstacle(
                    table,
                    f"{name} belongs to {view.owner}, and {RIGHTS}",
                    f"GRANT {quote(view.owner)} TO CURRENT_USER;",
                )
            )
        elif not row["may_create"]:
            refused.append(
                Obstacle(
                    table,
                    f"{name} is in a schema where {RIGHTS}",
                    f"GRANT CREATE ON SCHEMA {quote(view.schema)} TO CURRENT_USER;",
                )
            )
        views.append(view)
    return tuple(views), refused


async def try_views(connection: asyncpg.Connection, views: Sequence[View], pairs: Sequence[Pair]) -> list[Obstacle]:
    """The views that would refuse to be made again.

    Views over tables of which neither the new one nor its shape is known are taken to fit.
    """
    if not views:
        return []
    refused: list[Obstacle] = []
    transaction = connection.transaction()
    await transaction.start()
    try:
        replaced = await _stand_ins(connection, pairs)
        schemas = quote_list(dict.fromkeys(schema for schema, _ in replaced))
        for view in views if replaced else ():
            reason = await _try(connection, view, schemas)
            if reason is not None:
                what = f"view {view.schema}.{view.name} {reason}"
                refused.append(Obstacle(view.table, what, f"DROP VIEW {view.sql_name};"))
    finally:
        await transaction.rollback()
    return refused


async def _stand_ins(connection: asyncpg.Connection, pairs: Sequence[Pair]) -> list[Name]:
    """Make an empty temporary table of each new table's shape; the names of the tables that got one."""
    made: list[Name] = []
    taken: set[str] = set()
    for pair in pairs:
        if pair.present is None or pair.present.name in taken:
            continue
        name = f"pg_temp.{quote(pair.present.name)}"
        if pair.new is not None:
            sql = f"CREATE TEMPORARY TABLE {name} (LIKE {pair.new.sql_name} INCLUDING INDEXES)"
        elif pair.swap.shape is not None:
            shape = pair.swap.shape
            sql = create_table_sql(shape.as_plain())
            sql = sql.replace(f"CREATE TABLE {shape.sql_name}", f"CREATE TEMPORARY TABLE {name}", 1)
            if shape.primary_key:
                sql += f"; ALTER TABLE {name} ADD PRIMARY KEY ({quote_list(shape.primary_key)})"
        else:
            continue
        try:
            async with connection.transaction():
                await connection.execute(sql)
        except asyncpg.UndefinedObjectError:
            continue  # a type that is created with the table
        taken.add(pair.present.name)
        made.append((pair.present.schema, pair.present.name))
    return made


async def _try(connection: asyncpg.Connection, view: View, schemas: str) -> str | None:
    """Why the view cannot be made over the stand-ins; `None` when it can."""
    names = f" ({quote_list(view.columns)})" if view.columns else ""
    reason = None
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(f"SET LOCAL search_path = pg_catalog, {schemas}, pg_temp")
        definition = await connection.fetchval("SELECT pg_catalog.pg_get_viewdef($1::oid)", view.oid)
        await connection.execute(f"SET LOCAL search_path = pg_temp, pg_catalog, {schemas}")
        await connection.execute(f"CREATE TEMPORARY VIEW {quote(_TRIAL)}{names} AS {definition}")
        trial = await connection.fetchval("SELECT pg_catalog.to_regclass($1)::oid", f"pg_temp.{quote(_TRIAL)}")
        reason = _difference(await connection.fetch(_COLUMNS, view.oid), await connection.fetch(_COLUMNS, trial))
    except asyncpg.PostgresError as error:
        reason = f"cannot be made again over it (SQLSTATE {error.sqlstate})"
    finally:
        await transaction.rollback()
    return reason


def _difference(before: Sequence[asyncpg.Record], after: Sequence[asyncpg.Record]) -> str | None:
    for old, new in zip(before, after, strict=True):
        if old["type"] != new["type"] or old["modifier"] != new["modifier"]:
            return f"would change the type of its column {old['name']} from {old['sql']} to {new['sql']}"
        if old["collation"] != new["collation"]:
            return f"would change the collation of its column {old['name']}"
    return None
