"""One run of a bootstrap, from the moment that it owns all targets: what `open_run` found, and what was done since.

`open_run` is the part that refuses. It reads the source, takes the targets, and compares; nothing but the fences has
changed when it raises. Only its last steps change anything: a slot that an interrupted run left behind is dropped, and
tables that are wished to be loaded again are recorded as such.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from cdc.bootstrap import start, tables
from cdc.bootstrap.again import Again, choose, record
from cdc.bootstrap.progress import Progress, Summary, TargetSummary
from cdc.bootstrap.rounds import Work
from cdc.bootstrap.targets import (
    Loading,
    application_name,
    open_targets,
    refuse_foreign_rows,
    refuse_other_histories,
)
from cdc.config import Config
from cdc.errors import SetupError
from cdc.lsn import Lsn
from cdc.routing.router import build_all_routes
from cdc.source.catalog import SourceTable, read_tables
from cdc.source.connection import Connection, connect
from cdc.source.snapshot import Snapshot
from cdc.target import position


@dataclass(slots=True)
class Run:
    """One run. ``needs_slot`` until the permanent slot exists and its start is recorded in every target.

    ``copied`` are the works that this run completed, and ``consistent`` the LSN past which each target is consistent.
    """

    config: Config
    application_name: str
    progress: Progress
    loadings: dict[str, Loading]
    source: start.SourceState
    needs_slot: bool
    warnings: list[str]
    begun_at: float = field(default_factory=time.monotonic)
    copied: dict[str, list[Work]] = field(default_factory=dict)
    consistent: dict[str, Lsn] = field(default_factory=dict)

    async def connect(self) -> Connection:
        """A session on the source, for what is read in between: none is kept idle for hours."""
        return await connect(self.config.source.dsn.get_secret_value(), application_name=self.application_name)

    async def read_sources(self) -> dict[str, SourceTable]:
        """The source's tables as they are now, by name."""
        async with await self.connect() as connection:
            return {table.name: table for table in await read_tables(connection)}

    def has_work(self) -> bool:
        """Whether a snapshot is needed."""
        return self.needs_slot or any(loading.remaining() for loading in self.loadings.values())

    def works_done(self) -> int:
        """How many loads this run completed."""
        return sum(len(works) for works in self.copied.values())

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """A snapshot to load from, its LSN recorded in the targets that have no position yet.

        The permanent slot's own where that has to be created, a temporary slot's otherwise.
        """
        if not self.needs_slot:
            async with start.temporary_snapshot(self.config, self.application_name) as snapshot:
                await self._record_start(snapshot)
                yield snapshot
            return
        for loading in self.loadings.values():
            # Says whose a slot is that nobody has had the time to record (`start.settle_slot`).
            session = await loading.ready()
            await position.record_state(session, self.config.pipeline, loading.access.fence, "loading")
        async with start.permanent_snapshot(self.config, self.application_name, self.progress.say) as snapshot:
            await self._record_start(snapshot)
            self.needs_slot = False
            yield snapshot

    async def _record_start(self, snapshot: Snapshot) -> None:
        history = self.source.history(self.config.source.slot)
        for loading in self.loadings.values():
            if loading.ownership.position is not None:
                continue
            lsn = snapshot.consistent_point
            session = await loading.ready()
            await position.record_history(session, self.config.pipeline, loading.access.fence, history, lsn)
            loading.ownership = replace(loading.ownership, state="loading", position=lsn, history=history)

    async def set_ready(self) -> None:
        """Every target that has been loaded is ready to stream; its tables are all complete."""
        for name, loading in self.loadings.items():
            await loading.read_states()
            own = [state.consistent_from for state in loading.states.values() if state.consistent_from is not None]
            recorded = loading.ownership.position
            assert recorded is not None  # by this run's first snapshot, or by an earlier run
            is_new = loading.ownership.state != "streaming"
            # A target that has streamed stands at a position that says nothing about its load.
            self.consistent[name] = max([recorded, *own] if is_new else own, default=recorded)
            if is_new or name in self.copied:
                await position.record_state(
                    await loading.ready(),
                    self.config.pipeline,
                    loading.access.fence,
                    "streaming",
                    consistent_at=self.consistent[name],
                )

    def summary(self) -> Summary:
        """What this run did."""
        seconds = time.monotonic() - self.begun_at
        summaries = {}
        for name in self.loadings:
            works = self.copied.get(name, [])
            summaries[name] = TargetSummary(
                target=name,
                tables=len(works),
                rows=sum(work.rows for work in works),
                size=sum(work.size for work in works),
                seconds=seconds,
                consistent_lsn=self.consistent[name],
            )
        return Summary(summaries, tuple(self.warnings))


async def open_run(
    config: Config,
    progress: Progress,
    stack: AsyncExitStack,
    *,
    must_be_empty: bool,
    again: Again | None = None,
) -> Run:
    """Read the source, take the targets, and refuse whatever speaks against a load; only then touch the slot.

    ``again`` are tables that are loaded already and shall be once more. ``must_be_empty``: tables that are yet to be
    loaded may hold no rows of somebody else (a live copy); otherwise they have to exist (targets that hold everything
    already).
    """
    name = application_name(config)
    warnings: list[str] = []

    def warn(message: str) -> None:
        warnings.append(message)
        progress.say(message)

    async with await connect(config.source.dsn.get_secret_value(), application_name=name) as connection:
        found = await read_tables(connection)
        routes = build_all_routes(
            config, {table.name: [column.name for column in table.relation.columns] for table in found}
        )
        wanted = {route.source_name for of_target in routes.values() for route in of_target}
        sources = start.replicated(found, wanted, warn)
        await start.require_published(config, connection, tuple(sources.values()), must_be_readable=must_be_empty)
        source = await start.read_source(config, connection, name)
        loadings = await open_targets(
            config,
            {
                target: tuple(route for route in of_target if route.source_name in sources)
                for target, of_target in routes.items()
            },
            stack,
        )
        refuse_other_histories(loadings, source.for_comparison(config.source.slot))
        wished = [] if again is None else choose(again, loadings)
        if must_be_empty:
            await refuse_foreign_rows(loadings)
        await _refuse_unwritable(loadings, sources, may_be_created=must_be_empty)
        for loading in loadings.values():
            for state in loading.states.values():
                if state.state == "stopped":
                    warn(f"{state.target_name} of target {loading.name} is stopped, and left as it is: {state.reason}")
        needs_slot = await start.settle_slot(
            config,
            connection,
            source.slot,
            is_known=any(loading.ownership.position is not None for loading in loadings.values()),
            was_begun=any(loading.ownership.state == "loading" for loading in loadings.values()),
            say=progress.say,
        )
        await record(wished)
    return Run(config, name, progress, loadings, source, needs_slot, warnings)


async def _refuse_unwritable(
    loadings: Mapping[str, Loading], sources: Mapping[str, SourceTable], *, may_be_created: bool
) -> None:
    """Raise one `SetupError` with every sentence and every statement, for all tables that rows cannot be written to."""
    problems = [
        problem
        for loading in loadings.values()
        for problem in await tables.unwritable(loading, sources, may_be_created=may_be_created)
    ]
    if problems:
        raise SetupError(
            "\n".join(str(problem) for problem in problems),
            sql="\n".join(f"{problem.sql.rstrip(';')};" for problem in problems if problem.sql) or None,
        )
