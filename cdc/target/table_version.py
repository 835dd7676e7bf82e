"""Whether a target's table is still the one that a plan was made for.

A table's *version* names the catalog rows of its columns as they are now: any DDL on them gives another version. It
means nothing outside of one database, and is only compared.
"""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from cdc.identifiers import quote_literal, quote_qualified

Name = tuple[str, str]
"""Schema and name of a table."""

NO_TABLE = "none"
"""The version of a table that does not exist."""


class TablesChanged(Exception):
    """One of these tables is not what it was when it was planned. Control flow inside the applier."""

    def __init__(self, names: set[Name]) -> None:
        super().__init__()
        self.names = names


async def read_version(connection: asyncpg.Connection, schema: str, name: str) -> str:
    """The version of a table now."""
    version = await connection.fetchval(f"SELECT {_version(schema, name)}")
    return NO_TABLE if version is None else str(version)


def check_versions(versions: Mapping[Name, str]) -> str:
    """A statement that fails with a division by zero unless all tables have these versions.

    So it can be sent together with what follows it, without waiting for an answer in between.
    """
    same = " AND ".join(
        f"coalesce({_version(*name)}, {quote_literal(NO_TABLE)}) = {quote_literal(version)}"
        for name, version in sorted(versions.items())
    )
    return f"SELECT 1 / (CASE WHEN {same} THEN 1 ELSE 0 END)"


def _version(schema: str, name: str) -> str:
    """An expression: the transaction ids that wrote the descriptions of its columns. A dropped column keeps its row."""
    table = f"pg_catalog.to_regclass({quote_literal(quote_qualified(schema, name))})"
    return (
        "(SELECT pg_catalog.string_agg(a.attrelid || ' ' || a.xmin::text, ' ' ORDER BY a.attnum) "
        f"FROM pg_catalog.pg_attribute a WHERE a.attrelid = {table} AND a.attnum > 0)"
    )
