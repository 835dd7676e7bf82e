"""What one target wants of one relation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Route:
    """One source table to one target table.

    ``columns`` maps source column to target column, in the order of the configuration; `None` takes every column that
    the source has, also those added later, under the same name (never for a target with ``columns = "listed"``).

    ``keeps_deleted``: rows that the source deletes stay at the target (``deletes = "keep"``). ``deleted_at`` is then
    the target's column that notes when; `None` for a route that does not ask for it.
    """

    source_schema: str
    source_table: str
    target_schema: str
    target_table: str
    columns: tuple[tuple[str, str], ...] | None = None
    keeps_deleted: bool = False
    deleted_at: str | None = None

    @property
    def source_name(self) -> str:
        """``schema.table`` at the source, unquoted."""
        return f"{self.source_schema}.{self.source_table}"

    @property
    def target_name(self) -> str:
        """``schema.table`` at the target, unquoted."""
        return f"{self.target_schema}.{self.target_table}"

    def target_column(self, source_column: str) -> str | None:
        """Where a source column goes; `None` when this target does not ask for it."""
        if self.columns is None:
            return source_column
        return next((to for of, to in self.columns if of == source_column), None)
