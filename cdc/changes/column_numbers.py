"""The numbers of a table's columns, which tell a column whatever it is called.

``pg_attribute.attnum`` never changes and is never given to another column of the same table; a name can be given to
another one. The stream carries names only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ColumnNumbers:
    """The columns that a table of the source has, by name, each with its number.

    ``numbers`` are in their order, which is the order of the columns. ``computed`` are the names of generated columns.
    """

    numbers: Mapping[str, int]
    computed: frozenset[str] = frozenset()

    @property
    def stored(self) -> Mapping[str, int]:
        """Those of columns that are not generated."""
        return {name: number for name, number in self.numbers.items() if name not in self.computed}

    def explains(self, names: Iterable[str]) -> bool:
        """Whether a shape with columns of these names, in this order, may be that of the table as it is now."""
        known = iter(self.numbers)
        return all(name in known for name in names)

    def same_order(self, other: ColumnNumbers) -> bool:
        """Whether both tables have their columns in one order."""
        return list(self.numbers) == list(other.numbers)
