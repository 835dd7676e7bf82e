"""What ATTACH and DETACH leave to be read again: which partitions a table holds, against those that the source has now.

The source streams nothing for either, nor for DROP TABLE of a partition. What is read again is what those partitions
hold or held, where a condition tells their rows on both sides; otherwise the whole table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from cdc.identifiers import quote_qualified
from cdc.routing.patterns import split
from cdc.source.catalog import SourceTable
from cdc.source.connection import Connection, source_errors
from cdc.source.partitions import SourceLeaf
from cdc.target import resync_request
from cdc.target.partition_record import NOT_ASKED, HeldLeaf, HeldLeaves, held_all

if TYPE_CHECKING:
    from cdc.service.owned_target import OwnedTarget


@dataclass(frozen=True, slots=True)
class Moves:
    """How the partitions of a table differ: ``attached`` and ``gone`` ones, and ``born`` ones that bring no rows."""

    attached: tuple[SourceLeaf, ...]
    born: tuple[SourceLeaf, ...]
    gone: tuple[HeldLeaf, ...]

    @property
    def condition(self) -> str | None:
        """The condition for all rows that these partitions hold or held; `None` where there is none."""
        bounds = [leaf.bound for leaf in self.attached] + [leaf.bound for leaf in self.gone]
        known = [bound for bound in bounds if bound]
        return " OR ".join(f"({bound})" for bound in known) if known and len(known) == len(bounds) else None


def compare(now: Iterable[SourceLeaf], held: HeldLeaves) -> Moves:
    """What has happened to a table of which the target holds the leaves ``held``."""
    leaves = {one.leaf.oid: one for one in now if one.is_publishable}
    new = [one for oid, one in leaves.items() if oid not in held or held[oid].attachment != one.leaf.attachment]
    gone = [of for oid, of in held.items() if oid not in leaves or leaves[oid].leaf.attachment != of.attachment]
    # One that was held before was detached meanwhile, and may have changed: it counts as attached.
    attached = [one for one in new if not one.leaf.is_born or one.leaf.oid in held]
    return Moves(tuple(attached), tuple(one for one in new if one not in attached), tuple(gone))


def partitions_moved(source: SourceTable, marks: Sequence[str]) -> bool:
    """Whether a partition has left the table that had the leaves ``marks``, or joined it with rows."""
    born = {f"{one.leaf.oid} {one.leaf.attachment}" for one in source.leaves if one.leaf.is_born}
    now = set(source.leaf_marks or ())
    return not set(marks) <= now or not now - set(marks) <= born


async def ask(
    owned: OwnedTarget, key: str, leaves: Mapping[int, tuple[SourceLeaf, ...]], waiting: Collection[str]
) -> tuple[list[str], list[str]]:
    """Compare what the target holds with the partitions that the source has, between two batches.

    Where rows have to be read, that is asked for, except for the tables that are ``waiting`` for somebody to read them
    in another way. Returns the tables of which it was, and those whose partitions have only to be recorded (`record`).
    """
    open_requests = {request.table for request in await resync_request.read_open(owned.session, key)}
    asked, new = [], []
    for oid, now in leaves.items():
        table = owned.planning.name_of(oid)
        if table is None or table in open_requests or table in waiting:
            continue
        held = owned.planning.partitions.held.get(table)
        moves = compare(now, held or {})
        if held is None or not (moves.attached or moves.gone):
            if held is None or moves.born or any(leaf.bound == NOT_ASKED for leaf in held.values()):
                new.append(table)
            continue
        async with owned.fenced():
            await resync_request.ask(owned.session, key, split(table), None, by_itself=True, partitions_only=True)
        asked.append(table)
    return asked, new


async def record(owned: OwnedTarget, source: SourceTable) -> list[SourceLeaf]:
    """Record the leaves of a table, between two batches, unless one brought rows or took some along.

    Returns those that are new (`hold`).
    """
    held = owned.planning.partitions.held.get(source.name)
    moves = compare(source.leaves, held or {})
    return await hold(owned, source) if held is None or not (moves.attached or moves.gone) else []


async def hold(owned: OwnedTarget, source: SourceTable) -> list[SourceLeaf]:
    """Record that the target holds the leaves of a table as they are now, and no others; durable when it returns.

    Returns those that it did not hold, or only as the stream had brought them.
    """
    before = owned.planning.partitions.held.get(source.name, {})
    new = [one for one in source.leaves if (known := before.get(one.leaf.oid)) is None or known.bound == NOT_ASKED]
    route = owned.planning.route_of(source.name)
    assert route is not None  # it was loaded
    leaves = held_all((one for one in source.leaves if one.is_publishable), route)
    async with owned.fenced():
        await owned.planning.partitions.write(source.name, leaves)
    owned.planning.partitions.follow(source.name, leaves)
    owned.planning.replan([source.name])
    return new


def unsent(leaves: Iterable[SourceLeaf], published: Mapping[str, frozenset[str]]) -> list[str]:
    """Those of the leaves that could publish updates and do not: nothing that the stream brings of them says so."""
    return [
        one.name
        for one in leaves
        if one.usable_identity and one.name in published and "update" not in published[one.name]
    ]


async def are_empty(connection: Connection, leaves: Iterable[SourceLeaf]) -> bool:
    """Whether none of these partitions has a row, as far as our role may see."""
    for leaf in leaves:
        name = quote_qualified(leaf.leaf.schema, leaf.leaf.name)
        try:
            cursor = await connection.execute(f"SELECT EXISTS (SELECT FROM {name})".encode())
        except psycopg.errors.InsufficientPrivilege:
            return False
        except psycopg.Error:
            with source_errors(f"look into the partition {leaf.name}"):
                raise
        row = await cursor.fetchone()
        if row is None or row[0]:
            return False
    return True
