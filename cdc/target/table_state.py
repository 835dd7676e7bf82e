"""The state of each table of a target: rows of ``cdc.target_table``.

A table is mostly where its target is, and then its ``position`` here is NULL. It has a position of its own in two
cases: ahead of the target after its load (it holds everything up to ``consistent_from``), and behind it when it stopped
alone and when it catches up afterwards. A change of the table at ``commit_lsn`` is to be applied if and only if the
table is streaming or in overlap, and ``commit_lsn >= coalesce(table's position, target's position)`` (why:
`cdc.service.positions`).

A table in overlap holds rows of a backup, and changes that they may hold already are applied over them. At the cut-over
of its target it becomes strict, or, where it stands behind the others, is given up: it can only be copied then.

Everything here runs in whatever transaction the session is in. What decides what is applied (`stop`, `resume`, the
positions) belongs into a transaction that ends with ``cdc.advance``, so that only the owner of the target can commit
it. What every batch may need is SQL text, to travel with that end in one round trip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cdc import statements
from cdc.identifiers import quote_literal
from cdc.lsn import Lsn
from cdc.routing.route import Route
from cdc.target.session import Session, target_errors

_GIVEN_UP = (
    "state = 'copying', position = NULL, consistent_from = NULL, mend = NULL, sqlstate = NULL, stopped_at = NULL,"
    " stopped_in_overlap = false"
)


@dataclass(frozen=True, slots=True)
class TableState:
    """One row of ``cdc.target_table``; the columns' comments in sql/target/0001_schema.sql say what each means."""

    source_schema: str
    source_table: str
    target_schema: str
    target_table: str
    state: str
    position: Lsn | None
    consistent_from: Lsn | None
    reason: str | None
    mend: str | None
    sqlstate: str | None
    stopped_at: datetime | None
    inserted: int
    updated: int
    deleted: int
    truncated: int
    created_by_cdc: bool
    source_oid: int | None
    source_filenode: int | None
    source_attributes: int | None
    stopped_in_overlap: bool

    @property
    def is_overlap(self) -> bool:
        """Whether its changes are applied in overlap mode, now or when it goes on."""
        return self.state == "overlap" or (self.state == "stopped" and self.stopped_in_overlap)

    @property
    def source_name(self) -> str:
        """``schema.table`` at the source, unquoted."""
        return f"{self.source_schema}.{self.source_table}"

    @property
    def target_name(self) -> str:
        """``schema.table`` at the target, unquoted."""
        return f"{self.target_schema}.{self.target_table}"


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Rows that were inserted, updated and deleted, and how often a table was truncated."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    truncated: int = 0

    def __add__(self, more: RowCounts) -> RowCounts:
        return RowCounts(
            self.inserted + more.inserted,
            self.updated + more.updated,
            self.deleted + more.deleted,
            self.truncated + more.truncated,
        )


TableName = tuple[str, str]
"""Schema and name of a table at the source."""


async def read(session: Session, pipeline: str) -> list[TableState]:
    """All tables of a pipeline's target, by name."""
    with target_errors("reading the state of the tables", session.where):
        rows = await session.connection.fetch(statements.load("target", "read_tables"), pipeline)
    return [
        TableState(**{**row, "position": _lsn(row["position"]), "consistent_from": _lsn(row["consistent_from"])})
        for row in rows
    ]


async def mark_copying(
    session: Session,
    pipeline: str,
    route: Route,
    *,
    source_oid: int | None = None,
    source_filenode: int | None = None,
    source_attributes: int | None = None,
    created_by_cdc: bool = False,
) -> None:
    """The table's first load begins, or begins again; its counters start from zero.

    What is not given of the source's table (``pg_class.oid``, its file, the number of its attributes, dropped ones
    included) stays as it was recorded.
    """
    await _mark(
        session, pipeline, route, "copying", None, created_by_cdc, source_oid, source_filenode, source_attributes
    )


async def mark_overlap(
    session: Session,
    pipeline: str,
    route: Route,
    *,
    source_oid: int | None = None,
    source_filenode: int | None = None,
    source_attributes: int | None = None,
    created_by_cdc: bool = False,
) -> None:
    """The table's rows are in, and may hold some of what the stream will bring from its target's position on.

    Call it only where the target's position is one from which the stream makes the table whole. What is not given of
    the source's table stays as it was recorded.
    """
    await _mark(
        session, pipeline, route, "overlap", None, created_by_cdc, source_oid, source_filenode, source_attributes
    )


async def mark_streaming(
    session: Session,
    pipeline: str,
    route: Route,
    *,
    consistent_from: Lsn | None,
    source_oid: int | None = None,
    created_by_cdc: bool = False,
) -> None:
    """The table has been loaded from a snapshot at ``consistent_from``, and holds everything up to there.

    `None`: it stands where its target stands. ``source_oid`` is the oid of the table that it was loaded from; it stays
    when it is not given, and ``created_by_cdc`` stays true once it was said.
    """
    await _mark(session, pipeline, route, "streaming", consistent_from, created_by_cdc, source_oid, None)


