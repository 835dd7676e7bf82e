"""What becomes of a driver's error, and how a target is named; without a server."""

from __future__ import annotations

import socket
import traceback

import asyncpg
import pytest

from cdc.errors import CdcError, ConfigurationError, FenceLost, SetupError, TargetUnavailable, TerminalError
from cdc.target.session import describe, target_errors, translate


def server_says(sqlstate: str, **fields: str) -> asyncpg.PostgresError:
    """The error that asyncpg makes of an ErrorResponse whose message and detail quote a value."""
    letters = {"schema": "s", "table": "t", "column": "c", "constraint": "n", "type": "d"}
    response = {"S": "ERROR", "C": sqlstate, "M": 'invalid input: "SECRET"', "D": "Failing row contains (SECRET)."}
    response |= {letters[field]: value for field, value in fields.items()}
    error = asyncpg.PostgresError.new(response)
    assert isinstance(error, asyncpg.PostgresError)
    return error


@pytest.mark.parametrize(
    ("sqlstate", "expected", "says"),
    [
        ("28P01", SetupError, "password is wrong"),
        ("28000", SetupError, "may not connect"),
        ("3D000", SetupError, "does not exist"),
        ("42501", SetupError, "lacks a right"),
        ("42P01", SetupError, "has cdc setup been run"),
        ("53100", TargetUnavailable, "disk is full"),
        ("53300", TargetUnavailable, "no connection left"),
        ("53999", TargetUnavailable, "lacks a resource"),
        ("55P03", TargetUnavailable, "lock was not granted"),
        ("40001", TargetUnavailable, "collided"),
        ("40P01", TargetUnavailable, "deadlock"),
        ("57P01", TargetUnavailable, "administrator"),
        ("57P03", TargetUnavailable, "starting up"),
        ("25006", TargetUnavailable, "read-only"),
        ("08006", TargetUnavailable, "connection was lost"),
        ("CDC01", FenceLost, "another worker"),
        ("XX001", TerminalError, "SQLSTATE XX001"),
    ],
)
def test_an_error_of_the_server_becomes_one_sentence_of_the_right_type(
    sqlstate: str, expected: type[CdcError], says: str
) -> None:
    error = translate(server_says(sqlstate), "copying", "target internal (db:5432/dwh)")
    assert type(error) is expected
    assert says in str(error)
    assert "target internal (db:5432/dwh)" in str(error)


def test_invariant_08_only_names_survive_of_an_error_of_the_server() -> None:
    names = {"schema": "public", "table": "users", "column": "email", "constraint": "users_email_key", "type": "mood"}
    with pytest.raises(TerminalError) as caught, target_errors("copying", "target internal"):
        raise server_says("23505", **names)
    shown = "".join(traceback.format_exception(caught.value))
    assert "SECRET" not in shown
    for name in names.values():
        assert name in shown


@pytest.mark.parametrize(
    ("error", "expected", "says"),
    [
        (ConnectionRefusedError(), TargetUnavailable, "nothing listens"),
        (socket.gaierror(-2, "Name or service not known"), TargetUnavailable, "cannot be resolved"),
        (TimeoutError(), TargetUnavailable, "in time"),
        (ConnectionResetError(), TargetUnavailable, "connection was lost"),
        (ConnectionError('PostgreSQL server at "h:1" rejected SSL upgrade'), SetupError, "TLS"),
        (asyncpg.InterfaceError("connection is closed"), TargetUnavailable, "connection was lost"),
        (asyncpg.ClientConfigurationError("bad dsn"), ConfigurationError, "DSN cannot be used"),
        (asyncpg.DataError("invalid input for query argument $1: 'SECRET'"), TerminalError, "SQLSTATE 22000"),
    ],
)
def test_an_error_of_the_driver_becomes_one_sentence_of_the_right_type(
    error: Exception, expected: type[CdcError], says: str
) -> None:
    translated = translate(error, "connecting", "target internal")
    assert type(translated) is expected
    assert says in str(translated)
    assert "SECRET" not in str(translated)


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://user:pass@db.example:6432/dwh?sslmode=require", "db.example:6432/dwh"),
        ("postgres://user:p%40ss@[::1]:5432/dwh", "[::1]:5432/dwh"),
        ("postgresql://user:pass@/dwh?host=/run/postgresql&port=5433", "/run/postgresql:5433/dwh"),
        ("postgresql://user:pass@a:1,b:2/dwh", "a:1,b:2/dwh"),
    ],
)
def test_a_target_is_named_without_user_and_password(dsn: str, shown: str) -> None:
    assert describe(dsn, "internal") == f"target internal ({shown})"


def test_what_is_no_url_is_not_shown_at_all() -> None:
    assert describe("host=db password=pass", "internal") == "target internal"
