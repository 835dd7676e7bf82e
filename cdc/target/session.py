"""A session on a target: settings that make values travel unchanged, and errors in the project's own words.

What `connect` promises: whatever the role, the database or the server has configured, the session reads and writes
values the way the source sent them, waits for durable commits, never sees fewer rows than there are (row security
raises instead of filtering), gives up on locks rather than queueing others behind it (hazard 16), and notices a server
that has gone silently (hazard 20). Whether triggers and foreign keys fire is exposed as `Session.triggers_disabled`.

What `translate` promises: of a driver's error only the SQLSTATE and the name fields survive, because ``str()`` of it
can quote values (invariant 8). Raise its result ``from None``; `target_errors` does that.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from cdc.errors import (
    CdcError,
    ConfigurationError,
    FenceLost,
    ServerError,
    SetupError,
    TargetUnavailable,
    TerminalError,
)

SETTINGS: dict[str, str] = {
    # Values travel unchanged: text forms that any server reads back to the same value.
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    # Text is read as what it says: NULL inside of an array is a NULL, and XML need not be a whole document.
    "array_nulls": "on",
    "xmloption": "content",
    # Names mean what they say: everything outside pg_catalog is qualified, by us and by format_type.
    "search_path": "pg_catalog",
    # A role's or database's defaults must not weaken what the design relies on (invariants 2 and 3).
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    # An error instead of rows that a policy hides.
    "row_security": "off",
    # A batch takes as long as it takes; waiting for a lock does not (`LOCK_TIMEOUT_MS`).
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    # Staging tables change size with every batch: a cached generic plan would scan a large target for a small one. What
    # is prepared for few rows is planned otherwise (cdc.target.together).
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",
    # The server's side of the keepalives, see `KEEPALIVE_IDLE_S`.
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
}
"""Settings of every session, sent with the connection so that no statement runs before they hold."""

LOCK_TIMEOUT_MS = 10_000
"""How long a statement waits for a lock. Whoever waits for a strong lock makes all later readers wait behind it, so the
wait has to be shorter than what a person at a dashboard puts up with; the batch is retried afterwards (hazard 16)."""

CONNECT_TIMEOUT_S = 15.0
"""How long a connection may take, name resolution and TLS included. A server under load answers within seconds; a
packet filter that drops packets never does."""

KEEPALIVE_IDLE_S = 60
"""Seconds of silence before the first TCP keepalive. Proxies cut connections after as little as 5 minutes of silence
(Scalingo's after 30); one packet a minute costs nothing."""

UNANSWERED_S = 60
"""How long sent data may stay unacknowledged before the connection counts as lost. Keepalives are not sent meanwhile:
without this, a server that vanishes in mid-batch is waited for as long as the kernel tries again, some 15 minutes."""


@dataclass(frozen=True, slots=True)
class Session:
    """An open connection to a target and what is known about it.

    ``where`` names the target for people, without a password. ``triggers_disabled`` says whether
    ``session_replication_role = replica`` is in force: ordinary triggers and foreign keys then do not fire.
    ``server_version`` is PostgreSQL's number, for example 150004.
    """

    connection: asyncpg.Connection
    where: str
    triggers_disabled: bool
    server_version: int

    @property
    def is_idle(self) -> bool:
        """Whether it is open, and in no transaction."""
        return not self.connection.is_closed() and not self.connection.is_in_transaction()

    async def close(self) -> None:
        """End the session; a server that no longer answers is not waited for."""
        if self.connection.is_closed():
            return
        try:
            await self.connection.close(timeout=5.0)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            self.connection.terminate()


async def connect(
    dsn: str,
    *,
    application_name: str,
    target: str | None = None,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> Session:
    """Open a session on a target.

    ``dsn`` is a URL (``postgresql://…``); ``target`` the target's name in the configuration, for messages.
    ``lock_timeout_ms`` is how long a statement waits for a lock; 0 means for ever, for which hazard 16 leaves no use.

    Raises `SetupError` when the server refuses us for good (password, database, rights), `ConfigurationError` for a DSN
    that is none, `TargetUnavailable` for everything that may pass.
    """
    where = describe(dsn, target)
    with target_errors(_CONNECTING, where):
        connection = await asyncpg.connect(
            dsn,
            timeout=timeout_s,
            # Hazard 18: a prepared statement may be invalid after DDL on its table. Those of `cdc.target.together` can
            # fail, and are made anew; the driver's own would fail anywhere.
            statement_cache_size=0,
            server_settings={
                **SETTINGS,
                "lock_timeout": str(lock_timeout_ms),
                # PostgreSQL cuts longer names with a notice (NAMEDATALEN).
                "application_name": application_name.encode()[:63].decode(errors="ignore"),
            },
        )
        try:
            _keep_alive(connection)
            version = int(await connection.fetchval("SELECT pg_catalog.current_setting('server_version_num')"))
            if version >= 170_000:
                await connection.execute("SET transaction_timeout = 0")
            disabled = await _disable_triggers(connection)
        except BaseException:
            connection.terminate()
            raise
    return Session(connection, where, disabled, version)


async def _disable_triggers(connection: asyncpg.Connection) -> bool:
    """Try rather than look up: superusers may, grantees may since 15, and managed services have rules of their own."""
    try:
        await connection.execute("SET session_replication_role = replica")
    except asyncpg.InsufficientPrivilegeError:
        return False
    return True


def _keep_alive(connection: asyncpg.Connection) -> None:
    """The client's side of the keepalives, and `UNANSWERED_S`: else a server that vanished is waited for for ever.

    asyncpg has no option for this and no public way to its socket; where it moves, only the server's side remains.
    """
    transport = getattr(connection, "_transport", None)
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 6),
        ("TCP_USER_TIMEOUT", UNANSWERED_S * 1000),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def describe(dsn: str, target: str | None = None) -> str:
    """Name a target for people: ``target internal (db.example:5432/warehouse)``, never with user or password."""
    address = _address(dsn)
    if target is None:
        return f"the target ({address})" if address else "the target"
    return f"target {target} ({address})" if address else f"target {target}"


def _address(dsn: str) -> str | None:
    try:
        url = urlsplit(dsn)
        query = parse_qs(url.query)
    except ValueError:
        return None
    if url.scheme not in ("postgres", "postgresql"):
        return None
    hosts = unquote(url.netloc.rpartition("@")[2]) or ",".join(query.get("host", ["localhost"]))
    port = query.get("port", [None])[0]
    if port and ":" not in hosts:
        hosts = f"{hosts}:{port}"
    database = unquote(url.path.lstrip("/")) or query.get("dbname", [""])[0]
    return f"{hosts}/{database}"


DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)
"""What the driver raises; `translate` knows what to make of it."""