async def stop(
    session: Session,
    pipeline: str,
    route: Route,
    *,
    position: Lsn,
    reason: str,
    mend: str | None = None,
    sqlstate: str | None = None,
) -> None:
    """Stop one table, which holds everything up to ``position``. ``reason`` is a sentence without values."""
    with target_errors(f"stopping table {route.target_name}", session.where):
        await session.connection.execute(
            statements.load("target", "stop_table"), pipeline, *_names(route), str(position), reason, mend, sqlstate
        )


async def resume_in_overlap(session: Session, pipeline: str, source: TableName) -> None:
    """Let a stopped table be in overlap when it goes on, from the position that it holds."""
    with target_errors(f"recording table {'.'.join(source)}", session.where):
        await session.connection.execute(
            "UPDATE cdc.target_table SET stopped_in_overlap = true"
            " WHERE pipeline = $1 AND source_schema = $2 AND source_table = $3 AND state = 'stopped'",
            pipeline,
            *source,
        )


async def resume(session: Session, pipeline: str, source: TableName) -> None:
    """Let a stopped table go on from the position that it holds, in overlap where it was in that."""
    with target_errors(f"resuming table {'.'.join(source)}", session.where):
        await session.connection.execute(
            "UPDATE cdc.target_table SET state = CASE WHEN stopped_in_overlap THEN 'overlap' ELSE 'streaming' END,"
            " reason = NULL, mend = NULL, sqlstate = NULL, stopped_at = NULL, stopped_in_overlap = false"
            " WHERE pipeline = $1 AND source_schema = $2 AND source_table = $3 AND state = 'stopped'",
            pipeline,
            *source,
        )


async def forget(session: Session, pipeline: str, source: TableName) -> None:
    """Forget a table that has left the configuration; its rows stay where they are."""
    with target_errors(f"forgetting table {'.'.join(source)}", session.where):
        await session.connection.execute(
            "DELETE FROM cdc.target_table WHERE pipeline = $1 AND source_schema = $2 AND source_table = $3",
            pipeline,
            *source,
        )


def position_sql(pipeline: str, source: TableName, position: Lsn | None) -> str:
    """Move the own position of a table; `None` gives it up: the table stands where its target stands."""
    schema, name = source
    return (
        f"UPDATE cdc.target_table SET position = {'NULL' if position is None else quote_literal(str(position))}"
        f" WHERE pipeline = {quote_literal(pipeline)} AND source_schema = {quote_literal(schema)}"
        f" AND source_table = {quote_literal(name)}"
    )


def count_sql(pipeline: str, counts: Mapping[TableName, RowCounts]) -> str:
    """Add to the counters of several tables, made as one statement; ``counts`` must not be empty."""
    rows = ", ".join(
        f"({quote_literal(schema)}, {quote_literal(name)}, {c.inserted}, {c.updated}, {c.deleted}, {c.truncated})"
        for (schema, name), c in sorted(counts.items())
    )
    return (
        "UPDATE cdc.target_table t SET inserted = t.inserted + c.inserted, updated = t.updated + c.updated,"
        " deleted = t.deleted + c.deleted, truncated = t.truncated + c.truncated"
        f" FROM (VALUES {rows}) AS c (schema, name, inserted, updated, deleted, truncated)"
        f" WHERE t.pipeline = {quote_literal(pipeline)} AND t.source_schema = c.schema AND t.source_table = c.name"
    )


def cut_over_sql(pipeline: str) -> str:
    """The tables of a target that has just become exactly consistent, made as one text of two statements.

    Those in overlap stream from now on; those that were in overlap and stand behind the target can never be joined to
    the stream without a gap: they are to be copied, and keep their reason until then. To be sent after the tables'
    positions and before the target's.
    """
    where = f"WHERE pipeline = {quote_literal(pipeline)}"
    return (
        f"UPDATE cdc.target_table SET state = 'streaming' {where} AND state = 'overlap' AND position IS NULL; "
        f"UPDATE cdc.target_table SET {_GIVEN_UP} {where}"
        " AND (state = 'overlap' OR (state = 'stopped' AND stopped_in_overlap))"
    )


async def give_up(session: Session, pipeline: str, tables: Sequence[TableName]) -> None:
    """Leave tables out of the stream, as if their load had never finished: they hold nothing that counts."""
    with target_errors("leaving out tables", session.where):
        for schema, name in tables:
            await session.connection.execute(
                f"UPDATE cdc.target_table SET {_GIVEN_UP}, reason = NULL"
                " WHERE pipeline = $1 AND source_schema = $2 AND source_table = $3",
                pipeline,
                schema,
                name,
            )


async def _mark(
    session: Session,
    pipeline: str,
    route: Route,
    state: str,
    position: Lsn | None,
    created_by_cdc: bool,
    source_oid: int | None,
    source_filenode: int | None = None,
    source_attributes: int | None = None,
) -> None:
    with target_errors(f"recording table {route.target_name}", session.where):
        await session.connection.execute(
            statements.load("target", "mark_table"),
            pipeline,
            *_names(route),
            state,
            None if position is None else str(position),
            created_by_cdc,
            source_oid,
            source_filenode,
            source_attributes,
        )


def _names(route: Route) -> tuple[str, str, str, str]:
    return route.source_schema, route.source_table, route.target_schema, route.target_table


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else Lsn.parse(text)
