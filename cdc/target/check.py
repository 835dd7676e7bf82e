"""What `cdc check` has to say about a target: what would stop replication into it, or endanger it.

It reads the catalog and writes nothing. Whether a table's shape fits is asked of the very planner that the worker uses
(`cdc.target.table_plan`), so that the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import asyncpg

from cdc import statements
from cdc.changes.column_origin import ColumnOrigin
from cdc.changes.generated_column import GeneratedColumn
from cdc.changes.relation import Relation
from cdc.errors import CdcError, TableStopped
from cdc.identifiers import quote, quote_list
from cdc.observe.finding import Finding, Severity
from cdc.routing.route import Route
from cdc.target import migrations, position
from cdc.target.catalog import TargetTable, read_tables
from cdc.target.lacking import ColumnsLacking
from cdc.target.new_types import add_labels_sql, missing_labels
from cdc.target.rejection import NEEDED_RIGHTS
from cdc.target.schema import VIRTUAL_COLUMNS
from cdc.target.session import Session, connect, target_errors
from cdc.target.table_plan import TablePlan, plan_table

OLDEST_VERSION = 140_000
"""PostgreSQL 14: pg_terminate_backend that waits, and idle_session_timeout, came with it."""

Origins = Mapping[int, Mapping[str, ColumnOrigin]]
"""How columns of the source came to be, by the relation's oid and by name."""

Generated = Mapping[int, Sequence[GeneratedColumn]]
"""The columns that tables of the source compute themselves and do not publish, by the relation's oid."""


async def check(
    name: str,
    dsn: str,
    pipeline: str,
    *,
    follows: bool,
    tables: Sequence[tuple[Route, Relation]],
    origins: Origins | None = None,
    generated: Generated | None = None,
) -> list[Finding]:
    """Look at one target. ``dsn`` is a URL; ``tables`` are its routes with the source's relations they take.

    ``origins`` says how the columns of those relations came to be, ``generated`` which columns their tables compute
    themselves, both by the relation's oid. ``follows`` says that cdc
    creates what is missing (``schema = "follow"``). Raises nothing of a server's: a target that cannot be reached is a
    finding.
    """
    try:
        session = await connect(dsn, application_name=f"cdc check {pipeline}", target=name)
    except CdcError as error:
        return [Finding(Severity.ERROR, name, "connection", str(error), error.sql)]
    try:
        return await _check_session(name, session, pipeline, follows, tables, origins, generated or {})
    except CdcError as error:
        return [Finding(Severity.ERROR, name, "catalog", str(error), error.sql)]
    finally:
        await session.close()


async def _check_session(
    name: str,
    session: Session,
    pipeline: str,
    follows: bool,
    routed: Sequence[tuple[Route, Relation]],
    origins: Origins | None,
    generated: Generated,
) -> list[Finding]:
    connection = session.connection
    with target_errors("reading the catalog", session.where):
        database = await connection.fetchrow(statements.load("target", "check_database"))
        assert database is not None  # the statement has no FROM
        names = {(route.target_schema, route.target_table) for route, _ in routed}
        found = await read_tables(connection, names)
        schemas = await connection.fetch(
            statements.load("target", "check_schemas"), sorted({schema for schema, _ in names})
        )
    role = database["role"]
    findings = [Finding(Severity.OK, name, "connection", f"PostgreSQL {session.server_version // 10_000} answers")]
    findings += _check_database(name, session, database)
    findings += await _check_setup(name, session, pipeline, database)
    findings += _check_schemas(name, database, schemas, follows, names, found)
    fitting = 0
    for route, relation in routed:
        table = found.get((route.target_schema, route.target_table))
        known = None if origins is None else origins.get(relation.oid, {})
        problems = list(_check_table(name, session, role, follows, route, relation, table, set(found), known))
        if table is not None and follows and route.columns is None:
            problems += _check_generated(name, session, table, generated.get(relation.oid, ()))
        fitting += not problems
        findings += problems
    if fitting:
        findings.append(Finding(Severity.OK, name, "tables", f"{fitting} of {len(routed)} are as they should be"))
    return findings


def _check_database(name: str, session: Session, database: asyncpg.Record) -> Iterator[Finding]:
    role = quote(database["role"])
    if session.server_version < OLDEST_VERSION:
        yield Finding(
            Severity.ERROR,
            name,
            "server_version",
            f"it is PostgreSQL {session.server_version // 10_000}; cdc needs 14",
        )
    if database["is_standby"] or database["is_read_only"]:
        what = "a standby" if database["is_standby"] else "read-only (default_transaction_read_only)"
        yield Finding(Severity.ERROR, name, "read only", f"the database is {what}: nothing can be written to it")
    if not database["may_stage"]:
        yield Finding(
            Severity.ERROR,
            name,
            "TEMPORARY",
            f"role {database['role']} may not create temporary tables, through which rows travel",
            f"GRANT TEMPORARY ON DATABASE {quote(database['database'])} TO {role};",
        )
    if not database["fsync"]:
        yield Finding(
            Severity.WARNING,
            name,
            "fsync",
            "off: after a crash the database can lack what was acknowledged to the source",
            "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();",
        )
    if not session.triggers_disabled:
        grant = f"GRANT SET ON PARAMETER session_replication_role TO {role};"
        yield Finding(
            Severity.INFO,
            name,
            "session_replication_role",
            "the role may not set it to replica: triggers and foreign keys of the tables fire for replicated rows",
            grant if session.server_version >= 150_000 else None,
        )


