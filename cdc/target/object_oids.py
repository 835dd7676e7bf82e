"""Values of reg* types: the oids that a target has for the source's objects, by their names.

A value of such a type is the oid of an object, which means nothing elsewhere. What a batch holds of them is looked up
once: the source says the names that the objects have now, the target its oids for those names. Nothing is kept from one
batch to the next, because objects are renamed. Names are values of rows: they reach the target by COPY (invariant 8).

What the source does not have any more has no name. It becomes its number, as PostgreSQL prints it, but only where that
number means nothing at the target either; and never where it says which row of the target is meant, because that row
may have the oid that the object's name had there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress

import asyncpg

from cdc import statements
from cdc.changes.row_reader import ValueRefused
from cdc.changes.transaction import Kind, Part, Run
from cdc.changes.translation import ObjectOids, names_objects
from cdc.errors import ProtocolError, TableStopped
from cdc.identifiers import quote, quote_qualified
from cdc.target.copy_text import text_rows
from cdc.target.remedies import load_table_again
from cdc.target.session import Session, target_errors
from cdc.target.steps import RoutedPart, read_rows
from cdc.target.table_plan import TablePlan

_Found = dict[tuple[str, int], tuple[Part, TablePlan]]
"""Objects, each with the first part that names it, and the plan by which that is read."""

ReadNames = Callable[[Collection[tuple[str, int]]], Awaitable[Mapping[tuple[str, int], str]]]
"""Asks the source for the names of objects, by kind (a reg* type) and oid. What is gone there is its number."""


class ObjectLookup:
    """The objects of one session on a target, for one batch at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.objects = ObjectOids()
        self.read_names: ReadNames | None = None

    def forget(self) -> None:
        """Another batch begins."""
        self.objects.known.clear()

    async def learn(self, routed: Sequence[RoutedPart], target: str) -> bool:
        """Look up every object that these parts name, inside the caller's transaction; return whether any was unknown.

        Raises `TableStopped` for the first change that names an object which the target does not have, or which the
        source does not have any more where no number can stand for it.
        """
        found, identifying = self._wanted(routed)
        if not found:
            return False
        if self.read_names is None:
            raise ProtocolError("a value names an object that cannot be looked up. Start the worker again.")
        names = await self.read_names(found)
        asked = {key: names[key] for key in found if key in names}
        with target_errors("looking up names of objects", self._session.where):
            oids = await _oids(self._session.connection, asked) if asked else {}
        for key, (part, plan) in found.items():
            is_gone = key in names and _is_number(names[key])
            if is_gone and key in identifying:
                raise _gone_from_key(key[0], *identifying[key], target)
            if key not in oids:
                raise (_taken if is_gone else _unknown)(key[0], part, plan, target)
        self.objects.known.update(oids)
        return True

    def _wanted(self, routed: Sequence[RoutedPart]) -> tuple[_Found, _Found]:
        """Objects that are not known yet, and those of them by which a row of the target is found."""
        objects = self.objects
        found: _Found = {}
        identifying: _Found = {}
        objects.collects = True
        try:
            for one in routed:
                for change in one.part.changes:
                    plan = one.plans.get(change.relation) if isinstance(change, Run) else None
                    if plan is None or not plan.names_objects:
                        continue
                    assert isinstance(change, Run)
                    objects.missing.clear()
                    with suppress(ValueRefused, ProtocolError):  # raised again when the rows are applied
                        read_rows(plan.reader, change)
                    for key in objects.missing:
                        found.setdefault(key, (one.part, plan))
                    if plan.key_objects is None or change.kind is Kind.INSERT:
                        continue
                    objects.missing.clear()
                    with suppress(ValueRefused, ProtocolError):
                        for message in change.rows:
                            # The first row of a message is the one that says which row is meant.
                            plan.key_objects.new_row(message)
                    for key in objects.missing:
                        identifying.setdefault(key, (one.part, plan))
        finally:
            objects.collects = False
            objects.missing.clear()
        return found, identifying


