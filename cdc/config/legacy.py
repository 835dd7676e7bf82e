"""Variables that deployments already have: those of the PaaS, and of the nightly restore that `cdc` replaces.

They fill in what neither the file nor a ``CDC_`` variable gives, with the meaning that they always had. Two things are
different, on purpose. A mistyped table or mode in ``BACKUP_MODE`` is an error, and so is a mistyped variable of the
restore's own: the old tool ignored both. And ``RESTORE_ANSWERS_AND_KES`` leaves ``answers`` and ``knowledge-elements``
out only where it is set (to anything but ``true``), because there are databases with such tables that never heard of
the variable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

Key = tuple[str, ...]

ANSWERS_AND_KES = ("public.answers", "public.knowledge-elements")
"""The tables of ``RESTORE_ANSWERS_AND_KES`` and ``RESTORE_ANSWERS_AND_KES_INCREMENTALLY``."""

_PLAIN = {
    "SCALINGO_APP": ("bootstrap", "scalingo_app"),
    "SCALINGO_API_TOKEN": ("bootstrap", "scalingo_api_token"),
    "MAX_RETRY_COUNT": ("bootstrap", "max_retry_count"),
    "PG_RESTORE_JOBS": ("bootstrap", "restore_jobs"),
    "SCHEDULE": ("refresh", "schedule"),
}
"""Variables whose text is the value of one key."""

_RESTORE = (
    "BACKUP_MODE",
    "PG_RESTORE_JOBS",
    "RESTORE_ANSWERS_AND_KES",
    "RESTORE_ANSWERS_AND_KES_INCREMENTALLY",
    "RESTORE_FK_CONSTRAINTS",
)
"""Variables whose names no other program has, so that one that is nearly the same is a slip."""


def fill_in(
    data: dict[str, Any], environ: Mapping[str, str], problems: dict[Key, str]
) -> tuple[dict[str, Any], dict[Key, str]]:
    """``data`` with what it lacks taken from ``environ``, and for each key that was taken its variable.

    An unreadable variable is noted in ``problems``.
    """
    filled = {**data, "source": data.get("source", {}), "targets": data.get("targets", {})}
    taken: dict[Key, str] = {}

    def take(variable: str, key: Key, value: Any) -> None:
        if _set_default(filled, key, value):
            taken[key] = variable

    if url := environ.get("SOURCE_DATABASE_URL"):
        take("SOURCE_DATABASE_URL", ("source", "dsn"), url)
    targets = filled["targets"]
    if (url := environ.get("DATABASE_URL")) and isinstance(targets, dict) and len(targets) == 1:
        take("DATABASE_URL", ("targets", next(iter(targets)), "dsn"), url)
    for variable, key in _PLAIN.items():
        if value := environ.get(variable):
            take(variable, key, value)
    if value := environ.get("RESTORE_FK_CONSTRAINTS"):
        take("RESTORE_FK_CONSTRAINTS", ("bootstrap", "foreign_keys"), _is_true(value))
    for variable, guess in _slips(environ):
        problems["environment", variable] = f"is no variable of cdc; did you mean {guess}?"
    modes, spoken = _modes(environ, problems)
    if modes and _set_default(filled, ("bootstrap", "modes"), modes):
        taken |= {("bootstrap", "modes", table): variable for table, variable in spoken.items()}
    if value := environ.get("NOTIFICATIONS"):
        notified = _json("NOTIFICATIONS", value, list, "a list of objects with url and token", problems)
        if notified:
            take("NOTIFICATIONS", ("notifications",), notified)
    return filled, taken


def _slips(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The variables that are nearly, and not quite, one of the restore's own; each with that."""
    for variable in environ:
        if variable.startswith(("RESTORE_", "BACKUP_", "PG_RESTORE_")) and variable not in _RESTORE:
            guess = get_close_matches(variable, _RESTORE, 1, 0.92)
            if guess:
                yield variable, guess[0]


def _modes(environ: Mapping[str, str], problems: dict[Key, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What ``BACKUP_MODE`` says, or the two variables that it succeeded; and for each table the variable that spoke."""
    modes: dict[str, Any] = {}
    spoken: dict[str, str] = {}
    if (value := environ.get("RESTORE_ANSWERS_AND_KES")) is not None and not _is_true(value):
        modes = dict.fromkeys(ANSWERS_AND_KES, "none")
        spoken = dict.fromkeys(ANSWERS_AND_KES, "RESTORE_ANSWERS_AND_KES")
    if _is_true(environ.get("RESTORE_ANSWERS_AND_KES_INCREMENTALLY", "")):
        modes = dict.fromkeys(ANSWERS_AND_KES, "incremental")
        spoken = dict.fromkeys(ANSWERS_AND_KES, "RESTORE_ANSWERS_AND_KES_INCREMENTALLY")
    if value := environ.get("BACKUP_MODE"):
        given = _json("BACKUP_MODE", value, dict, 'an object, table to "incremental" or "none"', problems) or {}
        # It wins over the older ones, which name their tables with the schema.
        modes = {table: mode for table, mode in modes.items() if table.removeprefix("public.") not in given} | given
        spoken |= dict.fromkeys(given, "BACKUP_MODE")
    return modes, spoken


def _json(variable: str, text: str, kind: type, what: str, problems: dict[Key, str]) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        problems["environment", variable] = f"is not {what}, written as JSON"
        return None
    return value


def _is_true(value: str) -> bool:
    return value.strip().lower() == "true"


def _set_default(data: dict[str, Any], key: Key, value: Any) -> bool:
    """Set a nested key that is not there; whether it was set. The tables on the way are copied, never changed."""
    first, *rest = key
    if not rest:
        if first in data:
            return False
        data[first] = value
        return True
    inner = data.get(first, {})
    if not isinstance(inner, dict):
        return False
    data[first] = dict(inner)
    return _set_default(data[first], tuple(rest), value)
