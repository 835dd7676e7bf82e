"""What the documentation quotes of messages is what the code says: quotations are checked against its strings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "types-and-shapes.md"
SHORTEST = 8  # characters of a fragment between two names


@cache
def strings() -> tuple[str, ...]:
    """All literal strings of the code, f-strings as the pieces between what is filled in."""
    return tuple(
        node.value
        for path in (ROOT / "cdc").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def quotations() -> Iterator[str]:
    text = PAGE.read_text(encoding="utf-8")
    for quotation in re.findall("“([^“”]+)”", text):
        for fragment in quotation.split("…"):
            if len(fragment.strip(" ().,;")) >= SHORTEST:
                yield " ".join(fragment.split()).strip(" ().,;")


@pytest.mark.parametrize("fragment", sorted(set(quotations())))
def test_what_the_page_quotes_is_what_the_code_says(fragment: str) -> None:
    assert any(fragment in string for string in strings())
