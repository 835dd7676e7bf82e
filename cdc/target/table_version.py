"""Whether a target's table is still the one that a plan was made for.

A table's *version* names the catalog rows of its columns, indexes and triggers as they are now: any DDL on them gives
another version. It means nothing outside of one database, and is only compared.

Whoever alters columns or triggers waits for the locks that writing to the table takes: what is found after that was
true before it, up to the end of the transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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


async def read_versions(connection: asyncpg.Connection, names: Iterable[Name]) -> dict[Name, str]:
    """The versions of tables now."""
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


def check_parameters() -> str:
    """The same to be prepared: the quoted names of tables are $1, their versions $2, both of type text[]."""
    are_same = f"pg_catalog.bool_and({_version('w.name')} = w.version)"
    return f"{_unless(are_same)} FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS w (name, version)"


def parameters(versions: Mapping[Name, str]) -> str:
    """What `check_parameters` takes."""
    names = ", ".join(_literal(name) for name in sorted(versions))
    found = ", ".join(quote_literal(version) for _, version in sorted(versions.items()))
    return f"ARRAY[{names}], ARRAY[{found}]"


def _unless(condition: str) -> str:
    return f"SELECT 1 / (CASE WHEN {condition} THEN 1 ELSE 0 END)"


def _literal(name: Name) -> str:
    return quote_literal(quote_qualified(*name))


def _version(table: str) -> str:
    """An expression: the transaction ids that wrote what describes the table. A dropped column keeps its row."""
    written = "".join(
        f" || ARRAY(SELECT c.xmin FROM pg_catalog.{catalog} c WHERE c.{of} = r.oid{more} ORDER BY c.{number})::text"
        for catalog, of, number, more in (
            ("pg_attribute", "attrelid", "attnum", " AND c.attnum > 0"),
            ("pg_index", "indrelid", "indexrelid", ""),
            ("pg_trigger", "tgrelid", "oid", ""),
        )
    )
    return (
        f"(SELECT coalesce(r.oid{written}, {quote_literal(NO_TABLE)}) "
        f"FROM (SELECT pg_catalog.to_regclass({table})::oid AS oid) AS r)"
    )
