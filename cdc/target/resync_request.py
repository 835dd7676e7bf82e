"""Requests to read one table of a target again: rows of ``cdc.resync``.

`cdc resync` writes a request and follows it; the worker that owns the target serves it. A request that is open is
served until it is done or has failed, by whichever worker owns the target, also after a crash: everything that is
needed to go on is in the row, and in the tables that stand beside it (`cdc.target.merge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cdc import statements
from cdc.lsn import Lsn
from cdc.target import run_record
from cdc.target.merge import ResyncTables, drop
from cdc.target.session import Session, target_errors
from cdc.target.table_state import TableName

ASKED, WAITING, READING, SWEEPING = "asked", "waiting", "reading", "sweeping"
COPYING, FINISHING, SHADOW, DONE, FAILED = "copying", "finishing", "shadow", "done", "failed"

IN_CHUNKS = (WAITING, READING, SWEEPING)
"""The states of a request whose table is in overlap."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; the columns' comments in sql/target/0005_resync.sql say what each means."""

    request: int
    source_schema: str
    source_table: str
    state: str
    way: str | None
    reason: str | None
    mend: str | None
    says: str | None
    max_rows_per_second: int | None
    source_oid: int | None
    near_xid: int | None
    key_form: str | None
    chunk_count: int
    row_count: int
    estimated_rows: int | None
    sweep_after: int
    consistent_from: Lsn | None
    run: int | None
    asked_at: datetime
    by_itself: bool
    partitions_only: bool
    within: str | None

    @property
    def table(self) -> str:
        """``schema.table`` at the source, unquoted."""
        return f"{self.source_schema}.{self.source_table}"

    @property
    def source(self) -> TableName:
        """Schema and name at the source."""
        return self.source_schema, self.source_table

    @property
    def is_swapped(self) -> bool:
        """Whether it was built beside, and stands in the table's place already."""
        return self.state == SHADOW and self.consistent_from is not None

    @property
    def sentence(self) -> str:
        """What happens to it now, or what is waited for."""
        if self.says is not None:
            return self.says
        match self.state:
            case "asked":
                return "asked for; waiting for the worker"
            case "shadow" if self.is_swapped:
                return "its new table is in place; where `cdc resync` was ended, run it again to finish the rest"
            case "shadow":
                return "`cdc resync` builds it beside and swaps it in; where it was ended, run it again"
            case "copying":
                return f"it is read whole, because {self.reason}"
            case "sweeping":
                return "every row was read; some are read once more"
            case "finishing":
                return "the rows are in; its indexes are built"
            case _:
                return "it is read in the order of its key"

    @property
    def is_over(self) -> bool:
        """Whether nobody serves it any more."""
        return self.state in (DONE, FAILED)


async def ask(
    session: Session,
    pipeline: str,
    source: TableName,
    max_rows_per_second: int | None,
    *,
    by_itself: bool = False,
    partitions_only: bool = False,
) -> int:
    """Ask for a table to be read again; returns the number of the request.

    Where one is open for this table already it is that one's, which takes over the pace. ``by_itself`` is said by the
    worker. ``partitions_only``: what partitions hold that were attached or detached is enough.
    """
    with target_errors("asking for a resync", session.where):
        return int(
            await session.connection.fetchval(
                statements.load("target", "ask_resync"),
                pipeline,
                *source,
                max_rows_per_second,
                by_itself,
                partitions_only,
            )
        )


async def read(session: Session, request: int) -> Request | None:
    """One request; `None` when there is none of that number."""
    with target_errors("reading a request", session.where):
        row = await session.connection.fetchrow(f"{_SELECT} WHERE request = $1", request)
    return None if row is None else _request(row)


async def next_open(session: Session, pipeline: str, states: Sequence[str]) -> Request | None:
    """The oldest request that is in one of ``states``."""
    with target_errors("reading requests", session.where):
        row = await session.connection.fetchrow(
            f"{_SELECT} WHERE pipeline = $1 AND state = ANY ($2::text[]) ORDER BY state = '{ASKED}', request LIMIT 1",
            pipeline,
            list(states),
        )
    return None if row is None else _request(row)


