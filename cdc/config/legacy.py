"""Variables that deployments already have: those of the PaaS, and of the nightly restore that `cdc` replaces.

They fill in what neither the file nor a ``CDC_`` variable gives, with the meaning that they always had. Two things are
different, on purpose. A mistyped table or mode in ``BACKUP_MODE`` is an error: the old tool ignored it. And
``RESTORE_ANSWERS_AND_KES`` leaves ``answers`` and ``knowledge-elements`` out only where it is set (to anything but
``true``), because there are databases with such tables that never heard of the variable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def fill_in(data: dict[str, Any], environ: Mapping[str, str], problems: dict[Key, str]) -> dict[str, Any]:
    """``data`` with what it lacks taken from ``environ``. An unreadable variable is noted in ``problems``."""
    filled = {**data, "source": data.get("source", {}), "targets": data.get("targets", {})}
    if url := environ.get("SOURCE_DATABASE_URL"):
        _set_default(filled, ("source", "dsn"), url)
    targets = filled["targets"]
    if (url := environ.get("DATABASE_URL")) and isinstance(targets, dict) and len(targets) == 1:
        _set_default(filled, ("targets", next(iter(targets)), "dsn"), url)
    for variable, key in _PLAIN.items():
        if value := environ.get(variable):
            _set_default(filled, key, value)
    if (value := environ.get("RESTORE_FK_CONSTRAINTS")) is not None:
        _set_default(filled, ("bootstrap", "foreign_keys"), _is_true(value))
    modes = _modes(environ, problems)
    if modes:
        _set_default(filled, ("bootstrap", "modes"), modes)
    if value := environ.get("NOTIFICATIONS"):
        notified = _json("NOTIFICATIONS", value, list, "a list of objects with url and token", problems)
        if notified and "notifications" not in filled:
            filled["notifications"] = notified
    return filled


def _modes(environ: Mapping[str, str], problems: dict[Key, str]) -> dict[str, Any]:
    """What ``BACKUP_MODE`` says, or the two variables that it succeeded."""
    modes: dict[str, Any] = {}
    if (value := environ.get("RESTORE_ANSWERS_AND_KES")) is not None and not _is_true(value):
        modes = dict.fromkeys(ANSWERS_AND_KES, "none")
    if _is_true(environ.get("RESTORE_ANSWERS_AND_KES_INCREMENTALLY", "")):
        modes = dict.fromkeys(ANSWERS_AND_KES, "incremental")
    if value := environ.get("BACKUP_MODE"):
        modes |= _json("BACKUP_MODE", value, dict, 'an object, table to "incremental" or "none"', problems) or {}
    return modes


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


def _set_default(data: dict[str, Any], key: Key, value: Any) -> None:
    """Set a nested key that is not there. The tables on the way are copied, never changed."""
    first, *rest = key
    if not rest:
        data.setdefault(first, value)
        return
    inner = data.get(first, {})
    if isinstance(inner, dict):
        data[first] = dict(inner)
        _set_default(data[first], tuple(rest), value)
