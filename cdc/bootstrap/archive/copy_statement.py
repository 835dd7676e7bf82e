"""The columns of an archived table: read out of the COPY statement that its rows were written for.

``pg_dump`` writes ``COPY schema.table (column, "other column") FROM stdin;`` (``dumpTableData`` and
``fmtCopyColumnList`` in src/bin/pg_dump/pg_dump.c). Names are PostgreSQL's identifiers, so they are read as such: a
quoted one can hold commas, parentheses, line ends and doubled quotes.
"""

from __future__ import annotations

from cdc.bootstrap.archive.toc import TocEntry
from cdc.errors import SetupError


def copy_columns(entry: TocEntry) -> tuple[str, ...]:
    """The columns of an entry with data, in the order in which each of its rows holds them; unquoted.

    Raises `SetupError` when the entry has no COPY statement (``pg_dump --inserts``) or one of another form.
    """
    reader = _Statement(entry)
    reader.expect("COPY ")
    reader.identifier()
    if reader.has("."):
        reader.identifier()
    reader.expect(" ")
    columns: list[str] = []
    if reader.has("("):
        columns.append(reader.identifier())
        while reader.has(", "):
            columns.append(reader.identifier())
        reader.expect(")")
    reader.expect(" FROM stdin;")
    return tuple(columns)


class _Statement:
    """A place in the statement, and what may come next there."""

    def __init__(self, entry: TocEntry) -> None:
        self._entry = entry
        self._text = entry.copy_statement or ""
        self._place = 0

    def has(self, text: str) -> bool:
        found = self._text.startswith(text, self._place)
        if found:
            self._place += len(text)
        return found

    def expect(self, text: str) -> None:
        if not self.has(text):
            raise self._unreadable()

    def identifier(self) -> str:
        """A quoted or plain name (PostgreSQL's manual, "Identifiers and Key Words")."""
        if not self.has('"'):
            end = self._place
            while end < len(self._text) and (self._text[end].isalnum() or self._text[end] in "_$"):
                end += 1
            name = self._text[self._place : end]
            self._place = end
            if not name:
                raise self._unreadable()
            return name
        parts: list[str] = []
        while True:
            end = self._text.find('"', self._place)
            if end < 0:
                raise self._unreadable()
            parts.append(self._text[self._place : end])
            self._place = end + 1
            if not self.has('"'):
                return '"'.join(parts)

    def _unreadable(self) -> SetupError:
        return SetupError(
            f"the archive holds the rows of {self._entry.qualified_name} in a form that cannot be restored: not as "
            f"COPY with its columns. Make it without --inserts, --column-inserts and --rows-per-insert"
        )