async def _oids(connection: asyncpg.Connection, names: Mapping[tuple[str, int], str]) -> dict[tuple[str, int], int]:
    """The target's oids of named objects; those that it does not have are absent.

    A number stands for an object that is gone. It is its own oid, and absent where the target has such an object.
    """
    await connection.execute(
        "CREATE TEMPORARY TABLE IF NOT EXISTS pg_temp.cdc_objects (kind text NOT NULL, oid int8 NOT NULL, name text "
        "NOT NULL); TRUNCATE pg_temp.cdc_objects"
    )
    await connection.execute("SAVEPOINT cdc_objects")
    found: dict[tuple[str, int], int] = {}
    try:
        found = await _ask(connection, names)
    except _LACKING_PARTS:
        # Before PostgreSQL 16 it is an error if the schema or the type of an argument is not there: then one by one.
        for key, name in names.items():
            await connection.execute("ROLLBACK TO SAVEPOINT cdc_objects")
            with suppress(*_LACKING_PARTS):
                found |= await _ask(connection, {key: name})
        await connection.execute("ROLLBACK TO SAVEPOINT cdc_objects")
    await connection.execute("RELEASE SAVEPOINT cdc_objects")
    return found


_LACKING_PARTS = (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedObjectError)


async def _ask(connection: asyncpg.Connection, names: Mapping[tuple[str, int], str]) -> dict[tuple[str, int], int]:
    await connection.copy_to_table(
        "cdc_objects",
        schema_name="pg_temp",
        source=text_rows([(kind, str(oid), name) for (kind, oid), name in names.items()]),
        format="text",
    )
    rows = await connection.fetch(statements.load("target", "object_oids"))
    return {(row["kind"], row["oid"]): row["found"] for row in rows if row["found"] is not None}


def _is_number(name: str) -> bool:
    """Whether PostgreSQL printed a number because there is no such object. A name of digits is in quotes."""
    return name.isascii() and name.isdigit()


def _unknown(kind: str, part: Part, plan: TablePlan, target: str) -> TableStopped:
    columns = _object_columns(plan)
    table = quote_qualified(plan.relation.schema, plan.relation.name)
    listed = ", ".join(quote(name) for name in columns)
    return _stopped(
        f"names an object by a value of type {kind} that does not exist there, in one of its columns "
        f"{', '.join(columns)}. Create it there under the same name; to see the names, run SELECT DISTINCT {listed} "
        f"FROM {table} at the source.",
        part,
        plan,
        target,
    )


def _taken(kind: str, part: Part, plan: TablePlan, target: str) -> TableStopped:
    return _stopped(
        f"names an object by a value of type {kind} that the source does not have any more, in one of its columns "
        f"{', '.join(_object_columns(plan))}, and its number is that of another object there. Give such rows another "
        f"value at the source, then load the table again: {load_table_again(plan.route.source_name, target)}.",
        part,
        plan,
        target,
    )


def _gone_from_key(kind: str, part: Part, plan: TablePlan, target: str) -> TableStopped:
    return _stopped(
        f"is known by a value of type {kind} in one of its columns {', '.join(_object_columns(plan))}, and names an "
        "object by it that the source does not have any more, so nothing tells which row there is meant. Load the "
        f"table again: {load_table_again(plan.route.source_name, target)}.",
        part,
        plan,
        target,
    )


def _object_columns(plan: TablePlan) -> list[str]:
    return [column.name for column in plan.relation.columns if names_objects(column.type)]


def _stopped(what: str, part: Part, plan: TablePlan, target: str) -> TableStopped:
    return TableStopped(
        f"target {target}: table {plan.route.target_name} (from {plan.route.source_name}): a row of the transaction at "
        f"{part.commit_lsn} (xid {part.xid}) {what}",
        source_table=plan.source_table,
        commit_lsn=part.commit_lsn,
        xid=part.xid,
    )
