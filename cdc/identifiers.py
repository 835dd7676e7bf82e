"""Quoting of names and literals for SQL that is built, because column lists cannot be parameters.

Names at Pix hold hyphens, capitals and reserved words (hazard 7): every name is quoted, always.
"""

from __future__ import annotations

from collections.abc import Iterable


def quote(name: str) -> str:
    """A delimited identifier (PostgreSQL's manual, "Identifiers and Key Words")."""
    return '"' + name.replace('"', '""') + '"'


def quote_qualified(schema: str, name: str) -> str:
    """``"schema"."name"``."""
    return f"{quote(schema)}.{quote(name)}"


def quote_list(names: Iterable[str]) -> str:
    """A comma-separated list of delimited identifiers."""
    return ", ".join(quote(name) for name in names)


def quote_literal(text: str) -> str:
    """A string constant that means the same whatever ``standard_conforming_strings`` says."""
    escaped = text.replace("'", "''")
    return "E'" + escaped.replace("\\", "\\\\") + "'" if "\\" in text else f"'{escaped}'"
