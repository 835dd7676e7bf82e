"""What a log line may hold: invariant 8, tried with real errors of both drivers' kinds."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import structlog

from cdc.errors import CdcError, ServerError, SourceUnavailable, TableStopped
from cdc.lsn import Lsn
from cdc.observe import logs

VALUE = "alice@example.org"


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Configure the logs as JSON into memory; the fixture reads what has been written."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, sys.excepthook, threading.excepthook, sys.unraisablehook)
    stream = io.StringIO()
    logs.configure(level="debug", format="json", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], root.level, sys.excepthook, threading.excepthook, sys.unraisablehook = before
    logging.captureWarnings(False)
    structlog.reset_defaults()


def caught(error: Exception) -> Exception:
    """The error with a traceback, as `except` sees it."""
    try:
        raise error
    except Exception as seen:
        return seen


def test_a_line_carries_pipeline_target_level_and_time(lines: Callable[[], list[dict[str, Any]]]) -> None:
    with structlog.contextvars.bound_contextvars(pipeline="cdc", target="internal"):
        logs.get().info("target taken", position=Lsn.parse("0/16B3748"))
    (line,) = lines()
    assert line["event"] == "target taken"
    assert (line["pipeline"], line["target"], line["level"]) == ("cdc", "internal", "info")
    assert line["position"] == "0/16B3748"
    assert datetime.fromisoformat(line["timestamp"]).tzinfo == UTC


@pytest.mark.parametrize(
    "text",
    [
        "postgres://cdc:hunter2@db.example:5432/pix?sslmode=require",
        "cannot connect to postgresql://cdc:hunter2@db/pix, trying again",
        "postgresql://cdc:p@hunter2@db/pix",
        "postgresql://:hunter2@/pix?host=/tmp",
        "host=db user=cdc password=hunter2 dbname=pix",
        "host=db password='it\\'s hunter2' dbname=pix",
        "postgresql://db/pix?user=cdc&password=hunter2",
        "{'user': 'cdc', 'password': 'hunter2'}",
        '{"password": "hunter2"}',
        "Authorization: Bearer hunter2",
    ],
)
def test_no_password_reaches_a_line(lines: Callable[[], list[dict[str, Any]]], text: str) -> None:
    logs.get().warning(text, dsn=text, nested={"list": [text]}, error=SourceUnavailable(text))
    logging.getLogger("somebody").warning("%s", text)
    assert len(lines()) == 2
    assert "hunter2" not in json.dumps(lines())
    assert "***" in json.dumps(lines())


def test_a_field_named_like_a_secret_is_blanked(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logs.get().info("scaling", metrics_password="hunter2", api_token="hunter2", options={"client_secret": "hunter2"})
    assert "hunter2" not in json.dumps(lines())


def test_what_is_no_secret_stays_readable() -> None:
    for text in (
        "wrong password: check source.dsn",
        "http://localhost:9187/metrics",
        "ALTER TABLE public.users ALTER COLUMN email DROP NOT NULL",
        "the token is refused",
    ):
        assert logs.redact(text) == text
    assert logs.redact("postgres://cdc:x@db:5432/pix") == "postgres://cdc:***@db:5432/pix"


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.UniqueViolationError(f"Key (email)=({VALUE}) already exists."),
        psycopg.errors.InvalidTextRepresentation(f'invalid input value for enum mood: "{VALUE}"'),
        ValueError(f"invalid literal for int() with base 10: '{VALUE}'"),
        KeyError(VALUE),
        UnicodeDecodeError("utf-8", VALUE.encode(), 0, 1, VALUE),
    ],
)
def test_invariant_08_an_error_is_logged_without_its_text(
    lines: Callable[[], list[dict[str, Any]]], error: Exception
) -> None:
    log = logs.get()
    try:
        raise error
    except type(error) as seen:
        log.exception("as exc_info")
        log.error("as a field", error=seen)
        log.error("in a list", errors=[seen])
        logging.getLogger("library").exception("as a record: %s", seen)
        logging.getLogger("library").error("by name: %(error)s", {"error": seen})
    written = json.dumps(lines())
    assert len(lines()) == 5
    assert VALUE not in written
    assert written.count(type(error).__name__) >= 4
    assert lines()[0]["error"]["frames"][-1].startswith("test_invariant_08_")


def test_the_sqlstate_of_a_driver_error_is_kept(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logs.get().error("refused", error=asyncpg.UniqueViolationError(VALUE))
    logs.get().error("refused", error=psycopg.errors.DiskFull(VALUE))
    assert [line["error"]["sqlstate"] for line in lines()] == ["23505", "53100"]


def test_our_own_words_are_kept_with_the_sql_and_the_names(lines: Callable[[], list[dict[str, Any]]]) -> None:
    server = ServerError("42703", schema="public", table="users", column="nick")
    logs.get().error(
        "table stopped", error=TableStopped("users lacks nick", sql="ALTER TABLE users ADD nick text", server=server)
    )
    (line,) = lines()
    assert line["error"] == {
        "type": "TableStopped",
        "message": "users lacks nick",
        "sql": "ALTER TABLE users ADD nick text",
        "server": "SQLSTATE 42703 (table public.users, column nick)",
    }


def test_causes_and_groups_are_described_without_their_text() -> None:
    try:
        try:
            raise asyncpg.DataError(VALUE)
        except asyncpg.DataError as cause:
            raise CdcError("the batch was refused") from cause
    except CdcError as error:
        described = logs.describe(ExceptionGroup("two", [error, caught(ValueError(VALUE))]))
    assert VALUE not in json.dumps(described)
    assert described["errors"][0]["message"] == "the batch was refused"
    assert described["errors"][0]["cause"]["type"] == "DataError"
    assert described["errors"][1]["type"] == "ValueError"


def test_bytes_and_foreign_objects_are_not_printed(lines: Callable[[], list[dict[str, Any]]]) -> None:
    class Row:
        def __repr__(self) -> str:
            return VALUE

    logs.get().info("here", frame=VALUE.encode(), row=Row(), rows=[Row()], path=Path("x") / "y")
    logging.getLogger("library").warning("got %s", VALUE.encode())
    assert VALUE not in json.dumps(lines())
    assert lines()[0]["frame"] == f"<{len(VALUE)} bytes>"
    assert lines()[0]["path"] == "x/y"


async def test_what_the_event_loop_reports_holds_no_value(lines: Callable[[], list[dict[str, Any]]]) -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    logs.guard_process(loop)
    future = loop.create_future()
    future.set_exception(ValueError(VALUE))
    loop.call_exception_handler(
        {"message": "Task exception was never retrieved", "future": future, "exception": future.exception()}
    )
    loop.set_exception_handler(before)
    loop.default_exception_handler(
        {"message": "Future exception was never retrieved", "future": future, "exception": future.exception()}
    )
    assert VALUE not in json.dumps(lines())
    assert [line["event"] for line in lines()] == [
        "Task exception was never retrieved",
        "Future exception was never retrieved",
    ]
    assert lines()[0]["error"]["type"] == "ValueError"


def test_an_uncaught_error_is_logged_without_its_text(
    lines: Callable[[], list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.guard_process()
    error = caught(ValueError(VALUE))
    sys.excepthook(type(error), error, error.__traceback__)
    thread = threading.Thread(target=int, args=(VALUE,), name="copier")
    thread.start()
    thread.join()
    assert [line["event"] for line in lines()] == ["uncaught error", "uncaught error"]
    assert VALUE not in json.dumps(lines()) + capsys.readouterr().err


def test_warnings_become_lines(lines: Callable[[], list[dict[str, Any]]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert lines()[0]["logger"] == "py.warnings"


def test_the_console_says_the_same_for_people(lines: Callable[[], list[dict[str, Any]]]) -> None:
    stream = io.StringIO()
    logs.configure(format="console", stream=stream)
    logs.get().error("refused", error=asyncpg.UniqueViolationError(VALUE), dsn="postgres://u:hunter2@h/d")
    logs.get().debug("not at this level")
    assert "refused" in stream.getvalue()
    assert "23505" in stream.getvalue()
    assert VALUE not in stream.getvalue()
    assert "hunter2" not in stream.getvalue()
    assert "not at this level" not in stream.getvalue()


def test_auto_writes_json_when_nobody_watches(lines: Callable[[], list[dict[str, Any]]]) -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    logs.get().info("started")
    assert json.loads(stream.getvalue())["event"] == "started"


@pytest.mark.parametrize("wrong", [{"level": "loud"}, {"format": "xml"}])
def test_an_unknown_level_or_format_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no such log level or format"):
        logs.configure(**wrong)  # type: ignore[arg-type]
