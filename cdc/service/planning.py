"""By which plan the rows of a relation go into a target's table, and whether it is still the table that was loaded.

The stream names relations, the configuration names tables, and the target has loaded tables: here the three meet. A
`Planning` lives as long as the session of its target. What cannot be planned is a `TableStopped` with a sentence, the
SQL that mends it where there is one, and what the source's catalog adds to both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import structlog

from cdc.changes.column_numbers import ColumnNumbers
from cdc.changes.column_origin import ColumnOrigin
from cdc.changes.relation import Relation
from cdc.errors import CdcError, ReadAgain, TableStopped
from cdc.routing.patterns import split
from cdc.routing.route import Route
from cdc.routing.target_routes import TargetRoutes
from cdc.service.held_partitions import HeldPartitions
from cdc.service.known_columns import KnownColumns
from cdc.target.applier import Applier
from cdc.target.lacking import ColumnsLacking
from cdc.target.remedies import load_table_again
from cdc.target.table_plan import TablePlan
from cdc.target.table_state import TableState

_log = structlog.get_logger(__name__)


class SourceCatalog(Protocol):
    """What only the source's catalog knows. All of it may raise `CdcError`."""

    async def read_origins(self, relation: Relation) -> Mapping[str, ColumnOrigin]:
        """How the columns of a relation came to be."""

    async def read_numbers(self, tables: Collection[int]) -> Mapping[int, ColumnNumbers]:
        """Which columns tables (oids) have now."""

    async def read_types(self, relation: Relation) -> Relation:
        """The relation with its types as they are now."""

    async def read_names(self, objects: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], str]:
        """The names of objects, by kind (a reg* type) and oid."""


