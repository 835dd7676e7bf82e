"""A source, a target, and the applier between them, without a lane: what the source did is applied at will.

`Replica.deliver` takes everything that the source has committed since the last time as one batch, in one target
transaction, and fails the test unless every routed table is then equal on both sides.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from cdc.changes.accumulator import UnknownTypes
from cdc.changes.packed_accumulator import AnyAccumulator, accumulator_for
from cdc.changes.relation import Relation
from cdc.changes.transaction import Part, divided
from cdc.errors import BatchRejected, TableStopped
from cdc.identifiers import quote, quote_qualified
from cdc.routing.route import Route
from cdc.source.catalog import describe_types, read_object_names
from cdc.source.connection import connect as connect_source
from cdc.source.partitions import find_places, read_leaves
from cdc.target import migrations
from cdc.target.applier import Applied, Applier, Holds
from cdc.target.partition_record import held_all
from cdc.target.session import Session, connect
from cdc.target.table_plan import TablePlan
from tests.conftest import MakeDatabase
from tests.database import Database

PUBLICATION = "everything"
SLOT = "recorded"


@dataclass
class Replica:
    """``routes`` default to every table that the stream mentions, under its own name, with all columns.

    ``overlap`` says that the target may hold changes already that are still to be applied, until `cut_over`.
    ``together`` says that a batch goes in one round trip where that goes, as a worker's does.
    """

    source: Database
    target: Database
    session: Session
    applier: Applier
    accumulator: AnyAccumulator
    routes: Sequence[Route] = ()
    binary: bool = True
    overlap: bool = False
    together: bool = True
    plans: dict[Relation, TablePlan] = field(default_factory=dict)

    async def record(self) -> list[Part]:
        """What the source has committed since the last time, transaction by transaction."""
        return divided(await self.record_packed())

    async def record_packed(self) -> list[Part]:
        """The same as it comes from the stream: with the compiled core, many transactions in one part.

        Before version 15 it tells of transactions, too, that changed nothing of the publication, such as autovacuum's.
        """
        messages: Sequence[bytes] = self.source.changes(SLOT, [PUBLICATION], binary=self.binary)
        while messages:
            try:
                self.accumulator.feed(messages)
                break
            except UnknownTypes as unknown:
                connection = await connect_source(self.source.dsn, application_name="tests")
                async with connection:
                    self.accumulator.descriptions.learn(await describe_types(connection, unknown.keys), unknown.keys)
                    places = await find_places(connection, unknown.relations)
                    self.accumulator.descriptions.place(places, unknown.relations)
                    roots = {place.root_oid: f"{place.root_schema}.{place.root_name}" for place in places.values()}
                    for root, leaves in (await read_leaves(connection, roots)).items():
                        held = held_all(leaves, self.route_of_root(roots[root]))
                        self.applier.held[roots[root]] = {leaf.oid: leaf for leaf in held}
                messages = unknown.remaining
        return [part for part in self.accumulator.take() if part.changes]

    def route_of_root(self, name: str) -> Route:
        schema, table = name.split(".")
        return next((r for r in self.routes if r.source_name == name), Route(schema, table, schema, table))

    async def apply(self, parts: Sequence[Part], *, holds: Holds | None = None) -> Applied:
        """Apply parts as one batch in one transaction."""
        for part in parts:
            for relation in part.relations:
                found = self.resolve(relation)
                route = self.route_of(found)
                if relation not in self.plans and route is not None:
                    self.plans[relation] = await self.applier.plan(found, route, overlap=self.overlap)
        await self.applier.prepare(self.plans, parts)
        # As a worker does, which has a position to move at the end.
        applied = await self.applier.apply_together(parts, self.plans, [], holds) if self.together else None
        if applied is not None:
            return applied
        async with self.session.connection.transaction():
            return await self.applier.apply(parts, self.plans, holds)

    async def deliver(self, *, compare: bool = True) -> Applied:
        """Record, apply, and compare. Where a transaction is refused, each comes by itself, as in a worker."""
        parts = await self.record_packed()
        applied = None
        with suppress(*([TableStopped, BatchRejected] if any(part.transaction_count > 1 for part in parts) else [])):
            applied = await self.apply(parts)
        if applied is None:
            applied = await self.apply(divided(parts))
        if compare:
            for relation in {self.resolve(relation) for part in parts for relation in part.relations}:
                self.assert_equal(relation)
        return applied

    def restore(self, **tables: str) -> None:
        """What restoring a backup of this moment does: the source's rows of these tables, each with its columns."""
        for table, columns in tables.items():
            rows = self.source.connection().cursor().copy(f"COPY {table} ({columns}) TO STDOUT".encode())
            into = self.target.connection().cursor().copy(f"COPY {table} ({columns}) FROM STDIN".encode())
            with rows as reading, into as writing:
                for data in reading:
                    writing.write(data)

    def cut_over(self) -> None:
        """From now on every change is expected to find what the source had."""
        self.overlap = False
        self.plans.clear()

    def resolve(self, relation: Relation) -> Relation:
        """A partition as a part of its root where that is routed, otherwise as a table of its own."""
        return relation if relation.leaf is None or self.route_of(relation) is not None else relation.by_itself()

    def route_of(self, relation: Relation) -> Route | None:
        """The route of a relation."""
        if not self.routes:
            return Route(relation.schema, relation.name, relation.schema, relation.name)
        return next((r for r in self.routes if r.source_name == relation.qualified_name), None)

    def assert_equal(self, relation: Relation) -> None:
        """Both sides hold the same rows: byte by byte, as their text."""
        route = self.route_of(relation)
        if route is None:
            return
        names = [(c.name, route.target_column(c.name)) for c in relation.columns]
        pairs = [(source, target) for source, target in names if target is not None]
        here = ", ".join(f"{quote(name)}::text" for name, _ in pairs)
        there = ", ".join(f"{quote(name)}::text" for _, name in pairs)
        expected = self.source.fetch(f"SELECT {here} FROM {quote_qualified(relation.schema, relation.name)}")
        found = self.target.fetch(f"SELECT {there} FROM {quote_qualified(route.target_schema, route.target_table)}")
        assert sorted(found, key=repr) == sorted(expected, key=repr)


