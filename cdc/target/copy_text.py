"""Few values, known as text, on their way into a table: the bytes of ``COPY … FROM STDIN`` in text format.

Source: PostgreSQL's manual, "COPY", "Text Format". A value is never a parameter of a statement, because a target's
statement log may be shipped elsewhere (invariant 8).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


async def text_rows(rows: Sequence[Sequence[str]]) -> AsyncIterator[bytes]:
    """Encode rows of values, none of them NULL."""
    lines = ("\t".join(value.translate(_ESCAPES) for value in row) + "\n" for row in rows)
    yield "".join(lines).encode()