async def _check_setup(name: str, session: Session, pipeline: str, database: asyncpg.Record) -> list[Finding]:
    missing = await migrations.pending(session)
    if len(missing) == len(migrations.known()) and not database["may_create"]:
        return [
            Finding(
                Severity.ERROR,
                name,
                "schema cdc",
                f"missing, and role {database['role']} may not create it; grant that, then run cdc setup",
                f"GRANT CREATE ON DATABASE {quote(database['database'])} TO {quote(database['role'])};",
            )
        ]
    if missing:
        # Before the first setup nothing is wrong yet; a schema that is there and too old stops a worker.
        first = len(missing) == len(migrations.known())
        severity = Severity.WARNING if first else Severity.ERROR
        message = "not set up yet" if first else "older than this version of cdc"
        return [Finding(severity, name, "schema cdc", message, "cdc setup")]
    state = await position.read(session, pipeline)
    if state is None:
        message = f"not set up for pipeline {pipeline} yet"
        return [Finding(Severity.WARNING, name, "schema cdc", message, "cdc setup")]
    if state.target != name:
        message = f"the database is target {state.target!r} of pipeline {pipeline!r}; one database is one target"
        return [Finding(Severity.ERROR, name, "target", message)]
    if state.position is None:
        message = "never loaded"
        return [Finding(Severity.INFO, name, "position", message, "cdc bootstrap --from live")]
    if state.state == "needs resync":
        message = state.last_error or "slot and position do not meet"
        return [Finding(Severity.ERROR, name, "position", message, "cdc bootstrap --from live")]
    return [Finding(Severity.OK, name, "position", f"the target stands at {state.position}")]


def _check_schemas(
    name: str,
    database: asyncpg.Record,
    schemas: Sequence[asyncpg.Record],
    follows: bool,
    wanted: Iterable[tuple[str, str]],
    found: Mapping[tuple[str, str], TargetTable],
) -> Iterator[Finding]:
    role = database["role"]
    lacking_tables = {schema for schema, table in wanted if (schema, table) not in found}
    lacking_schemas = lacking_tables - {schema["name"] for schema in schemas}
    if follows and lacking_schemas and not database["may_create"]:
        message = f"role {role} may not create the missing schemas {', '.join(sorted(lacking_schemas))}"
        grant = f"GRANT CREATE ON DATABASE {quote(database['database'])} TO {quote(role)};"
        yield Finding(Severity.ERROR, name, "CREATE", message, grant)
    for schema in schemas:
        where = quote(schema["name"])
        if not schema["may_use"]:
            message = f"role {role} may not use the schema"
            yield Finding(
                Severity.ERROR,
                name,
                f"schema {schema['name']}",
                message,
                f"GRANT USAGE ON SCHEMA {where} TO {quote(role)};",
            )
        if follows and schema["name"] in lacking_tables and not schema["may_create"]:
            message = f"role {role} may not create the missing tables in the schema"
            yield Finding(
                Severity.ERROR,
                name,
                f"schema {schema['name']}",
                message,
                f"GRANT CREATE ON SCHEMA {where} TO {quote(role)};",
            )


def _check_table(
    name: str,
    session: Session,
    role: str,
    follows: bool,
    route: Route,
    relation: Relation,
    table: TargetTable | None,
    routed: set[tuple[str, str]],
    origins: Mapping[str, ColumnOrigin] | None,
) -> Iterator[Finding]:
    """Everything about one table; nothing when it is as it should be."""
    subject = route.target_name
    if table is None and follows:
        message = "the table does not exist yet; a bootstrap creates it with its rows"
        yield Finding(Severity.INFO, name, subject, message, "cdc bootstrap --from live")
        return
    try:
        # What the plan would stop at before all else is said below, with the role's name, beside the rest.
        plain = None if table is None else replace(table, row_security=False, persistence="p")
        plan = plan_table(
            relation, route, plain, target=name, follows=follows, triggers_disabled=session.triggers_disabled
        )
    except TableStopped as found:
        error = found.explained(origins) if isinstance(found, ColumnsLacking) else found
        yield Finding(Severity.ERROR, name, subject, str(error), _mend(error.sql))
        return
    assert table is not None  # the plan would have refused
    yield from _check_rights(name, role, table)
    yield from _check_labels(name, plan, table)
    yield from _check_key(name, plan, table)
    yield from _check_kept(name, plan, table)
    yield from _check_firing(name, session, table, routed)


def _mend(sql: str | None) -> str | None:
    """What mends it, ready to be copied: SQL has an end, a command of `cdc` has none."""
    return sql if sql is None or sql.startswith("cdc ") else f"{sql};"


