"""One run of a bootstrap, from the moment that it owns its targets: what `open_run` found, and what was done since.

`open_run` is the part that refuses. It reads the source, takes the targets, and compares; nothing but the fences has
changed when it raises. Only its last steps change anything: a slot that an interrupted run left behind is dropped, and
tables that are wished to be loaded again are recorded as such.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

from cdc.bootstrap import incremental, start, tables
from cdc.bootstrap.again import Again, choose, record
from cdc.bootstrap.aims import Found
from cdc.bootstrap.aims import choose as choose_aims
from cdc.bootstrap.progress import Progress, Summary, TargetSummary
from cdc.bootstrap.records import Records
from cdc.bootstrap.rounds import Work
from cdc.bootstrap.targets import (
    Loading,
    application_name,
    find_targets,
    refuse_foreign_rows,
    settle_history,
    take,
)
from cdc.config import Config
from cdc.errors import ConfigurationError, SetupError
from cdc.lsn import Lsn
from cdc.routing.patterns import nearest
from cdc.routing.route import Route
from cdc.routing.router import build_all_routes
from cdc.source.catalog import SourceTable, ancestors_of, columns_of
from cdc.source.clock import read_clock
from cdc.source.connection import Connection, connect
from cdc.source.published import read_published_tables
from cdc.source.snapshot import Snapshot
from cdc.target import position


@dataclass(frozen=True, slots=True)
class Scope:
    """What a run is asked to load.

    ``targets`` are their names; `None` for all. ``anew``: also those that need it not, beside their tables. ``again``
    are tables to be emptied and loaded once more. ``only``: some tables of targets, to be loaded beside the others;
    by target, their names at the source.
    """

    targets: tuple[str, ...] | None = None
    anew: bool = False
    again: Again | None = None
    only: Mapping[str, frozenset[str]] | None = None

    def names(self, config: Config) -> tuple[str, ...]:
        """The targets, checked against the configuration. Raises `ConfigurationError` for one that it has not."""
        if self.targets is None:
            return tuple(config.targets)
        for name in self.targets:
            if name not in config.targets:
                guess = nearest(name, list(config.targets))
                raise ConfigurationError(
                    f"--target: there is no target {name}{f'; did you mean {guess}?' if guess else ''}; "
                    f"the configuration has {', '.join(config.targets)}"
                )
        return self.targets


@dataclass(slots=True)
class LoadLane:
    """The targets of a run that are fed over one slot.

    ``needs_slot`` until it exists and its start is recorded in every one of them.
    """

    slot: str
    loadings: dict[str, Loading]
    needs_slot: bool


@dataclass(slots=True)
class Run:
    """One run, of what ``scope`` asks for.

    ``routes`` are those of its targets, to the tables that people read. ``copied`` are the works that it completed,
    ``consistent`` the LSN past which each target is consistent, ``swapped`` the targets whose tables it replaced,
    ``times`` when the source was as it is at an LSN, by its own clock.
    """

    config: Config
    application_name: str
    progress: Progress
    lanes: tuple[LoadLane, ...]
    routes: Mapping[str, Sequence[Route]]
    source: start.SourceState
    records: Records
    warnings: list[str]
    scope: Scope = Scope()
    begun_at: float = field(default_factory=time.monotonic)
    copied: dict[str, list[Work]] = field(default_factory=dict)
    consistent: dict[str, Lsn] = field(default_factory=dict)
    swapped: list[str] = field(default_factory=list)
    times: dict[Lsn, datetime] = field(default_factory=dict)

    @property
    def loadings(self) -> dict[str, Loading]:
        """The targets of all lanes."""
        return {name: loading for lane in self.lanes for name, loading in lane.loadings.items()}

    async def connect(self) -> Connection:
        """A session on the source, for what is read in between: none is kept idle for hours."""
        return await connect(self.config.source.dsn.get_secret_value(), application_name=self.application_name)

    async def read_sources(self) -> dict[str, SourceTable]:
        """The source's tables as they are now, by name."""
        async with await self.connect() as connection:
            found = await read_published_tables(connection, self.config.source)
            return {table.name: table for table in found}

    def has_work(self, lane: LoadLane) -> bool:
        """Whether a snapshot is needed."""
        return lane.needs_slot or any(loading.remaining() for loading in lane.loadings.values())

    def works_done(self) -> int:
        """How many loads this run completed."""
        return sum(len(works) for works in self.copied.values())

    @asynccontextmanager
    async def snapshot(self, lane: LoadLane) -> AsyncIterator[Snapshot]:
        """A snapshot to load from, its LSN recorded in the targets that have no position yet.

        The permanent slot's own where that has to be created, a temporary slot's otherwise.
        """
        if not lane.needs_slot:
            async with start.temporary_snapshot(self.config, self.application_name) as snapshot:
                await self._record_start(lane, snapshot)
                yield snapshot
            return
        async with self.new_slot(lane) as snapshot:
            yield snapshot

    @asynccontextmanager
    async def new_slot(self, lane: LoadLane) -> AsyncIterator[Snapshot]:
        """Create the lane's slot and record its start; the block has the snapshot of that start."""
        for loading in lane.loadings.values():
            # Says whose a slot is that nobody has had the time to record (`start.settle_slot`), and that a worker has
            # to leave the target alone.
            session = await loading.ready()
            await position.record_state(session, loading.aim.key, loading.access.fence, "loading")
        async with start.permanent_snapshot(
            self.config, lane.slot, self.application_name, self.progress.say
        ) as snapshot:
            await self._record_start(lane, snapshot)
            lane.needs_slot = False
            yield snapshot

    async def _record_start(self, lane: LoadLane, snapshot: Snapshot) -> None:
        async with await self.connect() as connection:
            self.times[snapshot.consistent_point], _ = await read_clock(connection)
        history = self.source.history()
        for loading in lane.loadings.values():
            if loading.ownership.position is not None:
                continue
            lsn = snapshot.consistent_point
            session = await loading.ready()
            await position.record_history(session, loading.aim.key, loading.access.fence, history, lsn)
            loading.ownership = replace(loading.ownership, state="loading", position=lsn, history=history)

    async def set_consistent(self, loadings: Collection[Loading]) -> None:
        """Note the LSN past which each of these targets is exactly consistent; their tables are all complete."""
        for loading in loadings:
            await loading.read_states()
            own = [state.consistent_from for state in loading.states.values() if state.consistent_from is not None]
            recorded = loading.ownership.position
            assert recorded is not None  # by this run's first snapshot, or by an earlier run
            cut_over = loading.ownership.consistent_at
            is_new = loading.ownership.state != "streaming"
            # A target that has streamed stands at a position that says nothing about its load.
            start_of_load = [cut_over if cut_over is not None else recorded] if is_new else []
            lsn = max([*start_of_load, *own], default=recorded)
            self.consistent[loading.name] = lsn
            if lsn == cut_over and loading.ownership.consistent_time is not None:
                self.times[lsn] = loading.ownership.consistent_time

    async def record_consistent(self, lane: LoadLane) -> None:
        """Record that LSN in targets that are not ready yet."""
        for name, loading in lane.loadings.items():
            if loading.is_being_loaded:
                await position.record_state(
                    await loading.ready(),
                    loading.aim.key,
                    loading.access.fence,
                    "loading",
                    consistent_at=self.consistent[name],
                    consistent_time=self.times.get(self.consistent[name]),
                )

    async def set_ready(self, loadings: Collection[Loading] | None = None) -> None:
        """Every target that has been loaded is ready to stream; its tables are all complete."""
        chosen = list(self.loadings.values()) if loadings is None else loadings
        await self.set_consistent(chosen)
        for loading in chosen:
            if loading.ownership.state != "streaming" or loading.name in self.copied:
                await position.record_state(
                    await loading.ready(),
                    loading.aim.key,
                    loading.access.fence,
                    "streaming",
                    consistent_at=self.consistent[loading.name],
                    consistent_time=self.times.get(self.consistent[loading.name]),
                )

    def summary(self) -> Summary:
        """What this run did."""
        seconds = time.monotonic() - self.begun_at
        summaries = {}
        for name in self.routes:
            works = self.copied.get(name, [])
            amounts = [(work.rows, work.size) for work in works] + self.records.restored_of(name)
            summaries[name] = TargetSummary(
                target=name,
                tables=len(amounts),
                rows=sum(rows for rows, _ in amounts),
                size=sum(size for _, size in amounts),
                seconds=seconds,
                consistent_lsn=self.consistent[name],
                consistent_time=self.times.get(self.consistent[name]),
                of_tables=self._in_order(name),
                kept=tuple(work.load.name for work in works if work.lacking is not None),
            )
        return Summary(summaries, tuple(self.warnings))

    def _in_order(self, name: str) -> int:
        """How many tables of a target are complete and have not stopped; 0 where its tables were swapped."""
        loading = self.loadings.get(name)
        states = () if loading is None else loading.states.values()
        return sum(state.state == "streaming" for state in states)


