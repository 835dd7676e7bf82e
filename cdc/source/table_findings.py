"""What `cdc check` finds about the tables that targets want, and about the publications that should hold them.

Each finding about a table names the table and holds the SQL that mends it. Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from cdc.changes.relation import ReplicaIdentity
from cdc.config import SourceConfig
from cdc.errors import SetupError
from cdc.identifiers import quote, quote_qualified
from cdc.observe.finding import Finding, Severity
from cdc.source import publication
from cdc.source.catalog import SourceTable, read_tables
from cdc.source.connection import Connection
from cdc.source.publication import ALL_OPERATIONS, Publication
from cdc.source.published import read_published_tables


def _finding(severity: Severity, subject: str, message: str, mend: str | None = None) -> Finding:
    return Finding(severity, "source", subject, message, mend)


def table_findings(tables: Sequence[SourceTable], routed: Collection[str], *, user: str) -> list[Finding]:
    """What stands in the way of replicating ``routed``; ``tables`` are those of them that exist."""
    existing = {table.name for table in tables}
    findings = [
        _finding(Severity.ERROR, f"table {name}", "does not exist on the source: is its name spelt right?")
        for name in sorted(set(routed) - existing)
    ]
    for table in tables:
        findings += _one_table(table, quote(user))
    if not findings:
        findings.append(
            _finding(Severity.OK, "tables", f"{len(tables)} of {len(tables)} can be replicated with all changes")
        )
    return findings


def _one_table(table: SourceTable, user: str) -> Iterable[Finding]:
    subject = f"table {table.name}"
    schema = quote(table.relation.schema)
    name = quote_qualified(table.relation.schema, table.relation.name)
    if table.persistence == "u":
        message = "unlogged: its changes are not in the WAL, so they cannot be replicated"
        yield _finding(Severity.ERROR, subject, message, f"ALTER TABLE {name} SET LOGGED;")
        return
    if not table.is_publishable:
        yield _finding(Severity.ERROR, subject, f"it {table.why_not}; it cannot be replicated")
        return
    if not table.is_readable:
        mend = f"GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT SELECT ON {name} TO {user};"
        yield _finding(Severity.ERROR, subject, "may not be read, and a bootstrap copies it", mend)
    if table.hides_rows:
        message = "row security hides rows from this role: a bootstrap would refuse to copy it"
        yield _finding(Severity.ERROR, subject, message, f"ALTER ROLE {user} BYPASSRLS;")
    if table.generated:
        names = ", ".join(column.name for column in table.generated)
        message = f"computes {names} itself (GENERATED): that is not streamed; targets that follow compute it, too"
        yield _finding(Severity.INFO, subject, message)
    if not table.usable_identity and table.relkind != "p":
        yield _finding(Severity.WARNING, subject, _identity_message(table), _identity_mend(table, name))
    yield from _partition_findings(table)
    if not all(column.type.has_binary for column in table.relation.columns):
        types = sorted({column.type.sql for column in table.relation.columns if not column.type.has_binary})
        message = f"has columns of types without a binary form ({', '.join(types)}): their values travel as text"
        yield _finding(Severity.INFO, subject, message)


def _partition_findings(table: SourceTable) -> Iterable[Finding]:
    """What is said of the leaves of a partitioned table: each identifies its rows by itself (hazard 1)."""
    if table.relkind != "p":
        return
    subject = f"table {table.name}"
    for leaf in table.leaves:
        if not leaf.usable_identity:
            message = (
                f"its partition {leaf.name} has no usable replica identity: only its inserts and TRUNCATE are "
                "published; its updates and deletes do not reach any target"
            )
            mend = f"{leaf.full_identity_sql}  -- or, better: a primary key of the whole table"
            if leaf.lacks_generated:
                mend = _key_instead_of_full(table, quote_qualified(leaf.leaf.schema, leaf.leaf.name))
            yield _finding(Severity.WARNING, subject, message, mend)
        elif leaf.why_alike is not None:
            yield _finding(Severity.ERROR, subject, leaf.why_alike, leaf.full_identity_sql)
    if all(leaf.usable_identity for leaf in table.leaves) and not table.passes_identity_on:
        message = (
            "has no primary key that new partitions get: of those that are created later only inserts and TRUNCATE are "
            "published until they have a replica identity and `cdc setup` runs again"
        )
        name = quote_qualified(table.relation.schema, table.relation.name)
        yield _finding(Severity.WARNING, subject, message, f"ALTER TABLE {name} ADD PRIMARY KEY (…);")


def _identity_message(table: SourceTable) -> str:
    if table.lacks_generated:
        what = "its replica identity is FULL, and PostgreSQL 18 publishes no updates of one with generated columns"
    elif table.primary_key:
        what = f"its primary key {table.primary_key_name} does not identify rows (deferrable, or not the identity)"
    elif table.relation.replica_identity is ReplicaIdentity.NOTHING:
        what = "its replica identity is NOTHING"
    else:
        what = "no primary key"
    return f"{what}: only its inserts and TRUNCATE are published; updates and deletes do not reach any target"


def _identity_mend(table: SourceTable, name: str) -> str:
    if table.candidate_indexes:
        index = table.candidate_indexes[0]
        if index == table.primary_key_name:
            return f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"
        return f"ALTER TABLE {name} REPLICA IDENTITY USING INDEX {quote(index)};"
    if table.lacks_generated:
        return _key_instead_of_full(table, name)
    full = f"ALTER TABLE {name} REPLICA IDENTITY FULL;"
    if table.generated and not table.primary_key:
        return f"ALTER TABLE {name} ADD PRIMARY KEY (…);  -- or, before PostgreSQL 18: {full}"
    if table.primary_key:
        return f"{full}  -- or make the primary key not deferrable"
    return f"{full}  -- or, better: ALTER TABLE {name} ADD PRIMARY KEY (…);"


def _key_instead_of_full(table: SourceTable, identified: str) -> str:
    """What mends a replica identity that is FULL already and does not do (generated columns, on 18)."""
    default = f"ALTER TABLE {identified} REPLICA IDENTITY DEFAULT;"
    if table.primary_key:
        return f"-- make the primary key not deferrable, and one without generated columns, then:\n{default}"
    name = quote_qualified(table.relation.schema, table.relation.name)
    return f"ALTER TABLE {name} ADD PRIMARY KEY (…); {default}"


async def read_checked_tables(
    connection: Connection, source: SourceConfig, routed: Collection[str]
) -> list[SourceTable]:
    """The tables as the stream shows them; as the catalog does, where the publications contradict each other."""
    try:
        return await read_published_tables(connection, source, routed)
    except SetupError:
        return await read_tables(connection, routed)


async def published_findings(
    connection: Connection, source: SourceConfig, routed: Collection[str], *, is_started: bool
) -> list[Finding]:
    """Whether the publications are there, of the right kind, and hold the tables that targets want.

    ``is_started``: the slot exists, so that what is not published now is missed.
    """
    tables = await read_checked_tables(connection, source, routed)
    existing = await publication.read(connection, source.publication_names)
    if source.manage_publications:
        return _managed(connection, source, existing, tables, is_started=is_started)
    try:
        await read_published_tables(connection, source)
    except SetupError as error:
        return [_finding(Severity.ERROR, "publications", str(error))]
    published = await publication.read_published(connection, source.publication_names)
    return _followed(source, existing, published, tables)


def _managed(
    connection: Connection,
    source: SourceConfig,
    existing: Mapping[str, Publication],
    tables: Sequence[SourceTable],
    *,
    is_started: bool,
) -> list[Finding]:
    subject = f"publication {source.publication}"
    try:
        todo = publication.plan(source.publication, existing, tables)
    except SetupError as error:
        return [_finding(Severity.ERROR, subject, str(error), error.sql)]
    if not todo:
        message = f"{source.publication} and {source.insert_only_publication} are complete"
        return [_finding(Severity.OK, subject, message)]
    severity = Severity.ERROR if is_started else Severity.WARNING
    message = "not set up yet" if not existing else "does not hold the tables that the targets want, as they are now"
    findings = [_finding(severity, subject, message, "cdc setup")]
    members = {member for present in existing.values() for member in present.tables}
    foreign = [
        table
        for table in tables
        if table.is_publishable and not table.is_owned and (table.relation.schema, table.relation.name) not in members
    ]
    if foreign:
        owners = ", ".join(sorted({table.owner for table in foreign}))
        message = (
            f"the role {connection.info.user} owns neither {foreign[0].name} nor is a member of its owner"
            f"{f' (and {len(foreign) - 1} more)' if len(foreign) > 1 else ''}, so it cannot publish it; "
            f"let the owner ({owners}) run the SQL"
        )
        findings.append(_finding(Severity.ERROR, subject, message, "\n".join(f"{statement};" for statement in todo)))
    return findings


def _followed(
    source: SourceConfig,
    existing: Mapping[str, Publication],
    published: Mapping[str, frozenset[str]],
    tables: Sequence[SourceTable],
) -> list[Finding]:
    findings = []
    for name in source.publication_names:
        if name not in existing:
            message = "does not exist, and manage_publications is false: whoever manages it has to create it"
            mend = f"CREATE PUBLICATION {quote(name)};"
            findings.append(_finding(Severity.ERROR, f"publication {name}", message, mend))
    for present in existing.values():
        if present.narrowed:
            names = ", ".join(f"{schema}.{table}" for schema, table in sorted(present.narrowed))
            message = f"has row filters or column lists for {names}: what they leave out reaches no target"
            findings.append(_finding(Severity.WARNING, f"publication {present.name}", message))
        if present.via_root:
            message = (
                "sends partitions under the name of their root: name the root; a TRUNCATE of a single partition "
                "reaches no target"
            )
            mend = f"ALTER PUBLICATION {quote(present.name)} SET (publish_via_partition_root = false);"
            findings.append(_finding(Severity.WARNING, f"publication {present.name}", message, mend))
    for table in tables:
        findings += _followed_table(source, publication.operations_of(published, table), table)
    if not findings:
        names = ", ".join(sorted(existing))
        findings.append(_finding(Severity.OK, "publications", f"{names}: managed by somebody else, and complete"))
    return findings


def _followed_table(source: SourceConfig, operations: frozenset[str] | None, table: SourceTable) -> Iterable[Finding]:
    subject = f"table {table.name}"
    name = quote_qualified(table.relation.schema, table.relation.name)
    if operations is None:
        if table.is_publishable:
            mend = f"ALTER PUBLICATION {quote(source.publication_names[0])} ADD TABLE {name};"
            yield _finding(Severity.ERROR, subject, "is in none of the publications that are followed", mend)
        return
    if not table.usable_identity and operations & {"update", "delete"}:
        message = "has no usable replica identity and publishes updates: the application's UPDATE and DELETE of it fail"
        yield _finding(Severity.ERROR, subject, message, _identity_mend(table, name))
    missing = sorted((ALL_OPERATIONS if table.usable_identity else frozenset({"insert", "truncate"})) - operations)
    if missing:
        message = f"the publications do not send its {', '.join(missing)}: targets drift apart from the source"
        yield _finding(Severity.WARNING, subject, message)
