"""The worker's side of `cdc resync`: one table of one target is read again while everything else streams.

A `Resyncing` belongs to a `Delivery`. Every few seconds it looks for a request in the target, decides the way
(`cdc.service.resync_way`) and serves it. In place, the order is what makes it right:

1. the table is in the publication, committed: its changes are streamed;
2. its state is overlap, and a `Tracking` remembers what the stream changes;
3. all transactions that had begun before that have ended: whatever was committed before, every snapshot now sees;
4. chunk by chunk: read and staged under one snapshot, then a watermark; merged when the stream brings that. A key that
   a transaction changed which the snapshot does not see keeps the stream's version.

What is asked and how far it is stands in the target, and moves with the rows: a worker that is killed goes on with the
next chunk. What only memory knows (the touched keys) is not needed for that: steps 3 and 4 begin anew with it.
Everything that needs the target's fence is done between two batches; rows are read and staged beside the stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cdc.config import Config
from cdc.errors import CdcError, SetupError, TableStopped, TerminalError
from cdc.service import column_looks, resync_partitions, resync_plan, resync_whole
from cdc.service.resync_chunks import CHUNK_ROWS, ChunkReader, Restructured
from cdc.service.resync_plan import Layout
from cdc.service.resync_steps import Errand, finish, open_session, prepare_table
from cdc.service.resync_way import WHOLE_BYTES, Verdict, way_of
from cdc.service.retry import Backoff
from cdc.service.tracking import ChunkLost, Tracking
from cdc.source import publication
from cdc.source.catalog import SourceTable, read_tables
from cdc.source.chunks import current_snapshot
from cdc.source.column_numbers import NOTHING_SEEN
from cdc.source.connection import Connection, connect
from cdc.source.partitions import SourceLeaf
from cdc.source.visibility import current_xid, wait_until_visible
from cdc.target import resync_request as requests
from cdc.target import table_state
from cdc.target.partition_record import HeldLeaves, held_all
from cdc.target.remedies import again_command, resync_command
from cdc.target.resync_request import Request

if TYPE_CHECKING:
    from cdc.service.delivery import Delivery
    from cdc.service.owned_target import OwnedTarget

_log = structlog.get_logger(__name__)

POLL_S = 2.0
"""How often a target is asked for requests: one small query between two batches."""

LOST_S = 0.2
"""How soon what was lost with a session is begun again."""

ANEW = 5
"""How often one request may begin anew because the table is not what it was. Oftener, it is not the table: its values
are streamed as text, say (hazard 25), so that keys in the stream and in the table cannot be compared."""

PRUNE_S = 2.0
"""How often touched keys that every snapshot sees are forgotten while older transactions are waited for."""

OPEN = (requests.ASKED, *requests.IN_CHUNKS, requests.COPYING, requests.FINISHING)
"""The states that a worker does something about; a shadow is built by ``cdc resync`` itself."""

BeforeMark = Callable[[Request], Awaitable[None]]
"""Called when a chunk is staged and its watermark is not written yet: where tests act."""


async def _at_once(_: Request) -> None:
    """Nothing happens before a watermark."""


class Resyncing:
    """Serves the requests of one target, one after another, while a stream of its delivery lasts."""

    def __init__(self, delivery: Delivery, config: Config, key: str, *, is_idle: bool) -> None:
        """``is_idle``: the target is being loaded by whoever owns the delivery, and nothing of it is read again."""
        self.before_mark: BeforeMark = _at_once
        self.whole_bytes = WHOLE_BYTES
        self.most_rows = CHUNK_ROWS[1]
        self.partitions: Mapping[int, tuple[SourceLeaf, ...]] = {}
        self.columns = NOTHING_SEEN
        self._anew: dict[int, int] = {}
        self._unlogged: set[int] = set()
        self._delivery = delivery
        self._is_idle = is_idle
        self._config = config
        self._key = key
        self._target = delivery.name

    async def attach(self, owned: OwnedTarget) -> None:
        """The target was taken: a table that is being read again is tracked before the first batch."""
        if self._is_idle:
            return
        request = await requests.next_open(owned.session, self._key, requests.IN_CHUNKS)
        if request is not None and request.table in owned.planning.overlap:
            owned.track(Tracking(request))

    async def run(self) -> None:
        """Serve requests until cancelled. No error leaves: it is logged, recorded, and tried again where that helps."""
        backoff = Backoff()
        while not self._is_idle:
            request: Request | None = None
            try:
                if self.partitions:
                    await self._look_at_partitions()
                request = await self._delivery.between_batches(self._next)
                if request is not None:
                    await self._serve(request)
                    backoff.progressed()
                    continue
                wait_s = POLL_S
            except (ChunkLost, Restructured):
                wait_s = LOST_S
            except CdcError as error:
                wait_s = await self._failed(request, error, backoff)
            except Exception as error:  # whatever is wrong here, the stream goes on
                _log.exception("resync failed by a bug of cdc", target=self._target, kind=type(error).__name__)
                bug = TerminalError(f"it failed inside cdc ({type(error).__name__}); this is a bug of cdc")
                wait_s = await self._failed(request, bug, backoff)
            await asyncio.sleep(wait_s)

    async def _next(self, owned: OwnedTarget) -> Request | None:
        await column_looks.compare(owned, self.columns)
        return await requests.next_open(owned.session, self._key, OPEN)

    async def _look_at_partitions(self) -> None:
        """Ask for what partitions that were attached or detached leave to be read, and record those that are new."""
        waiting = [table for table, stop in self._delivery.stops.items() if stop.is_held]

        async def ask(owned: OwnedTarget) -> tuple[list[str], list[str]]:
            self._tell_unlogged(owned)
            return await resync_partitions.ask(owned, self._key, self.partitions, waiting)

        asked, new = await self._delivery.between_batches(ask)
        for table in asked:
            _log.info("partitions were attached or detached; the table is read again", target=self._target, table=table)
        if new:
            source = self._config.source
            async with await connect(
                source.dsn.get_secret_value(), application_name=f"{source.application_name} resync"
            ) as connection:
                for found in await read_tables(connection, new):
                    record = partial(resync_partitions.record, source=found)
                    await self._tell_unsent(connection, found, await self._delivery.between_batches(record))

    async def _tell_unsent(self, connection: Connection, table: SourceTable, new: Sequence[SourceLeaf]) -> None:
        source = self._config.source
        published = await publication.read_published(connection, source.publication_names) if new else {}
        for name in resync_partitions.unsent(new, published):
            _log.warning(
                "only inserts and TRUNCATE of a new partition are published; its updates and deletes do not arrive",
                target=self._target,
                table=table.name,
                partition=name,
                mend=f"{'cdc setup' if source.manage_publications else 'publish them'}, then cdc resync {table.name}",
            )

    def _tell_unlogged(self, owned: OwnedTarget) -> None:
        """Say, once, which partitions hold rows that reach no target."""
        for oid, leaves in self.partitions.items():
            out = {one.leaf.oid: one.name for one in leaves if not one.is_publishable}
            for leaf, name in out.items():
                if owned.planning.name_of(oid) is not None and leaf not in self._unlogged:
                    self._unlogged.add(leaf)
                    _log.warning(
                        "the changes of a partition are not in the WAL (unlogged or foreign): its rows do not arrive",
                        target=self._target,
                        table=owned.planning.name_of(oid),
                        partition=name,
                        mend="ALTER TABLE … SET LOGGED; it is read by itself then",
                    )
            self._unlogged -= {one.leaf.oid for one in leaves} - out.keys()

    async def _failed(self, request: Request | None, error: CdcError, backoff: Backoff) -> float:
        """Say what went wrong; what cannot pass ends the request."""
        wait_s = backoff.wait_s(error)
        if request is None:
            return wait_s
        _log.warning("resync failed", target=self._target, table=request.table, reason=str(error), sql=error.sql)
        try:
            if isinstance(error, TerminalError):
                await self._delivery.between_batches(partial(self._end, request, error))
            else:
                async with open_session(self._config, self._target) as session:
                    await requests.record(session, request.request, says=f"{error}; it is tried again")
        except CdcError as unrecorded:
            _log.warning("resync cannot record that", target=self._target, reason=str(unrecorded))
        return wait_s

    async def _end(self, request: Request, error: TerminalError, owned: OwnedTarget) -> None:
        """The request has failed: durable when it returns.

        A table that was not touched goes on as it was. One in overlap is neither what it was nor what the source has,
        and in overlap nobody would see what it lacks: it is stopped until it is read again.
        """
        states = await table_state.read(owned.session, self._key)
        known = next((state for state in states if state.source_name == request.table), None)
        # What the worker asked for itself was needed: the table is not what the source has, overlap or not.
        found = known if known is not None and (known.is_overlap or request.by_itself) else None
        mend = error.sql or resync_command(request.table, self._target)
        why = TableStopped(f"it was to be read again, and that failed: {error}", sql=mend)
        async with owned.fenced():
            await requests.fail(owned.session, request, str(error), error.sql)
            if found is not None:
                await table_state.stop(
                    owned.session,
                    self._key,
                    resync_plan.route_for(self._config, self._target, request.source),
                    position=owned.positions.of(request.table),
                    reason=str(why),
                    mend=mend,
                )
        owned.track_no_more()
        if found is not None:
            owned.hold(request.table, why)
            self._delivery.metrics.table_stopped(request.table, "resync")
        else:
            self._delivery.release(request.table)

    async def _serve(self, request: Request) -> None:
        source = self._config.source
        async with (
            await connect(
                source.dsn.get_secret_value(), application_name=f"{source.application_name} resync"
            ) as connection,
            open_session(self._config, self._target) as session,
        ):
            errand = Errand(self._delivery, self._config, self._target, self._key, connection, session)
            if request.state == requests.ASKED:
                request = await self._decide(errand, request)
            if request.state == requests.COPYING:
                await resync_whole.copy(errand, request)
                return
            if request.state in requests.IN_CHUNKS:
                request = await self._read_chunks(errand, request)
            if request.state == requests.FINISHING:
                await finish(errand, request)

    async def _decide(self, errand: Errand, request: Request) -> Request:
        """Choose the way and begin; what it returns is to be served on."""
        session = errand.session
        route = resync_plan.route_for(self._config, self._target, request.source)
        source = await resync_plan.read_source(errand.connection, self._config, self._target, route)
        await prepare_table(errand, route, source)
        await self._look_again(errand, source)
        if request.partitions_only:
            narrowed = await self._narrow(errand, request, source)
            if narrowed is None:
                return await self._recorded(errand, request, state=requests.DONE)
            request, source = narrowed
        layout, verdict = await self._choose(errand, request, source)
        _log.info("resync", target=self._target, table=request.table, way=verdict.way, reason=verdict.reason)
        if verdict.way == "refused":
            raise SetupError(verdict.reason, sql=verdict.mend)
        if verdict.way == "shadow" and request.by_itself:
            command = resync_command(request.table, self._target)
            raise SetupError(f"it has to be built beside, because {verdict.reason}: run the command", sql=command)
        values: dict[str, object] = {"way": verdict.way, "reason": verdict.reason}
        values["estimated_rows"] = await errand.estimate_rows(source)
        if layout is None or verdict.way == "shadow":
            # Its run is that of the command which builds it.
            await requests.record(session, request.request, state=requests.SHADOW, **values)
        else:
            values["run"] = await requests.begin_run(session, self._key, self._target)
            await requests.record(session, request.request, **values)
            if verdict.way == "whole":
                await requests.record(session, request.request, state=requests.COPYING)
            else:
                await self._begin_chunks(errand, request, layout)
        return await self._recorded(errand, request)

    async def _look_again(self, errand: Errand, source: SourceTable) -> None:
        """What is read from now on sees all changes of partitions that the stream may have left out."""
        if source.relkind == "p":
            await publication.look_again(errand.connection, self._config.source.publication_names)

    async def _recorded(self, errand: Errand, request: Request, **values: object) -> Request:
        if values:
            await requests.record(errand.session, request.request, **values)
        found = await requests.read(errand.session, request.request)
        assert found is not None  # rows of requests stay
        return found

    async def _narrow(
        self, errand: Errand, request: Request, source: SourceTable
    ) -> tuple[Request, SourceTable] | None:
        """See what is to be read because of the partitions only: the request with its condition, and how much that is.

        `None`: nothing, because those that were attached are empty; the target says that it holds them.
        """
        held = await errand.do(lambda owned: _held(owned, request.table))
        moves = resync_partitions.compare(source.leaves, held)
        if not moves.gone and await resync_partitions.are_empty(errand.connection, moves.attached):
            new = await errand.do(lambda owned: resync_partitions.hold(owned, source))
            await self._tell_unsent(errand.connection, source, new)
            return None
        within = moves.condition
        if not (self._config.source.manage_publications and source.passes_identity_on):
            # As a table of its own it may have been streamed, too, with rows outside of its bound.
            within = None
        if within is not None and not (await errand.look(request)).is_alike:
            within = None
        request = await self._recorded(errand, request, within=within)
        read = source.bytes if within is None else sum(leaf.bytes for leaf in moves.attached)
        return request, replace(source, bytes=read)

    async def _choose(self, errand: Errand, request: Request, source: SourceTable) -> tuple[Layout | None, Verdict]:
        """The way; no layout where the table does not fit any more. One that `cdc` created is made anew then."""
        try:
            layout = await errand.look(request)
        except TableStopped as error:
            state = await errand.state(request.table)
            if not self._config.targets[self._target].follows or state is None or not state.created_by_cdc:
                raise
            return None, Verdict("shadow", f"it does not fit as it is ({error})")
        return layout, way_of(source, layout.facts, whole_bytes=self.whole_bytes)

    async def _begin_chunks(self, errand: Errand, request: Request, layout: Layout) -> None:
        """From its first row on: the table is in overlap, tracked, and nothing of it counts as merged."""
        await self._look_again(errand, layout.source)
        near_xid = await current_xid(errand.connection)
        leaves = held_all(layout.source.leaves, layout.route)

        async def begin(owned: OwnedTarget) -> None:
            # What it did not take since it stopped is read where all of it is; otherwise it has to catch up.
            catches_up = request.within is not None and request.table in owned.positions.tables
            if catches_up:
                await owned.save()
            async with owned.fenced():
                await errand.execute(owned, layout.tables.create())
                if catches_up:
                    await table_state.resume_in_overlap(owned.session, self._key, request.source)
                else:
                    await table_state.mark_overlap(
                        owned.session, self._key, layout.route, source_oid=layout.source.relation.oid
                    )
                    if request.within is None:
                        await owned.planning.columns.loaded(layout.route, layout.source.sent_numbers)
                await requests.record(
                    owned.session,
                    request.request,
                    state=requests.WAITING,
                    source_oid=layout.source.relation.oid,
                    near_xid=near_xid,
                    key_form=layout.form,
                    within=request.within,
                    chunk_count=0,
                    row_count=0,
                    sweep_after=0,
                )
                if layout.source.relkind == "p":
                    await owned.planning.partitions.write(request.table, leaves)
                found = await requests.read(owned.session, request.request)
            assert found is not None
            if layout.source.relkind == "p":
                owned.planning.know(request.table, layout.source.relation.oid)
                self._delivery.interest.loaded(owned.planning.oids)
                owned.planning.partitions.follow(request.table, leaves)
                owned.planning.replan([request.table])
            if catches_up:
                owned.track(Tracking(found))
                owned.planning.set_overlap(owned.planning.overlap | {request.table})
                self._delivery.release(request.table)
            else:
                owned.read_again(Tracking(found))

        await errand.do(begin)

    async def _read_chunks(self, errand: Errand, request: Request) -> Request:
        """Step 3, then chunks until the table is exactly the source's; returns the request as it is then."""
        tracking = await errand.do(_tracking)
        if tracking is None or tracking.request.request != request.request:
            state = await errand.state(request.table)
            if state is None or not state.is_overlap:
                raise SetupError("the table was loaded by another way meanwhile")
            raise ChunkLost("the table is not tracked")
        marks = await errand.do(lambda owned: _marks(owned, request.table))
        reader = ChunkReader(errand, tracking, self.before_mark, self.most_rows, marks)
        await self._wait(errand, tracking)
        while True:
            try:
                result = await reader.next()
            except Restructured:
                # What is merged and what is staged do not belong to the table as it is now: from its first row.
                self._anew[request.request] = self._anew.get(request.request, 0) + 1
                if self._anew[request.request] > ANEW:
                    raise SetupError(
                        "the table changes all the time, or its key is streamed in another form than it is read",
                        sql=again_command([request.table], self._target),
                    ) from None
                whole = replace(tracking.request, within=None)
                await self._begin_chunks(errand, whole, await errand.look(whole))
                raise
            except ChunkLost as lost:
                if tracking.is_lost:
                    raise
                await self._say(errand, tracking.request, str(lost))
                reader.smaller()
                await errand.until_level(request.table)
                tracking.forget_touched()
                await self._wait(errand, tracking)
                continue
            if result.is_whole:
                _log.info("resync is exact", target=self._target, table=request.table, lsn=str(result.at))
                return result.request
            await asyncio.sleep(reader.pause_s())

    async def _wait(self, errand: Errand, tracking: Tracking) -> None:
        """Wait until everything that the tracking may have missed is visible to every snapshot."""
        request = tracking.request
        said: list[str] = []
        looked_at = time.monotonic()

        async def prune() -> None:
            nonlocal looked_at
            while said:
                await self._say(errand, request, said.pop())
            if time.monotonic() - looked_at >= PRUNE_S:
                looked_at = time.monotonic()
                tracking.touched.see(await current_snapshot(errand.connection))

        await wait_until_visible(errand.connection, said.append, meanwhile=prune)
        state = requests.READING if request.state == requests.WAITING else request.state
        await requests.record(errand.session, request.request, state=state, says=None)
        tracking.request = replace(request, state=state)

    async def _say(self, errand: Errand, request: Request, says: str) -> None:
        _log.info("resync waits", target=self._target, table=request.table, reason=says)
        await requests.record(errand.session, request.request, says=says)


async def _tracking(owned: OwnedTarget) -> Tracking | None:
    return owned.tracking


async def _held(owned: OwnedTarget, table: str) -> HeldLeaves:
    return owned.planning.partitions.held.get(table, {})


async def _marks(owned: OwnedTarget, table: str) -> list[str]:
    return owned.planning.partitions.marks(table)
