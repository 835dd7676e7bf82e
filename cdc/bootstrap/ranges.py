"""A table cut into ranges of pages, each small enough to be read in a short transaction.

A range is a condition on ``ctid``, which PostgreSQL 14 and later answer by reading just those pages (a TID range
scan). Together the ranges of a table hold every row that a snapshot sees, each row in one range only: the last one is
open-ended, so rows on pages that were added after the table was measured are read too.
"""

from __future__ import annotations

from dataclasses import dataclass

PAGE_BYTES = 8192
"""The block size of every PostgreSQL that was not compiled with another one; only the size of ranges depends on it."""

RANGE_BYTES = 128 * 1024 * 1024
"""How much of a table, its TOAST included, one range reads.

At the rate of one COPY (about 100 MB/s) that is a transaction of a second or two: short enough that neither VACUUM nor
somebody's DDL waits for it, that a cancelled one costs little, and that the end of a table keeps all jobs busy; long
enough that the dozen round trips of a range do not count.
"""


@dataclass(frozen=True, slots=True)
class PageRange:
    """Pages ``first`` up to, not including, ``end``; an ``end`` of `None` reads to the end of the table."""

    first: int
    end: int | None

    def condition(self) -> str:
        """The SQL condition for the rows in this range; empty when it is the whole table."""
        bounds = []
        if self.first > 0:
            bounds.append(f"ctid >= '({self.first},0)'::pg_catalog.tid")
        if self.end is not None:
            bounds.append(f"ctid < '({self.end},0)'::pg_catalog.tid")
        return " AND ".join(bounds)


def split(pages: int, total_bytes: int, range_bytes: int = RANGE_BYTES) -> tuple[PageRange, ...]:
    """Cut a table of ``pages`` heap pages into ranges of about ``range_bytes``.

    ``total_bytes`` counts the table with its TOAST: where large values lie outside the heap, a range has fewer pages.
    At least one range is returned, for an empty table too.
    """
    heap_bytes = pages * PAGE_BYTES
    pages_per_range = max(1, range_bytes * pages // max(heap_bytes, total_bytes, 1))
    firsts = range(0, max(pages, 1), pages_per_range)
    ends = [*firsts[1:], None]
    return tuple(PageRange(first, end) for first, end in zip(firsts, ends, strict=True))
