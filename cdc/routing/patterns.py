"""Patterns of table names, and what somebody who mistyped a name probably meant.

A pattern is ``schema.table``. ``*`` stands for any run of characters, ``?`` for one; everything else, brackets
included, stands for itself, capitals differ from small letters, and the pattern always covers the whole name:
``public.answers`` never takes ``public.element-answers``. The first dot ends the schema, in a pattern as in a name, and
``*`` before it does not reach beyond it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache


def split(qualified_name: str) -> tuple[str, str]:
    """Schema and table of ``schema.table``. Raises ``ValueError`` without a dot."""
    schema, dot, table = qualified_name.partition(".")
    if not dot:
        raise ValueError(f"{qualified_name} is no name of the form schema.table")
    return schema, table


def matches(pattern: str, qualified_name: str) -> bool:
    """Whether the pattern covers the whole of ``schema.table``."""
    schema, table = split(qualified_name)
    schema_pattern, table_pattern = _compile(pattern)
    return schema_pattern.fullmatch(schema) is not None and table_pattern.fullmatch(table) is not None


@cache
def _compile(pattern: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    schema, table = split(pattern)
    return _expression(schema), _expression(table)


def _expression(part: str) -> re.Pattern[str]:
    translated = "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in part)
    return re.compile(translated, re.DOTALL)


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that is most like the name; `None` where none is like it.

    The same name in another case, or in another schema, comes before all others.
    """
    known = sorted(candidates)
    for same in (str.casefold, lambda text: text.partition(".")[2].casefold()):
        for candidate in known:
            if same(candidate) and same(candidate) == same(name):
                return candidate
    close = get_close_matches(name, known, 1, 0.6)
    return close[0] if close else None
