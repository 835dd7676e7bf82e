"""Connection strings: one notation for both drivers, and two ways to name a database without its password.

libpq (psycopg) takes URLs and ``key=value`` strings; asyncpg takes URLs only, and sends every parameter that it does
not know to the server, which refuses it. `for_asyncpg` translates. (PostgreSQL's manual, "Connection Strings" and
"Parameter Key Words".)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

_ASYNCPG = {
    *("host", "port", "user", "password", "dbname", "passfile", "service", "servicefile", "target_session_attrs"),
    *("sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib"),
    *("application_name", "options"),
}
"""What asyncpg understands itself, and two parameters that the server understands at the start of a session. The others
(``connect_timeout``, ``keepalives_idle``, ``channel_binding``, …) speak to libpq and are left out."""

_SECRET = {"password", "sslpassword", "passfile", "scram_client_key", "scram_server_key", "oauth_client_secret"}

_UNREADABLE = (
    "is no connection string of PostgreSQL: write postgresql://user:password@host:port/database "
    "(special characters of a password percent-encoded), or host=… dbname=… user=…"
)


def parse(dsn: str) -> dict[str, str]:
    """The parameters of a URL or of a ``key=value`` string.

    Raises ``ValueError`` with a sentence that never repeats any of the string: libpq's own message quotes what it
    could not read, which for a password with a ``/`` in it is a part of the password.
    """
    if not dsn.strip():
        raise ValueError("is empty")
    scheme, separator, _ = dsn.partition("://")
    if separator and "=" not in scheme and scheme not in ("postgres", "postgresql"):
        raise ValueError("starts with a scheme that is not postgresql://")
    try:
        parameters: dict[str, Any] = conninfo_to_dict(dsn)
    except psycopg.Error:
        raise ValueError(_UNREADABLE) from None
    text = {key: str(value) for key, value in parameters.items() if value is not None}
    ports_are_numbers = all(port.isascii() and port.isdigit() for port in text.get("port", "0").split(",") if port)
    misread = bool(separator) and "@" in text.get("dbname", "") + text.get("host", "")
    if misread or not ports_are_numbers:
        # libpq takes `user:pass/word@host` for the host `user`, the port `pass` and a database: none may be shown.
        raise ValueError(_UNREADABLE)
    return text


def for_asyncpg(dsn: str) -> str:
    """The same connection as a URL that asyncpg accepts, the parameters that only libpq knows left out."""
    parameters = parse(dsn)
    if "hostaddr" in parameters:
        parameters.setdefault("host", parameters["hostaddr"])
    known = {key: value for key, value in parameters.items() if key in _ASYNCPG}
    if "host" in known:
        known["host"] = ",".join(_bracketed(host) for host in known["host"].split(","))
    return "postgresql://" + (f"?{urlencode(known, quote_via=quote)}" if known else "")


def _bracketed(host: str) -> str:
    """An IPv6 address in brackets, as asyncpg wants it; anything else as it is."""
    return f"[{host}]" if ":" in host and not host.startswith(("[", "/")) else host


def place(parameters: Mapping[str, str]) -> str:
    """Where a parsed connection string leads, without user and password: ``host:port/database``."""
    host = parameters.get("host") or parameters.get("hostaddr") or "(local socket)"
    port = f":{parameters['port']}" if parameters.get("port") else ""
    return f"{host}{port}/{parameters.get('dbname') or parameters.get('user') or ''}"


def redact(dsn: str) -> str:
    """The string without its secrets, as a URL: for ``cdc config show``."""
    parameters = {key: value for key, value in sorted(parse(dsn).items()) if key not in _SECRET}
    if parameters.get("host", "").startswith("/") or "," in parameters.get("host", ""):
        return "postgresql://" + (f"?{urlencode(parameters, quote_via=quote, safe='/,')}" if parameters else "")
    user, host, port, database = (parameters.pop(key, "") for key in ("user", "host", "port", "dbname"))
    authority = (f"{quote(user, safe='')}@" if user else "") + _bracketed(host) + (f":{port}" if port else "")
    rest = f"?{urlencode(parameters, quote_via=quote, safe='/')}" if parameters else ""
    return f"postgresql://{authority}/{quote(database, safe='')}{rest}"
