"""Where a bootstrap starts: what the source is, what becomes of the slot, and the snapshots that tables are read from.

A first run creates the slot, after the publications, and reads from the snapshot that it exports. Whatever remains
after that (a run that was killed, a table that was rewritten or that joined the configuration later) is read from the
snapshot of a temporary slot, while the permanent one stays where it is: such a table is consistent from a later LSN.

A slot that is there although no target has a position in it was created by a run that was killed before it could record
that, if targets say that they were about to be loaded. Nobody relies on it then: it is dropped and another one created.
If none says so, the slot is somebody else's, maybe that of another pipeline, and is left alone. A slot that targets do
know is never dropped, and one that has vanished is never replaced (invariant 5): who relied on it is loaded anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

import tenacity

from cdc.config import Config
from cdc.errors import ResyncNeeded, SetupError, SlotInUse, SourceUnavailable
from cdc.identifiers import quote_literal
from cdc.lsn import Lsn
from cdc.observe.remedies import LOAD_ALL_AGAIN
from cdc.source import heartbeat, publication
from cdc.source.catalog import SourceTable
from cdc.source.connection import Connection, connect, place
from cdc.source.replication import ReplicationConnection, System
from cdc.source.slot import Slot, drop_slot, read_slot, read_slots, refusal
from cdc.source.snapshot import Snapshot, exported_snapshot, read_past_start
from cdc.source.stream_errors import BinaryRefused, StreamPoisoned
from cdc.target.history import History, SourceHistory

SLOT_TRIES = 5
"""How many slots in a row may turn out not to be decodable (hazard 26, seen once) before that is not chance."""

CREATION_TRIES = 10
"""How often the creation of a slot is tried where the source says that its snapshot would be too large just now."""

RELEASE_TIMEOUT_S = 5.0
"""How long a slot may still be in use after a run that was killed: the server notices within moments. A worker that
runs holds it for longer, and the operator should hear of that soon."""

_RELEASE_POLL_S = 0.1

SNATCHED_S = 60.0
"""How long a worker may keep a new slot that it was waiting for: it looks at its targets, one connection each."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """What a bootstrap has to know about the source before it begins."""

    system: System
    switch_points: Sequence[tuple[int, Lsn]]
    incarnation: UUID
    shared_slot: str
    slots: Mapping[str, Slot]

    def history(self) -> History:
        """The history that a target which is loaded now belongs to; a lane's slot counts as the shared one."""
        return History(self.system.system_identifier, self.system.timeline, self.shared_slot, self.incarnation)

    def for_comparison(self, slot: str) -> SourceHistory:
        """The same as what the recorded history of a target that streams from ``slot`` is compared with."""
        found = self.slots.get(slot)
        return SourceHistory(
            system_identifier=self.system.system_identifier,
            timeline=self.system.timeline,
            switch_points=self.switch_points,
            wal_position=self.system.wal_position,
            slot=self.shared_slot,
            confirmed_lsn=found.confirmed_flush_lsn if found else None,
            slot_loss=None if found is None else found.loss,
            incarnation=self.incarnation,
        )


async def read_source(config: Config, connection: Connection, application_name: str) -> SourceState:
    """Read what the source is, and the slots of this pipeline. Raises `SetupError` before ``cdc setup``."""
    beat = await heartbeat.read(connection, config.pipeline)
    if beat is None:
        raise SetupError(
            f"the source {place(config.source.dsn.get_secret_value())} is not set up for pipeline {config.pipeline!r}: "
            f"run `cdc setup` first"
        )
    dsn = config.source.dsn.get_secret_value()
    async with await ReplicationConnection.open(dsn, application_name) as walsender:
        system = await walsender.identify_system()
        switch_points = await walsender.timeline_history(system.timeline)
    slots = {slot.name: slot for slot in await read_slots(connection, config.source.slot)}
    return SourceState(system, switch_points, beat.incarnation, config.source.slot, slots)


async def free_slot(connection: Connection, name: str) -> Slot | None:
    """The slot once nobody uses it; `None` where there is none. Raises `SlotInUse` when that does not happen."""
    slot = await read_slot(connection, name)
    try:
        async with asyncio.timeout(RELEASE_TIMEOUT_S):
            while slot is not None and slot.active:
                await asyncio.sleep(_RELEASE_POLL_S)
                slot = await read_slot(connection, name)
    except TimeoutError:
        raise SlotInUse(
            f"the slot {name} is in use by process {slot.active_pid if slot else '?'} of the source: stop the worker "
            f"(`cdc run`) before a bootstrap, and start it again afterwards. While it runs, `cdc resync TABLE` loads a "
            f"table, and `cdc bootstrap --target NAME` a target that it does not stream to"
        ) from None
    return slot


async def require_published(
    config: Config, connection: Connection, tables: Sequence[SourceTable], *, must_be_readable: bool
) -> None:
    """Raise `SetupError` unless the publications exist and send every one of these tables (hazard 24).

    ``must_be_readable``: our role has to see every row of them, too.
    """
    names = config.source.publication_names
    missing = sorted(set(names) - set(await publication.read(connection, names)))
    if missing:
        raise SetupError(
            f"the source has no publication{'s' if len(missing) > 1 else ''} {' and no '.join(missing)}: "
            + ("run `cdc setup` first" if config.source.manage_publications else "its owner has to create it first")
        )
    published = await publication.read_published(connection, names)
    unpublished = sorted(table.name for table in tables if not publication.operations_of(published, table))
    if unpublished:
        raise SetupError(
            f"the publications {', '.join(names)} do not contain {', '.join(unpublished)}: "
            + ("run `cdc setup` first" if config.source.manage_publications else "their owner has to add them first")
        )
    unreadable = sorted(table.name for table in tables if not table.is_readable or table.hides_rows)
    if unreadable and must_be_readable:
        raise SetupError(
            f"the source's role {connection.info.user} may not read every row of {', '.join(unreadable)}: it needs "
            f"SELECT, and BYPASSRLS where row security is on"
        )


