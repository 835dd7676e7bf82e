"""A column that the source computes itself, and that no row of its stream holds unless a publication asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from cdc.changes.relation import DataType
from cdc.identifiers import quote


@dataclass(frozen=True, slots=True)
class GeneratedColumn:
    """A column ``GENERATED ALWAYS AS (expression)``.

    ``place`` is its place among all columns of its table. ``expression`` names everything outside of ``pg_catalog``
    with its schema, but for the table's own columns. ``is_virtual``: it is computed when it is read (PostgreSQL 18).
    """

    name: str
    type: DataType
    not_null: bool
    is_virtual: bool
    place: int
    expression: str

    def definition(self, *, has_virtual: bool) -> str:
        """The column in CREATE TABLE and ADD COLUMN, stored where the server does not have virtual ones."""
        kind = "VIRTUAL" if self.is_virtual and has_virtual else "STORED"
        rest = " NOT NULL" if self.not_null else ""
        return f"{quote(self.name)} {self.type.sql} GENERATED ALWAYS AS ({self.expression}) {kind}{rest}"
