"""Apply what the source committed to one target, inside a transaction of the caller's.

The caller owns the transaction, because rows and position commit together (invariant 1)::

    await applier.prepare(plans)                 # outside of the transaction
    applied = await applier.apply_together(parts, plans, [SELECT cdc.advance(…)], holds)
    if applied is None:                          # nothing of it is in the target: step by step then
        BEGIN
        applied = await applier.apply(parts, plans, holds)
        SELECT cdc.advance(…); COMMIT

What `Applier.apply` promises: when it returns, every change of the parts that has a plan and is not held already is in
the target, each exactly once, and deferred constraints have been checked at the end of a transaction. When it raises,
the caller rolls back; nothing else is to be done. It takes the fast path for the whole batch. Where a constraint of one
table objects, that table alone is taken in the source's order (unique values that moved between rows), the others still
set by set. If that does not do, halves of the batch are tried, down to the transactions that are refused by themselves;
those are replayed in the source's order, all their tables.

A plan is made for *overlap* (cdc.target.overlap) or for strict application. A target's tables leave overlap together,
at its cut-over: the caller then asks for plans without it, and the next batch is applied with those.

`BatchRejected` and `TableStopped` name the source's table and the transaction, so that the caller can apply the same
batch again without them. Both, and `TargetUnavailable`, carry no row value (invariant 8).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import asyncpg

from cdc.changes.relation import Relation
from cdc.changes.row_reader import FormatChanged, ValueRefused
from cdc.changes.transaction import Part
from cdc.changes.translation import UnknownObjects
from cdc.errors import ProtocolError, ServerError, TableStopped
from cdc.pgoutput.tuples import TEXT
from cdc.routing.route import Route
from cdc.target.catalog import TargetTable, read_tables
from cdc.target.fast_path import FastPath
from cdc.target.object_oids import ObjectLookup, ReadNames
from cdc.target.one_trip import OneTrip
from cdc.target.partition_record import HeldLeaves
from cdc.target.rejection import (
    NEEDED_RIGHTS,
    Refused,
    Unfit,
    guard_for,
    lacks_rights,
    unfit_verdict,
    value_verdict,
    verdict,
)
from cdc.target.row_replay import RowReplay
from cdc.target.session import Session, server_error, target_errors
from cdc.target.staging import Staging
from cdc.target.steps import RoutedPart, first_refused
from cdc.target.strict_path import StrictPath
from cdc.target.survey import Applied, Counts, Survey
from cdc.target.table_plan import TablePlan, plan_table
from cdc.target.table_shape import TableShape
from cdc.target.table_version import TablesChanged, check_versions, read_versions
from cdc.target.truncation import Truncations

Plans = Mapping[Relation, TablePlan]
"""By which plan a target takes the rows of a relation. A relation that is absent is not taken: it is not routed here,
or the caller has stopped its table."""

Holds = Callable[[Relation, Part], bool]
"""Whether the relation's table holds a part already (or must not take it), so that it is to be skipped."""


