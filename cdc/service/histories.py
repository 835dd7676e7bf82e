"""What the source is now, for a lane to compare its targets with before anything is applied (invariant 5)."""

from __future__ import annotations

from collections.abc import Sequence

from cdc.config import Config
from cdc.lsn import Lsn
from cdc.source import heartbeat
from cdc.source.clock import read_clock
from cdc.source.connection import Connection
from cdc.source.replication import ReplicationConnection, System
from cdc.source.slot import Slot
from cdc.target.history import SourceHistory


async def read_system(stream: ReplicationConnection) -> tuple[System, Sequence[tuple[int, Lsn]]]:
    """The cluster, its timeline, and where the timelines before it ended."""
    system = await stream.identify_system()
    return system, await stream.timeline_history(system.timeline)


async def read_history(
    config: Config,
    catalog: Connection,
    system: System,
    switches: Sequence[tuple[int, Lsn]],
    slot: Slot | None,
    name: str,
) -> SourceHistory:
    """What the source says, with the ``slot`` called ``name`` of the lane that asks.

    A position belongs to the history of the shared slot, whichever lane serves its target for a while: that one's name
    is recorded in the targets. What can still be streamed is up to the lane's own slot.
    """
    beat = await heartbeat.read(catalog, config.pipeline)
    # Read now that the slot is ours: until then the former worker may have gone further than IDENTIFY_SYSTEM said.
    _, wal_position = await read_clock(catalog)
    return SourceHistory(
        system_identifier=system.system_identifier,
        timeline=system.timeline,
        switch_points=switches,
        wal_position=wal_position,
        slot=config.source.slot,
        confirmed_lsn=slot.confirmed_flush_lsn if slot else None,
        slot_loss=None if slot is None else slot.loss,
        incarnation=beat.incarnation if beat else None,
        lane_slot=name,
    )
