"""Indexes that somebody gave to a table, and that the one which takes its place lacks: an analyst's, an enrichment's.

They are built on the new table before the swap, outside of its transaction, because that can take hours. They have the
same names, which is no conflict: an index lives in the schema of its table. An index counts as there when the new table
has a valid one of its name.

Which of the present table's indexes came from the source cannot be told from the catalog: one that the source has
dropped since is built again, too, and can be dropped afterwards. A unique one that the rows do not allow any more fails
to build: that is for the caller to say, and no reason to keep the old table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdc import statements
from cdc.errors import SetupError
from cdc.identifiers import quote, quote_qualified
from cdc.target.session import Session, target_errors
from cdc.target.table_swap import Name, TableSwap, read_pairs


@dataclass(frozen=True, slots=True)
class MissingIndex:
    """An index of the ``present`` table to build on the new ``table``.

    ``definition`` is what follows the table's name in CREATE INDEX. Where the index belongs to a constraint,
    ``constraint_type`` is ``u`` (unique) or ``x`` (exclusion) and ``constraint_definition`` what follows its name.
    """

    present: Name
    table: Name
    name: str
    is_unique: bool
    definition: str
    constraint_type: str | None = None
    constraint_definition: str | None = None
    deferrable: bool = False
    deferred: bool = False

    @property
    def sql(self) -> str:
        """What builds it, for an operator."""
        if self.constraint_type == "x":
            return f"{self._alter} ADD CONSTRAINT {quote(self.name)} {self.constraint_definition};"
        return ";\n".join([self._create, *self._constrain]) + ";"

    @property
    def _alter(self) -> str:
        return f"ALTER TABLE {quote_qualified(*self.table)}"

    @property
    def _create(self) -> str:
        unique = "UNIQUE " if self.is_unique else ""
        return (
            f"CREATE {unique}INDEX CONCURRENTLY {quote(self.name)} ON {quote_qualified(*self.table)} {self.definition}"
        )

    @property
    def _constrain(self) -> list[str]:
        """A unique constraint is made of its index, so that nobody waits while it is built."""
        if self.constraint_type != "u":
            return []
        name = quote(self.name)
        deferral = " DEFERRABLE" * self.deferrable + " INITIALLY DEFERRED" * self.deferred
        return [f"{self._alter} ADD CONSTRAINT {name} UNIQUE USING INDEX {name}{deferral}"]

    def statements(self) -> list[str]:
        """The statements of `sql`, each to be run outside of a transaction."""
        return [self.sql.removesuffix(";")] if self.constraint_type == "x" else [self._create, *self._constrain]


async def missing_indexes(session: Session, swaps: Sequence[TableSwap]) -> list[MissingIndex]:
    """What the present tables have and the new ones lack; nothing for tables of which only one exists.

    Raises `SetupError` for a definition that cannot be taken over to another table (none is known).
    """
    with target_errors("reading the indexes", session.where):
        pairs = await read_pairs(session.connection, session.server_version, swaps)
        both = [(pair.present, pair.new) for pair in pairs if pair.present is not None and pair.new is not None]
        rows = await session.connection.fetch(
            statements.load("target", "swap_indexes"), [side.oid for sides in both for side in sides]
        )
    of_table: dict[int, list[MissingIndex]] = {}
    there: set[tuple[int, str, str | None]] = set()
    places = {present.oid: ((present.schema, present.name), (new.schema, new.name)) for present, new in both}
    for row in rows:
        if not row["is_valid"]:
            continue
        there |= {(row["table_oid"], row["name"], kind) for kind in (None, row["constraint_type"])}
        if row["table_oid"] not in places:
            continue
        if row["definition"] is None:
            raise SetupError(f"{session.where}: the definition of index {row['name']} cannot be taken over.")
        of_table.setdefault(row["table_oid"], []).append(
            MissingIndex(
                present=places[row["table_oid"]][0],
                table=places[row["table_oid"]][1],
                name=row["name"],
                is_unique=row["is_unique"],
                definition=row["definition"],
                constraint_type=row["constraint_type"],
                constraint_definition=row["constraint_definition"],
                deferrable=row["deferrable"],
                deferred=row["deferred"],
            )
        )
    return [
        index
        for present, new in both
        for index in of_table.get(present.oid, [])
        if (new.oid, index.name, index.constraint_type) not in there
    ]


async def build_missing(session: Session, index: MissingIndex) -> None:
    """Build one index while the table is written to; durable when it returns. The session is in no transaction.

    What an interrupted build left (an index of that name that is not valid, or one without its constraint) is completed
    or replaced. Raises `TargetUnavailable` for a lock that was not granted, `TerminalError` with SQLSTATE 23505 where a
    unique index does not fit the rows; no invalid index is left by that.
    """
    name = quote_qualified(index.table[0], index.name)
    with target_errors(f"building index {index.name} of {'.'.join(index.table)}", session.where):
        there = await session.connection.fetchrow(
            "SELECT i.indisvalid AS is_valid, EXISTS (SELECT FROM pg_catalog.pg_constraint k"
            " WHERE k.conindid = i.indexrelid) AS is_constraint FROM pg_catalog.pg_index i"
            " WHERE i.indexrelid = pg_catalog.to_regclass($1) AND i.indrelid = pg_catalog.to_regclass($2)",
            name,
            quote_qualified(*index.table),
        )
        steps = index.statements()
        if there is not None and there["is_valid"]:
            steps = [] if there["is_constraint"] else steps[1:]
        elif there is not None:
            await session.connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        try:
            for step in steps:
                await session.connection.execute(step)
        except Exception:
            await _drop_invalid(session, name)
            raise


async def _drop_invalid(session: Session, name: str) -> None:
    """A failed CONCURRENTLY leaves an index that only costs; with the connection gone, the next try removes it."""
    if session.connection.is_closed():
        return
    is_invalid = await session.connection.fetchval(
        "SELECT NOT i.indisvalid FROM pg_catalog.pg_index i WHERE i.indexrelid = pg_catalog.to_regclass($1)", name
    )
    if is_invalid:
        await session.connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
