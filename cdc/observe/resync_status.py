"""What `cdc status` shows of a table that is read again (`cdc resync`) until it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from rich.text import Text


@dataclass(frozen=True, slots=True)
class ResyncStatus:
    """One request that is not over.

    ``table`` is ``schema.table`` at the source, ``way`` as ``cdc resync`` says it (`None` until the worker has chosen),
    ``rows`` how many have been read so far, of about ``estimated_rows`` where that is known. ``asked_at`` is by the
    target's clock, ``says`` what happens now, or what is waited for, in one sentence.
    """

    table: str
    state: str
    way: str | None
    rows: int
    estimated_rows: int | None
    asked_at: datetime
    says: str

    def render(self, target: str) -> Text:
        """One line for a terminal."""
        way = "" if self.way is None else f" ({self.way})"
        of = "" if self.estimated_rows is None else f" of about {self.estimated_rows:,}"
        return Text.assemble(
            (f"{target}  ", "bold"),
            (f"{self.table} is read again{way}: ", "cyan"),
            f"{self.rows:,}{of} rows since {self.asked_at:%Y-%m-%d %H:%M:%S} UTC; {self.says}",
        )
