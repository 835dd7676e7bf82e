"""Sequences that follow the source's at an interval (``sequences = "sync"``), so that a target can take its place.

One task reads where the source's sequences stand, for all targets; each target has a task that sets them between two
batches, by whichever lane it is served. What is set is always the newest reading, and a target that is down, or busy
with a large transaction, gets it when it is back. So positions move backwards only where the source's did (``setval``,
TRUNCATE … RESTART IDENTITY).

What holds after each time: no row that the target held when the positions were read has a value that its sequence is
still to hand out, because a row gets its value before it is committed. Rows that come afterwards are ahead of the
positions until the next time, by what the source hands out in one interval.

No error of a database leaves this module: it is told once, and the next interval is the next try.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from cdc.bootstrap.table_definitions import new_sequence
from cdc.config import Config
from cdc.errors import CdcError
from cdc.routing.router import is_reserved
from cdc.routing.target_routes import TargetRoutes
from cdc.service.delivery import Delivery
from cdc.service.owned_target import OwnedTarget
from cdc.service.retry import Backoff, until_done
from cdc.source.connection import connect
from cdc.source.sequences import SequenceUse, read_sequences
from cdc.target.sequences import SequencePosition, bring, differing

_log = structlog.get_logger(__name__)


async def follow_sequences(config: Config, deliveries: Mapping[str, Delivery], stop: asyncio.Event) -> None:
    """Keep the positions of every target that asks for it, until ``stop`` is set."""
    asked = [delivery for name, delivery in deliveries.items() if config.targets[name].sequences == "sync"]
    if not asked:
        return
    readings = _Readings()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_read(config, readings))]
        tasks += [group.create_task(_Follower(config, delivery, readings).run()) for delivery in asked]
        await stop.wait()
        for task in tasks:
            task.cancel()


def used_by(routes: TargetRoutes, uses: Sequence[SequenceUse]) -> list[SequenceUse]:
    """Those of the source's sequences that a column uses which goes to the target, each once."""
    found: dict[str, SequenceUse] = {}
    for use in uses:
        route = routes.route_of(use.table_schema, use.table)
        is_wanted = route is not None and route.target_column(use.column) is not None
        if is_wanted and not is_reserved(use.sequence.schema):
            found.setdefault(use.sequence.sql_name, use)
    return list(found.values())


class _Readings:
    """The newest reading of the source's sequences."""

    def __init__(self) -> None:
        self.uses: Sequence[SequenceUse] = ()
        self._count = 0
        self._next = asyncio.Event()

    def put(self, uses: Sequence[SequenceUse]) -> None:
        self.uses = uses
        self._count += 1
        self._next.set()
        self._next = asyncio.Event()

    async def later_than(self, seen: int) -> int:
        """Wait for the reading behind number ``seen``; the number of the newest."""
        while self._count == seen:
            await self._next.wait()
        return self._count


async def _read(config: Config, readings: _Readings) -> None:
    backoff = Backoff()
    told = _Told("sequences are not read")

    async def read() -> None:
        source = config.source
        async with await connect(
            source.dsn.get_secret_value(), application_name=f"{source.application_name} sequences"
        ) as connection:
            while True:
                readings.put(await read_sequences(connection))
                backoff.progressed()
                told.forget()
                await asyncio.sleep(config.worker.sequence_interval_s)

    await until_done(read, backoff=backoff, on_failure=lambda error, _: told.tell(error), stop=asyncio.Event())


class _Follower:
    """Sets one target's sequences whenever there is a reading."""

    def __init__(self, config: Config, delivery: Delivery, readings: _Readings) -> None:
        self._delivery = delivery
        self._key = config.pipeline
        self._routes = TargetRoutes(config.targets[delivery.name])
        self._readings = readings
        self._trouble = _Told("sequences are not set", target=delivery.name)
        self._left: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """For ever."""
        seen = 0
        while True:
            seen = await self._readings.later_than(seen)
            try:
                await self._delivery.between_batches(self._set)
            except CdcError as error:
                self._trouble.tell(error)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # The lane ended while it was at it; the target is served again by the next one.
            else:
                self._trouble.forget()
                self._delivery.metrics.sequences_followed()

    async def _set(self, owned: OwnedTarget) -> None:
        uses = used_by(self._routes, self._readings.uses)
        self._say_left([use.sequence.sql_name for use in uses if use.sequence.last_value is None], "may not be read")
        wanted = [position for use in uses if (position := _position(use)) is not None]
        found = await differing(owned.session, wanted)
        self._say_left(found.foreign, "is not ours at the target")
        if found:
            async with owned.fenced():
                await bring(owned.session, self._key, found)
            _log.debug("sequences set", target=self._delivery.name, count=found.count)

    def _say_left(self, names: Sequence[str], why: str) -> None:
        """Say once, of each, that it is left alone."""
        for name in names:
            if (name, why) not in self._left:
                self._left.add((name, why))
                _log.warning("sequence does not follow", target=self._delivery.name, sequence=name, reason=why)


class _Told:
    """Says an error once, and again when it is another one or has been over meanwhile."""

    def __init__(self, event: str, **context: str) -> None:
        self._event = event
        self._context = context
        self._last = ""

    def tell(self, error: CdcError) -> None:
        if str(error) != self._last:
            self._last = str(error)
            _log.warning(self._event, reason=str(error), sql=error.sql, **self._context)

    def forget(self) -> None:
        self._last = ""


def _position(use: SequenceUse) -> SequencePosition | None:
    """What the target's sequence is to be; `None` for one that the source does not let us read."""
    one = use.sequence
    if one.last_value is None:
        return None
    return SequencePosition(new_sequence(one), one.last_value, one.is_called)