@contextmanager
def target_errors(what: str, where: str, told: Callable[[str | None], str] | None = None) -> Iterator[None]:
    """Turn whatever the driver raises inside into a `CdcError`, without the driver's error in its traceback.

    ``told`` gives what an SQLSTATE means for this work, to follow ``what``.
    """
    try:
        yield
    except DRIVER_ERRORS as error:
        remark = "" if told is None else told(getattr(error, "sqlstate", None))
        raise translate(error, what + remark, where) from None


def is_driver_error(error: BaseException) -> bool:
    """Whether `translate` knows what to make of ``error``."""
    return isinstance(error, DRIVER_ERRORS)


def server_error(error: asyncpg.PostgresError) -> ServerError:
    """What may be repeated of an error that the server sent: its SQLSTATE and its name fields."""

    def name(attribute: str) -> str | None:
        value = getattr(error, attribute, None)
        return value if isinstance(value, str) and value else None

    return ServerError(
        sqlstate=error.sqlstate or "XX000",
        schema=name("schema_name"),
        table=name("table_name"),
        column=name("column_name"),
        constraint=name("constraint_name"),
        type=name("data_type_name"),
    )


_TRANSIENT = {
    "53100": "its disk is full: free space or enlarge it; nothing is lost, the same is tried again",
    "53200": "it is out of memory; the same is tried again",
    "53300": "it has no connection left for us (max_connections); the same is tried again",
    "55P03": "a lock was not granted in time, somebody else holds it (a long report, DDL); the same is tried again",
    "55006": "an object is in use by somebody else; the same is tried again",
    "40001": "the transaction collided with another one; it is tried again",
    "40P01": "the transaction was the victim of a deadlock with another one; it is tried again",
    "57014": "the statement was cancelled by somebody or by a timeout; it is tried again",
    "57P01": "an administrator ended the connection or the server shuts down; it is connected to again",
    "57P02": "the server crashed and recovers; it is connected to again",
    "57P03": "the server is starting up, shutting down or a standby that takes no connections; it is tried again",
    "57P04": "the database was dropped",
    "57P05": "the server ended the idle connection; it is connected to again",
    "25006": "it is read-only: a standby, or protected because its disk is full; it is tried again",
    "25P03": "the server ended the transaction because it was idle; it is connected to again",
    "25P04": "the server ended the transaction because it took too long; it is connected to again",
    "58030": "the server cannot read or write a file; it is tried again",
}

