"""Databases for tests: a fresh one with a connection of the test's own, and everything in it dropped afterwards.

The methods of `Database` block, so that tests read as a list of statements. A statement that waits for a lock held by
code of the same event loop would wait for ever: it fails after `LOCK_TIMEOUT_S` instead. For a connection that does not
block there is `Database.session`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol
from uuid import uuid4

import psycopg
from psycopg.abc import QueryNoTemplate

from cdc.identifiers import quote, quote_list
from cdc.lsn import Lsn
from cdc.source.connection import VALUES_TRAVEL_UNCHANGED

LOCK_TIMEOUT_S = 20


class Server(Protocol):
    """What the tests want of a server, be it a `cdc.demo.postgres.Cluster` or a container."""

    def dsn(self, database: str = "postgres", *, user: str = "postgres", password: str | None = None) -> str:
        """A URL for one of its databases."""

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""

    def start(self) -> None:
        """Start it and wait until it accepts connections."""

    def kill(self) -> None:
        """Stop it as in a crash."""

    def log_text(self) -> str:
        """What it has logged so far."""

    @property
    def running(self) -> bool:
        """Whether it runs."""


class Database:
    """One database of a server. ``dsn`` is a superuser's URL, ``name`` is unique, ``server`` is where it lives."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.dsn = server.create_database(name)
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def execute(self, sql: str, *params: object) -> int:
        """Run a statement (several, where there are no ``%s`` parameters), committed at once: the rows it touched."""
        return self.connection().execute(_query(sql), params or None).rowcount

    def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one statement for many rows, in one transaction."""
        connection = self.connection()
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(_query(sql), rows)

    def fetch(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return self.connection().execute(_query(sql), params or None).fetchall()

    def fetchval(self, sql: str, *params: object) -> Any:
        """The first column of the first row, or ``None`` where there is no row."""
        row = self.connection().execute(_query(sql), params or None).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """One transaction; statements run through `execute` and `fetch` are part of it."""
        connection = self.connection()
        with connection.transaction():
            yield connection

    @asynccontextmanager
    async def session(self, *, autocommit: bool = True) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
        """A second connection, which does not block the event loop."""
        connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=autocommit)
        async with connection:
            yield connection

    def connection(self) -> psycopg.Connection[tuple[Any, ...]]:
        """The test's own connection; a new one where the old one was lost."""
        if self._connection is not None and not self._lives(self._connection):
            self._connection.close()
            self._connection = None
        if self._connection is None:
            self._connection = psycopg.connect(
                self.dsn, autocommit=True, options=f"-c lock_timeout={LOCK_TIMEOUT_S}s", application_name="tests"
            )
        return self._connection

    def dsn_as(self, user: str, password: str | None = None) -> str:
        """This database's URL for another role."""
        return self.server.dsn(self.name, user=user, password=password)

    def current_lsn(self) -> Lsn:
        """The end of the WAL that has been written."""
        return Lsn.parse(self.fetchval("SELECT pg_current_wal_lsn()::text"))

    def create_slot(self, name: str) -> Lsn:
        """Create a logical slot for pgoutput and return its consistent point. Create the publications first."""
        return Lsn.parse(
            self.fetchval("SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput')", name)
        )

    def changes(
        self,
        slot: str,
        publications: Sequence[str],
        *,
        binary: bool = True,
        messages: bool = True,
        peek: bool = False,
        **options: str,
    ) -> list[bytes]:
        """The raw pgoutput messages of a slot, consumed unless ``peek``; ``options`` are further plugin options.

        Values that come as text are what the worker's walsender writes.
        """
        function = "pg_logical_slot_peek_binary_changes" if peek else "pg_logical_slot_get_binary_changes"
        plugin = {
            "proto_version": "1",
            "publication_names": quote_list(publications),
            "binary": str(binary).lower(),
            "messages": str(messages).lower(),
            **options,
        }
        words = [word for option in plugin.items() for word in option]
        with self.connection().transaction():
            for setting in VALUES_TRAVEL_UNCHANGED.items():
                self.fetch("SELECT set_config(%s, %s, true)", *setting)
            rows = self.fetch(f"SELECT data FROM {function}(%s, NULL, NULL, VARIADIC %s::text[])", slot, words)
        return [bytes(data) for (data,) in rows]

    def close(self) -> None:
        """Close the test's own connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def drop(self) -> None:
        """Drop the database with its slots, subscriptions and prepared transactions, whoever is connected to it."""
        if not self.server.running:
            self.close()
            return
        for (name,) in self.fetch("SELECT subname FROM pg_subscription WHERE subdbid = (" + _THIS_DATABASE + ")"):
            self.execute(f"ALTER SUBSCRIPTION {quote(name)} DISABLE")
            self.execute(f"ALTER SUBSCRIPTION {quote(name)} SET (slot_name = NONE)")
            self.execute(f"DROP SUBSCRIPTION {quote(name)}")
        for (gid,) in self.fetch("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
            self.execute("ROLLBACK PREPARED '" + gid.replace("'", "''") + "'")
        self.close()
        # A test that failed may have left a server whose commits wait for a standby that is not there.
        options = "-c synchronous_commit=local -c statement_timeout=60s"
        with psycopg.connect(self.server.dsn(), autocommit=True, options=options) as connection:
            # Nobody may connect again between the end of a walsender and the drop of its slot.
            connection.execute(f"ALTER DATABASE {quote(self.name)} ALLOW_CONNECTIONS false")
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", (self.name,)
            )
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", (self.name,)
            )
            connection.execute(f"DROP DATABASE {quote(self.name)} WITH (FORCE)")

    @staticmethod
    def _lives(connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
        if connection.closed:
            return False
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            return True
        try:
            connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def unique_name(word: str) -> str:
    """A name that no other test has; its hyphen wants quoting, as many names at Pix do (hazard 7)."""
    return f"{word}-{uuid4().hex[:10]}"


_THIS_DATABASE = "SELECT oid FROM pg_database WHERE datname = current_database()"


def _query(sql: str) -> QueryNoTemplate:
    # psycopg wants literal strings, as a guard against injected SQL; tests build theirs from names that they own.
    return sql.encode()
