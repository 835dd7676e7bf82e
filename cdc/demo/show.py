"""The demo: a source and three targets, a live workload, the real commands, a worker that is killed, a comparison.

`run` is all of it, from nothing to nothing: it returns the exit status, 0 only when every table of every target is
equal to the source. Whatever ends it, Ctrl-C and SIGTERM included, no server, no process and no file is left.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import typer

from cdc.demo import comparison, latency, pipeline, stage
from cdc.demo.commands import Program, complete, running
from cdc.demo.screen import Screen
from cdc.demo.stage import Stage
from cdc.demo.sums import Watch
from cdc.demo.verdict import TargetVerdict, Verdict
from cdc.demo.workload import Workload
from cdc.lsn import Lsn
from cdc.observe.status import STREAMING, TargetStatus
from cdc.routing.router import route_of
from cdc.service.state import Observer

HELD_TIMEOUT_S = 90.0
"""How long the targets may take to hold what the source has committed; seconds are usual, also after the SIGKILL."""

LOOK_INTERVAL_S = 0.1
"""Between two looks at the positions while something waits for them."""


def run(*, seconds: float, json: bool) -> int:
    """Run the demo with ``seconds`` of load on the worker; returns the exit status.

    With ``json`` only the verdict is printed on standard output. Raises a `CdcError` when a step cannot be done, and
    ``KeyboardInterrupt`` after SIGINT or SIGTERM, with everything cleaned up.
    """
    screen = Screen(as_json=json)
    pipeline.forget_connection_settings()
    with _interruptible():
        screen.step("Starting four PostgreSQL servers: a source and three targets, internal, external and datamart.")
        with stage.build() as built:
            screen.detail(f"PostgreSQL {built.version}; the source has tables and rows like those of Pix")
            verdict = asyncio.run(_Play(built, screen, seconds).run())
    if json:
        typer.echo(verdict.to_json())
    else:
        screen.show(verdict.table())
        for sentence in verdict.sentences():
            screen.detail(sentence)
    return 0 if verdict.is_success else 1


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the demo the way Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Play:
    """One performance on a stage; `run` is to be called once."""

    def __init__(self, built: Stage, screen: Screen, seconds: float) -> None:
        self._stage = built
        self._screen = screen
        self._seconds = seconds
        self._workload = Workload(built.source)
        self._sums = Watch(built.targets)
        self._problems: list[str] = []
        self._recovered_s: float | None = None

    async def run(self) -> Verdict:
        """From the first command to the verdict."""
        async with Observer(self._stage.config) as observer, asyncio.TaskGroup() as tasks:
            self._screen.step("An application begins to write into the source, and stops for nothing that follows.")
            writing = tasks.create_task(self._workload.run())
            await self._load()
            self._screen.step("`cdc run`: the worker takes what was written meanwhile, and whatever comes.")
            following = tasks.create_task(self._screen.follow(self._stage.config, lambda: self._workload.transactions))
            async with running(await self._start_worker()) as worker:
                await self._until_held(observer, worker)
                tasks.create_task(self._sums.run())
                begun = await latency.now(self._stage.source)
                await self._stay(worker, self._seconds / 2)
                self._screen.step("SIGKILL for the worker, just when a transaction of 5,000 rows has been committed.")
                await self._workload.burst()
                killed = await latency.now(self._stage.source)
                await worker.kill()
            async with running(await self._start_worker()) as worker:
                await self._until_held(observer, worker)
                recovered = await latency.now(self._stage.source)
                self._recovered_s = (recovered - killed).total_seconds()
                self._screen.detail(f"started again: {self._recovered_s:.1f} s after the SIGKILL nothing is missing")
                await self._stay(worker, self._seconds - (recovered - begun).total_seconds())
                self._screen.step("The application stops; the targets take the rest.")
                self._workload.stop()
                await writing
                ended = await latency.now(self._stage.source)
                await self._until_held(observer, worker)
                self._sums.stop()
                self._screen.stop()
                await following
                await self._stop_worker(worker)
        self._screen.step("Comparing every table of every target with the source, row by row.")
        return await self._judge((begun, ended), (killed, recovered))

    async def _load(self) -> None:
        """Setup and bootstrap."""
        self._screen.step("`cdc setup`: publications and a heartbeat at the source, the schema cdc in the targets.")
        await self._complete("setup")
        self._screen.step("`cdc bootstrap --from live`: a slot, and every table as it was when the slot began.")
        await self._complete("bootstrap", "--from", "live")

    async def _complete(self, *arguments: str) -> None:
        log = self._stage.directory / f"{arguments[0]}.log"
        for line in await complete([*arguments], self._stage.file, self._stage.environ, log):
            if not line.startswith("{"):  # a log line
                self._screen.detail(line)

    async def _start_worker(self) -> Program:
        log = self._stage.directory / "run.log"
        return await Program.start(["run"], self._stage.file, self._stage.environ, log)

    async def _stop_worker(self, worker: Program) -> None:
        begun_at = time.monotonic()
        status = await worker.terminate()
        if status != 0:
            self._problems.append(f"The worker ended with status {status} after SIGTERM: {worker.said()[-1]}")
        self._screen.detail(f"SIGTERM for the worker: it ended within {time.monotonic() - begun_at:.1f} s")

    async def _stay(self, worker: Program, seconds: float) -> None:
        """Let the worker work. Raises `TerminalError` when it ends by itself."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await worker.wait()
                raise worker.failure("cdc run")

    async def _until_held(self, observer: Observer, worker: Program) -> None:
        """Wait until every table of every target holds what the source has committed by now; note which do not."""
        now = await observer.look()
        assert now.source.wal_position is not None, now.source.error
        wanted = now.source.wal_position
        begun_at = time.monotonic()
        while not all(_holds(target, wanted) for target in now.targets):
            if worker.status is not None:
                raise worker.failure("cdc run")
            if time.monotonic() - begun_at > HELD_TIMEOUT_S:
                self._problems += [
                    f"{target.name} does not hold what the source had committed {HELD_TIMEOUT_S:.0f} s before. {why}"
                    for target in now.targets
                    if not _holds(target, wanted)
                    for why in _reasons(target)
                ]
                return
            await self._stay(worker, LOOK_INTERVAL_S)
            now = await observer.look()

    async def _judge(self, measured: latency.Period, disturbed: latency.Period) -> Verdict:
        config, source = self._stage.config, self._stage.source
        compared = await comparison.compare(config, source, self._stage.targets)
        targets: dict[str, TargetVerdict] = {}
        for name, dsn in self._stage.targets.items():
            schema, _, table = latency.TABLE.partition(".")
            route = route_of(config.targets[name], schema, table)
            assert route is not None  # every target of the demo asks for it
            targets[name] = TargetVerdict(
                compared[name],
                await latency.measure(
                    source, dsn, route.target_schema, route.target_table, measured=measured, disturbed=[disturbed]
                ),
            )
        return Verdict(
            targets=targets,
            seconds=(measured[1] - measured[0]).total_seconds(),
            killed=1,
            recovered_s=self._recovered_s,
            transactions=self._workload.transactions,
            reads=self._sums.reads,
            torn_reads=self._sums.torn,
            problems=tuple(self._problems),
        )


def _holds(target: TargetStatus, wanted: Lsn) -> bool:
    """Whether a target, and each of its tables, holds everything up to an LSN."""
    return (
        target.state == STREAMING
        and target.position is not None
        and target.position >= wanted
        and all(
            table.state == STREAMING and table.position is not None and table.position >= wanted
            for table in target.tables
        )
    )


def _reasons(target: TargetStatus) -> list[str]:
    """Why a target does not hold what it should, as far as it says."""
    stopped = [f"{table.source_name} has stopped: {table.reason}" for table in target.stopped_tables]
    return stopped or [f"Its state is {target.state}" + (f": {target.last_error}" if target.last_error else ".")]