class Applier:
    """Applies parts to one target, through one session. A new session needs a new applier.

    ``target`` is the target's name, ``follows`` whether its schema follows the source's. ``routes`` are all of the
    target's: they tell which tables are fed by several relations. ``read_again`` may be filled with the tables,
    ``(schema, name)``, of which rows that a change in overlap leaves uncertain are read again (`cdc resync`). ``held``
    may be filled with the partitions whose rows the tables hold, by the source's name of the table. ``read_names`` asks
    the source for the names of objects (values of reg* types); without it no such value can come.
    ``untold`` are tables of these, by the source's name, of which a truncation left rows that nothing tells.
    """

    def __init__(self, session: Session, target: str, *, follows: bool, routes: Iterable[Route] = ()) -> None:
        self._session = session
        self._connection = session.connection
        self._target = target
        self._follows = follows
        self._fed_by = Counter((route.target_schema, route.target_table) for route in routes)
        self._staging = Staging(session.connection)
        self._guard = guard_for(session.where)
        self.read_again: set[tuple[str, str]] = set()
        self.untold: set[str] = set()
        replay = RowReplay(session.connection, self._staging, self._guard, self.read_again)
        self.held: dict[str, HeldLeaves] = {}
        truncations = Truncations(session.connection, self._guard, self.held, self.read_again, self.untold)
        fast_path = partial(FastPath, session.connection, self._staging, self._guard, replay, truncations)
        self._fast = fast_path()
        self._one_trip = OneTrip(session, self._staging, fast_path)
        self._strict = StrictPath(replay, truncations)
        self._tables: dict[tuple[str, str], TargetTable | None] = {}
        self._versions: dict[tuple[str, str], str] = {}
        self._shapes: dict[tuple[object, ...], TableShape] = {}
        self._plans: dict[tuple[Relation, Route, bool], TablePlan] = {}
        self._lookup = ObjectLookup(session)
        self._thorough: set[tuple[str, str]] = set()
        self._flipped: dict[Relation, set[int]] = {}
        self._refused: dict[tuple[str, str], ServerError] = {}

    @property
    def read_names(self) -> ReadNames | None:
        """What is asked for the names of the source's objects."""
        return self._lookup.read_names

    @read_names.setter
    def read_names(self, ask: ReadNames | None) -> None:
        self._lookup.read_names = ask

    async def plan(self, relation: Relation, route: Route, *, overlap: bool = False) -> TablePlan:
        """Decide how ``relation`` gets into the route's table. Cached: by relation, and what the catalog says by table.

        ``overlap`` says that the table may hold changes already that are still to come. Then rows that are missing or
        there are no error, and every change of a row that can be told is applied so that it comes out right; a change
        of a key that cannot be told stops the table, which then has to be copied live.

        Raises `TableStopped` when it cannot, with the SQL that mends it where there is one; `forget` the route before
        asking again.
        """
        found = self._plans.get((relation, route, overlap))
        if found is None:
            await self.look_at([route])
            try:
                await self._check_rights(route)
                found = self._plans[relation, route, overlap] = self._make_plan(relation, route, overlap)
            except TableStopped as stopped:
                stopped.relation = relation
                raise
        return found

    async def look_at(self, routes: Iterable[Route]) -> None:
        """Read what the catalog says of the tables of these routes, as far as it is not known: together, for `plan`."""
        names = {(route.target_schema, route.target_table) for route in routes}.difference(self._tables)
        if names:
            with target_errors("reading the catalog", self._session.where):
                # The versions first: what changes in between then shows as a change.
                self._versions |= await read_versions(self._connection, names)
                found = await read_tables(self._connection, names)
            self._tables |= {name: found.get(name) for name in names}

    def forget(self, route: Route) -> None:
        """Drop what is cached of the table that a route goes to, so that `plan` looks at it again."""
        self._forget_table((route.target_schema, route.target_table))

    async def prepare(self, plans: Plans, work: Sequence[Part]) -> None:
        """Create the staging tables of those of these plans that the parts need, before the transaction begins.

        `apply` does it where this was not called, but what is created in a transaction goes when that is rolled back.
        """
        relations = {relation for part in work for relation in part.relations if relation in plans}
        with target_errors("preparing staging tables", self._session.where):
            await self._staging.ensure({self._current(plans[relation]).shape for relation in relations}, tidies=False)

    async def apply_together(
        self, work: Sequence[Part], plans: Plans, end: Iterable[str], holds: Holds | None = None
    ) -> Applied | None:
        """Apply whole transactions as one target transaction, from BEGIN to COMMIT, in one round trip.

        ``end`` are statements to be executed before the COMMIT, as they are. Durable when it returns what was applied.
        `None`: nothing is applied, because it needs more than one round trip, or something was not as it should be;
        `apply` finds out what. Raises `TargetUnavailable` and `FenceLost`, with nothing applied unless the connection
        was lost.
        """
        return await self._one_trip.apply(self._route(work, plans, holds), end)

    async def apply(self, work: Sequence[Part], plans: Plans, holds: Holds | None = None) -> Applied:
        """Apply consecutive whole transactions, or one part of a large one, inside the caller's open transaction.

        Args:
            work: The parts, in order. Those of a large transaction may come in several calls of one target transaction.
            plans: Made by `plan` of this applier.
            holds: Which tables hold which parts already; nothing is held by default.

        Raises:
            TableStopped: a table cannot go on: source and target differ, its shape does not fit, a right is missing. It
                has a ``relation`` where `plan` says so, too, and will say when that has been mended.
            BatchRejected: a constraint of the target refuses a transaction.
            TargetUnavailable: the same may succeed later.
            ProtocolError: a message is damaged.
        """
        replanned: set[tuple[str, str]] = set()
        self._lookup.forget()
        if any(self._current(plan).names_objects for plan in plans.values()):
            # Before anything is written: otherwise the whole batch would be applied, rolled back and applied again.
            await self._lookup.learn(self._route(work, plans, holds), self._target)
        while True:
            routed = self._route(work, plans, holds)
            if not routed:
                return Applied()
            try:
                with target_errors("applying a batch", self._session.where):
                    return await self._apply(routed)
            except FormatChanged as format_changed:
                await self._roll_back()
                await self._flip(format_changed, routed)
            except UnknownObjects:
                await self._roll_back()
                if not await self._lookup.learn(routed, self._target):
                    raise ProtocolError(
                        "a value names an object that cannot be looked up. Start the worker again."
                    ) from None
            except ValueRefused as refused:
                await self._roll_back()
                raise value_verdict(refused, *first_refused(refused, routed), self._target) from None
            except TablesChanged as changed:
                await self._roll_back()
                for name in changed.names:
                    await self._plan_again(name, routed)
            except Unfit as unfit:
                await self._roll_back()
                name = (unfit.shape.schema, unfit.shape.name)
                if unfit.is_missing_right:
                    self._refused[name] = unfit.server
                if name in replanned and unfit.is_outdated and name not in self._thorough:
                    # It may be a value of a composite type that was altered: then its translation says where it is.
                    self._thorough.add(name)
                elif name in replanned or not (unfit.is_outdated or unfit.is_missing_right):
                    raise await self._unfit(unfit, routed) from None
                replanned.add(name)
                await self._plan_again(name, routed)

    async def _apply(self, routed: list[RoutedPart]) -> Applied:
        survey = Survey(routed)
        if not survey.has_changes:
            return Applied()
        await self._staging.ensure(survey.staged)
        deferred = "; SET CONSTRAINTS ALL DEFERRED" if survey.defers else ""
        await self._connection.execute(f"SAVEPOINT cdc_batch{deferred}")
        applied = survey.applied()
        in_order: set[TableShape] = set()
        while True:
            try:
                await self._fast_path(routed, in_order)
            except Refused as refused:
                applied.was_strict = True
                await self._connection.execute(f"ROLLBACK TO SAVEPOINT cdc_batch{deferred}")
                # Also those that the fast path needs no staging for; and the rollback may have undone what was created.
                await self._staging.ensure(survey.shapes)
                if refused.concerns_one_table and refused.shape not in in_order:
                    in_order.add(refused.shape)
                    continue
                await self._divide(routed)
            break
        versions = survey.versions()
        try:
            # Binary values fit into columns that they were not meant for (a bigint into a double precision) without an
            # error. Whoever alters a table waits for our locks from our first write on: what is true now was true then.
            await self._connection.execute(f"{check_versions(versions)}; RELEASE SAVEPOINT cdc_batch")
        except asyncpg.DivisionByZeroError:
            raise TablesChanged(set(versions)) from None
        return applied

    async def _divide(self, routed: list[RoutedPart]) -> None:
        """Find the transactions that the fast path cannot apply, and replay those in order."""
        if len(routed) == 1:
            transactions = routed[0].part.divided()
            if len(transactions) == 1:
                await self._replay_part(routed[0])
                return
            routed = [RoutedPart(part, _of_part(routed[0].plans, part)) for part in transactions]
        middle = len(routed) // 2
        for half in (routed[:middle], routed[middle:]):
            await self._connection.execute("SAVEPOINT cdc_half")
            try:
                await self._fast_path(half)
            except Refused:
                await self._connection.execute("ROLLBACK TO SAVEPOINT cdc_half; RELEASE SAVEPOINT cdc_half")
                await self._divide(half)
            else:
                await self._connection.execute("RELEASE SAVEPOINT cdc_half")

    async def _fast_path(self, routed: list[RoutedPart], in_order: Collection[TableShape] = ()) -> None:
        await self._fast.apply(routed, in_order)
        await self._check_deferred(routed)

    async def _replay_part(self, routed: RoutedPart) -> None:
        try:
            await self._strict.apply(routed)
            await self._check_deferred([routed])
        except Refused as refused:
            plan = refused.plan or _plan_of(refused.shape, routed)
            raise verdict(refused, routed.part, plan, self._target) from None

    async def _check_deferred(self, routed: list[RoutedPart]) -> None:
        """Let deferred constraints speak where a transaction ends, and defer them again."""
        shapes = {plan.shape for part in routed for plan in part.plans.values() if plan.shape.defers}
        if not shapes or not routed[-1].part.is_last:
            return
        try:
            await self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
        except asyncpg.PostgresError as error:
            server = server_error(error)
            named = (shape for shape in shapes if (shape.schema, shape.name) == (server.schema, server.table))
            with self._guard(next(named, next(iter(shapes)))):
                raise

    def _route(self, work: Sequence[Part], plans: Plans, holds: Holds | None) -> list[RoutedPart]:
        """The parts that concern this target, each with the plans that take it."""
        routed = []
        for part in work:
            taken = {
                relation: self._current(plans[relation])
                for relation in part.relations
                if relation in plans and not (holds is not None and holds(relation, part))
            }
            if taken:
                routed.append(RoutedPart(part, taken))
        return routed

    def _current(self, plan: TablePlan) -> TablePlan:
        """The plan that has taken the place of ``plan``, if one has."""
        return self._plans.get((plan.relation, plan.route, plan.shape.overlap), plan)

    def _make_plan(self, relation: Relation, route: Route, overlap: bool) -> TablePlan:
        name = (route.target_schema, route.target_table)
        plan = plan_table(
            relation,
            route,
            self._tables[name],
            target=self._target,
            follows=self._follows,
            triggers_disabled=self._session.triggers_disabled,
            is_shared=self._fed_by[name] > 1,
            flipped=self._flipped.get(relation, ()),
            overlap=overlap,
            objects=self._lookup.objects,
            thorough=name in self._thorough,
        )
        shape = self._shapes.setdefault(plan.shape.content(), plan.shape)
        return replace(plan, shape=shape, version=self._versions[name])

    async def _check_rights(self, route: Route) -> None:
        """Once the server has refused a table for want of a right, it is not planned until none is wanting."""
        name = (route.target_schema, route.target_table)
        server, table = self._refused.get(name), self._tables[name]
        if server is None or table is None:
            return
        if not table.privileges.issuperset(NEEDED_RIGHTS):
            raise lacks_rights(route, table, self._target, await self._role(), server)
        del self._refused[name]

    async def _flip(self, changed: FormatChanged, routed: list[RoutedPart]) -> None:
        """Read a column's values in the other format from now on, and plan its relation again."""
        relation, index = changed.relation, changed.column_index
        part, plan = next((part, plan) for part in routed for plan in part.plans.values() if plan.relation is relation)
        # What the plan in hand expected tells, not what has been flipped: it may be older than that.
        if (plan.reader.wire[index] == TEXT) == relation.columns[index].type.has_binary:
            raise ProtocolError(
                f"column {index + 1} of {relation.qualified_name} comes as text and as binary in the same stream. "
                "Start the worker again."
            )
        self._flipped.setdefault(relation, set()).add(index)
        for overlap in (False, True):
            self._plans.pop((relation, plan.route, overlap), None)
        await self._plan_in(part, plan)

    async def _plan_again(self, name: tuple[str, str], routed: list[RoutedPart]) -> None:
        """Look at a table again that is not what it was, for all plans of this batch."""
        self._forget_table(name)
        for part in routed:
            for plan in part.plans.values():
                if (plan.route.target_schema, plan.route.target_table) == name:
                    await self._plan_in(part, plan)

    async def _plan_in(self, part: RoutedPart, plan: TablePlan) -> None:
        """Make a plan anew. `TableStopped` then names the first transaction that would have needed it."""
        try:
            await self.plan(plan.relation, plan.route, overlap=plan.shape.overlap)
        except TableStopped as stopped:
            stopped.commit_lsn, stopped.xid = part.part.commit_lsn, part.part.xid
            raise stopped from None

    def _forget_table(self, name: tuple[str, str]) -> None:
        self._tables.pop(name, None)
        for key in [key for key in self._plans if (key[1].target_schema, key[1].target_table) == name]:
            del self._plans[key]

    async def _roll_back(self) -> None:
        with target_errors("rolling back", self._session.where):
            await self._connection.execute("ROLLBACK TO SAVEPOINT cdc_batch")

    async def _unfit(self, unfit: Unfit, routed: list[RoutedPart]) -> TableStopped:
        self._forget_table((unfit.shape.schema, unfit.shape.name))
        part = next(part for part in routed if unfit.shape in {plan.shape for plan in part.plans.values()})
        return unfit_verdict(unfit, part.part, _plan_of(unfit.shape, part), self._target, await self._role())

    async def _role(self) -> str:
        with target_errors("reading the role", self._session.where):
            return str(await self._connection.fetchval("SELECT pg_catalog.quote_ident(current_user)"))


def _of_part(plans: Plans, part: Part) -> dict[Relation, TablePlan]:
    """Those of the plans that take something of a part."""
    return {relation: plan for relation, plan in plans.items() if relation in part.relations}


def _plan_of(shape: TableShape, routed: RoutedPart) -> TablePlan:
    """A plan of a shape among those of a part."""
    return next(plan for plan in routed.plans.values() if plan.shape is shape)


__all__ = ["Applied", "Applier", "Counts", "Holds", "Plans"]
