"""How sizes, names, addresses and connection strings are written in the configuration."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BeforeValidator, ConfigDict, PlainSerializer, SecretStr

from cdc.config import dsn

FROZEN = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)
"""What all models of the configuration have in common."""

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_UNITS = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(value: object) -> object:
    """Bytes of ``64MB``, ``1.5GB``, ``512 kB``: units of 1024, as in PostgreSQL's own settings."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    unit = match[2].lower().removesuffix("b").removesuffix("i") if match else "?"
    if match is None or unit not in _UNITS:
        raise ValueError("is no size: write a number of bytes, or one with kB, MB or GB")
    return int(float(match[1]) * 1024 ** _UNITS[unit])


def split_names(value: object) -> object:
    """A list that came as one string, from the environment: names separated by commas."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of ``0.0.0.0:9187``, ``localhost:9187`` or ``[::]:9187``."""
    host, separator, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("is no address: an IPv6 address stands in brackets, as in [::]:9187")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("is no address: write host:port, as in 0.0.0.0:9187")
    return host, int(port)


def _check_address(address: str) -> str:
    parse_address(address)
    return address


def _check_dsn(value: SecretStr) -> SecretStr:
    dsn.parse(value.get_secret_value())
    return value


def _check_identifier(name: str) -> str:
    if not name or len(name.encode()) > 63 or "\0" in name:
        raise ValueError("is no name: PostgreSQL's names have 1 to 63 bytes")
    return name


def _check_http_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_sound = False
    if not is_sound or not url.isprintable() or " " in url:
        raise ValueError("is no address: write http:// or https://, a host, and a path where there is one")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a user or a password: what authenticates is given under a key of its own")
    return url


def _check_api_address(url: str) -> str:
    if urlsplit(_check_http_address(url)).query or "#" in url or url.endswith("?"):
        raise ValueError("is no address of an API: it goes on behind its path, so it has no query")
    return url.rstrip("/")


def _check_hook_address(url: SecretStr) -> SecretStr:
    _check_http_address(url.get_secret_value())
    return url


def _only_host(url: SecretStr) -> str:
    return urlunsplit(urlsplit(url.get_secret_value())._replace(path="/…", query="", fragment=""))


def _check_schedule(expression: str) -> str:
    try:
        CronSim(expression, datetime.now(UTC))
    except CronSimError:
        raise ValueError("is no cron expression of five fields, as in 10 5 * * *") from None
    return expression


Size = Annotated[int, BeforeValidator(parse_size)]
"""A number of bytes."""

Names = Annotated[tuple[str, ...], BeforeValidator(split_names)]
"""Several names; one string with commas is a list, too."""

Address = Annotated[str, AfterValidator(_check_address)]
"""``host:port`` to listen on."""

HttpAddress = Annotated[str, AfterValidator(_check_api_address)]
"""The address of an HTTP service, without a slash at its end."""

HookAddress = Annotated[SecretStr, AfterValidator(_check_hook_address), PlainSerializer(_only_host, return_type=str)]
"""An address that is called as it is written. Only its host is printed and dumped: path and query may be a secret."""

Schedule = Annotated[str, AfterValidator(_check_schedule)]
"""A cron expression."""

Identifier = Annotated[str, AfterValidator(_check_identifier)]
"""A name of PostgreSQL, unquoted."""

Dsn = Annotated[
    SecretStr,
    AfterValidator(_check_dsn),
    PlainSerializer(lambda value: dsn.redact(value.get_secret_value()), return_type=str),
]
"""A connection string: a URL or ``key=value``, with its password. It is printed and dumped without."""
