"""The lanes of one worker: the shared one, and one for each target that the source has a slot of its own for.

A target has a lane of its own while it cannot keep step with the others: after a bootstrap, for as long as it catches
up. Then it comes back to the shared lane. The reasoning, once.

**Who is where is written down in one place**: the slots of the source. ``<slot>__<target>`` exists if and only if that
target is not in the shared lane. It is read before each stream of the shared lane begins, and every few seconds of it;
when it has changed, the shared stream ends in good order and the next one begins with those who belong to it. So a
worker that is killed anywhere knows, when it is started again, all that it has to know. A slot that appears is a
bootstrap's; this worker only ever drops one.

**Taking a target back** is five steps. The slot that keeps what the target lacks may go when another one keeps it, too:

1. When the target is nearly as far as the others, the shared lane holds its acknowledgement at H, where it is.
2. The target's own lane runs on, until the target (and each of its tables) holds everything up to H.
3. The own lane ends in good order.
4. Its slot is dropped, by a statement that does so only while the shared slot is ours and stands at H or before.
   Where no answer comes, the acknowledgement stays held, and the shared stream starts anew, so that the statement,
   should it still be under way, finds the slot no more ours; then the source is asked whether the slot is there.
5. The shared lane starts its stream anew, with that target. It begins at H or before; everybody skips what he holds.

Killed between 1 and 4: the slot is there, the target has a lane of its own, and nothing has been lost. Killed between 4
and 5: the target belongs to the shared lane, whose slot was never told more than H, and the target stands at H or
after. The shared stream lost, so that another worker may have the shared slot, and move it: step 4 finds that the slot
is not ours, and drops nothing. Between the statement's look and the drop another worker would have to get the shared
slot, read its stream and acknowledge it: the statement takes microseconds, that takes milliseconds at least.

Where a table of the target has stopped alone, the target's own lane keeps what the table needs: it stays.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from cdc.changes.spool import SpoolSpace
from cdc.config import Config
from cdc.errors import CdcError, SlotInUse
from cdc.lsn import Lsn
from cdc.observe.metrics import Metrics
from cdc.service.delivery import Delivery
from cdc.service.heartbeats import Heartbeats
from cdc.service.lane import Lane
from cdc.service.slot_watch import SlotWatch
from cdc.source.connection import Connection, connect
from cdc.source.slot import Slot, drop_lane_slot, lane_slot, read_slot, target_of

_log = structlog.get_logger(__name__)

NEAR_BYTES = 16 * 1024 * 1024
"""How much WAL a target may be behind when it is taken back: what the others' slot keeps longer for its sake, and a
second or two of reading."""

REACH_TIMEOUT_S = 30.0
"""How long the others' acknowledgement is held for a target that was near. One that does not get there in this time is
not as fast as the others: it keeps its lane, and is taken back when it is near again."""

AGAIN_S = 5.0
"""How soon that is tried again."""

RELEASE_TIMEOUT_S = 10.0
"""How long the server may take to see that a lane has ended before its slot counts as somebody else's."""

_POLL_S = 0.1


@dataclass(slots=True)
class _OwnLane:
    """The lane that a target has to itself. ``is_over``: it streams no more. ``is_left``: the target is elsewhere."""

    lane: Lane
    delivery: Delivery
    stop: asyncio.Event
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    is_left: asyncio.Event = field(default_factory=asyncio.Event)