class Planning:
    """The plans of one session on one target. ``states`` are those of the tables that are loaded.

    A table whose state says that it is in overlap gets plans of that mode, until it is said otherwise (`set_overlap`).
    """

    def __init__(
        self,
        applier: Applier,
        routes: TargetRoutes,
        target: str,
        where: str,
        states: Sequence[TableState],
        partitions: HeldPartitions,
        columns: KnownColumns,
    ) -> None:
        self._applier = applier
        self.columns = columns
        self._states = states
        self.partitions = partitions
        self._routes = routes
        self._target = target
        self._where = where
        self._loaded = {state.source_name for state in states}
        self._oids = {state.source_name: state.source_oid for state in states if state.source_oid is not None}
        self._names = {oid: name for name, oid in self._oids.items()}
        self._overlap = {state.source_name for state in states if state.is_overlap}
        self._not_taken: set[Relation] = set()
        self._ignored: set[str] = set()
        self._explained: dict[tuple[Relation, str], TableStopped] = {}
        self._resolved: dict[Relation, Relation] = {}
        self.plans: dict[Relation, TablePlan] = {}
        self._source: SourceCatalog | None = None

    def ask_source(self, source: SourceCatalog) -> None:
        """Whom to ask what neither the stream nor the target says."""
        self._source = source
        self._applier.read_names = source.read_names
        self.columns.ask = source.read_numbers

    @property
    def oids(self) -> frozenset[int]:
        """The source's oids of the tables that are loaded here, and of their partitions: a renamed one keeps it."""
        return self.partitions.oids.union(self._names)

    def name_of(self, oid: int) -> str | None:
        """The name (``schema.table``) under which the source's table with this oid was loaded; `None`: it was not."""
        return self._names.get(oid)

    def route_of(self, table: str) -> Route | None:
        """Where a table (``schema.table`` at the source) goes here."""
        return self._routes.route_of(*split(table))

    def know(self, table: str, oid: int) -> None:
        """``table`` is being loaded from the table with this oid at the source."""
        self._names[oid], self._oids[table] = table, oid

    @property
    def overlap(self) -> frozenset[str]:
        """The tables whose changes may be in their rows already."""
        return frozenset(self._overlap)

    def set_overlap(self, tables: Iterable[str]) -> None:
        """These tables, and no others, are in overlap from now on: the next batch is planned that way."""
        tables = frozenset(tables)
        self.columns.being_read &= tables
        changed = self._overlap ^ tables
        self._overlap = set(tables)
        self._loaded |= tables
        self.replan(changed)

    def leave_out(self, tables: Iterable[str]) -> None:
        """Take nothing of these tables any more."""
        tables = frozenset(tables)
        self._overlap -= tables
        self._loaded -= tables
        self._ignored |= tables
        self.replan(tables)

    def replan(self, tables: Collection[str]) -> None:
        """Forget what is planned for these tables: the next batch that has changes of them plans it again."""
        self.plans = {relation: plan for relation, plan in self.plans.items() if self.table_of(relation) not in tables}
        self._not_taken = {relation for relation in self._not_taken if self.table_of(relation) not in tables}
        self._resolved.clear()

    def rolled_back(self) -> None:
        """The transaction that is open was rolled back."""
        self.replan(self.partitions.rolled_back())

    def knows(self, relation: Relation) -> bool:
        """Whether it was planned, or found not to be taken."""
        return relation in self.plans or relation in self._not_taken

    def not_yet(self, relation: Relation) -> None:
        """A relation that could not be planned is met again, and shall be refused again: nothing was made of it."""
        self._not_taken.discard(relation)

    def table_of(self, relation: Relation) -> str:
        """The name (``schema.table``) under which the relation was loaded, or else the one that it has.

        That of a partition is its root's, unless it is taken as a table of its own here.
        """
        found = self.resolve(relation)
        return self._names.get(found.oid, found.qualified_name)

    def resolve(self, relation: Relation) -> Relation:
        """The relation as this target takes it: a partition as a part of its root, or as a table of its own."""
        found = self._resolved.get(relation)
        if found is None:
            found = self._resolved[relation] = self._resolve(relation)
        return found

    def _resolve(self, relation: Relation) -> Relation:
        if relation.leaf is None:
            if self._names.get(relation.oid) is not None:
                return relation
            place = self.partitions.place_of(relation, self._states)
            return relation if place is None else relation.at(place)
        alone = relation.by_itself()
        if relation.oid in self._names or relation.qualified_name in self._loaded:
            return relation
        if alone.oid in self._names or alone.qualified_name in self._loaded:
            # It was loaded before its root was wanted, and goes on until that is.
            return alone
        return self._routes.resolve(relation)

    @asynccontextmanager
    async def looking_ahead(self, relations: Iterable[Relation]) -> AsyncIterator[None]:
        """Let `plan` of these relations cost a few round trips for all, instead of a dozen for each."""
        wanted = []
        for relation in dict.fromkeys(relations):
            found = self.resolve(relation)
            route = self._routes.route_of(found.schema, found.name)
            if route is not None and not self.knows(relation) and self.table_of(relation) in self._loaded:
                wanted.append((found, route))
        if len(wanted) < 2:
            yield
            return
        await self._applier.look_at(route for _, route in wanted)
        async with self.columns.looking_ahead(wanted):
            yield

    async def plan(self, relation: Relation) -> None:
        """Add the relation to `plans`, unless this target does not take it. Raises `TableStopped`, once a relation."""
        table, found = self.table_of(relation), self.resolve(relation)
        is_routed = self._routes.route_of(found.schema, found.name) is not None
        if table not in self._loaded:
            self._not_taken.add(relation)
            if is_routed and table not in self._ignored:
                self._ignored.add(table)
                _log.warning(
                    "a table is streamed that was never loaded here; its changes are left out until it is",
                    table=table,
                    mend=f"cdc resync {table}",
                )
            return
        try:
            if self.partitions.join(found):
                made = await self._make(found)
            else:
                made = await self._make_before_read(found)
        except TableStopped:
            self._not_taken.add(relation)
            raise
        self._tell_identity(table, made)
        self.plans[relation] = made

    def _tell_identity(self, table: str, made: TablePlan) -> None:
        """Say when updates and deletes of a table begin or cease to arrive: targets then differ, without an error."""
        was_insert_only = {
            plan.shape.is_insert_only for known, plan in self.plans.items() if self.table_of(known) == table
        }
        if made.shape.is_insert_only and True not in was_insert_only:
            # When it is met for the first time, nobody here knows whether it is news.
            log = _log.warning if was_insert_only else _log.info
            log("nothing identifies the rows of a table: only inserts and TRUNCATE of it arrive", table=table)
        elif True in was_insert_only and not made.shape.is_insert_only:
            _log.warning(
                "updates and deletes of a table arrive again; what was changed in between is not caught up",
                table=table,
                mend=f"cdc resync {table}",
            )

    async def plan_again(self, relation: Relation) -> None:
        """See whether a relation that could not be planned fits now. Raises `TableStopped` when it still does not."""
        relation = self.resolve(relation)
        route = self._routes.route_of(relation.schema, relation.name)
        if route is not None:
            self._applier.forget(route)
        # A composite type may have been altered since the stream described it; the next stream will know.
        if self._source is not None and any(c.type.holds(lambda one: one.kind == "c") for c in relation.columns):
            try:
                relation = await self._source.read_types(relation)
            except CdcError as refusal:
                _log.info("the source cannot be asked about a type", table=relation.qualified_name, reason=str(refusal))
        await self._make(relation)

    async def look_again(self, table: str) -> None:
        """See whether the names of a table's columns mean now what its rows hold. Raises `TableStopped` if not."""
        oid, route = self._oids.get(table), self.route_of(table)
        if oid is not None and route is not None:
            await self.columns.fits(table, oid, route)

    async def _make_before_read(self, relation: Relation) -> TablePlan:
        """A plan for a partition whose rows are yet to be read: its changes may concern rows that are not here."""
        try:
            return await self._make(relation, overlap=True)
        except TableStopped:
            assert relation.leaf is not None  # it has joined the table of its root
            raise ReadAgain(
                f"{self._where}: the partition {relation.leaf.qualified_name} was attached to "
                f"{relation.qualified_name} at the source, which streams nothing of the rows that it had: the worker "
                "reads the table again by itself, and lets it go on then.",
                source_table=relation.qualified_name,
            ) from None

    async def _make(self, relation: Relation, *, overlap: bool = False) -> TablePlan:
        try:
            self._check_identity(relation)
            if self._routes.leaves_out(relation):
                assert relation.leaf is not None  # only a partition is left out
                raise TableStopped(
                    f"{self._where}: the partition {relation.leaf.qualified_name} of {relation.qualified_name} is "
                    "excluded by the configuration, and a partitioned table goes as a whole. Let it in or exclude the "
                    "table, and restart the worker."
                )
            route = self._routes.route_of(relation.schema, relation.name)
            assert route is not None  # it has the name under which it was loaded
            await self.columns.verify(relation, route)
            if overlap or self.table_of(relation) in self._overlap:
                return await self._applier.plan(relation, route, overlap=True)
            return await self._applier.plan(relation, route)
        except TableStopped as found:
            error = await self.explain(found, relation)
        raise error

    def _check_identity(self, relation: Relation) -> None:
        """Raise `TableStopped` when the relation is not the table that was loaded under its name, or lost that name.

        The publication goes by the table, the configuration by its name: without this a renamed table would stop being
        replicated without a word.
        """
        name, loaded = relation.qualified_name, self._names.get(relation.oid)
        if loaded is not None and loaded != name:
            raise TableStopped(
                f"{self._where}: the source's table {loaded} is called {name} now. Configure it under its new name and "
                f"load it (cdc bootstrap --from live), or give it back its name at the source and load it again "
                f"({load_table_again(loaded, self._target)})."
            )
        if self._oids.get(name, relation.oid) != relation.oid:
            raise TableStopped(
                f"{self._where}: another table has taken the name {name} at the source since it was loaded: load it "
                f"again ({load_table_again(name, self._target)})."
            )

    async def explain(self, error: TableStopped, relation: Relation) -> TableStopped:
        """What the source's catalog adds to it: where columns are lacking it knows what is in the rows of before.

        It is asked once for each error; where it cannot be asked now, at the next look.
        """
        if not isinstance(error, ColumnsLacking):
            return error
        key = relation, str(error)
        if key not in self._explained:
            former = [known for known in self.plans if known.qualified_name == relation.qualified_name]
            formerly = [column.name for column in former[-1].columns] if former else None
            try:
                origins = None if self._source is None else await self._source.read_origins(relation)
            except CdcError as refusal:
                _log.info(
                    "the source cannot be asked about a column", table=relation.qualified_name, reason=str(refusal)
                )
                return error.explained(None, formerly=formerly)
            self._explained[key] = error.explained(origins, formerly=formerly)
        return self._explained[key]
