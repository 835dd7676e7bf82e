"""The target's half of a plan: columns, key, how each value gets in; everything that a statement is built from."""

from __future__ import annotations

from dataclasses import dataclass

from cdc.identifiers import quote_qualified


@dataclass(frozen=True, slots=True)
class PlanColumn:
    """One column of a target table that a relation fills.

    ``stage_type`` is what it is in staging, ``cast`` the type to cast to on the way from there (`None`: assignment does
    it). ``key_cast`` and ``equals`` serve to compare a staged value with the column, ``match_cast`` to compare it byte
    by byte. ``is_written`` is false for a generated column, ``is_updatable`` false for that and for identity ALWAYS.
    ``is_comparable`` says that ``=`` holds whenever the bytes are equal. ``read_as`` is the type, the source's, as
    which a staged text is read before it is cast or assigned; `None` where a staged value is what the source had.
    """

    name: str
    stage_type: str
    cast: str | None
    key_cast: str | None
    match_cast: str | None
    equals: str
    is_written: bool
    is_updatable: bool
    is_comparable: bool
    read_as: str | None = None

    def read(self, value: str) -> str:
        """The SQL of a staged value, as the source had it."""
        return value if self.read_as is None else f"CAST({value} AS {self.read_as})"

    def compared(self, value: str) -> str:
        """The SQL of a staged value, as ``equals`` compares it with the column."""
        return self.read(value) if self.key_cast is None else f"CAST({self.read(value)} AS {self.key_cast})"


@dataclass(frozen=True, slots=True, eq=False)
class TableShape:
    """The target's half of a plan. Compared by identity: the applier keeps one object for each distinct shape.

    - ``key``: places of the columns that identify a row; empty when nothing does. ``matches_whole_row``: rows are then
      identified by all their values (REPLICA IDENTITY FULL without a key); if neither holds only inserts can arrive.
    - ``key_is_unique``: the target itself refuses a second row of the same key, at once.
    - ``key_is_arbiter``: it does so by an index of exactly the key's columns, which ON CONFLICT can name.
    - ``shares_keys``: two rows of the source may hold one key for a while (cdc.changes.shared_keys).
    - ``loose``: places of key columns whose equality takes values for one that the source tells apart.
    - ``copies_directly``: COPY may write rows straight into the table.
    - ``holds_more``: more hangs on a row than what is routed: foreign keys that fire refer to the table, or it has
      columns of the target's own. So a row is never deleted in order to be written anew.
    - ``keeps_rows``: it holds more, and so a changed key must keep the row.
    - ``replaces_rows``: the key cannot be updated (identity ALWAYS), the row must be written anew.
    - ``loses_rows``: the target may have deleted rows by itself (ON DELETE CASCADE), so a missing one is no error.
    - ``moves_rows``: the target may have changed by itself what identifies a row (ON UPDATE CASCADE, ON DELETE SET
      NULL), so a row that is not found may be there as it is to be.
    - ``all_columns``: every column of the target's table that can be written.
    - ``references``: the tables, ``(schema, name)``, that a foreign key which fires points to.
    - ``defers``: constraints of the table can be deferred and fire.
    - ``fired``: triggers and rules that fire for our rows, each as ``trigger name``.
    - ``overlap``: the table may hold changes that are still to be streamed over it (cdc.target.overlap).
    - ``keeps_deleted``: rows that the source deletes stay (cdc.target.kept_rows). ``deleted_at`` is the place of the
      column that notes when, the last one; `None` where nothing does.
    - ``is_partitioned``: its rows are in partitions.
    """

    schema: str
    name: str
    columns: tuple[PlanColumn, ...]
    key: tuple[int, ...]
    matches_whole_row: bool
    key_is_unique: bool
    key_is_arbiter: bool
    shares_keys: bool
    loose: frozenset[int]
    copies_directly: bool
    holds_more: bool
    keeps_rows: bool
    replaces_rows: bool
    loses_rows: bool
    moves_rows: bool
    all_columns: tuple[str, ...]
    references: frozenset[tuple[str, str]]
    defers: bool
    fired: tuple[str, ...]
    overlap: bool
    keeps_deleted: bool
    deleted_at: int | None
    is_partitioned: bool

    @property
    def sql_name(self) -> str:
        """``"schema"."table"``."""
        return quote_qualified(self.schema, self.name)

    @property
    def rows_name(self) -> str:
        """The table where its rows are read, updated and deleted: without those of tables that inherit from it."""
        return self.sql_name if self.is_partitioned else f"ONLY {self.sql_name}"

    @property
    def counts_copies(self) -> bool:
        """Whether a COPY into it may write other rows than it is sent, so that its count has to be compared."""
        return bool(self.fired) or self.is_partitioned

    @property
    def clears_the_way(self) -> bool:
        """Whether a row that moves removes what stayed under its new key: where that cannot be a live row."""
        return self.keeps_deleted and (self.deleted_at is not None or not self.shares_keys)

    @property
    def takes_places(self) -> bool:
        """Whether an insert takes the place of whatever row has its key, and that may be one that is still to move."""
        takes = self.overlap or (self.keeps_deleted and self.deleted_at is None)
        return bool(self.key) and self.shares_keys and self.holds_more and takes

    @property
    def is_insert_only(self) -> bool:
        """Whether nothing identifies a row."""
        return not self.key and not self.matches_whole_row

    @property
    def rewritten(self) -> tuple[str, ...]:
        """Columns beside the key that no UPDATE can change (identity ALWAYS)."""
        places = [place for place in self.written if place not in self.key]
        return tuple(self.columns[place].name for place in places if not self.columns[place].is_updatable)

    @property
    def written(self) -> tuple[int, ...]:
        """Places of the columns that an INSERT writes."""
        return tuple(place for place, column in enumerate(self.columns) if column.is_written)

    def content(self) -> tuple[object, ...]:
        """Everything it consists of: shapes with equal content are the same shape."""
        return tuple(getattr(self, field) for field in self.__slots__)