_TRANSIENT_CLASSES = {
    "08": "the connection was lost; it is connected to again",
    "53": "it lacks a resource (disk, memory or connections); the same is tried again",
    "57": "the server interrupted us; the same is tried again",
    "58": "the server's operating system reports an error; it is tried again",
}

_SETUP = {
    "28P01": "the password is wrong: correct the target's DSN",
    "28000": "the role may not connect: check the role in the target's DSN, its LOGIN attribute and pg_hba.conf",
    "3D000": "the database does not exist: create it or correct the target's DSN",
    "42501": "the role lacks a right there; cdc check names the GRANT",
    "3F000": "a schema does not exist there",
    "26000": "a prepared statement is unknown there: a pooler in transaction mode lies between; connect directly",
}

_CONNECTING = "connecting"
_NO_CONNECTIONS = "55000"
"""What a database answers that takes no connections; in a statement the same code means many other things."""

FENCE_LOST_SQLSTATE = "CDC01"
"""Raised by the function ``cdc.advance`` when the target is no longer ours (sql/target/0002_advance.sql)."""


def translate(error: BaseException, what: str, where: str) -> CdcError:
    """One sentence of our own for a driver's error: ``what`` was being done, ``where``.

    The type says whether trying again can help. An SQLSTATE that nothing here knows becomes a plain `TerminalError`:
    the applier classifies what concerns rows before it asks here.
    """
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate:
        return _from_server(server_error(error), what, where)
    if isinstance(error, (asyncpg.ClientConfigurationError, asyncpg.UnsupportedClientFeatureError)):
        return ConfigurationError(
            f"{where}: {what} failed: the target's DSN cannot be used, check its form and options."
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return SetupError(
            f"{where}: {what} failed: the server's certificate is not trusted; check sslrootcert and sslmode."
        )
    if isinstance(error, socket.gaierror):
        return TargetUnavailable(f"{where}: {what} failed: the host name cannot be resolved; it is tried again.")
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return TargetUnavailable(f"{where}: {what} failed: the server did not answer in time; it is tried again.")
    if isinstance(error, ConnectionError) and "rejected SSL" in str(error):
        return SetupError(f"{where}: {what} failed: the server does not speak TLS; check sslmode in the target's DSN.")
    if isinstance(error, ConnectionRefusedError):
        return TargetUnavailable(f"{where}: {what} failed: nothing listens there; it is tried again.")
    if isinstance(error, (OSError, EOFError)) or _is_closed(error):
        return TargetUnavailable(f"{where}: {what} failed: the connection was lost; it is connected to again.")
    if isinstance(error, asyncpg.InternalClientError):
        # A session that is ended between two statements: the server's last message answers none of ours.
        return TargetUnavailable(f"{where}: {what} failed: the server ended the session; it is connected to again.")
    return TerminalError(f"{where}: {what} failed inside the driver ({type(error).__name__}); this is a bug of cdc.")


def _is_closed(error: BaseException) -> bool:
    """Whether the driver says, by a plain InterfaceError without values, that its connection is closed."""
    return (
        isinstance(error, asyncpg.InterfaceError)
        and not isinstance(error, ValueError)
        and ("closed" in str(error) or "released" in str(error))
    )


def _from_server(server: ServerError, what: str, where: str) -> CdcError:
    code = server.sqlstate
    if code == FENCE_LOST_SQLSTATE:
        return FenceLost(
            f"{where}: another worker has taken the target, or its position is not where we left it.", server=server
        )
    if code == _NO_CONNECTIONS and what == _CONNECTING:
        return SetupError(
            f"{where}: {what} failed: the database takes no connections; somebody has set ALLOW_CONNECTIONS false, "
            f"ALTER DATABASE … WITH ALLOW_CONNECTIONS true undoes it ({server}).",
            server=server,
        )
    if reason := _SETUP.get(code):
        return SetupError(f"{where}: {what} failed: {reason} ({server}).", server=server)
    if reason := _TRANSIENT.get(code) or _TRANSIENT_CLASSES.get(code[:2]):
        return TargetUnavailable(f"{where}: {what} failed: {reason} ({server}).", server=server)
    if code == "42P01" and server.schema is None:
        return SetupError(
            f"{where}: {what} failed: a table is missing; has cdc setup been run? ({server}).", server=server
        )
    return TerminalError(f"{where}: {what} failed ({server}).", server=server)
