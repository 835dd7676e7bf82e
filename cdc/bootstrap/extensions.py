"""Extensions that a target lacks although its tables, indexes or checks use them: found before anything is loaded.

An extension is looked for by its name. What uses one is known from the source's catalog (``pg_depend``): types of
routed columns, operator classes and functions of indexes, functions of checks. Views are not looked at: one that cannot
be made is a warning when its turn comes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from cdc.config import Config
from cdc.errors import SetupError
from cdc.identifiers import quote
from cdc.routing.route import Route
from cdc.source.catalog import read_tables
from cdc.source.connection import Connection
from cdc.source.definitions import TableDefinitions, read_definitions, read_extension_schemas
from cdc.target.session import Session, target_errors


async def require_extensions(
    config: Config, connection: Connection, targets: Mapping[str, tuple[Session, Sequence[Route]]]
) -> list[str]:
    """See that each target, by its name, has the extensions that what its routes lead to needs.

    ``connection`` leads to the source. Only targets that follow are looked at: what an owned one needs, it has. Raises
    one `SetupError` for all that is missing, with the statements that create it; with ``bootstrap.missing_extensions =
    "skip"`` only for what columns need, because a column can only be left out by the configuration. Returns a warning
    for each extension whose indexes and checks are left out.
    """
    followed = {name: there for name, there in targets.items() if config.targets[name].follows}
    names = {route.source_name for _, routes in followed.values() for route in routes}
    tables = {table.name: table.relation.oid for table in await read_tables(connection, names)}
    definitions = await read_definitions(connection, list(tables.values()))
    schemas = await read_extension_schemas(connection)
    refused: list[str] = []
    warnings: list[str] = []
    sql: list[str] = []
    for target, (session, routes) in followed.items():
        needs_of_columns: dict[str, list[str]] = {}
        needs: dict[str, list[str]] = {}
        for route in routes:
            if route.source_name in tables:
                found = definitions[tables[route.source_name]]
                _collect(route, found, needs_of_columns, needs)
        lacking = await _lacking(session, {*needs_of_columns, *needs})
        for extension in lacking:
            users = [*needs_of_columns.get(extension, ()), *needs.get(extension, ())]
            message = (
                f"target {target} lacks the extension {extension}, which the source has for "
                f"{', '.join(users[:_SHOWN])}{' and others' if len(users) > _SHOWN else ''}"
            )
            schema = schemas[extension]
            if extension in needs_of_columns or config.bootstrap.missing_extensions == "refuse":
                refused.append(message)
                sql.append(
                    f"CREATE SCHEMA IF NOT EXISTS {quote(schema)};"
                    f" CREATE EXTENSION {quote(extension)} SCHEMA {quote(schema)};  -- target {target}"
                )
            else:
                warnings.append(f"{message}: they are left out")
    if refused:
        raise SetupError(". ".join([*refused, _ADVICE]), sql="\n".join(sql))
    return warnings


_SHOWN = 3
"""Names that a message lists."""

_ADVICE = (
    'Create them; or leave out the indexes and checks that need them (bootstrap.missing_extensions = "skip"), and list '
    "the columns of a table without those whose types need them"
)


def _collect(
    route: Route, found: TableDefinitions, needs_of_columns: dict[str, list[str]], needs: dict[str, list[str]]
) -> None:
    """Note who needs which extension, of what the route's table gets."""
    for column, extension in found.column_extensions:
        if route.target_column(column) is not None:
            needs_of_columns.setdefault(extension, []).append(f"column {column} of {route.source_name}")
    parts = [("index", index.name, index.reads, index.extensions) for index in found.indexes]
    parts += [("check", check.name, check.reads, check.extensions) for check in found.checks]
    for kind, name, reads, extensions in parts:
        if all(route.target_column(column) is not None for column in reads):
            for extension in extensions:
                needs.setdefault(extension, []).append(f"{kind} {name} of {route.source_name}")


async def _lacking(session: Session, extensions: Collection[str]) -> list[str]:
    with target_errors("looking for extensions", session.where):
        rows = await session.connection.fetch(
            "SELECT w.name FROM unnest($1::text[]) AS w (name)"
            " WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_extension e WHERE e.extname = w.name) ORDER BY 1",
            sorted(extensions),
        )
    return [row["name"] for row in rows]
