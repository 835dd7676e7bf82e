"""The publications: which tables the source puts into the stream.

Two are ours. Tables with a usable replica identity are in ``<publication>``, with everything that happens to them;
tables without one are in ``<publication>_insert_only``, because publishing their updates would make the *application's*
UPDATE fail (hazard 1). A table that gains or loses its identity moves between the two in one transaction.

Promises: a publication is created once, before any slot, and from then on only altered: one that is dropped and created
again poisons every slot that lags behind (hazard 24). None of ours has a row filter or a column list, which would make
the application's statements fail (invariant 6), and each table is a member by name. A table that nobody asks for any
more leaves the publication (hazard 27). Publications that somebody else manages are read, never changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cdc import statements
from cdc.config import insert_only_name
from cdc.errors import SetupError
from cdc.identifiers import quote, quote_qualified
from cdc.source.catalog import SourceTable
from cdc.source.connection import Connection, source_errors

Member = tuple[str, str]
"""A table as schema and name."""

_OPERATIONS = ("insert", "update", "delete", "truncate")
ALL_OPERATIONS = frozenset(_OPERATIONS)
INSERT_ONLY_OPERATIONS = frozenset({"insert", "truncate"})

LOCK_TIMEOUT_S = 5
"""Altering a publication locks its tables against other DDL: rather give up than make a migration wait behind us."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication as the source has it.

    ``tables`` are its members by name; ``narrowed`` those of them with a row filter or a column list; ``schemas`` those
    that it holds as a whole.
    """

    name: str
    owner: str
    operations: frozenset[str]
    via_root: bool
    all_tables: bool
    generated_columns: bool
    tables: frozenset[Member]
    narrowed: frozenset[Member]
    schemas: tuple[str, ...] = ()


async def read(connection: Connection, names: Collection[str]) -> dict[str, Publication]:
    """Those of the named publications that exist, by name."""
    parameters = {"names": list(names)}
    with source_errors("list its publications"):
        cursor = await connection.execute(statements.load("source", "publications"), parameters)
        rows = await cursor.fetchall()
        schemas: dict[str, tuple[str, ...]] = {}
        if connection.info.server_version >= 150000:
            cursor = await connection.execute(statements.load("source", "publication_schemas"), parameters)
            for name, schema in await cursor.fetchall():
                schemas[name] = (*schemas.get(name, ()), schema)
    return {
        name: Publication(
            name,
            owner,
            frozenset(operations),
            via_root,
            all_tables,
            generated_columns,
            frozenset((schema, table) for schema, table in tables),
            frozenset((schema, table) for schema, table in narrowed),
            schemas.get(name, ()),
        )
        for name, owner, operations, via_root, all_tables, generated_columns, tables, narrowed in rows
    }


async def read_published(connection: Connection, names: Collection[str]) -> dict[str, frozenset[str]]:
    """What the publications send together: ``schema.table`` to its operations (insert, update, delete, truncate)."""
    with source_errors("list the tables that it publishes"):
        cursor = await connection.execute(statements.load("source", "published"), {"names": list(names)})
        rows = await cursor.fetchall()
    return {table: frozenset(operations) for table, operations in rows}


def plan(publication: str, existing: Mapping[str, Publication], tables: Iterable[SourceTable]) -> list[str]:
    """The statements that make our two publications hold exactly ``tables``; none when they do already.

    Tables that cannot be published (unlogged ones, above all) are left out: `cdc check` says so. A partitioned table is
    a member itself, so that partitions of tomorrow are published, too. Where these would have no identity, it is among
    the keyless ones, and the partitions that have one are members by name beside it. Raises `SetupError` for a
    publication of that name that is not of our kind.
    """
    keyed, keyless = set[Member](), set[Member]()
    for table in tables:
        is_member = any(_member(table) in one.tables for one in existing.values())
        # One partition that has no WAL must not take the others out of the stream.
        if not table.is_publishable and not (table.leaves and is_member):
            continue
        is_keyed = table.usable_identity and (table.relkind != "p" or table.passes_identity_on)
        (keyed if is_keyed else keyless).add(_member(table))
        if not is_keyed:
            keyed |= {
                (one.leaf.schema, one.leaf.name) for one in table.leaves if one.usable_identity and one.is_publishable
            }
    parts = (
        (publication, keyed, ALL_OPERATIONS),
        (insert_only_name(publication), keyless, INSERT_ONLY_OPERATIONS),
    )
    creations, options, drops, additions = [], [], [], []
    for name, wanted, operations in parts:
        present = existing.get(name)
        publish = ", ".join(word for word in _OPERATIONS if word in operations)
        settings = f"(publish = '{publish}', publish_via_partition_root = false)"
        if present is None:
            creations.append(f"CREATE PUBLICATION {quote(name)} WITH {settings}")
        else:
            _refuse_foreign_kind(present)
            if present.operations != operations or present.via_root:
                options.append(f"ALTER PUBLICATION {quote(name)} SET {settings}")
        members = frozenset[Member]() if present is None else present.tables
        if members - wanted:
            drops.append(f"ALTER PUBLICATION {quote(name)} DROP TABLE {_list(members - wanted)}")
        if wanted - members:
            additions.append(f"ALTER PUBLICATION {quote(name)} ADD TABLE {_list(wanted - members)}")
    # In this order no statement, taken alone, publishes updates of a table without an identity.
    return creations + drops + options + additions


async def ensure(connection: Connection, publication: str, tables: Iterable[SourceTable]) -> list[str]:
    """Create or alter our two publications so that they hold exactly ``tables``, in one transaction.

    Returns the statements that ran (none when all was well). Raises `SetupError` with the SQL for the tables' owner
    when this role may not, `SourceUnavailable` when DDL of somebody else is in the way for `LOCK_TIMEOUT_S`.
    """
    existing = await read(connection, (publication, insert_only_name(publication)))
    todo = plan(publication, existing, tables)
    if todo:
        await _run(connection, todo, "alter its publications")
    return todo


async def look_again(connection: Connection, names: Collection[str]) -> None:
    """Make streams notice that tables have become partitions of published ones; what is committed from now on is sent.

    Up to PostgreSQL 14 a walsender that has seen a table which is not published remembers that, whatever the table is
    attached to later, until a publication is altered: these are, to what they are already. Raises `SetupError` with the
    SQL for their owner when this role may not.
    """
    if connection.info.server_version >= 150000:
        return
    existing = await read(connection, names)
    todo = [
        f"ALTER PUBLICATION {quote(name)} SET (publish_via_partition_root = {str(found.via_root).lower()})"
        for name, found in sorted(existing.items())
    ]
    await _run(connection, todo, "make its streams notice partitions (PostgreSQL 14 does not by itself)")


async def drop(connection: Connection, publication: str) -> list[str]:
    """Drop our two publications, at teardown: a slot that is still behind can never be read again.

    Returns the names of those that existed.
    """
    existing = await read(connection, (publication, insert_only_name(publication)))
    if existing:
        await _run(connection, [f"DROP PUBLICATION {quote(name)}" for name in existing], "drop its publications")
    return list(existing)


async def _run(connection: Connection, todo: list[str], what: str) -> None:
    try:
        with source_errors(what):
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'".encode())
                for statement in todo:
                    await connection.execute(statement.encode())
    except SetupError as error:
        if error.server is None or error.server.sqlstate != "42501":
            raise
        script = "\n".join(f"{statement};" for statement in todo)
        raise SetupError(
            f"the source's role {connection.info.user} may not {what}: that needs the owner of the publication and of "
            f"its tables, and CREATE on the database; let such a role run the SQL, or set manage_publications = false",
            sql=f"BEGIN;\n{script}\nCOMMIT;",
            server=error.server,
        ) from None


def _refuse_foreign_kind(publication: Publication) -> None:
    name = publication.name
    if publication.all_tables or publication.schemas:
        kind = "FOR ALL TABLES" if publication.all_tables else f"FOR TABLES IN SCHEMA {', '.join(publication.schemas)}"
        raise SetupError(
            f"the publication {name} on the source is {kind}, so a table without a key could enter it and its updates "
            f"would fail: configure another publication name, or set manage_publications = false to follow this one"
        )
    if publication.narrowed:
        names = _list(publication.narrowed)
        named = ", ".join(f"{schema}.{table}" for schema, table in sorted(publication.narrowed))
        mend = f"ALTER PUBLICATION {quote(name)} DROP TABLE {names}; ALTER PUBLICATION {quote(name)} ADD TABLE {names};"
        raise SetupError(
            f"the publication {name} on the source has a row filter or a column list for {named}, which makes the "
            f"application's statements fail: remove them",
            sql=f"BEGIN; {mend} COMMIT;",
        )
    if publication.generated_columns:
        raise SetupError(
            f"the publication {name} on the source sends generated columns: targets compute their own",
            sql=f"ALTER PUBLICATION {quote(name)} SET (publish_generated_columns = none);",
        )


def operations_of(published: Mapping[str, frozenset[str]], table: SourceTable) -> frozenset[str] | None:
    """What is sent of a table, by what `read_published` says; `None`: it is in none of the publications.

    Of a partitioned table, that which is sent of each of its leaves, or under its own name.
    """
    if table.name in published or not table.leaves:
        return published.get(table.name, ALL_OPERATIONS if table.relkind == "p" else None)
    sent = [published.get(leaf.name) for leaf in table.leaves]
    return None if None in sent else frozenset.intersection(*(one for one in sent if one is not None))


def _member(table: SourceTable) -> Member:
    return table.relation.schema, table.relation.name


def _list(members: Iterable[Member]) -> str:
    """Each with ONLY, which keeps the tables that inherit from it out."""
    return ", ".join(f"ONLY {quote_qualified(schema, name)}" for schema, name in sorted(members))
