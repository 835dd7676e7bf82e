"""Logs that an operator can read and that never hold a row value or a password (invariant 8, "even by accident").

Lines of JSON when nobody watches, coloured lines on a terminal. Every record, those of libraries included, goes through
one chain which

- writes an exception as its class, its SQLSTATE, the frames it passed and, only where the words are ours (`CdcError`,
  the strerror of an `OSError`), its message: ``str()`` of any other error can quote a value, that of a driver does;
- blanks passwords in DSNs, conninfo strings and fields that are named like one;
- shows no bytes and no foreign object, only their size or class.

Nothing is logged per row or batch at ``info`` or above: the platform takes 16,384 lines a minute and drops the rest.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from asyncio import AbstractEventLoop
from collections.abc import Iterator, Mapping, MutableMapping
from datetime import date, timedelta
from pathlib import PurePath
from types import TracebackType
from typing import Any, TextIO, cast
from uuid import UUID

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from cdc.errors import CdcError
from cdc.lsn import Lsn

FORMATS = ("auto", "json", "console")
"""What `configure` accepts: ``auto`` is ``console`` on a terminal and ``json`` elsewhere."""

_MASK = "***"
_SECRET_FIELD = re.compile(r"passw|passphrase|secret|token|authorization|credential|api_?key", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(://[^\s:/?#@]*:)\S*@")
_QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
# password=x, password = 'x y', {'password': 'x'}; not the colon of a sentence ("wrong password: …").
_NAMED_PASSWORD = re.compile(
    rf"""((?:password|passwd|pwd|passphrase|token|secret)["']?\s*)(?:(=\s*)(?:{_QUOTED}|[^\s&;,)}}\]'"]+)|(:\s*){_QUOTED})""",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]+", re.IGNORECASE)
# Deep enough for a group of errors in a group with their causes; a cycle ends here too.
_MAX_DEPTH = 6


def configure(*, level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:
    """Send every log of this process to ``stream`` (default: standard error), from ``level`` on; call it once, first.

    Raises ``ValueError`` for a level or format that does not exist.
    """
    out = stream if stream is not None else sys.stderr
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None or format not in FORMATS:
        raise ValueError(f"no such log level or format: {level}, {format}")
    is_console = format == "console" or (format == "auto" and out.isatty())
    chain: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        keep_safe,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=out.isatty())
        if is_console
        else structlog.processors.JSONRenderer(ensure_ascii=False, default=_shape)
    )
    structlog.configure(
        processors=[*chain, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.addFilter(_without_values)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_name_logger, *chain],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up from WARNING on; what they say of less is about their own workings.
    root.setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)


def get(**fields: Any) -> FilteringBoundLogger:
    """A logger; ``fields`` are on each of its lines. Cheap, safe to call at import."""
    return cast(FilteringBoundLogger, structlog.get_logger(**fields))


def guard_process(loop: AbstractEventLoop | None = None) -> None:
    """Log what nobody caught through the same chain, instead of Python's traceback that prints the error's text."""
    log = get()

    def uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error or kind(), trace)
        else:
            log.critical("uncaught error", error=error)

    def in_loop(loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        # Its other entries are futures and transports, whose repr quotes the error's text.
        log.error(str(context.get("message", "error in the event loop")), error=context.get("exception"))

    sys.excepthook = uncaught
    threading.excepthook = lambda caught: uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
    sys.unraisablehook = lambda caught: uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
    if loop is not None:
        loop.set_exception_handler(in_loop)


def keep_safe(_logger: WrappedLogger | None, _method: str, event: EventDict) -> EventDict:
    """The processor that keeps the promise of this module; the last one before rendering."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    event.pop("stack_info", None)
    if isinstance(error, BaseException):
        event.setdefault("error", error)
    for field, value in list(event.items()):
        if not field.startswith("_"):
            event[field] = _safe(field, value, 0)
    return event


def describe(error: BaseException) -> dict[str, Any]:
    """What may be said of an error: see the module's docstring. Causes and the members of a group are described too."""
    return _describe(error, 0)


def redact(text: str) -> str:
    """The text without the passwords of DSNs and conninfo strings."""
    text = _URL_PASSWORD.sub(rf"\1{_MASK}@", text)
    text = _NAMED_PASSWORD.sub(rf"\1\2\3{_MASK}", text)
    return _BEARER.sub(rf"\1 {_MASK}", text)


def _describe(error: BaseException, depth: int) -> dict[str, Any]:
    told: dict[str, Any] = {"type": type(error).__qualname__}
    if isinstance(error, CdcError):
        told["message"] = redact(str(error))
        if error.sql:
            told["sql"] = redact(error.sql)
        if error.server is not None:
            told["server"] = str(error.server)
    elif isinstance(error, OSError) and error.strerror:
        told["message"] = redact(str(error.strerror))
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(sqlstate, str):
        told["sqlstate"] = sqlstate
    if not isinstance(error, CdcError):
        told["frames"] = [f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in _frames(error)]
    if depth < _MAX_DEPTH:
        if isinstance(error, BaseExceptionGroup):
            told["errors"] = [_describe(member, depth + 1) for member in error.exceptions]
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is not None:
            told["cause"] = _describe(cause, depth + 1)
    return told


def _frames(error: BaseException) -> Iterator[traceback.FrameSummary]:
    # Eight frames show where it happened; the ones above are the event loop and the supervisor.
    return iter(traceback.extract_tb(error.__traceback__)[-8:])


def _safe(field: str, value: Any, depth: int) -> Any:
    if _SECRET_FIELD.search(field):
        return _MASK if value else value
    match value:
        case Lsn() | UUID() | PurePath() | str():
            safe: Any = redact(str(value))
        case None | bool() | int() | float():
            safe = value
        case BaseException():
            safe = describe(value)
        case date():
            safe = value.isoformat()
        case timedelta():
            safe = value.total_seconds()
        case Mapping() if depth < _MAX_DEPTH:
            safe = {str(name): _safe(str(name), item, depth + 1) for name, item in value.items()}
        case list() | tuple() | set() | frozenset() if depth < _MAX_DEPTH:
            safe = [_safe(field, item, depth + 1) for item in value]
        case _:
            safe = _shape(value)
    return safe


def _shape(value: Any) -> str:
    """A stand-in for what could hold a row."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return f"<{type(value).__qualname__}>"


def _without_values(record: logging.LogRecord) -> bool:
    """A filter for records of libraries: errors among their arguments are described, not printed."""
    if isinstance(record.args, tuple):
        record.args = tuple(_argument(item) for item in record.args)
    elif isinstance(record.args, Mapping):
        record.args = {name: _argument(item) for name, item in record.args.items()}
    if record.name == "asyncio":
        # The first line is asyncio's sentence; the others are the repr of futures and of their errors.
        record.msg, record.args = record.getMessage().partition("\n")[0], ()
    return True


def _argument(value: object) -> object:
    if isinstance(value, BaseException):
        described = describe(value)
        return " ".join(str(described[part]) for part in ("type", "sqlstate", "message") if part in described)
    return _shape(value) if isinstance(value, bytes | bytearray | memoryview) else value


def _name_logger(_logger: WrappedLogger | None, _method: str, event: MutableMapping[str, Any]) -> EventDict:
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        event["logger"] = record.name
    return event
