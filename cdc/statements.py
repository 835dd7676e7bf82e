"""The SQL of the project: files under ``sql/``, one statement each, loaded by room and name.

A file begins with ``-- name:`` and a sentence that says what the statement is for. In a checkout the files lie at the
top of the repository; in an installed wheel they travel inside the package.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path


def directory() -> Path:
    """Where the SQL files are: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "sql"
    return inside if inside.is_dir() else package.parent / "sql"


@cache
def load(room: str, name: str) -> str:
    """The statement in ``sql/<room>/<name>.sql``, comments included, or ``FileNotFoundError``."""
    return (directory() / room / f"{name}.sql").read_text(encoding="utf-8")
