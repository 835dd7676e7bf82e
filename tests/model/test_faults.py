"""A pipeline under random transactions and random faults: readers of the targets never see what the source never had.

The writer's transactions, the faults and their order come from one seed, which is printed when the test fails
(``CDC_TEST_MODEL_SEED`` repeats it). When a fault hits what is up to the machine, so a run is not repeated exactly and
cannot be made smaller: that is why this is a seeded generator and not hypothesis, which does the same without time in
`test_every_history_applies`. ``CDC_TEST_MODEL_SECONDS`` makes it a soak test.

While everything is going on, a reader on each target asks again and again, in one statement, for the sum of the
accounts, for tables that differ from the hashes which the source stored in the same transaction, and for the position,
which never goes back. At the end every row of every target is compared with the source.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from cdc.demo.postgres import Cluster
from cdc.lsn import INVALID_LSN, Lsn
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database
from tests.faults.proxy import Direction, Proxy
from tests.model import workload
from tests.model.workload import COLUMNS, STAMP, TOTAL, View, Workload
from tests.pipeline import Pipeline, follow, owned

SECONDS = float(os.environ.get("CDC_TEST_MODEL_SECONDS", "40"))

SETTLE_S = 120.0
"""How long the targets may take afterwards: waits between tries have grown to half a minute by then."""

WORKER = {
    # As small as they may be: large transactions, full queues and targets set aside happen all the time.
    "max_batch_bytes": "64kB",
    "max_queue_bytes": "128kB",
    "detach_after_s": 2,
    "connect_timeout_s": 3,
    "lock_timeout_s": 1,
    "status_interval_s": 0.5,
}

MART_DDL = """
CREATE SCHEMA mart AUTHORIZATION mart;
SET ROLE mart;
CREATE TABLE mart."Konten" (note text, id bigint PRIMARY KEY, saldo int NOT NULL, since timestamptz DEFAULT now());
CREATE TABLE mart.ledger (amount numeric, entry int);
CREATE TABLE mart."ledger-copy" (entry int UNIQUE, amount numeric);
CREATE TABLE mart.documents (title text, body text, extra text, id int PRIMARY KEY);
CREATE TABLE mart.bag (word text, a int, payload json);
CREATE TABLE mart.parents (id int PRIMARY KEY, name text);
CREATE TABLE mart.children (id int PRIMARY KEY, parent int NOT NULL, name text);
CREATE TABLE mart.slugs (id int PRIMARY KEY, slug text NOT NULL UNIQUE);
CREATE TABLE mart.fingerprints (hash text, "table" text PRIMARY KEY);
RESET ROLE;
"""
ACCOUNT_COLUMNS = {"id": "id", "balance": "saldo", "note": "note"}
MART_TABLES = ("accounts", "ledger", "ledger-copy", "documents", "bag", "parents", "children", "slugs")

Session = psycopg.AsyncConnection[tuple[Any, ...]]


@dataclass
class Seen:
    """What a reader saw of one target."""

    reads: int = 0
    positions: set[Lsn] = field(default_factory=set)
    last: Lsn = INVALID_LSN


@pytest.mark.timeout(SECONDS + SETTLE_S + 120)
async def test_no_fault_ever_shows_half_a_transaction_or_loses_one(
    own_server: MakeServer, make_database: MakeDatabase
) -> None:
    seed = int(os.environ.get("CDC_TEST_MODEL_SEED") or SystemRandom().randrange(2**32))
    print(f"CDC_TEST_MODEL_SEED={seed}")
    random = Random(seed)
    at_source, at_targets = own_server(), own_server(side="target")
    source = make_database("source", server=at_source)
    internal, mart = make_database("internal", server=at_targets), make_database("mart", server=at_targets)
    source.execute(workload.DDL + workload.FILL)
    source.execute(STAMP)
    mart.execute("CREATE ROLE mart LOGIN; GRANT CREATE ON DATABASE " + f'"{mart.name}" TO mart; {MART_DDL}')

    async with contextlib.AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(Proxy("127.0.0.1", urlsplit(database.dsn).port or 0))
            for database in (source, internal, mart)
        ]
        pipeline = await stack.enter_async_context(
            Pipeline(
                source,
                {
                    "internal": follow(internal, dsn=proxies[1].dsn(internal.dsn)),
                    "mart": owned(mart, _mart_tables(), dsn=proxies[2].dsn(mart.dsn_as("mart"))),
                },
                source_dsn=proxies[0].dsn(source.dsn),
                worker=WORKER,
            )
        )
        await pipeline.load()
        mart.execute("ALTER TABLE mart.children ADD FOREIGN KEY (parent) REFERENCES mart.parents")
        await pipeline.start()
        faults = Faults(random, pipeline, at_source, at_targets, proxies)
        seen = {"internal": Seen(), "mart": Seen()}
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(write(source, Workload(random, large=2000), random, stop))
            tasks.create_task(read(internal, View.same(), seen["internal"], stop))
            tasks.create_task(read(mart, _mart_view(), seen["mart"], stop))
            ends_at = time.monotonic() + SECONDS
            while time.monotonic() < ends_at:
                await faults.calm()
                await faults.happen()
            await faults.heal()
            await asyncio.sleep(0.5)
            stop.set()
            written = await writing
        print(f"{written} transactions, faults {dict(faults.counts)}, {faults.recoveries} recoveries while it went on")
        print(*(f"{name}: {one.reads} reads, {len(one.positions)} positions" for name, one in seen.items()), sep="; ")
        await pipeline.caught_up(deadline_s=SETTLE_S)
        await pipeline.assert_equal()
        for name, view in (("internal", View.same()), ("mart", _mart_view())):
            assert_whole(pipeline.targets[name].fetch(view.query())[0], Seen(), name)
            # The readers really read, and the targets really moved meanwhile.
            assert seen[name].reads > SECONDS
            assert len(seen[name].positions) > SECONDS / 4
        assert written > SECONDS
        assert faults.recoveries


def _mart_tables() -> dict[str, object]:
    tables: dict[str, object] = {
        f"public.{table}": {"to": f"mart.{table}", "columns": list(COLUMNS[table])} for table in MART_TABLES
    }
    tables["public.accounts"] = {"to": "mart.Konten", "columns": ACCOUNT_COLUMNS}
    tables["public.fingerprints"] = {"to": "mart.fingerprints", "columns": ["table", "hash"]}
    return tables


def _mart_view() -> View:
    tables: dict[str, tuple[str, dict[str, str]]] = {table: (f'mart."{table}"', {}) for table in MART_TABLES}
    tables["accounts"] = ('mart."Konten"', ACCOUNT_COLUMNS)
    return View(tables, fingerprints="mart.fingerprints")


async def write(source: Database, drawn: Workload, random: Random, stop: asyncio.Event) -> int:
    """Transactions one after the other until ``stop``; what a crash of the source takes away is simply not there."""
    written = 0

    async def once(session: Session) -> None:
        nonlocal written
        transaction = drawn.transaction()
        async with session.transaction():
            for statement in transaction.statements:
                await session.execute(statement.encode())
            if not transaction.commits:
                raise psycopg.Rollback
        written += transaction.commits
        await asyncio.sleep(random.choice((0, 0.005, 0.02, 0.1)))

    await _again_and_again(source, once, stop)
    return written


async def read(target: Database, view: View, seen: Seen, stop: asyncio.Event) -> None:
    """Look at a target until ``stop``; each look has to show a state that the source had."""
    query = view.query().encode()

    async def once(session: Session) -> None:
        cursor = await session.execute(query)
        row = await cursor.fetchone()
        assert row is not None
        assert_whole(row, seen, target.name)
        await asyncio.sleep(0.05)

    await _again_and_again(target, once, stop)


async def _again_and_again(database: Database, work: Callable[[Session], Awaitable[None]], stop: asyncio.Event) -> None:
    """Do something on a server that comes and goes, on another session whenever the last was lost."""
    while not stop.is_set():
        try:
            async with database.session() as session:
                while not stop.is_set():
                    await work(session)
        except psycopg.OperationalError:
            await asyncio.sleep(0.05)


def assert_whole(row: tuple[object, ...], seen: Seen, name: str) -> None:
    total, differing, position = row
    at = Lsn.parse(str(position))
    assert (total, differing) == (TOTAL, None), f"{name} shows at {at} a state that the source never had"
    assert at >= seen.last, f"{name} went back from {seen.last} to {at}"
    seen.reads += 1
    seen.last = at
    seen.positions.add(at)


class Faults:
    """What can happen to a pipeline. Each fault is over when its method returns, but for its consequences."""

    def __init__(
        self, random: Random, pipeline: Pipeline, source: Cluster, targets: Cluster, proxies: list[Proxy]
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.recoveries = 0
        self._last_known = INVALID_LSN
        self._random = random
        self._pipeline = pipeline
        self._source = source
        self._targets = targets
        self._proxies = proxies
        self._kinds: list[Callable[[], Awaitable[None]]] = [
            *[self.worker_killed] * 4,
            self.worker_replaced,
            self.worker_overlapped,
            self.worker_hangs,
            *[self.connections_cut] * 3,
            *[self.connections_stalled] * 3,
            self.server_unreachable,
            self.targets_crash,
            self.source_crashes,
            self.sessions_terminated,
        ]

    async def happen(self) -> None:
        """One fault."""
        fault = self._random.choice(self._kinds)
        self.counts[fault.__name__] += 1
        await fault()

    async def calm(self) -> None:
        """The time until the next fault: next to nothing, so that faults meet, or until everything has recovered."""
        if self._random.random() < 0.4:
            await self._pause(0.5)
            return
        goal = self._last_known
        with contextlib.suppress(psycopg.OperationalError):
            goal = self._last_known = self._pipeline.source.current_lsn()
        recovered_by = time.monotonic() + 8
        while time.monotonic() < recovered_by:
            if all((self._pipeline.position(name) or INVALID_LSN) >= goal for name in self._pipeline.targets):
                self.recoveries += 1
                break
            await asyncio.sleep(0.25)
        await self._pause(1)

    async def heal(self) -> None:
        """Everything is up and connected, one worker runs."""
        for proxy in self._proxies:
            proxy.accept()
            proxy.resume()
        if not self._pipeline.worker.runs:
            await self._pipeline.start(ready=False)

    async def worker_killed(self) -> None:
        await self._pipeline.worker.kill()
        await self._pause(0.5)
        await self._pipeline.start(ready=False)

    async def worker_replaced(self) -> None:
        await self._pipeline.worker.terminate()
        await self._pipeline.start(ready=False)

    async def worker_overlapped(self) -> None:
        """A deploy: the new one starts while the old one runs."""
        old = self._pipeline.worker
        await self._pipeline.start(ready=False)
        await self._pause(1)
        await (old.kill() if self._random.random() < 0.5 else _ended(old.terminate()))

    async def worker_hangs(self) -> None:
        """The machine of the worker stands still, another one is started, then the old one goes on."""
        old = self._pipeline.worker
        old.pause()
        await self._pipeline.start(ready=False)
        await self._pause(1)
        old.resume()
        await self._pause(1)
        await old.kill()

    async def connections_cut(self) -> None:
        self._random.choice(self._proxies).cut()

    async def connections_stalled(self) -> None:
        proxy = self._random.choice(self._proxies)
        proxy.stall(*self._random.choice(((), (Direction.TO_SERVER,), (Direction.TO_CLIENT,))))
        await self._pause(3)
        if self._random.random() < 0.5:
            proxy.cut()
        proxy.resume()

    async def server_unreachable(self) -> None:
        proxy = self._random.choice(self._proxies)
        proxy.refuse()
        await self._pause(2)
        proxy.accept()

    async def targets_crash(self) -> None:
        await asyncio.to_thread(self._targets.restart, "immediate")

    async def source_crashes(self) -> None:
        await asyncio.to_thread(self._source.restart, "immediate")

    async def sessions_terminated(self) -> None:
        """An administrator ends every session of the worker at one server."""
        database = self._random.choice((self._pipeline.source, *self._pipeline.targets.values()))
        with contextlib.suppress(psycopg.OperationalError):
            database.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name <> 'tests' AND application_name <> ''"
            )

    async def _pause(self, longest_s: float) -> None:
        await asyncio.sleep(self._random.uniform(0, longest_s))


async def _ended(ending: Awaitable[float]) -> None:
    await ending