async def read_open(session: Session, pipeline: str) -> list[Request]:
    """The requests that are not over, in the order in which they were made."""
    with target_errors("reading requests", session.where):
        rows = await session.connection.fetch(
            f"{_SELECT} WHERE pipeline = $1 AND finished_at IS NULL ORDER BY request", pipeline
        )
    return [_request(row) for row in rows]


async def claim_building(session: Session, pipeline: str) -> bool:
    """Become the one who builds tables of this target beside others, as long as the session lasts.

    False while somebody else is that. It only spares two commands from taking the target from each other again and
    again; what keeps a load right is its fence.
    """
    with target_errors("claiming a load", session.where):
        return bool(
            await session.connection.fetchval(
                "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('cdc resync ' || $1, 0))", pipeline
            )
        )


async def record(session: Session, request: int, **values: object) -> None:
    """Set columns of a request; ``state`` done or failed ends it."""
    names = list(values)
    sets = [f"{name} = ${number}{_CASTS.get(name, '')}" for number, name in enumerate(names, 2)]
    if values.get("state") in (DONE, FAILED):
        sets.append("finished_at = pg_catalog.clock_timestamp(), says = NULL")
    with target_errors("recording a request", session.where):
        await session.connection.execute(
            f"UPDATE cdc.resync SET {', '.join(sets)} WHERE request = $1 AND finished_at IS NULL",
            request,
            *values.values(),
        )


async def record_merged(session: Session, tables: ResyncTables, rows: int, *, state: str) -> Request:
    """A chunk was merged, in the transaction that is open; returns the request as it is now."""
    with target_errors("recording a request", session.where):
        await session.connection.execute(
            "UPDATE cdc.resync SET chunk_count = chunk_count + 1, row_count = row_count + $2, state = $3, says = NULL,"
            f" sweep_after = (SELECT coalesce(max(ordinal), 0) FROM {tables.again}) WHERE request = $1",
            tables.request,
            rows,
            state,
        )
    found = await read(session, tables.request)
    assert found is not None  # it was updated just now
    return found


async def fail(session: Session, request: Request, reason: str, mend: str | None) -> None:
    """The request cannot be served, in the transaction that is open.

    A table that is in overlap must not stay in it: whoever owns the target stops it in the same transaction.
    """
    with target_errors("recording a request", session.where):
        await record(session, request.request, state=FAILED, reason=reason, mend=mend)
        await session.connection.execute(drop(request.request))
        await end_run(session, request, reason)


async def end_overlap(session: Session, pipeline: str, request: Request, tables: ResyncTables, at: Lsn) -> None:
    """The table is exactly the source's from ``at`` on, in the transaction that is open."""
    with target_errors("recording a request", session.where):
        await session.connection.execute(
            "UPDATE cdc.target_table SET state = 'streaming', consistent_from = $4::text::pg_lsn WHERE pipeline = $1"
            " AND source_schema = $2 AND source_table = $3 AND state = 'overlap'",
            pipeline,
            *request.source,
            str(at),
        )
        await session.connection.execute(drop(tables.request))
    await record(session, tables.request, consistent_from=str(at))


async def begin_run(session: Session, pipeline: str, target: str) -> int:
    """Record for `cdc report` that a request is being served; returns the number of the run."""

    async def ready() -> Session:
        return session

    return (await run_record.begin_run(ready, pipeline, target, "resync")).run


async def end_run(session: Session, request: Request, outcome: str) -> None:
    """Record how that ended, with the rows as its one step."""
    if request.run is None:
        return
    with target_errors("recording the end of the run", session.where):
        await session.connection.execute(
            statements.load("target", "end_resync_run"), request.request, request.run, outcome
        )


_CASTS = {"consistent_from": "::text::pg_lsn"}

_SELECT = (
    "SELECT request, source_schema, source_table, state, way, reason, mend, says, max_rows_per_second, source_oid,"
    " near_xid, key_form,"
    " chunk_count, row_count, estimated_rows, sweep_after, consistent_from::text, run, asked_at,"
    " by_itself, partitions_only, within FROM cdc.resync"
)


def _request(row: object) -> Request:
    values = dict(row)  # type: ignore[call-overload]  # asyncpg's record is a mapping that its types do not say
    lsn = values["consistent_from"]
    return Request(**{**values, "consistent_from": None if lsn is None else Lsn.parse(lsn)})
