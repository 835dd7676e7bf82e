"""Connections to the source, and what its failures mean.

Every session on the source is opened here, so that all of them carry the same settings: values read as text mean the
same on every server, no time-out of a role's cuts a long read, row security refuses instead of hiding rows, and the
kernel notices a peer that is gone (a proxy closes silent connections without a word: hazard 20).

Every failure leaves this room as an error of `cdc.errors`, with one sentence of ours. A driver's error is never shown,
logged or chained: its text can quote values. What a server says while it *refuses a connection* comes before any row is
read; libpq hands that over as text only, without its SQLSTATE, so that text is recognised here, in English, and what is
not recognised counts as temporary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader

from cdc.config import dsn as dsns
from cdc.errors import (
    CdcError,
    ConfigurationError,
    ServerError,
    SetupError,
    SlotInUse,
    SourceUnavailable,
    TerminalError,
)
from cdc.identifiers import quote
from cdc.lsn import Lsn

CONNECT_TIMEOUT_S = 15
"""Long enough for TLS over a slow line, short enough that a host that swallows packets is named as such."""

_PARAMETERS: dict[str, str | int] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    # Three minutes of a silent CREATE INDEX are idle to a proxy; a probe every 30 s is not.
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    # Data that nobody acknowledges for a minute were sent to a host that is gone.
    "tcp_user_timeout": 60_000,
    "client_encoding": "UTF8",
}
"""Defaults of the connection; what the DSN says comes first (except the encoding, on which every room relies)."""

VALUES_TRAVEL_UNCHANGED = {
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "search_path": "pg_catalog",
}
"""How values that travel as text are written. Targets read them with the same settings."""

_NOTHING_CUTS_US_OFF = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
_ROWS_ARE_NOT_HIDDEN = {"row_security": "off", "jit": "off"}

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
"""A session on the source; rows are tuples, ``pg_lsn`` is `Lsn`."""


async def connect(dsn: str, *, application_name: str) -> Connection:
    """Open a session in autocommit mode, with the settings of this module.

    Raises `SourceUnavailable`, `SetupError` or `ConfigurationError`, each with a sentence that says where and why.
    """
    return await _open(dsn, {"application_name": application_name}, psycopg.AsyncCursor)


async def connect_walsender(dsn: str, *, application_name: str) -> Connection:
    """Open a connection that also speaks replication commands (``replication=database``).

    The server understands only simple queries on it, so parameters are bound by the client.
    """
    extra = {"application_name": application_name, "replication": "database"}
    return await _open(dsn, extra, psycopg.AsyncClientCursor)


async def _open(dsn: str, extra: dict[str, str], cursor: type[psycopg.AsyncCursor[Any]]) -> Connection:
    parameters = _parse(dsn)
    settings = VALUES_TRAVEL_UNCHANGED | _NOTHING_CUTS_US_OFF | _ROWS_ARE_NOT_HIDDEN
    ours = " ".join(f"-c {name}={value}" for name, value in settings.items())
    merged: dict[str, Any] = {**_PARAMETERS, **parameters, **extra, "client_encoding": "UTF8"}
    merged["options"] = f"{parameters.get('options', '')} {ours}".strip()
    try:
        connection = await psycopg.AsyncConnection.connect(
            autocommit=True, prepare_threshold=None, cursor_factory=cursor, **merged
        )
    except psycopg.Error as error:
        raise _refusal(str(error), parameters) from None
    except OSError as error:
        reason = error.strerror or "the network refused it"
        raise SourceUnavailable(f"no connection to the source {dsns.place(parameters)}: {reason}") from None
    connection.adapters.register_loader("pg_lsn", _LsnLoader)
    connection.adapters.register_dumper(Lsn, _LsnDumper)
    return connection


class _LsnLoader(Loader):
    """Reads ``pg_lsn`` as `Lsn`."""

    def load(self, data: Buffer) -> Lsn:
        return Lsn.parse(bytes(data).decode())


class _LsnDumper(Dumper):
    """Writes `Lsn` as ``pg_lsn``."""

    oid = 3220

    def dump(self, obj: Lsn) -> Buffer:
        return str(obj).encode()


def _parse(dsn: str) -> dict[str, str]:
    try:
        return dsns.parse(dsn)
    except ValueError as error:
        raise ConfigurationError(f"the source's DSN {error}") from None


def place(dsn: str) -> str:
    """Where a DSN leads, without its password: ``host:port/database``."""
    return dsns.place(_parse(dsn))


# --- a connection that was refused -----------------------------------------------------------------------------------

_LATER: tuple[tuple[str, str], ...] = (
    ("connection refused", "nothing listens there: is the server running, and are host and port right?"),
    (
        "failed to resolve host|could not translate host name|name or service not known|name resolution",
        "the host name cannot be resolved: is it spelt right?",
    ),
    ("timeout", f"no answer within {CONNECT_TIMEOUT_S} s: does a firewall stand between?"),
    ("starting up|not yet accepting|in recovery mode", "the server is starting up"),
    ("shutting down", "the server is shutting down"),
    ("max_wal_senders", "all of its walsenders are taken: raise max_wal_senders, or stop another replication client"),
    (
        "too many clients|too many connections|remaining connection slots",
        "it has no free connection: raise max_connections or the role's CONNECTION LIMIT",
    ),
    ("no such file or directory", "there is no such socket: is the server running?"),
)
_NEVER: tuple[tuple[str, str], ...] = (
    (
        "password authentication failed|no password supplied|authentication failed|wrong password",
        "the user or the password is wrong",
    ),
    ("pg_hba.conf", "its pg_hba.conf lets this user in neither from here nor to this database: add a line for it"),
    ("role .* does not exist", "the role does not exist"),
    ("database .* does not exist", "the database does not exist"),
    ("permission denied for database", "the role may not connect to the database: GRANT CONNECT"),
    ("certificate|does not support ssl|ssl error", "TLS cannot be agreed upon: check sslmode and the certificates"),
    (
        "not currently accepting connections",
        "the database takes no connections: somebody has set ALLOW_CONNECTIONS false, ALTER DATABASE … WITH "
        "ALLOW_CONNECTIONS true undoes it",
    ),
    ("not permitted to log in", "the role may not log in: ALTER ROLE … LOGIN"),
)


def _refusal(text: str, parameters: dict[str, str]) -> CdcError:
    where = dsns.place(parameters)
    if re.search("walsender|wal sender|replication role", text, re.IGNORECASE) and "max_wal_senders" not in text:
        user = str(parameters.get("user") or "the role")
        return SetupError(
            f"the role {user} may not replicate from {where}: give it the REPLICATION attribute",
            sql=f"ALTER ROLE {quote(user)} REPLICATION;",
        )
    for pattern, sentence in _NEVER:
        if re.search(pattern, text, re.IGNORECASE):
            return SetupError(f"no connection to the source {where}: {sentence}")
    for pattern, sentence in _LATER:
        if re.search(pattern, text, re.IGNORECASE):
            return SourceUnavailable(f"no connection to the source {where}: {sentence}")
    return SourceUnavailable(f"no connection to the source {where}: the server or the network refused it")


# --- a statement that failed -----------------------------------------------------------------------------------------


def server_error(error: psycopg.Error) -> ServerError | None:
    """What may be repeated of the driver's error: its SQLSTATE and names. `None` when no server sent it."""
    if error.sqlstate is None:
        return None
    diag = error.diag
    return ServerError(
        error.sqlstate, diag.schema_name, diag.table_name, diag.column_name, diag.constraint_name, diag.datatype_name
    )