class Lanes:
    """Serves every target of a pipeline, each in the lane where it belongs. `run` is its whole life."""

    def __init__(
        self,
        config: Config,
        deliveries: Mapping[str, Delivery],
        *,
        heartbeats: Heartbeats,
        metrics: Metrics,
        stop: asyncio.Event,
    ) -> None:
        self._config = config
        self._slot = config.source.slot
        self._deliveries = deliveries
        self._heartbeats = heartbeats
        self._metrics = metrics
        self._stop = stop
        self._own: dict[str, _OwnLane] = {}
        self._spool = SpoolSpace(config.worker.max_spool_bytes, config.worker.spool_directory)
        self._turn = asyncio.Lock()
        self._tasks = asyncio.TaskGroup()
        self._slots = SlotWatch(self._slot, deliveries, metrics)
        self._shared = Lane(
            config,
            assign=self._assign,
            watch=self._watch,
            spool=self._spool,
            heartbeats=heartbeats,
            metrics=metrics.lane(),
            stop=stop,
        )

    async def run(self) -> None:
        """Serve until ``stop`` is set; then every lane ends in good order."""
        async with self._tasks as tasks:
            tasks.create_task(self._end_own_lanes())
            tasks.create_task(self._shared.run())

    def missing(self) -> Mapping[str, str]:
        """What stands between the worker and being ready: a sentence per source or target."""
        missing: dict[str, str] = {}
        if not self._shared.is_streaming and (self._shared.deliveries or not self._own):
            missing[self._shared.name] = self._shared.trouble or "not streaming"
        for name, delivery in self._deliveries.items():
            if not delivery.health.is_taken:
                own = self._own.get(name)
                missing[name] = delivery.health.trouble or (own and own.lane.trouble) or "not taken yet"
        return missing

    async def _end_own_lanes(self) -> None:
        await self._stop.wait()
        for own in self._own.values():
            own.stop.set()
            own.is_left.set()

    # --- who is where

    async def _assign(self, slots: Sequence[Slot]) -> Sequence[Delivery]:
        """Begin and end lanes by the slots that there are; return the deliveries that share the other lane.

        The shared lane asks between two of its streams, when it serves nobody.
        """
        self._slots.show(slots)
        alone = self._targets_of(slots)
        for target in sorted(self._own.keys() - alone):
            await self._leave(target)
        for target in sorted(alone - self._own.keys()):
            self._begin(target)
        return [delivery for name, delivery in self._deliveries.items() if name not in alone]

    def _watch(self, slots: Sequence[Slot]) -> None:
        self._slots.show(slots)
        alone = self._targets_of(slots)
        if began := sorted(alone - self._own.keys()):
            self._shared.restart(f"the source has a slot of its own for {', '.join(began)}")
        elif ended := sorted(self._own.keys() - alone):
            self._shared.restart(f"the source has no slot of its own for {', '.join(ended)} any more")

    def _targets_of(self, slots: Sequence[Slot]) -> set[str]:
        """The targets that have a lane to themselves."""
        found = {target_of(slot.name, self._slot) for slot in slots}
        return {target for target in self._deliveries if target in found}

    def _begin(self, target: str) -> None:
        stop = asyncio.Event()
        lane = Lane(
            self._config,
            [self._deliveries[target]],
            slot=lane_slot(self._slot, target),
            name=f"lane of {target}",
            ends_with_slot=True,
            spool=self._spool,
            heartbeats=self._heartbeats,
            metrics=self._metrics.lane(target),
            stop=stop,
        )
        own = self._own[target] = _OwnLane(lane, self._deliveries[target], stop)
        if self._stop.is_set():
            stop.set()
            own.is_left.set()
        _log.info("target has a lane of its own", target=target, slot=lane_slot(self._slot, target))
        self._tasks.create_task(self._run(own))
        self._tasks.create_task(self._bring_back(target, own))

    async def _run(self, own: _OwnLane) -> None:
        await own.lane.run()
        own.is_over.set()
        own.delivery.health.tell()
        if own.lane.is_gone:
            self._shared.restart(f"{own.lane.name}: its slot is gone")

    async def _leave(self, target: str) -> None:
        """The target's lane is over, and the shared one takes it: what was held for that is in its hands now."""
        own = self._own[target]
        own.stop.set()
        await own.is_over.wait()
        del self._own[target]
        own.is_left.set()
        self._shared.release()
        self._shared.let_go(target)
        self._metrics.end_lane(target)
        _log.info("target is in the shared lane", target=target)

    # --- taking a target back

    async def _bring_back(self, target: str, own: _OwnLane) -> None:
        """Take the target back when it has caught up. Ends with the lane."""
        while not own.is_over.is_set():
            if not self._is_near(target, own):
                await own.delivery.changed()
                continue
            # One at a time: the acknowledgement is held for one target, until the shared lane has it.
            async with self._turn:
                if await self._take_back(target, own):
                    await own.is_left.wait()
                    return
            await _wait(own.stop, AGAIN_S)
        self._shared.let_go(target)

    def _is_near(self, target: str, own: _OwnLane) -> bool:
        """Whether the target will soon be where the others are. Where there are no others, the shared slot is taken."""
        held = own.delivery.acknowledgeable
        is_well = own.lane.is_streaming and own.delivery.health.state == "streaming"
        if not is_well or held is None or held + NEAR_BYTES < self._shared.confirmed:
            self._shared.let_go(target)
            return False
        self._shared.keep(target)
        return self._shared.is_streaming

    async def _take_back(self, target: str, own: _OwnLane) -> bool:
        """Steps 1 to 5 of this module's text; true when the target's lane is over for good."""
        stream, goal = self._shared.streams, self._shared.hold()
        is_back = False
        try:
            if await self._reaches(own, goal, stream):
                own.stop.set()
                await own.is_over.wait()
                is_back = await self._drop_slot(target, own, goal, stream)
        finally:
            if not is_back:
                self._shared.release()
        if self._own.get(target) is not own:
            return True  # somebody else has dropped the slot
        if is_back:
            self._shared.restart(f"target {target} has caught up")
        elif own.is_over.is_set() and not self._stop.is_set():
            own.is_left.set()
            self._begin(target)
        return own.is_over.is_set()

    async def _reaches(self, own: _OwnLane, goal: Lsn, stream: int) -> bool:
        """Step 2. False when the target does not get there in time, or the shared stream has ended meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REACH_TIMEOUT_S):
                while not own.is_over.is_set() and self._shared.streams == stream and self._shared.is_streaming:
                    if _holds(own, goal):
                        return True
                    await own.delivery.changed()
        return False

    async def _drop_slot(self, target: str, own: _OwnLane, goal: Lsn, stream: int) -> bool:
        """Step 4. False when the slot may still be needed; then it is there. True, too, when that was never learnt."""
        held, sender = own.delivery.acknowledgeable, self._shared.sender_pid
        if self._stop.is_set() or held is None or not _holds(own, goal) or self._shared.streams != stream:
            return False
        is_asked = False
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S), await self._connect() as connection:
                while sender is not None:
                    is_asked = True
                    try:
                        return await drop_lane_slot(connection, self._slot, target, sender=sender, held=held)
                    except SlotInUse:
                        is_asked = False
                        await asyncio.sleep(_POLL_S)
        except TimeoutError:
            _log.warning("the slot of a lane that has ended was not dropped in time", target=target)
        except CdcError as error:
            _log.warning("the slot of a lane could not be dropped", target=target, reason=str(error), sql=error.sql)
        return is_asked and await self._is_dropped(target, own, stream)

    async def _is_dropped(self, target: str, own: _OwnLane, stream: int) -> bool:
        """Whether a slot is gone that was asked to be dropped, and no answer came. True when the worker stops first."""
        self._shared.restart(f"it is to be seen whether the slot of target {target} is dropped")
        while not self._stop.is_set() and self._own.get(target) is own:
            # Only a stream that began since then shuts out that the statement is still to come.
            if self._shared.streams != stream:
                try:
                    async with asyncio.timeout(RELEASE_TIMEOUT_S), await self._connect() as connection:
                        return await read_slot(connection, lane_slot(self._slot, target)) is None
                except (TimeoutError, CdcError):
                    _log.warning("the source does not say whether the slot of a lane is dropped", target=target)
            await _wait(self._stop, _POLL_S)
        return True

    async def _connect(self) -> Connection:
        source = self._config.source
        return await connect(source.dsn.get_secret_value(), application_name=f"{source.application_name} lanes")


def _holds(own: _OwnLane, goal: Lsn) -> bool:
    return own.delivery.acknowledgeable is not None and own.delivery.acknowledgeable >= goal


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
