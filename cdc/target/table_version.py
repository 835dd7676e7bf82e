"""Whether a target's table is still the one that a plan was made for.

A table's *version* names the catalog rows of its columns, indexes and triggers as they are now: any DDL on them gives
another version (``cdc.table_version``). It means nothing outside of one database, and is only compared.

Whoever alters columns or triggers waits for the locks that writing to the table takes: what is found after that was
true before it, up to the end of the transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import asyncpg

from cdc.identifiers import quote_literal, quote_qualified

Name = tuple[str, str]
"""Schema and name of a table."""


class TablesChanged(Exception):
    """One of these tables is not what it was when it was planned. Control flow inside the applier."""

    def __init__(self, names: set[Name]) -> None:
        super().__init__()
        self.names = names


async def read_versions(connection: asyncpg.Connection, names: Iterable[Name]) -> dict[Name, str]:
    """The versions of tables now; of one that does not exist, too."""
    wanted = {quote_qualified(*name): name for name in names}
    rows = await connection.fetch(
        f"SELECT w.name, {_version('w.name')} FROM pg_catalog.unnest($1::text[]) AS w (name)", list(wanted)
    )
    return {wanted[quoted]: str(version) for quoted, version in rows}


def check_versions(versions: Mapping[Name, str]) -> str:
    """A statement that fails with a division by zero unless all tables have these versions.

    So it can be sent together with what follows it, without waiting for an answer in between.
    """
    return _unless(
        " AND ".join(
            f"{_version(_literal(name))} = {quote_literal(version)}" for name, version in sorted(versions.items())
        )
    )


def check_to_prepare(name: Name, version: str) -> str:
    """The same for one table, to be prepared: it reads catalogs only when something about the table has changed.

    Fails as well where there is no such table.
    """
    return _unless(f"cdc.table_version({_literal(name)}::regclass) = {quote_literal(version)}")


def _unless(condition: str) -> str:
    return f"SELECT 1 / (CASE WHEN {condition} THEN 1 ELSE 0 END)"


def _literal(name: Name) -> str:
    return quote_literal(quote_qualified(*name))


def _version(table: str) -> str:
    return f"cdc.table_version(pg_catalog.to_regclass({table}))"
