"""A whole pipeline for tests: its configuration, its bootstrap, and its worker as the real process that it is in life.

::

    async with Pipeline(source, {"internal": follow(internal), "external": listed(external, {...})}) as pipeline:
        await pipeline.load()                  # cdc setup, cdc bootstrap --from live
        worker = await pipeline.start()        # python -m cdc run; returns when it is ready
        source.execute("INSERT …")
        await worker.kill()                    # SIGKILL
        await pipeline.start()
        await pipeline.caught_up()             # every target holds what the source has committed by now
        await pipeline.assert_equal()          # every routed table of every target, row by row

Whatever is waited for is a condition with a deadline; when the deadline passes, the test fails with what `cdc status`
says and the end of every worker's log. Workers that still live are killed when the block ends. Heartbeats are written
ten times a second, because a target's position moves past the end of the WAL with the next of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import HTTPError
from urllib.request import urlopen

import psycopg
import pytest

from cdc.bootstrap import assumed
from cdc.bootstrap.progress import Silence
from cdc.config import Config, load
from cdc.identifiers import quote, quote_qualified
from cdc.lsn import Lsn
from cdc.observe.status import PipelineStatus, TableStatus, TargetStatus
from cdc.routing.route import Route
from cdc.routing.router import build_routes
from cdc.service import loading, provision, state
from cdc.source import connection as source_connection
from cdc.source.catalog import ancestors_of, columns_of, read_tables
from tests import warm
from tests.database import Database, unique_name
from tests.warm import Process

DEADLINE_S = 60.0
"""How long a condition is waited for. On an idle machine all of them come true within two seconds."""

POLL_S = 0.02

_SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Target:
    """A target of a pipeline under test: its database, and its section of the configuration without the DSN.

    ``dsn`` is what the worker is told, where that is not the database's own (a proxy, another role).
    """

    database: Database
    settings: Mapping[str, Any]
    dsn: str | None = None


def follow(database: Database, *include: str, dsn: str | None = None, **settings: Any) -> Target:
    """A warehouse: every table of these patterns, all columns."""
    return Target(database, {"include": list(include) or ["public.*"], **settings}, dsn)


def listed(
    database: Database, tables: Mapping[str, Sequence[str]], *, dsn: str | None = None, **settings: Any
) -> Target:
    """A warehouse for others: the listed columns of the named tables."""
    named = {name: list(columns) for name, columns in tables.items()}
    return Target(database, {"columns": "listed", "tables": named, **settings}, dsn)


def owned(database: Database, tables: Mapping[str, Any], *, dsn: str | None = None, **settings: Any) -> Target:
    """A database whose tables belong to somebody else."""
    return Target(database, {"schema": "owned", "tables": dict(tables), **settings}, dsn)


@dataclass
class Worker:
    """One process ``python -m cdc run``. ``log`` is its standard error, one JSON object a line."""

    process: Process
    log: Path
    _told: list[str] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self.process.returncode is None

    async def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is said to anybody."""
        if self.runs:
            self.process.kill()
        await self.process.wait()

    async def terminate(self, *, timeout_s: float = 30.0) -> float:
        """SIGTERM: the seconds until the process has ended, with exit status 0."""
        started = time.monotonic()
        self.process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                status = await self.process.wait()
        except TimeoutError:
            pytest.fail(f"the worker runs {timeout_s} s after SIGTERM:\n{self.log_text()[-4000:]}")
        assert status == 0, f"the worker ended with {status}:\n{self.log_text()[-4000:]}"
        return time.monotonic() - started

    def pause(self) -> None:
        """SIGSTOP: the process does nothing more and closes nothing, as on a machine that hangs."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def log_text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """The lines of its log, or those with this ``event``; lines that are no JSON are left out."""
        lines = []
        for text in self.log_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and event in (None, line.get("event")):
                lines.append(line)
        return lines

    def rss_bytes(self) -> int:
        """Its resident memory now."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_rss_bytes(self) -> int:
        """The most resident memory it ever had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024

    @property
    def http(self) -> str:
        """The address of its HTTP door."""
        started = self.events("worker started")
        assert started, f"the worker has not started:\n{self.log_text()[-4000:]}"
        return f"http://{started[0]['metrics']}"

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of ``/readyz``, ``/healthz`` or ``/metrics``."""

        def fetch() -> tuple[int, str]:
            try:
                with urlopen(self.http + path, timeout=10) as answer:
                    return answer.status, answer.read().decode()
            except HTTPError as refusal:
                with refusal:
                    return refusal.code, refusal.read().decode()

        return await asyncio.to_thread(fetch)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric that carry these labels; 0 when there is none."""
        _, text = await self.get("/metrics")
        total = 0.0
        for sample in _SAMPLE.finditer(text):
            if sample["name"] == name and labels.items() <= dict(_LABEL.findall(sample["labels"] or "")).items():
                total += float(sample["value"])
        return total


class Pipeline:
    """One source, its targets, and their workers. Use it as an async context manager.

    Attributes: ``config`` (as the worker reads it), ``file`` (the configuration), ``slot`` (also the publication's
    name), ``worker`` (the newest), ``workers`` (all).
    """

    def __init__(
        self,
        source: Database,
        targets: Mapping[str, Target],
        *,
        source_dsn: str | None = None,
        worker: Mapping[str, object] | None = None,
        **source_settings: object,
    ) -> None:
        self.source = source
        self.targets = {name: target.database for name, target in targets.items()}
        self.slot = unique_name("slot").replace("-", "_")
        self.workers: list[Worker] = []
        self._directory = tempfile.TemporaryDirectory(prefix="cdc-pipeline-")
        self.directory = Path(self._directory.name)
        self.file = self.directory / "cdc.toml"
        self.settings: dict[str, Any] = {
            "source": {
                "dsn": source_dsn or source.dsn,
                "slot": self.slot,
                "publication": self.slot,
                **source_settings,
            },
            "targets": {
                name: {"dsn": target.dsn or target.database.dsn, **target.settings} for name, target in targets.items()
            },
            "worker": {"metrics_address": "127.0.0.1:0", "heartbeat_interval_s": 0.1, **(worker or {})},
            "logs": {"format": "json"},
        }
        self.configure()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self.workers:
            await worker.kill()
        self._directory.cleanup()

    def configure(self) -> None:
        """Write ``settings`` to the file; a worker that runs has read the old one."""
        lines = (f"{name} = {_toml(value)}\n" for name, value in self.settings.items())
        self.file.write_text("".join(lines), encoding="utf-8")

    @property
    def config(self) -> Config:
        """The configuration, as the worker reads it."""
        return load(self.file, environ={})

    @property
    def worker(self) -> Worker:
        """The newest worker."""
        return self.workers[-1]

    # --- commands

    async def setup(self) -> None:
        """``cdc setup``."""
        await provision.setup(self.config, lambda _: None)

    async def load(self, *, jobs: int = 2) -> None:
        """``cdc setup`` and ``cdc bootstrap --from live``."""
        await self.setup()
        await loading.bootstrap(self.config, jobs=jobs, progress=Silence())

    async def assume(self) -> None:
        """``cdc setup`` and ``cdc bootstrap --from none``: the targets hold everything already."""
        await self.setup()
        await assumed.bootstrap(self.config)

    async def cdc(self, *words: str) -> tuple[int, str]:
        """Run a command as a process of its own: its exit status, and what it printed (errors too)."""
        with tempfile.TemporaryFile(dir=self.directory) as output:
            process = await warm.start(self._words(*words), output=output, environment=_environment())
            status = await process.wait()
            output.seek(0)
            return status, output.read().decode()

    async def start(self, *, ready: bool = True, fresh: bool = False) -> Worker:
        """Start a worker; unless ``ready`` is false, wait until it has taken every target and streams.

        With ``fresh`` Python starts anew for it (`tests.warm`): for what its memory says.
        """
        log = self.directory / f"worker-{len(self.workers) + 1}.log"
        with log.open("wb") as file:
            process = await warm.start(self._words("run"), output=file, environment=_environment(), fresh=fresh)
        worker = Worker(process, log)
        self.workers.append(worker)
        await self.until(lambda: bool(worker.events("worker started")), "the worker listens", worker=worker)
        if ready:
            await self.ready(worker)
        return worker

    async def ready(self, worker: Worker | None = None) -> None:
        """Wait until the worker has taken every target and streams."""
        asked = worker or self.worker

        async def is_ready() -> bool:
            return (await asked.get("/readyz"))[0] == 200

        await self.until(is_ready, "the worker is ready", worker=asked)

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cdc", *self._words(*words)]

    def _words(self, *words: str) -> list[str]:
        return ["--config", str(self.file), *words]

    # --- waiting

    async def until(
        self,
        condition: Callable[[], bool] | Callable[[], Awaitable[bool]],
        what: str,
        *,
        deadline_s: float = DEADLINE_S,
        worker: Worker | None = None,
    ) -> None:
        """Wait until the condition holds; fail with ``what`` and the state of everything when it does not in time.

        With ``worker``, fail at once when that process ends.
        """
        deadline = time.monotonic() + deadline_s
        while True:
            answer = condition()
            if isinstance(answer, Awaitable):
                answer = await answer
            if answer:
                return
            if worker is not None and not worker.runs:
                await self.fail(f"the worker ended with {worker.process.returncode} before: {what}")
            if time.monotonic() > deadline:
                await self.fail(f"not within {deadline_s:g} s: {what}")
            await asyncio.sleep(POLL_S)

    async def caught_up(self, lsn: Lsn | None = None, *targets: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait until these targets (all, unless named) hold everything up to ``lsn`` (what is committed by now).

        Tables that have stopped alone are not waited for, those that stand behind their target are.
        """
        goal = lsn or self.source.current_lsn()
        names = targets or tuple(self.targets)

        def is_there() -> bool:
            return all((self.position(name) or Lsn(0)) >= goal and not self.behind(name, goal) for name in names)

        await self.until(is_there, f"{', '.join(names)} hold everything up to {goal}", deadline_s=deadline_s)

    async def table_in_state(
        self, target: str, table: str, wanted: str, *, deadline_s: float = DEADLINE_S
    ) -> TableStatus:
        """Wait until a table (the source's ``schema.table``) has this state in ``cdc status``; what it says then."""

        async def is_there() -> bool:
            return (await self.table_status(target, table)).state == wanted

        await self.until(is_there, f"{table} of {target} is {wanted}", deadline_s=deadline_s)
        return await self.table_status(target, table)

    async def logged(
        self, event: str, worker: Worker | None = None, *, deadline_s: float = DEADLINE_S
    ) -> dict[str, Any]:
        """Wait until a worker (the newest) has logged ``event``; its last line of that kind."""
        asked = worker or self.worker
        await self.until(lambda: bool(asked.events(event)), f"the worker logs {event!r}", deadline_s=deadline_s)
        return asked.events(event)[-1]

    # --- what is

    def behind(self, target: str, goal: Lsn) -> list[tuple[Any, ...]]:
        """The tables of a target that stream from a position of their own, and have not come to ``goal``."""
        return self.targets[target].fetch(
            "SELECT source_schema, source_table FROM cdc.target_table"
            " WHERE pipeline = 'cdc' AND state = 'streaming' AND position < %s::pg_lsn",
            str(goal),
        )

    def position(self, target: str) -> Lsn | None:
        """The position that a target's database holds; `None` while it cannot be asked."""
        try:
            found = self.targets[target].fetchval("SELECT position::text FROM cdc.target WHERE pipeline = 'cdc'")
        except psycopg.OperationalError:
            return None
        return None if found is None else Lsn.parse(found)

    def confirmed(self) -> Lsn:
        """What the slot has been told is durable everywhere."""
        return Lsn.parse(
            self.source.fetchval(
                "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", self.slot
            )
        )

    def slot_is_active(self) -> bool:
        """Whether somebody streams from the slot."""
        return bool(self.source.fetchval("SELECT active FROM pg_replication_slots WHERE slot_name = %s", self.slot))

    async def status(self) -> PipelineStatus:
        """What ``cdc status`` shows."""
        return await state.read(self.config)

    async def target_status(self, name: str) -> TargetStatus:
        """What ``cdc status`` shows of one target."""
        return next(target for target in (await self.status()).targets if target.name == name)

    async def table_status(self, target: str, table: str) -> TableStatus:
        """What ``cdc status`` shows of one table, by the source's ``schema.table``."""
        found = await self.target_status(target)
        return next(one for one in found.tables if one.source_name == table)

    async def routes(self, target: str) -> tuple[Route, ...]:
        """The routes of a target by the source's catalog of now."""
        async with await source_connection.connect(self.source.dsn, application_name="tests") as connection:
            tables = [table for table in await read_tables(connection) if table.is_publishable]
        return build_routes(target, self.config.targets[target], columns_of(tables), ancestors_of(tables))

    async def differences(self, *, leave_out: Sequence[str] = ()) -> dict[str, str]:
        """Tables that differ from the source, by ``target: schema.table``, with how; rows are a bag, values text.

        ``leave_out`` are tables by the source's name that are not compared.
        """
        found: dict[str, str] = {}
        for name, database in self.targets.items():
            for route in await self.routes(name):
                if route.source_name in leave_out:
                    continue
                here = self._rows(self.source, route, of_source=True)
                there = self._rows(database, route, of_source=False)
                if here != there:
                    missing, extra = here - there, there - here
                    found[f"{name}: {route.source_name}"] = (
                        f"{missing.total()} rows missing, {extra.total()} too many, of {here.total()}; "
                        f"missing {_sample(missing)}, too many {_sample(extra)}"
                    )
        return found

    async def assert_equal(self, *, leave_out: Sequence[str] = ()) -> None:
        """Every routed table of every target holds what the source has; call it when the targets have caught up."""
        found = await self.differences(leave_out=leave_out)
        if found:
            await self.fail("\n".join(f"{table}: {how}" for table, how in found.items()))

    async def assert_caught_up_and_equal(self, *, leave_out: Sequence[str] = ()) -> None:
        """Wait until all targets hold what the source has committed, then compare."""
        await self.caught_up()
        await self.assert_equal(leave_out=leave_out)

    def _rows(self, database: Database, route: Route, *, of_source: bool) -> Counter[tuple[str | None, ...]]:
        pairs = route.columns or tuple((name, name) for name in self._columns(route))
        schema, table = (
            (route.source_schema, route.source_table) if of_source else (route.target_schema, route.target_table)
        )
        columns = ", ".join(f"{quote(pair[0] if of_source else pair[1])}::text" for pair in pairs)
        name = quote_qualified(schema, table)
        is_partitioned = database.fetchval("SELECT relkind = 'p' FROM pg_class WHERE oid = %s::regclass", name)
        return Counter(database.fetch(f"SELECT {columns} FROM {'' if is_partitioned else 'ONLY '}{name}"))

    def _columns(self, route: Route) -> list[str]:
        found = self.source.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
            " AND attgenerated = '' ORDER BY attnum",
            quote_qualified(route.source_schema, route.source_table),
        )
        return [name for (name,) in found]

    async def fail(self, message: str) -> None:
        """Fail the test, and show what everything is like."""
        try:
            shown = (await self.status()).to_json()
        except Exception as error:
            shown = f"(no status: {error})"
        logs = "\n".join(
            f"--- {worker.log.name} ({'runs' if worker.runs else f'ended with {worker.process.returncode}'})\n"
            + worker.log_text()[-6000:]
            for worker in self.workers[-3:]
        )
        pytest.fail(f"{message}\n--- status\n{shown}\n{logs}", pytrace=True)


def _toml(value: Any) -> str:
    """A value as TOML: strings, numbers, booleans and lists are as in JSON, tables are inline."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _environment() -> dict[str, str]:
    """Ours, without what would change the configuration. A worker is compiled, or not, as the tests themselves are."""
    kept = ("CDC_UNCOMPILED",)
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(("CDC_", "PG"))}


def _sample(rows: Counter[tuple[str | None, ...]]) -> str:
    return repr([tuple(None if value is None else value[:40] for value in row) for row in list(rows)[:3]])