async def open_run(
    config: Config,
    progress: Progress,
    stack: AsyncExitStack,
    *,
    origin: str,
    scope: Scope = Scope(),
    must_be_empty: bool,
) -> Run:
    """Read the source, take the targets, and refuse whatever speaks against a load; only then touch a slot.

    ``origin`` is where the rows come from, for the record: ``backup``, ``live``, ``none`` or ``resync``.
    ``must_be_empty``: tables that are yet to be loaded may hold no rows of somebody else (a copy); otherwise they have
    to exist (targets that hold everything already).
    """
    name = application_name(config)
    warnings: list[str] = []

    def warn(message: str) -> None:
        warnings.append(message)
        progress.say(message)

    async with await connect(config.source.dsn.get_secret_value(), application_name=name) as connection:
        names = scope.names(config)
        found = await read_published_tables(connection, config.source)
        routes = build_all_routes(config, columns_of(found), ancestors_of(found))
        wanted = {route.source_name for target in names for route in routes[target]}
        sources = start.replicated(found, wanted, warn)
        await start.require_published(config, connection, tuple(sources.values()), must_be_readable=must_be_empty)
        source = await start.read_source(config, connection, name)
        source, sessions, targets = await find_targets(config, names, connection, source, stack)
        aims = choose_aims(
            targets,
            pipeline=config.pipeline,
            shared_slot=config.source.slot,
            slots=source.slots,
            is_partial=len(names) < len(config.targets),
            anew=scope.anew,
            only=scope.only,
        )
        for slot in {aim.slot for aim in aims.values()}:
            await start.free_slot(connection, slot)
        of_targets = {target: [route for route in routes[target] if route.source_name in sources] for target in names}
        loadings: dict[str, Loading] = {}
        for target, aim in aims.items():
            loadings[target] = await take(config, aim, sessions[target], of_targets[target])
            stack.push_async_callback(loadings[target].close)
            await settle_history(loadings[target], source, progress.say)
        wished = [] if scope.again is None else choose(scope.again, loadings)
        if must_be_empty:
            await refuse_foreign_rows({n: one for n, one in loadings.items() if not one.aim.is_beside})
        await _refuse_unwritable(loadings, sources, may_be_created=must_be_empty)
        for loading in loadings.values():
            for state in loading.states.values():
                if state.state == "stopped":
                    warn(f"{state.target_name} of target {loading.name} is stopped, and left as it is: {state.reason}")
        lanes = []
        for slot in dict.fromkeys(aim.slot for aim in aims.values()):
            of_lane = {target: loadings[target] for target, aim in aims.items() if aim.slot == slot}
            lanes.append(
                LoadLane(slot, of_lane, await _settle(config, connection, slot, of_lane, targets, source, progress))
            )
        await record(wished)
    records = await Records.begin(config, loadings, origin, progress=progress, stack=stack)
    return Run(config, name, progress, tuple(lanes), of_targets, source, records, warnings, scope)


async def _settle(
    config: Config,
    connection: Connection,
    slot: str,
    loadings: Mapping[str, Loading],
    targets: Mapping[str, Found],
    source: start.SourceState,
    progress: Progress,
) -> bool:
    """Whether the slot has to be created."""
    return await start.settle_slot(
        config,
        connection,
        slot,
        source.slots.get(slot),
        is_known=any(loading.ownership.position is not None for loading in loadings.values()),
        was_begun=any(loading.ownership.state == "loading" or loading.aim.is_beside for loading in loadings.values()),
        say=progress.say,
    )


async def _refuse_unwritable(
    loadings: Mapping[str, Loading], sources: Mapping[str, SourceTable], *, may_be_created: bool
) -> None:
    """Raise one `SetupError` with every sentence and every statement, for all tables that rows cannot be written to."""
    problems = [
        problem
        for loading in loadings.values()
        for problem in [
            *await tables.unwritable(loading, sources, may_be_created=may_be_created),
            *(await incremental.unfit(loading, sources) if may_be_created else ()),
        ]
    ]
    if problems:
        raise SetupError(
            "\n".join(str(problem) for problem in problems),
            sql="\n".join(f"{problem.sql.rstrip(';')};" for problem in problems if problem.sql) or None,
        )