def _check_rights(name: str, role: str, table: TargetTable) -> Iterator[Finding]:
    lacking = [privilege for privilege in NEEDED_RIGHTS if privilege not in table.privileges]
    if lacking:
        rights = ", ".join(lacking)
        message = f"role {role} lacks {rights} on the table"
        grant = f"GRANT {rights} ON {table.sql_name} TO {quote(role)};"
        yield Finding(Severity.ERROR, name, table.qualified_name, message, grant)
    if table.row_security:
        message = f"row security applies to role {role}, which would hide rows from it"
        yield Finding(Severity.ERROR, name, table.qualified_name, message, f"ALTER ROLE {quote(role)} BYPASSRLS;")
    if table.persistence == "u":
        message = "the table is UNLOGGED: a crash of the server empties it, while the position stays"
        yield Finding(Severity.ERROR, name, table.qualified_name, message, f"ALTER TABLE {table.sql_name} SET LOGGED;")


def _check_labels(name: str, plan: TablePlan, table: TargetTable) -> Iterator[Finding]:
    for column in plan.relation.columns:
        target_column = plan.route.target_column(column.name)
        there = table.column(target_column) if target_column is not None else None
        if there is None:
            continue
        lacking = missing_labels(column.type, there.type)
        if lacking:
            message = (
                f"the enum of column {there.name} lacks {len(lacking)} of the source's labels; a row with one of them "
                "will stop the table"
            )
            yield Finding(
                Severity.WARNING, name, table.qualified_name, message, add_labels_sql(column.type, there.type)
            )


def _check_generated(
    name: str, session: Session, table: TargetTable, generated: Sequence[GeneratedColumn]
) -> Iterator[Finding]:
    """Columns that the source computes itself and nobody sends: the target can have them only by computing them."""
    for column in generated:
        if table.column(column.name) is None:
            message = f"the source computes column {column.name} itself, and this table lacks it"
            definition = column.definition(has_virtual=session.server_version >= VIRTUAL_COLUMNS)
            mend = f"ALTER TABLE {table.sql_name} ADD COLUMN {definition};"
            yield Finding(Severity.WARNING, name, table.qualified_name, message, mend)


def _check_key(name: str, plan: TablePlan, table: TargetTable) -> Iterator[Finding]:
    if not plan.shape.key or plan.shape.key_is_unique:
        return
    key = quote_list(plan.shape.columns[place].name for place in plan.shape.key)
    message = "no unique index matches the key of the rows: every update and delete may have to read the whole table"
    mend = f"CREATE UNIQUE INDEX CONCURRENTLY ON {table.sql_name} ({key});"
    yield Finding(Severity.WARNING, name, table.qualified_name, message, mend)


def _check_kept(name: str, plan: TablePlan, table: TargetTable) -> Iterator[Finding]:
    """Unique indexes besides the key, where deleted rows stay and stand beside those that come."""
    shape = plan.shape
    if not shape.keeps_deleted:
        return
    key = {shape.columns[place].name for place in shape.key}
    for index in table.unique_keys:
        if set(index.columns) == key:
            continue
        message = (
            f'rows stay there that the source has deleted (deletes = "keep"), and unique index {index.name} refuses '
            "rows that have the same values as one of them"
        )
        mend = None
        if shape.deleted_at is not None:
            noted = quote(shape.columns[shape.deleted_at].name)
            mend = (
                f"CREATE UNIQUE INDEX CONCURRENTLY ON {table.sql_name} ({quote_list(index.columns)}) "
                f"WHERE {noted} IS NULL; -- and drop {index.name}"
            )
        yield Finding(Severity.WARNING, name, table.qualified_name, message, mend)


def _check_firing(name: str, session: Session, table: TargetTable, routed: set[tuple[str, str]]) -> Iterator[Finding]:
    """Triggers that fire for replicated rows, and foreign keys that can refuse them."""
    for trigger in table.triggers:
        if trigger.fires(as_replica=session.triggers_disabled):
            message = f"{trigger.kind} {trigger.name} fires for replicated rows; what it writes is not at the source"
            mend = f"ALTER TABLE {table.sql_name} DISABLE {trigger.kind.upper()} {quote(trigger.name)};"
            yield Finding(Severity.WARNING, name, table.qualified_name, message, mend)
    if session.triggers_disabled:
        return
    for key in table.foreign_keys:
        referenced = f"{key.referenced_schema}.{key.referenced_table}"
        if (key.referenced_schema, key.referenced_table) not in routed:
            message = f"foreign key {key.name} points to {referenced}, which is not replicated: rows can be refused"
            mend = f"ALTER TABLE {table.sql_name} DROP CONSTRAINT {quote(key.name)};"
            yield Finding(Severity.WARNING, name, table.qualified_name, message, mend)
        elif not key.deferrable:
            message = (
                f"foreign key {key.name} is checked row by row: batches that the source wrote in another order are "
                "replayed one change at a time, which is slow"
            )
            mend = f"ALTER TABLE {table.sql_name} ALTER CONSTRAINT {quote(key.name)} DEFERRABLE INITIALLY DEFERRED;"
            yield Finding(Severity.WARNING, name, table.qualified_name, message, mend)
