"""Does a target's position belong to what the source is now? A pure comparison (the design's invariant 5).

The server itself does not check: asked to start from an LSN older than the slot's, it silently starts from the slot's,
and an LSN of another cluster or of an abandoned timeline is a number like any other. So everything is compared before
the stream starts, and what does not meet stops the target, with a sentence that says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from cdc.errors import ResyncNeeded
from cdc.lsn import Lsn
from cdc.observe.remedies import LOAD_ALL_AGAIN
from cdc.target.remedies import load_target_again


@dataclass(frozen=True, slots=True)
class History:
    """What a position belongs to: which cluster, which timeline, which slot, which life of our heartbeat."""

    system_identifier: str
    timeline: int
    slot: str
    incarnation: UUID


@dataclass(frozen=True, slots=True)
class SourceHistory:
    """What the source says now, as plain values, because this room does not know the source.

    ``switch_points`` are the lines of TIMELINE_HISTORY for the present ``timeline``: each former timeline and the LSN
    at which it ended. ``wal_position`` is the end of the source's WAL. ``confirmed_lsn`` is the slot's
    confirmed_flush_lsn, `None` when there is no slot of that name; ``slot_loss`` says why nobody can stream from
    it any more, `None` while somebody can. ``incarnation`` is `None` when the source has no heartbeat row for this
    pipeline. ``lane_slot`` is the slot that these are of, where that is not the shared ``slot``.
    """

    system_identifier: str
    timeline: int
    switch_points: Sequence[tuple[int, Lsn]]
    wal_position: Lsn
    slot: str
    confirmed_lsn: Lsn | None
    slot_loss: str | None
    incarnation: UUID | None
    lane_slot: str | None = None


def check_history(
    where: str, stored: History | None, position: Lsn | None, source: SourceHistory, *, target: str | None = None
) -> ResyncNeeded | None:
    """Say why a target that stands at ``position`` of ``stored`` cannot go on from this source; `None` when it can.

    ``where`` describes the target, ``target`` is its name, for the command that it is loaded again with.

    On a new timeline it can where the position is at or before the point at which the old timeline ended: up to there
    both are the same WAL. (The caller then records the new timeline.)
    """
    if stored is None or position is None:
        return ResyncNeeded(f"{where} has never been loaded; run `cdc bootstrap --from live`.")
    reason = (
        _other_cluster(stored, source)
        or _other_timeline(stored, position, source)
        or _other_incarnation(stored, source)
        or _other_slot(stored, position, source)
    )
    if reason is None:
        return None
    # Without the slot, or at another source, the other targets are lost as well.
    is_alone = source.confirmed_lsn is not None and source.slot_loss is None and source.incarnation is not None
    remedy = load_target_again(target or "…") if is_alone else LOAD_ALL_AGAIN
    return ResyncNeeded(f"{where} needs a resync: {reason}. Load it again: {remedy}.")


def _other_cluster(stored: History, source: SourceHistory) -> str | None:
    if stored.system_identifier == source.system_identifier:
        return None
    return (
        f"it was loaded from the cluster with system identifier {stored.system_identifier}, but the source is now "
        f"{source.system_identifier}"
    )


def _other_timeline(stored: History, position: Lsn, source: SourceHistory) -> str | None:
    if stored.timeline == source.timeline:
        if position > source.wal_position:
            return (
                f"it stands at {position}, beyond the end of the source's WAL at {source.wal_position}: the source has "
                "lost transactions that the target holds"
            )
        return None
    ended = next((lsn for timeline, lsn in source.switch_points if timeline == stored.timeline), None)
    if ended is None:
        return (
            f"it follows timeline {stored.timeline}, which is not in the history of the source's timeline "
            f"{source.timeline}"
        )
    if position > ended:
        return (
            f"the source went from timeline {stored.timeline} to {source.timeline} at {ended}, but the target stands "
            f"at {position} and holds transactions that the source has lost"
        )
    return None


def _other_incarnation(stored: History, source: SourceHistory) -> str | None:
    if source.incarnation is None:
        return (
            "the source no longer has the heartbeat row of this pipeline: it was restored, or cdc was torn down there"
        )
    if stored.incarnation != source.incarnation:
        return "the source's heartbeat row is not the one it was loaded with: the source was restored or set up anew"
    return None


def _other_slot(stored: History, position: Lsn, source: SourceHistory) -> str | None:
    if stored.slot != source.slot:
        return f"it follows slot {stored.slot!r}, but the configuration says {source.slot!r}"
    slot = source.lane_slot or source.slot
    if source.confirmed_lsn is None:
        return f"slot {slot!r} does not exist at the source any more, and with it the WAL since {position}"
    if source.slot_loss is not None:
        return f"slot {slot!r} is lost, and with it what the target lacks: {source.slot_loss}"
    if source.confirmed_lsn > position:
        return (
            f"slot {slot!r} starts at {source.confirmed_lsn}, ahead of the target's position {position}: what "
            "lies between is not streamed again"
        )
    return None