async def settle_slot(
    config: Config,
    connection: Connection,
    name: str,
    slot: Slot | None,
    *,
    is_known: bool,
    was_begun: bool,
    say: Callable[[str], None],
) -> bool:
    """See what becomes of the slot called ``name``; true when it has to be created.

    ``is_known``: some target of this run has a position in it. ``was_begun``: some target says that it was about to be
    loaded, or was. Raises `ResyncNeeded` when a known slot is missing or lost, `SetupError` for one that is not ours.
    """
    if slot is None:
        if not is_known:
            return True
        raise ResyncNeeded(
            f"the source has no slot {name} any more, but targets were loaded with it. Nothing can join them to the "
            f"stream again: {LOAD_ALL_AGAIN}"
        )
    problem = refusal(slot, name, connection.info.dbname)
    if is_known:
        if problem is not None:
            raise problem
        return False
    if problem is not None and not isinstance(problem, ResyncNeeded):
        raise problem
    if problem is not None:
        say(f"the slot {name} is lost, and nothing can be streamed from it any more; it is dropped and created again")
    elif not was_begun:
        raise SetupError(
            f"the source has a slot {name} that no target of pipeline {config.pipeline!r} knows: it may belong to "
            f"another pipeline. Configure another slot name, or drop it if nobody needs it",
            sql=f"SELECT pg_drop_replication_slot({quote_literal(name)});",
        )
    else:
        say(
            f"the source has a slot {name} that no target has a position in: a bootstrap was interrupted before it "
            f"could record it; it is dropped and created again"
        )
    await drop_slot(connection, name)
    return True


@asynccontextmanager
async def permanent_snapshot(
    config: Config, slot: str, application_name: str, say: Callable[[str], None]
) -> AsyncIterator[Snapshot]:
    """Create a permanent slot and yield the snapshot of its start, once it has proved that it can be decoded."""
    dsn = config.source.dsn.get_secret_value()
    for _ in range(SLOT_TRIES):
        async with AsyncExitStack() as stack:
            snapshot = await _create(config, slot, application_name, stack, say)
            if await _can_be_decoded(config, slot, application_name):
                yield snapshot
                return
        say(f"the new slot {slot} cannot be decoded (a table changed while it was created); another one is created")
        async with await connect(dsn, application_name=application_name) as connection:
            await drop_slot(connection, slot)
    raise SourceUnavailable(
        f"{SLOT_TRIES} slots in a row could not be decoded: tables of the source are truncated or rewritten all the "
        f"time; try again when that is over"
    )


async def _create(
    config: Config, slot: str, application_name: str, stack: AsyncExitStack, say: Callable[[str], None]
) -> Snapshot:
    """Create the slot; again after a while where the source has too many transactions under way for its snapshot."""

    def tell(state: tenacity.RetryCallState) -> None:
        say(f"{state.outcome.exception() if state.outcome else None}; it is tried again")

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(_snapshot_was_too_large),
        wait=tenacity.wait_random_exponential(multiplier=1, max=30),
        stop=tenacity.stop_after_attempt(CREATION_TRIES),
        before_sleep=tell,
        reraise=True,
    )

    async def create() -> Snapshot:
        return await stack.enter_async_context(
            exported_snapshot(
                config.source.dsn.get_secret_value(),
                slot,
                temporary=False,
                application_name=application_name,
                failover=config.source.failover,
            )
        )

    return await retrying(create)


def _snapshot_was_too_large(error: BaseException) -> bool:
    """PostgreSQL's "initial slot snapshot too large" (`SnapBuildInitialSnapshot`): too many subtransactions run."""
    return isinstance(error, SourceUnavailable) and error.server is not None and error.server.sqlstate == "40001"


async def _can_be_decoded(config: Config, slot: str, application_name: str) -> bool:
    dsn, names = config.source.dsn.get_secret_value(), config.source.publication_names
    # A worker that waits for this very slot takes it for a moment, sees that its targets are being loaded, and lets go.
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(SlotInUse),
        wait=tenacity.wait_random(0.1, 0.5),
        stop=tenacity.stop_after_delay(SNATCHED_S),
        reraise=True,
    )
    try:
        await retrying(read_past_start, dsn, slot, names, application_name=application_name)
    except StreamPoisoned:
        return False
    except BinaryRefused:
        # A value without a binary form was decoded and could not be sent: the worker asks for text then (hazard 25).
        return True
    return True


@asynccontextmanager
async def temporary_snapshot(config: Config, application_name: str) -> AsyncIterator[Snapshot]:
    """Yield a snapshot of now with its exact LSN, from a slot that is gone when the block begins."""
    name = f"{config.source.slot[:40]}_bootstrap_{uuid4().hex[:8]}"
    async with exported_snapshot(
        config.source.dsn.get_secret_value(), name, temporary=True, application_name=application_name
    ) as snapshot:
        yield snapshot


def replicated(tables: Sequence[SourceTable], wanted: set[str], say: Callable[[str], None]) -> dict[str, SourceTable]:
    """Those of the wanted tables that have rows of their own in the WAL, by name; the others are named to ``say``.

    Raises `SetupError` where rows of a table cannot be told apart (`SourceTable.refuse_alike`).
    """
    found = {table.name: table for table in tables if table.name in wanted}
    for table in found.values():
        table.refuse_alike()
        if not table.is_publishable:
            say(f"{table.name} {table.why_not}; it is not replicated")
    return {name: table for name, table in found.items() if table.is_publishable}
