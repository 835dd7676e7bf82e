"""The SQL files of a target's enrichment: what is read out of them before one of them is run. Pure.

A file is plain SQL. Comments at its head can say more, one a line::

    -- needs: public.users, public.answers       left out where one of these tables is not there
    -- refresh: public.answers_by_day            a materialized view to be refreshed on schedule, once the file was run
    -- cdc: transaction                          all statements or none; otherwise each commits by itself

Names are unquoted, ``schema.table``; a name without a schema is one of ``public``. Every other comment is a comment.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlparse
from sqlparse import lexer, tokens

from cdc.errors import ConfigurationError

_HEAD = re.compile(r"--\s*(needs|refresh|cdc)\s*:(.*)")

_IDENTIFIER = r'(?:"(?:[^"]|"")*"|[^\W\d][\w$]*)'

_CONCURRENT_INDEX = re.compile(
    rf"CREATE (?:UNIQUE )?INDEX CONCURRENTLY (?:IF NOT EXISTS )?({_IDENTIFIER}) ON (?:ONLY )?"
    rf"(?:({_IDENTIFIER}) ?\. ?)?({_IDENTIFIER})",
    re.IGNORECASE,
)

_CONTROL = {"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE"}
"""What a transaction is begun and ended with."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement; ``plain`` is its text without comments, each space one blank."""

    text: str
    plain: str

    @property
    def digest(self) -> str:
        """What tells it from another one."""
        return _digest(self.text)

    @property
    def is_setting(self) -> bool:
        """Whether it sets something for the session, and has to be said again in another one."""
        words = self.plain.upper().split(" ", 2)
        return words[0] == "SET" and words[1] not in ("LOCAL", "TRANSACTION", "CONSTRAINTS")

    @property
    def concurrent_index(self) -> tuple[str, str, str] | None:
        """Schema, table and name of the index that it builds CONCURRENTLY; `None` for every other statement."""
        found = _CONCURRENT_INDEX.match(self.plain)
        if found is None:
            return None
        name, schema, table = found.groups()
        return _unquoted(schema or "public"), _unquoted(table), _unquoted(name)


@dataclass(frozen=True, slots=True)
class EnrichmentFile:
    """One file. ``needs`` and ``refreshes`` are ``schema.name``, unquoted."""

    name: str
    digest: str
    statements: tuple[Statement, ...]
    needs: tuple[str, ...]
    refreshes: tuple[str, ...]
    is_transaction: bool


def read(directory: Path, target: str) -> list[tuple[str, str]]:
    """The names and the texts of a target's files, in the order in which they are run.

    None where there is no directory. Raises `ConfigurationError` for a file that cannot be read.
    """
    try:
        return [(path.name, path.read_text(encoding="utf-8")) for path in sorted((directory / target).glob("*.sql"))]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"a file of {directory / target} cannot be read: {reason}") from None


def parse(name: str, text: str) -> EnrichmentFile:
    """Take a file apart. Raises `ConfigurationError` for one that begins or ends transactions itself."""
    head: dict[str, list[str]] = {"needs": [], "refresh": [], "cdc": []}
    for line in _head(text):
        found = _HEAD.fullmatch(line)
        if found is not None:
            head[found[1]] += [word.strip() for word in found[2].split(",") if word.strip()]
    unknown = sorted({*head["cdc"]} - {"transaction"})
    if unknown:
        raise ConfigurationError(f'{name}: "-- cdc: {unknown[0]}" means nothing, only "-- cdc: transaction" does')
    statements = tuple(_statements(text))
    for statement in statements:
        word = re.split(r"\W", statement.plain, maxsplit=1)[0].upper()
        if word in _CONTROL:
            raise ConfigurationError(
                f'{name}: {word} is left to cdc: a file with "-- cdc: transaction" on top is run as one transaction'
            )
    return EnrichmentFile(
        name,
        _digest(text),
        statements,
        tuple(_qualified(word) for word in head["needs"]),
        tuple(_qualified(word) for word in head["refresh"]),
        "transaction" in head["cdc"],
    )


def _head(text: str) -> Iterator[str]:
    """The lines before the first statement."""
    for line in text.splitlines():
        if line.strip() and not line.startswith("--"):
            return
        yield line.rstrip()


def _statements(text: str) -> Iterator[Statement]:
    for part in sqlparse.split(text):
        words = [
            " " if kind in tokens.Whitespace else value
            for kind, value in lexer.tokenize(part)  # type: ignore[no-untyped-call]  # has no types
            if kind not in tokens.Comment
        ]
        plain = re.sub(" +", " ", "".join(words)).strip().rstrip("; ")
        if plain:
            yield Statement(part, plain)


def _qualified(name: str) -> str:
    return name if "." in name else f"public.{name}"


def _unquoted(identifier: str) -> str:
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier.lower()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
