"""How many rows of a table have been copied while it is built beside: a bootstrap's progress, overheard.

`cdc resync` writes the number into its request, where `cdc status` finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cdc.bootstrap.progress import Progress


@dataclass(slots=True)
class CountedRows:
    """A `Progress` that passes everything on to ``inner``, and tells ``count`` how many rows of its one table are in.

    Rows of a table whose copy begins anew are counted anew.
    """

    inner: Progress
    count: Callable[[int], None]
    _rows: int = 0

    def begin(self, target: str, table: str, ranges: int) -> None:
        """Count from nothing."""
        self._rows = 0
        self.inner.begin(target, table, ranges)

    def copied(self, target: str, table: str, rows: int, size: int) -> None:
        """Count the range's rows."""
        self._rows += rows
        self.count(self._rows)
        self.inner.copied(target, table, rows, size)

    def finish(self, target: str, table: str) -> None:
        """Pass it on."""
        self.inner.finish(target, table)

    def download(self, done: int, total: int | None) -> None:
        """Pass it on."""
        self.inner.download(done, total)

    def rows(self, target: str, table: str, done: int, of: int | None) -> None:
        """Pass it on."""
        self.inner.rows(target, table, done, of)

    def step(self, kind: str, name: str | None, targets: Sequence[str]) -> None:
        """Pass it on."""
        self.inner.step(kind, name, targets)

    def say(self, message: str) -> None:
        """Pass it on."""
        self.inner.say(message)
