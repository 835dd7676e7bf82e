"""A whole target transaction in one round trip.

Everything of a batch, from BEGIN to COMMIT, goes as one query string, the rows of its COPYs right behind it, without
waiting for an answer in between (PostgreSQL's manual, "Message Flow": the statements of a simple query are executed
one after the other, and after an error none of the rest; a server that is not, or no more, inside of a COPY ignores
what still comes of its rows). So nobody can look at what a statement has done before the next one runs, and the server
itself must not reach the COMMIT unless all is as it should be:

- a statement that moves staged rows divides by zero unless it changes as many rows as were staged for it;
- a COPY writes the rows that it is sent, all of them, into a staging table or a table of which no trigger of ours to
  fire can leave one out: that the table is still such a one is part of its version (`cdc.target.table_version`);
- the versions of the tables are checked behind the rows, for the locks that those took, and the constraints that were
  deferred; the position moves last (``cdc.advance``).

What goes wrong this way is not looked into: the transaction is rolled back, and the same batch is applied step by step
(`cdc.target.applier.Applier.apply`), which finds out. An error that passes (no connection, a lock) is raised, as it
would be then. So this way decides nothing, it only saves the time of asking.

Few rows are moved by statements that are prepared once a session. Their plan is generic: each staged row finds its row
by the index that keeps the key unique, whatever the table's size, and whatever its size was when the plan was made
(`_BY_INDEX`). For `MANY_ROWS` and more the statement is planned anew, and may as well read the table.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import asyncpg

from cdc.identifiers import quote_list, quote_qualified
from cdc.target import table_version
from cdc.target.table_shape import TableShape
from cdc.target.writing import Change

MANY_ROWS = 1_000
"""From how many staged rows on a statement is planned anew, which takes 0.1 to 0.3 ms. To find as many by the index
takes some ms; a table that is read whole instead may take minutes."""

MOST_PREPARED = 1_000
"""How many statements a session keeps prepared: each takes some 10 kB of the server's memory. There is one for each
shape, kind of change, and set of columns that were not sent, and nothing bounds the sets."""

_BY_INDEX = "".join(
    f"; SET LOCAL {name} TO {value}"
    for name, value in {
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
    }.items()
)
_AS_PLANNED = "".join(
    f"; SET LOCAL {name} TO DEFAULT"
    for name in ("plan_cache_mode", "enable_seqscan", "enable_hashjoin", "enable_mergejoin")
)
"""How the statements behind are planned. A prepared one keeps its plan, but PostgreSQL makes it anew when something
about its tables has changed, so the settings are there whenever one is executed."""

_COPY_DONE = b"c\x00\x00\x00\x04"


class NotTogether(Exception):
    """This batch needs to know what a statement has done before it sends the next one. Control flow."""


class PreparedStatements:
    """The names of what one session has prepared."""

    def __init__(self) -> None:
        self._names: dict[object, str] = {}
        self._new: dict[object, str] = {}
        self._made = 0

    def name(self, key: object) -> str | None:
        """The statement prepared for ``key``."""
        return self._names.get(key) or self._new.get(key)

    @property
    def is_full(self) -> bool:
        """Whether there are as many as there may be."""
        return len(self._names) + len(self._new) >= MOST_PREPARED

    def add(self, key: object) -> str:
        """A name for a statement that is about to be prepared."""
        self._made += 1
        name = self._new[key] = f"cdc_{self._made}"
        return name

    def keep(self) -> None:
        """What was about to be prepared has been."""
        self._names |= self._new
        self._new.clear()

    def give_up(self) -> None:
        """Nothing was sent of what was about to be prepared."""
        self._new.clear()

    def forget(self) -> str:
        """A statement that drops all, for when it is not known how far the server has come."""
        self._names.clear()
        self._new.clear()
        return "DEALLOCATE ALL"


class Together:
    """Collects the statements of one target transaction, and sends them."""

    def __init__(self, prepared: PreparedStatements) -> None:
        self._prepared = prepared
        self._statements = ["BEGIN"]
        self._rows: list[AsyncIterator[bytes]] = []
        self._by_index = False
        self._defers = False

    def defer(self) -> None:
        """Let constraints that can be deferred speak at the end only."""
        self._defers = True
        self._statements.append("SET CONSTRAINTS ALL DEFERRED")

    def first(self, sql: str) -> None:
        """Execute a statement, of which nothing is to be known, before the others."""
        self._statements.insert(1, sql)

    async def copy(
        self, shape: TableShape, into: tuple[str, str], columns: Sequence[str], rows: AsyncIterator[bytes], count: int
    ) -> None:
        """Add a COPY. Raises `NotTogether` where its count would have to be compared."""
        if into == (shape.schema, shape.name) and shape.counts_copies:
            raise NotTogether
        self._statements.append(f"COPY {quote_qualified(*into)} ({quote_list(columns)}) FROM STDIN (FORMAT binary)")
        self._rows.append(rows)

    async def change(self, change: Change, stage: str, low: int, high: int) -> None:
        """Add a statement that moves staged rows, and fails unless it does so with each."""
        shape, count = change.shape, high - low + 1
        if not shape.key_is_unique:
            raise NotTogether
        # What somebody's triggers ask is planned as he is used to.
        name = None if count >= MANY_ROWS or shape.fired else self._name(change, stage)
        if name is not None:
            self._plan_by_index(True)
            self._statements.append(f"EXECUTE {name}({low}, {high}, {count})")
            return
        sql = _counted(change, change.sql(stage, low, high), str(count))
        if sql is not None:
            self._plan_by_index(False)
            self._statements.append(sql)

    async def send(
        self, connection: asyncpg.Connection, tables: Mapping[table_version.Name, str], end: Iterable[str]
    ) -> None:
        """Send all of it, check that ``tables`` have these versions, and COMMIT behind the statements of ``end``.

        Durable when it returns. Raises the driver's errors, and what the encoding of rows raises. Afterwards nothing is
        committed, unless the connection was lost: then it is in doubt.
        """
        for table, version in tables.items():
            self._check_version(table, version)
        if self._defers:
            self._statements.append("SET CONSTRAINTS ALL IMMEDIATE")
        text = "; ".join([*self._statements, *end, "COMMIT"])
        tag = await _send(connection, text, self._rows)
        if tag != "COMMIT":
            raise asyncpg.InternalClientError("a query string did not end with COMMIT")
        self._prepared.keep()

    def _check_version(self, table: table_version.Name, version: str) -> None:
        sql = table_version.check_to_prepare(table, version)
        check = self._prepared.name(sql)
        if check is None and not self._prepared.is_full:
            check = self._prepared.add(sql)
            self._statements.append(f"PREPARE {check} AS {sql}")
        self._statements.append(sql if check is None else f"EXECUTE {check}")

    def _name(self, change: Change, stage: str) -> str | None:
        """The name of the prepared statement, which is prepared on the way where it is missing."""
        name = self._prepared.name(change)
        if name is None and not self._prepared.is_full:
            sql = _counted(change, change.sql(stage, "$1", "$2"), "$3")
            if sql is not None:
                name = self._prepared.add(change)
                self._statements.append(f"PREPARE {name} (int8, int8, int8) AS {sql}")
        return name

    def _plan_by_index(self, by_index: bool) -> None:
        if by_index is not self._by_index:
            self._by_index = by_index
            self._statements[-1] += _BY_INDEX if by_index else _AS_PLANNED


def _counted(change: Change, sql: str | None, count: str) -> str | None:
    """The statement, failing unless it changes ``count`` rows, or at most as many where it may fall short."""
    if sql is None:
        return None
    compare = "<=" if change.may_fall_short else "="
    return (
        f"WITH changed AS ({sql} RETURNING 1) "
        f"SELECT 1 / (CASE WHEN count(*) {compare} {count} THEN 1 ELSE 0 END) FROM changed"
    )


async def _send(connection: asyncpg.Connection, text: str, copies: Sequence[AsyncIterator[bytes]]) -> str:
    """Send a query string and the rows of its COPYs in one go; returns the last command tag.

    asyncpg sends a COPY in one go, too, and hands on whatever text it is given, but has no public call for it. It ends
    the last COPY; those before are ended here.
    """
    if not copies:
        return str(await connection.execute(text))
    inside: Any = connection

    async def rows() -> AsyncIterator[bytes]:
        for number, copy in enumerate(copies):
            if number:
                inside._transport.write(_COPY_DONE)
            async for chunk in copy:
                yield chunk

    return str(await inside._protocol.copy_in(text, rows(), None, None, None, None))
