"""Waiting until every transaction that is older than now has ended.

A change that a slot, a publication or our own bookkeeping missed because it was made a moment too early is one of a
transaction that was running at that moment. Such a change can be found nowhere: the stream does not carry it, and a
snapshot taken now does not show it. `wait_until_visible` closes that gap: when it returns, every snapshot that is taken
afterwards on the same server shows all transactions that had begun to write before it was called (DESIGN section 7).

What counts as ended is what snapshots go by, not the commit record: a transaction whose commit waits for a synchronous
standby, or that is prepared, is still running (hazard 22).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cdc import statements
from cdc.errors import SourceUnavailable
from cdc.source.connection import Connection, source_errors

POLL_S = 0.2
"""How often the oldest running transaction is asked for: a query of microseconds that takes no lock."""

SAY_AGAIN_S = 30.0
"""How often a wait for the same transactions is said again, so that a log shows that it goes on."""

NAMED = 5
"""How many transactions a message names; a busy source has hundreds, and only the oldest are what is waited for."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A transaction that is waited for: that of a session, a prepared one (``gid``), or neither: it is just ending.

    ``age_s`` is seconds since it began or was prepared. Fields that the role may not read are `None`.
    """

    xid: int
    pid: int | None
    application_name: str | None
    user: str | None
    database: str | None
    state: str | None
    waits_for_standby: bool | None
    gid: str | None
    gid_database: str | None
    age_s: float | None

    def __str__(self) -> str:
        since = "" if self.age_s is None else f", {_duration(self.age_s)}"
        if self.gid is not None:
            return f"prepared transaction '{self.gid}' of database {self.gid_database}{since}"
        if self.pid is None:
            return f"transaction {self.xid}"
        facts = [self.application_name or None, self.user, self.database, self.state]
        if self.waits_for_standby:
            facts.append("its COMMIT waits for a synchronous standby")
        return f"session {self.pid} ({', '.join(fact for fact in facts if fact)}{since})"


async def wait_until_visible(
    connection: Connection,
    say: Callable[[str], None],
    *,
    poll_s: float = POLL_S,
    say_again_s: float = SAY_AGAIN_S,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Wait until all transactions that had a transaction id when this was called have ended.

    ``connection`` is in autocommit mode, outside of a transaction, on the primary. Waits for ever, because only a
    person can end a forgotten transaction; ``say`` is told what is waited for, when that changes and every
    ``say_again_s`` seconds, in sentences without row values. ``meanwhile`` is called at each look. Returns the
    transaction id (64 bits) below which everything has ended. Nothing is left behind at the source after a
    cancellation.

    Source: PostgreSQL's manual, "Transaction ID and Snapshot Information Functions".
    """
    xid = await current_xid(connection)
    said: tuple[int, ...] = ()
    said_at = -say_again_s
    is_patient = False
    while True:
        with source_errors("say which transactions are running"):
            cursor = await connection.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
            row = await cursor.fetchone()
        if row is not None and row[0] > xid:
            return xid
        if is_patient:  # most waits end within one poll, and are not worth a word
            unfinished = await read_unfinished(connection, xid)
            named = tuple(transaction.xid for transaction in unfinished[:NAMED])
            if named and (named != said or time.monotonic() - said_at >= say_again_s):
                say(describe(unfinished))
                said, said_at = named, time.monotonic()
        is_patient = True
        if meanwhile is not None:
            await meanwhile()
        await asyncio.sleep(poll_s)


async def current_xid(connection: Connection) -> int:
    """Draw a transaction id, 64 bits wide, in a transaction of its own that is over when this returns."""
    with source_errors("draw a transaction id"):
        cursor = await connection.execute("SELECT pg_current_xact_id()::text::bigint")
        row = await cursor.fetchone()
    if row is None:
        raise SourceUnavailable("the source did not give a transaction id")
    return int(row[0])


async def read_unfinished(connection: Connection, xid: int) -> list[Unfinished]:
    """The transactions with ids up to ``xid`` (64 bits) that have not ended, oldest first."""
    with source_errors("say which transactions are running"):
        cursor = await connection.execute(statements.load("source", "unfinished_transactions"), {"xid": str(xid)})
        return [Unfinished(*row) for row in await cursor.fetchall()]


def describe(unfinished: Sequence[Unfinished]) -> str:
    """One sentence that names what is waited for, and the SQL where only a person can help."""
    named = ", ".join(str(transaction) for transaction in unfinished[:NAMED])
    more = f" and {len(unfinished) - NAMED} more" if len(unfinished) > NAMED else ""
    mend = "; end a prepared one with COMMIT PREPARED or ROLLBACK PREPARED" if any(u.gid for u in unfinished) else ""
    return f"waiting until what was begun before has ended at the source: {named}{more}{mend}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"for {seconds:.0f} s"
    return f"for {seconds / 60:.0f} min" if seconds < 7200 else f"for {seconds / 3600:.0f} h"
