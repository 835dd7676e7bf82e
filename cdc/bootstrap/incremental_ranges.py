"""Ranges of a table's keys, where the key is one integer column: cut, compared, and read by an index. Pure.

A range whose keys are the same on both sides has nothing to copy. That is found without a row: `Digest` is how many
keys a range has, their sum, and the sum of their hashes. Two sets of keys that differ have the same digest only by an
accident of about one in 2^64, and whoever wanted to cause it would have to choose keys for that; the next update of
a row that was missed so would stop the table.

Ranges are half open, and open where nobody knows an end, so those of a table hold every key that there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cdc.bootstrap.ranges import PageRange

KEYS = 1_000_000
"""About how many keys are compared at once. Counting so many by an index takes a third of a second, on either side:
short for a transaction, and long enough that round trips do not count. Five billion keys are five thousand of them."""

PARTS = 100
"""Into how many parts the keys are counted at once: so one query narrows a difference down to some 10,000 keys."""

COPIED_AT_ONCE = 10_000
"""A part of so many rows is not narrowed down any more, but copied, and the target leaves out what it has. To read so
many rows costs less than to ask again."""

_ROWS_PER_PAGE = 256
"""More rows than that do not fit on a page: each takes 28 bytes and its key."""


@dataclass(frozen=True, slots=True)
class Digest:
    """What tells two sets of keys apart. Sums are text, as the servers write them."""

    count: int
    total: str
    hashes: str


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys from ``first`` up to, not including, ``end``; `None` where it is open."""

    first: int | None
    end: int | None

    def condition(self, column: str) -> str:
        """The SQL condition for the keys in this range (``column`` is quoted); empty for all keys."""
        bounds = []
        if self.first is not None:
            bounds.append(f"{column} >= {_literal(self.first)}")
        if self.end is not None:
            bounds.append(f"{column} < {_literal(self.end)}")
        return " AND ".join(bounds)

    def split(self) -> tuple[KeyRange, ...]:
        """Its `PARTS`, or as many as it has keys; itself, where it is open."""
        if self.first is None or self.end is None:
            return (self,)
        return _cut(self.first, self.end, PARTS)


@dataclass(frozen=True, slots=True)
class KeyRanges:
    """The rows of one or more ranges of keys, in their order. ``column`` is the key at the source, quoted."""

    column: str
    ranges: tuple[KeyRange, ...]

    def condition(self) -> str:
        """The SQL condition for the rows in these ranges; empty when that is the whole table."""
        conditions = [one.condition(self.column) for one in self.ranges]
        return "" if "" in conditions else " OR ".join(f"({condition})" for condition in conditions)


Part = PageRange | KeyRanges
"""Which rows of a table one piece of work is about."""


def key_ranges(lowest: int | None, highest: int | None, pages: int, keys: int = KEYS) -> tuple[KeyRange, ...]:
    """All keys, in ranges of about ``keys``: those from ``lowest`` to ``highest``, and what may be outside of them.

    `None` for a table that looked empty. ``pages`` measures the table: keys far apart make no more ranges than its rows
    could fill.
    """
    if lowest is None or highest is None:
        return (KeyRange(None, None),)
    end = highest + 1
    count = -(-min(end - lowest, max(1, pages) * _ROWS_PER_PAGE) // keys)
    return (KeyRange(None, lowest), *_cut(lowest, end, count), KeyRange(end, None))


def digests_sql(table: str, column: str, of: KeyRange) -> str:
    """The query for the digests of the parts of a range: the part's number, then the digest's fields.

    Parts without a key are not in the answer. ``table`` is quoted and says ONLY where that is meant, ``column`` is
    quoted. Reads nothing but an index of the column.
    """
    inner = [part.first for part in of.split()[1:]]
    part = f"pg_catalog.width_bucket({column}::int8, '{{{','.join(map(str, inner))}}}'::int8[])" if inner else "0"
    condition = of.condition(column)
    return (
        f"SELECT {part}, pg_catalog.count(*), pg_catalog.sum({column})::text,"
        f" pg_catalog.sum(pg_catalog.hashint8extended({column}::int8, 0))::text"
        f" FROM {table}{f' WHERE {condition}' if condition else ''} GROUP BY 1"
    )


def differing(
    of: KeyRange, source: Mapping[int, Digest], target: Mapping[int, Digest]
) -> tuple[list[KeyRange], list[KeyRange]]:
    """Of the parts of a range those that are to be copied, and those that are to be compared part by part.

    A part that the source has no key in is neither: what only the target has stays.
    """
    copied: list[KeyRange] = []
    compared: list[KeyRange] = []
    parts = of.split()
    for number, part in enumerate(parts):
        here, there = source.get(number), target.get(number)
        if here is None or here == there:
            continue
        is_small = here.count <= COPIED_AT_ONCE or there is None or len(parts) == 1
        (copied if is_small else compared).append(part)
    return copied, compared


def merged(ranges: Iterable[KeyRange]) -> tuple[KeyRange, ...]:
    """Sorted, with neighbours made one: fewer conditions for the same keys. Only an open range may begin at `None`."""
    found: list[KeyRange] = []
    for one in sorted(ranges, key=lambda one: (one.first is not None, one.first or 0)):
        if found and found[-1].end is not None and found[-1].end == one.first:
            found[-1] = KeyRange(found[-1].first, one.end)
        else:
            found.append(one)
    return tuple(found)


def _cut(first: int, end: int, count: int) -> tuple[KeyRange, ...]:
    width = max(1, -(-(end - first) // count))
    return tuple(KeyRange(start, min(start + width, end)) for start in range(first, end, width))


def _literal(key: int) -> str:
    """A key, or the number behind the greatest one, as SQL: plain numbers for what every integer type compares with."""
    return str(key) if abs(key) < 2**31 else f"'{key}'::{'int8' if -(2**63) <= key < 2**63 else 'numeric'}"