def translate(error: psycopg.Error, what: str) -> CdcError:
    """The error of ours for a failed statement; ``what`` completes "the source cannot …"."""
    return explain(server_error(error), what)


def explain(server: ServerError | None, what: str) -> CdcError:
    """The error of ours for what the source's server said while it was asked to ``what``; `None`: it said nothing."""
    if server is None:
        return SourceUnavailable(f"the connection to the source was lost while it was asked to {what}")
    state = server.sqlstate
    if state == "55006":
        return SlotInUse(f"the source cannot {what}: the slot is in use by another session", server=server)
    if state == "42501":
        return SetupError(f"the source's role may not {what}: {server}", server=server)
    if state in ("42P01", "42704", "3F000", "42703", "42883"):
        return SetupError(
            f"the source cannot {what}: something that it names does not exist, {server}; run `cdc setup`",
            server=server,
        )
    if state == "53400":
        return SetupError(
            f"the source cannot {what}: all of its replication slots are taken; raise max_replication_slots or drop a "
            f"slot that nobody needs",
            sql="ALTER SYSTEM SET max_replication_slots = 20;  -- then restart the server",
            server=server,
        )
    if state in ("57P01", "57P02", "57P03", "57P04", "57P05"):
        return SourceUnavailable(f"the source ended the connection while asked to {what}: {server}", server=server)
    if state[:2] in ("08", "40", "53", "57", "58", "XX") or state in ("55P03", "25P03", "25006"):
        return SourceUnavailable(f"the source cannot {what} now: {server}", server=server)
    return TerminalError(f"the source refuses to {what}: {server}", server=server)


@contextmanager
def source_errors(what: str) -> Iterator[None]:
    """Translate the driver's errors inside the block; ``what`` completes "the source cannot …"."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, what) from None
    except OSError:
        raise explain(None, what) from None
