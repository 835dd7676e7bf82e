"""A target's table lacks columns that the source's rows have: what happened there, and what mends it here.

The stream tells neither a new column from a renamed one, nor what a new column's DEFAULT put into rows that were there
already (hazard 14). `ColumnsLacking.explained` says what the source's catalog makes of it, and gives the SQL after
which those rows are as at the source; where nobody can tell that, the command that loads the table again. It is pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cdc.changes.column_origin import ColumnOrigin
from cdc.changes.relation import DataType
from cdc.errors import TableStopped
from cdc.identifiers import quote, quote_literal, quote_qualified
from cdc.routing.route import Route
from cdc.target.catalog import TargetColumn
from cdc.target.conversion import fits_exactly
from cdc.target.remedies import load_table_again, resync_command

_NUMBERS = frozenset(("int2", "int4", "int8", "numeric"))


@dataclass(frozen=True, slots=True)
class LackingColumn:
    """A column to add: its name at the source, at the target, and its type at the source."""

    source_name: str
    name: str
    type: DataType


class ColumnsLacking(TableStopped):
    """The target's table lacks columns that the source's rows have.

    ``surplus`` are the columns of the target's table that no row fills: one of them may be what a column was called
    before.
    """

    def __init__(
        self,
        where: str,
        target: str,
        route: Route,
        columns: tuple[LackingColumn, ...],
        surplus: tuple[TargetColumn, ...],
    ) -> None:
        self._where = where
        self._target = target
        self._route = route
        self._columns = columns
        self._surplus = surplus
        told = self._tell(None, None)
        super().__init__(str(told), sql=told.sql, source_table=route.source_name)

    def explained(
        self, origins: Mapping[str, ColumnOrigin] | None, *, formerly: Collection[str] | None = None
    ) -> TableStopped:
        """The same with what the source's catalog says of the columns, by their names there.

        ``origins`` is `None` where the source could not be asked; a column that is missing there is gone again.
        ``formerly`` are the columns that the source's table had before, where that is known.
        """
        told = self._tell(origins, formerly)
        told.commit_lsn, told.xid, told.relation = self.commit_lsn, self.xid, self.relation
        return told

    def _tell(self, origins: Mapping[str, ColumnOrigin] | None, formerly: Collection[str] | None) -> TableStopped:
        names = ", ".join(column.name for column in self._columns)
        sentence = f"the target's table lacks columns: {names}."
        if self._route.columns is not None:
            again = load_table_again(self._route.source_name, self._target)
            sentence += f" Rows that it has already get no value of them by that; to fill them, too, {again}."
            return self._stop(sentence, self._added({}))
        said, sql = self._as_new(origins)
        old = self._renamed(formerly)
        if old is None:
            return self._stop(f"{sentence} {said}", sql)
        (new,) = self._columns
        if origins is not None and old in origins:
            # It is there and is not sent: a publication lists columns, or another column has the name by now.
            sentence += (
                f" The source's table still has {old}, but does not send it with its rows, so rows that are there "
                f"already may have values of {new.name} at the source that are not streamed: {self._added_then_read()}"
            )
            return self._stop(sentence, self._added_to_read())
        rename = self._alter(f"RENAME COLUMN {quote(old)} TO {quote(new.name)}")
        if origins is None:
            sentence += (
                f" Rows do not bring {old} any more, which is of the same type: either it was renamed to {new.name} at "
                f"the source, or {new.name} is new. If it is new: {_uncapitalised(said)}"
            )
            return self._stop(sentence, f"-- if {old} was renamed:\n{rename};\n-- if {new.name} is new:\n{sql}")
        origin = origins.get(new.source_name)
        if origin is not None and origin.is_behind_dropped:
            # Either is wrong for the rows that are there if it was the other; nobody but the operator can tell.
            sentence += (
                f" At the source, {old} is gone and {new.name}, of the same type, is there: either {old} was renamed, "
                f"or it was dropped and {new.name} is new. If it is new: {_uncapitalised(said)}"
            )
            return self._stop(sentence, f"-- if {old} was renamed:\n{rename};\n-- if {new.name} is new:\n{sql}")
        sentence += (
            f" It may be {old} under a new name, since that is gone at the source and of the same type: then rename it "
            f"here, too, and its values stay. If {new.name} is new instead ({sql}): {_uncapitalised(said)}"
        )
        return self._stop(sentence, rename)

    def _as_new(self, origins: Mapping[str, ColumnOrigin] | None) -> tuple[str, str]:
        """What there is to say if the columns are new, and what mends it."""
        if origins is None:
            said = "Rows that it has already get no value of them: a DEFAULT of the source has to be given here, too."
            return said, self._added({})
        known = {column.name: origins.get(column.source_name) for column in self._columns}
        table = self._route.source_name
        listed = [name for name, origin in known.items() if origin is not None and origin.is_listed]
        if listed:
            said = (
                f"The publication is somebody else's and sends some of the source's columns only: if it left out "
                f"{', '.join(listed)} before, rows that are there already may have values that are not streamed: "
                f"{self._added_then_read()}"
            )
            return said, self._added_to_read()
        unknown = [name for name, origin in known.items() if origin is not None and origin.may_be_filled]
        if unknown:
            said = (
                f"Rows that are there already may have got values of {', '.join(unknown)} that are not streamed (a "
                "default that was computed for each row, or a rewrite of the table after it), so the table has to be "
                f"loaded again: {load_table_again(table, self._target)}."
            )
            return said, resync_command(table, self._target)
        filled = {
            name: origin.filled_with
            for name, origin in known.items()
            if origin is not None and origin.filled_with is not None
        }
        said = "Rows that are there already have no value of them at the source either."
        if filled:
            said = (
                f"Rows that were there already got a default for {', '.join(filled)}, which is not streamed; the SQL "
                "gives them the same."
            )
        unlisted = [name for name, origin in known.items() if origin is not None and origin.may_be_unlisted]
        if unlisted:
            said = (
                f"If they are new: {_uncapitalised(said)} If the publication, which is somebody else's, did not send "
                f"{', '.join(unlisted)} before: rows that are there already may have values that are not streamed; to "
                f"fill them, too, {load_table_again(table, self._target)}."
            )
        return said, self._added(filled)

    def _renamed(self, formerly: Collection[str] | None) -> str | None:
        """What the column may have been called: exactly one is new, exactly one is gone, and both are of one type."""
        gone = [column for column in self._surplus if formerly is None or column.name in formerly]
        if len(self._columns) != 1 or len(gone) != 1 or gone[0].generated:
            return None
        return gone[0].name if fits_exactly(self._columns[0].type, gone[0].type) else None

    def _added(self, filled: Mapping[str, str]) -> str:
        return self._alter(
            ", ".join(
                f"ADD COLUMN {quote(column.name)} {column.type.sql}"
                + (f" DEFAULT {_literal(filled[column.name], column.type)}" if column.name in filled else "")
                for column in self._columns
            )
        )

    def _added_then_read(self) -> str:
        again = load_table_again(self._route.source_name, self._target)
        return f"run the SQL, and then load the table again ({again})."

    def _added_to_read(self) -> str:
        """Added first: a table that still has another column is read again where it is, and not replaced."""
        return f"{self._added({})};  -- and then: {resync_command(self._route.source_name, self._target)}"

    def _alter(self, action: str) -> str:
        return f"ALTER TABLE {quote_qualified(self._route.target_schema, self._route.target_table)} {action}"

    def _stop(self, sentence: str, sql: str) -> TableStopped:
        return TableStopped(f"{self._where}: {sentence}", sql=sql, source_table=self._route.source_name)


def _literal(text: str, data_type: DataType) -> str:
    """A value in the way that people write it: PostgreSQL reads every type from a quoted text, too."""
    if data_type.is_builtin and data_type.name in _NUMBERS and re.fullmatch(r"-?\d+(\.\d+)?", text):
        return text
    if data_type.is_builtin and data_type.name == "bool":
        return "true" if text == "t" else "false"
    return quote_literal(text)


def _uncapitalised(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
