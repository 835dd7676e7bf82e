"""From what a target asks for, and what the source has, to routes.

`build_routes` is pure: it takes the configuration of one target and the tables of the source, and gives one `Route` per
table that the target gets. It promises that nothing unasked leaves (invariant 7): a route's columns are exactly those
that the configuration lists; only a target with ``columns = "all"`` has routes without a list, and only for tables that
it lists no columns of. A partitioned table goes as a whole: where it is taken, none of its partitions is taken by
itself, and none can be left out. What the configuration names and the source lacks is an error that names it and the
nearest that there is; all errors of a target are reported at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from cdc.config import Config, TableConfig, TargetConfig
from cdc.errors import ConfigurationError
from cdc.routing.patterns import matches, nearest, split
from cdc.routing.route import Route

Partitions = Mapping[str, Sequence[str]]
"""Every table of the source that is a partition, ``schema.table`` to those that it is a partition of, nearest first."""


def build_routes(
    name: str, target: TargetConfig, tables: Mapping[str, Sequence[str]], partitions: Partitions | None = None
) -> tuple[Route, ...]:
    """The routes of one target, in the order of their source tables' names.

    Args:
        name: The target's name, for messages.
        target: What it asks for.
        tables: Every table of the source that could be replicated, ``schema.table`` to its columns.
        partitions: Those of them that are partitions.

    Raises:
        ConfigurationError: a table, column or pattern names nothing of the source.
    """
    ours = {table: columns for table, columns in tables.items() if not is_reserved(split(table)[0])}
    problems: list[str] = []
    taken = _included(name, target, ours, problems)
    for table in target.tables:
        if table in ours:
            taken.add(table)
        else:
            problems.append(_unknown_table(f'targets.{name}.tables."{table}"', table, ours))
    taken -= _parts(name, target, taken, partitions or {}, problems)
    routes = tuple(_route(name, target, table, ours[table], problems) for table in sorted(taken))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return routes


def _parts(
    name: str, target: TargetConfig, taken: Collection[str], partitions: Partitions, problems: list[str]
) -> set[str]:
    """Those of the tables taken that go with the partitioned table that they are a part of."""
    parts = set()
    for table, ancestors in sorted(partitions.items()):
        whole = next((ancestor for ancestor in reversed(ancestors) if ancestor in taken), None)
        if whole is None:
            continue
        parts.add(table)
        if table in target.tables:
            problems.append(
                f'targets.{name}.tables."{table}": it is a partition of {whole}, which goes to this target with all '
                "its partitions: take one of the two out"
            )
        problems.extend(
            f'targets.{name}.exclude: the pattern "{pattern}" covers {table}, a partition of {whole}, which goes as a '
            "whole: exclude that, too, or let its partitions in"
            for pattern in target.exclude
            if matches(pattern, table) and whole not in target.tables
        )
    return parts


def route_of(target: TargetConfig, schema: str, table: str) -> Route | None:
    """The route of one table that the stream has met, by its name alone; `None` when the target does not want it.

    Whether its columns exist is not asked here: the stream describes the past, the configuration was checked against
    the catalog when it was set up (`build_routes`).
    """
    name = f"{schema}.{table}"
    wanted = target.tables.get(name)
    if wanted is None and (
        is_reserved(schema)
        or target.columns == "listed"
        or not any(matches(pattern, name) for pattern in target.include)
        or any(matches(pattern, name) for pattern in target.exclude)
    ):
        return None
    target_schema, target_table = split((wanted and wanted.to) or name)
    columns = None if wanted is None or wanted.columns is None else tuple(wanted.columns.items())
    return Route(schema, table, target_schema, target_table, columns, *_kept(wanted))


def build_all_routes(
    config: Config, tables: Mapping[str, Sequence[str]], partitions: Partitions | None = None
) -> dict[str, tuple[Route, ...]]:
    """The routes of every target, by its name. Raises one `ConfigurationError` for what is wrong with any of them."""
    routes: dict[str, tuple[Route, ...]] = {}
    problems = unknown_modes(config, tables)
    for name, target in config.targets.items():
        try:
            routes[name] = build_routes(name, target, tables, partitions)
        except ConfigurationError as error:
            problems.append(str(error))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return routes


def unknown_modes(config: Config, tables: Collection[str]) -> list[str]:
    """What is wrong with the tables that ``bootstrap.modes`` names."""
    ours = [table for table in tables if not is_reserved(split(table)[0])]
    return [
        _unknown_table(f'bootstrap.modes."{table}" (or BACKUP_MODE)', table, ours)
        for table in config.bootstrap.modes
        if table not in ours
    ]


def is_reserved(schema: str) -> bool:
    """Whether nothing of this schema is ever replicated: `cdc`'s own, and the system's (``pg_`` and the standard's).

    Its own are also those where it loads tables beside others (`cdc.routing.target_routes`).
    """
    return schema in ("cdc", "information_schema") or schema.startswith(("pg_", "cdc_new_", "cdc_old_"))


def _included(name: str, target: TargetConfig, tables: Collection[str], problems: list[str]) -> set[str]:
    """The tables that ``include`` takes and ``exclude`` leaves; an ``include`` pattern that takes none is a mistake."""
    taken: set[str] = set()
    for pattern in target.include:
        covered = {table for table in tables if matches(pattern, table)}
        if not covered:
            problems.append(
                f'targets.{name}.include: the pattern "{pattern}" matches no table of the source'
                + _suggestion(pattern, tables)
            )
        taken |= covered
    return {table for table in taken if not any(matches(pattern, table) for pattern in target.exclude)}


def _route(name: str, target: TargetConfig, table: str, columns: Sequence[str], problems: list[str]) -> Route:
    wanted = target.tables.get(table)
    mapping = None if wanted is None else wanted.columns
    if mapping is None and target.columns == "listed":
        problems.append(f"targets.{name}: {table} lists no columns, and this target gets listed columns only")
        mapping = {}
    for column in mapping or ():
        if column not in columns:
            guess = nearest(column, columns)
            problems.append(
                f'targets.{name}.tables."{table}": the source\'s table has no column "{column}"'
                + (f'; did you mean "{guess}"?' if guess else f"; it has {', '.join(columns)}")
            )
    schema, table_name = split(table)
    target_schema, target_table = split((wanted and wanted.to) or table)
    if is_reserved(target_schema):
        problems.append(f'targets.{name}.tables."{table}": nothing can be routed into the schema {target_schema}')
    pairs = None if mapping is None else tuple(mapping.items())
    route = Route(schema, table_name, target_schema, target_table, pairs, *_kept(wanted))
    if route.deleted_at is not None and pairs is None and route.deleted_at in columns:
        problems.append(
            f'targets.{name}.tables."{table}": deleted_at = "{route.deleted_at}" is a column of the source\'s table; '
            "name one that it does not have"
        )
    return route


def _kept(wanted: TableConfig | None) -> tuple[bool, str | None]:
    """Whether deleted rows stay, and the column that notes when they were deleted."""
    return (False, None) if wanted is None else (wanted.deletes == "keep", wanted.deleted_at)


def _unknown_table(where: str, table: str, tables: Collection[str]) -> str:
    if is_reserved(split(table)[0]):
        return f"{where}: tables of the schema {split(table)[0]} are never replicated"
    return f"{where}: the source has no table {table}{_suggestion(table, tables)}"


def _suggestion(table: str, tables: Collection[str]) -> str:
    guess = nearest(table, tables)
    return f'; did you mean "{guess}"?' if guess else "" if tables else " (its role may see none at all)"
