"""Replication slots as the source shows them: read, judged, dropped. Nothing here streams.

A slot is never created to stand in for one that is missing or lost: what it would have kept is gone, so whoever relied
on it is told that it needs to be loaded again (invariant 5). A slot keeps WAL for as long as it exists (hazard 2):
`Slot.retained_bytes` and `Slot.safe_wal_size` say how much, and how much is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from cdc import statements
from cdc.errors import ResyncNeeded, SetupError, TerminalError
from cdc.lsn import Lsn
from cdc.observe.remedies import LOAD_ALL_AGAIN
from cdc.source.connection import Connection, source_errors

PLUGIN = "pgoutput"

LANE_SEPARATOR = "__"
"""A lane's slot is named ``<slot>__<target>``. No target's name holds two underscores in a row."""

_LOAD = f"{LANE_SEPARATOR}new"


@dataclass(frozen=True, slots=True)
class Slot:
    """One row of ``pg_replication_slots`` (PostgreSQL's manual, chapter "System Views").

    ``retained_bytes`` is the WAL that the slot keeps from being removed; ``safe_wal_size`` the bytes that may still be
    written before it can be lost (`None`: no limit is set). ``failover`` exists from PostgreSQL 17,
    ``invalidation_reason`` too, with ``idle_timeout`` from 18.
    """

    name: str
    plugin: str | None
    slot_type: str
    database: str | None
    active: bool
    active_pid: int | None
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    wal_status: str | None
    safe_wal_size: int | None
    retained_bytes: int | None
    temporary: bool
    failover: bool | None
    invalidation_reason: str | None

    @property
    def is_lost(self) -> bool:
        """Whether the source has removed WAL that the slot needs, or has invalidated it for another reason."""
        return self.wal_status == "lost" or self.invalidation_reason is not None or self.restart_lsn is None

    @property
    def loss(self) -> str | None:
        """Why nobody can stream from it any more, as a clause; `None` while somebody can."""
        if not self.is_lost:
            return None
        reason = self.invalidation_reason or "wal_removed"
        return _LOSSES.get(reason, reason)


_LOSSES = {
    "wal_removed": "WAL that it needs was removed (max_slot_wal_keep_size)",
    "rows_removed": "rows of the catalog that it needs were removed",
    "wal_level_insufficient": "wal_level was not logical",
    "idle_timeout": "nobody read it for longer than idle_replication_slot_timeout allows",
}
"""What ``invalidation_reason`` says. Before PostgreSQL 17 there is only the first reason, and it is not said."""

FIRST_WITH_FAILOVER = 170_000
"""The first version of PostgreSQL whose standbys can keep a logical slot."""


def failover_refusal(where: str) -> SetupError:
    """Why ``failover`` cannot be had of this source, which is older than that."""
    return SetupError(f"failover slots need PostgreSQL 17; {where} is older: set failover = false")


def lane_slot(shared: str, target: str) -> str:
    """The slot of the lane that a target has to itself."""
    return f"{shared}{LANE_SEPARATOR}{target}"


def load_slot(shared: str, target: str) -> str:
    """The slot of the generation that is loaded beside a target's tables while these go on streaming."""
    return lane_slot(shared, target) + _LOAD


def target_of(slot: str, shared: str) -> str | None:
    """The target whose lane has this slot, as far as its name tells; `None` for any other slot."""
    target = slot.removeprefix(shared + LANE_SEPARATOR)
    return None if target == slot or LANE_SEPARATOR in target else target


def target_of_load(slot: str, shared: str) -> str | None:
    """The target that is being loaded beside its tables with this slot; `None` for any other slot."""
    return target_of(slot.removesuffix(_LOAD), shared) if slot.endswith(_LOAD) else None


async def read_slot(connection: Connection, name: str) -> Slot | None:
    """The slot called ``name``; `None` when there is none."""
    return next((slot for slot in await read_slots(connection, name) if slot.name == name), None)


async def read_slots(connection: Connection, name: str) -> list[Slot]:
    """The slot called ``name`` and those of its lanes (``<name>__<target>``), as far as they exist, by name."""
    with source_errors("list its replication slots"):
        cursor = await connection.execute(statements.load("source", "slots"), {"name": name})
        rows = await cursor.fetchall()
    return [Slot(*row) for row in rows]


def refusal(slot: Slot | None, name: str, database: str) -> TerminalError | None:
    """Why nobody can stream from this slot, in a sentence; `None` when it can serve (whether it is in use or not).

    ``database`` is the one that the source's DSN leads to.
    """
    if slot is None:
        return ResyncNeeded(
            f"the source has no slot {name}: if no target has been loaded yet, run `cdc setup` and `cdc bootstrap "
            f"--from live`. Otherwise what was committed since it vanished cannot be streamed: bootstrap the targets "
            f"again ({LOAD_ALL_AGAIN})"
        )
    if slot.slot_type != "logical" or slot.plugin != PLUGIN:
        return SetupError(
            f"the slot {name} on the source is not ours: it is {slot.slot_type} with plugin {slot.plugin or 'none'}, "
            f"expected logical with {PLUGIN}; configure another slot name"
        )
    if slot.database != database:
        return SetupError(
            f"the slot {name} belongs to database {slot.database}, but the source's DSN leads to {database}; "
            f"configure another slot name or the right database"
        )
    if slot.is_lost:
        return ResyncNeeded(
            f"the slot {name} is lost: {slot.loss}; drop it and bootstrap the targets again ({LOAD_ALL_AGAIN})",
            sql=f"SELECT pg_drop_replication_slot('{name}');",
        )
    return None


async def drop_slot(connection: Connection, name: str) -> bool:
    """Drop a slot; the WAL that it kept may be removed at once. False when there was none.

    Raises `SlotInUse` while a session streams from it.
    """
    with source_errors(f"drop the slot {name}"):
        cursor = await connection.execute(statements.load("source", "drop_slot"), {"name": name})
        return await cursor.fetchone() is not None


async def drop_lane_slot(connection: Connection, shared: str, target: str, *, sender: int, held: Lsn) -> bool:
    """Drop the slot of a target's lane, where the target holds everything up to ``held`` and the shared slot the rest.

    That is: while the process ``sender`` of the source reads the shared slot, and that was not told more than ``held``.
    False, with nothing dropped, when it is not so. Raises `SlotInUse` while a session streams from the lane's slot.
    """
    name = lane_slot(shared, target)
    with source_errors(f"drop the slot {name}"):
        cursor = await connection.execute(
            statements.load("source", "drop_lane_slot"),
            {"name": name, "shared": shared, "pid": sender, "position": str(held)},
        )
        return await cursor.fetchone() is not None
