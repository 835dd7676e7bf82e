"""What a run notes of itself: its steps in the targets, for `cdc report`, and its sums, for the summary at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

from cdc.bootstrap.progress import Progress
from cdc.bootstrap.targets import Loading
from cdc.config import Config
from cdc.errors import CdcError
from cdc.target.lasting_session import LastingSession
from cdc.target.run_record import RunRecord, Step, begin_run


@dataclass(slots=True)
class Records:
    """The records of one run in its targets, by their names."""

    progress: Progress
    runs: Mapping[str, RunRecord]
    _restored: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    @classmethod
    async def begin(
        cls,
        config: Config,
        loadings: Mapping[str, Loading],
        origin: str,
        *,
        progress: Progress,
        stack: AsyncExitStack,
    ) -> Records:
        """Record in every target that a run begins, on sessions that are closed with ``stack``."""
        runs = {}
        for name, loading in loadings.items():
            sessions = LastingSession(loading.access.dsn, loading.application_name, name)
            stack.push_async_callback(sessions.close)
            runs[name] = await begin_run(sessions.ready, config.pipeline, name, origin)
        return cls(progress, runs)

    @asynccontextmanager
    async def step(
        self, kind: str, name: str | None = None, *, targets: Iterable[str] | None = None
    ) -> AsyncIterator[Step]:
        """Record what happens inside the block in some targets, or in all; and show it."""
        chosen = list(self.runs) if targets is None else list(targets)
        async with AsyncExitStack() as stack:
            steps = [await stack.enter_async_context(self.runs[target].step(kind, name)) for target in chosen]
            self.progress.step(kind, name, chosen)
            one = Step()
            yield one
            for step in steps:
                step.rows, step.size = one.rows, one.size

    async def end(self, outcome: str) -> None:
        """Record in every target that the run is over."""
        for run in self.runs.values():
            await run.end(outcome)

    async def abandon(self, reason: str) -> None:
        """Record, in the targets that answer, what ended the run."""
        with suppress(CdcError):
            await self.end(reason)

    def restored(self, target: str, table: str, rows: int, size: int) -> None:
        """One table (``schema.table`` there) of a target was restored from a backup: its rows and bytes."""
        self._restored[target, table] = rows, size

    def discarded(self, target: str, table: str) -> None:
        """What was restored of a table does not count: it is copied live after all."""
        self._restored.pop((target, table), None)

    def was_restored(self, target: str, table: str) -> bool:
        """Whether this run restored a table of a target, and it stays so."""
        return (target, table) in self._restored

    def restored_of(self, target: str) -> list[tuple[int, int]]:
        """The rows and bytes of each table of a target that was restored, and stays so."""
        return [amount for (name, _), amount in self._restored.items() if name == target]