async def open_replica(
    source: Database,
    target: Database,
    source_ddl: str,
    target_ddl: str | None = None,
    *,
    routes: Sequence[Route] = (),
    follows: bool = True,
    triggers_fire: bool = False,
    binary: bool = True,
    role: str | None = None,
) -> Replica:
    """Create tables on both sides (the same ones by default), and a slot that sees what comes after."""
    source.execute(source_ddl)
    target.execute(source_ddl if target_ddl is None else target_ddl)
    source.execute(f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")
    source.create_slot(SLOT)
    owner = await connect(target.dsn, application_name="tests", target="warehouse")
    await migrations.migrate(owner)
    await owner.close()
    if role is not None:
        target.execute(f"GRANT USAGE ON SCHEMA cdc TO {quote(role)}")
    session = await connect(
        target.dsn if role is None else target.dsn_as(role), application_name="tests", target="warehouse"
    )
    if triggers_fire:
        await session.connection.execute("SET session_replication_role = origin")
        session = replace(session, triggers_disabled=False)
    applier = Applier(session, "warehouse", follows=follows, routes=routes)

    async def read_names(objects: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], str]:
        async with await connect_source(source.dsn, application_name="tests") as connection:
            return await read_object_names(connection, objects)

    applier.read_names = read_names
    return Replica(
        source, target, session, applier, accumulator_for(part_bytes=8 << 20, with_roots=True), routes, binary
    )


MakeReplica = Callable[..., Awaitable[Replica]]


@pytest.fixture
async def make_replica(source: Database, make_target: MakeDatabase) -> AsyncIterator[MakeReplica]:
    """A factory that takes what `open_replica` takes after the databases. A module that wants it imports it."""
    opened: list[Replica] = []

    async def make(*arguments: Any, **options: Any) -> Replica:
        opened.append(await open_replica(source, make_target(), *arguments, **options))
        return opened[-1]

    yield make
    for replica in opened:
        await replica.session.close()
