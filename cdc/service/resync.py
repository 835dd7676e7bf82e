"""`cdc resync`: ask for one table to be read again, and follow how far the worker is.

The request is a row in the target, so it outlives this process: Ctrl-C leaves it, and the worker goes on. Only a table
that has to be rebuilt beside (`cdc.service.resync_way`) is built by this process itself, when the worker has said so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from cdc.bootstrap.rounds import first_error
from cdc.config import Config
from cdc.errors import CdcError, ConfigurationError, SetupError, TerminalError, TransientError
from cdc.lsn import Lsn
from cdc.routing.patterns import nearest, split
from cdc.routing.target_routes import TargetRoutes
from cdc.service.resync_steps import open_session
from cdc.service.retry import Backoff
from cdc.source.catalog import read_tables
from cdc.source.connection import connect
from cdc.target import migrations
from cdc.target import resync_request as requests
from cdc.target.resync_request import Request
from cdc.target.session import Session

FOLLOW_S = 0.5
"""How often the progress is looked at."""

UNSERVED_S = 10.0
"""After how long nobody can have overlooked a request: then no worker is there."""

COUNT_S = 1.0
"""How often the number of rows that are copied beside is written into the request at most."""

Rebuild = Callable[[str, str, Callable[[int], None]], Awaitable[None]]
"""Builds a table (``schema.table`` at the source) of a target beside, and swaps it in; durable when it returns.

It tells the last argument how many rows it has copied. Called again after it was killed or has failed it goes on; after
the swap, which gives the request its ``consistent_from``, it only does what comes then.
"""


class Follower(Protocol):
    """Where the progress is shown; a number of rows that is not known is `None`."""

    def say(self, message: str) -> None:
        """Something worth a line."""

    def rows(self, target: str, table: str, done: int, of: int | None) -> None:
        """How many rows are in."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A table that was read again: how many rows, by which way, and from which LSN on it is exactly the source's."""

    target: str
    table: str
    way: str
    rows: int
    exact_from: Lsn | None

    def __str__(self) -> str:
        exact = "" if self.exact_from is None else f"; exactly the source's from {self.exact_from} on"
        return f"target {self.target}: {self.table} was read again ({self.way}), {self.rows} rows{exact}"


async def resync(
    config: Config,
    table: str,
    *,
    target: str | None = None,
    max_rows_per_second: int | None = None,
    follower: Follower,
    rebuild: Rebuild | None = None,
) -> list[Outcome]:
    """Have ``table`` (``schema.table`` at the source) read again by every target that has it, or by ``target``.

    Returns when all of them are done. While no worker serves a request it says so, and goes on waiting. Where a request
    for the table is open already it is followed. ``rebuild`` is called for a table that has to be built beside.

    Raises `ConfigurationError` for a table or a target that is not configured and for a table that the source has not,
    `SourceUnavailable` where it cannot be asked, `SetupError` before ``cdc setup``, and the error of the first target
    that cannot do it, when all others are done.
    """
    names = _targets(config, table, target)
    await _require_source_table(config, table)
    followed = []
    for name in names:
        async with open_session(config, name) as session:
            if await migrations.pending(session):
                raise SetupError(f"{session.where} is not set up for this version: run `cdc setup`")
            number = await requests.ask(session, config.pipeline, split(table), max_rows_per_second)
        followed.append(_Followed(config, name, table, number, follower, rebuild))
    results = await asyncio.gather(*(one.to_the_end() for one in followed), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, Outcome)]


def _targets(config: Config, table: str, target: str | None) -> list[str]:
    if target is not None and target not in config.targets:
        raise ConfigurationError(
            f"--target: there is no target {target}; the configuration has {', '.join(config.targets)}"
        )
    if "." not in table:
        raise ConfigurationError(f"{table!r}: name the table as schema.table, as the source does")
    asked = [target] if target is not None else list(config.targets)
    found = [name for name in asked if TargetRoutes(config.targets[name]).route_of(*split(table)) is not None]
    if not found:
        known = [name for one in asked for name in config.targets[one].tables]
        guess = nearest(table, known)
        where = "no target takes" if target is None else f"target {target} does not take"
        raise ConfigurationError(f"{where} a table {table}" + (f"; did you mean {guess}?" if guess else ""))
    return found


async def _require_source_table(config: Config, table: str) -> None:
    """Refuse a mistyped name now: a request for it would wait in the target until a worker looks at it."""
    dsn = config.source.dsn.get_secret_value()
    async with await connect(dsn, application_name=config.source.application_name) as connection:
        tables = [found.name for found in await read_tables(connection)]
    if table not in tables:
        guess = nearest(table, tables)
        raise ConfigurationError(f"the source has no table {table}" + (f"; did you mean {guess}?" if guess else ""))


@dataclass(slots=True)
class _Counted:
    """The rows that are copied beside so far; ``changed`` when that is news."""

    rows: int
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, rows: int) -> None:
        """So many are in now."""
        self.rows = rows
        self.changed.set()


@dataclass(slots=True)
class _Followed:
    """One request in one target."""

    config: Config
    target: str
    table: str
    number: int
    follower: Follower
    rebuild: Rebuild | None
    _said: str | None = None

    async def to_the_end(self) -> Outcome:
        """Follow the request until it is over; a target that is away is asked again."""
        began = time.monotonic()
        backoff = Backoff()
        while True:
            try:
                async with open_session(self.config, self.target) as session:
                    return await self._follow(session, began)
            except TransientError as error:
                self._say(f"{error}; it is tried again")
                await asyncio.sleep(backoff.wait_s(error))

    async def _follow(self, session: Session, began: float) -> Outcome:
        while True:
            request = await requests.read(session, self.number)
            if request is None:
                raise TerminalError(f"target {self.target}: the request for {self.table} is gone from the target")
            self.follower.rows(self.target, self.table, request.row_count, request.estimated_rows)
            if request.state == requests.FAILED:
                raise TerminalError(request.reason or "it failed", sql=request.mend)
            if request.state == requests.DONE:
                return Outcome(self.target, self.table, request.way or "", request.row_count, request.consistent_from)
            if request.state == requests.SHADOW and self.rebuild is not None:
                # On this session: it is claimed until the request is over, or this process.
                if await requests.claim_building(session, self.config.pipeline):
                    await self._rebuild(request, self.rebuild)
                    continue
                self._say("another `cdc resync` builds a table of this target beside; waiting for it")
            else:
                self._say(self._sentence(request, time.monotonic() - began))
            await asyncio.sleep(FOLLOW_S)

    async def _rebuild(self, request: Request, rebuild: Rebuild) -> None:
        if not request.is_swapped:
            self._say(f"it is built beside and swapped in, because {request.reason}")
        counted = _Counted(request.row_count)
        try:
            async with asyncio.TaskGroup() as tasks:
                noting = tasks.create_task(self._note_rows(counted))
                await rebuild(self.target, self.table, counted.set)
                noting.cancel()
        except BaseExceptionGroup as errors:
            error = first_error(errors)
            if isinstance(error, TerminalError):
                await self._record(state=requests.FAILED, reason=str(error), mend=error.sql)
            raise error from None
        await self._record(state=requests.DONE, row_count=counted.rows)

    async def _note_rows(self, counted: _Counted) -> None:
        """Keep the request's number of rows up to date; no matter when that fails."""
        while True:
            await counted.changed.wait()
            counted.changed.clear()
            with suppress(CdcError):
                await self._record(row_count=counted.rows)
            await asyncio.sleep(COUNT_S)

    async def _record(self, **values: object) -> None:
        """On a session of its own: one that was idle while a table was built may be lost (hazard 20)."""
        async with open_session(self.config, self.target) as session:
            await requests.record(session, self.number, **values)

    def _sentence(self, request: Request, waited_s: float) -> str:
        if request.state == requests.ASKED and request.says is None and waited_s > UNSERVED_S:
            return "no worker has taken it up: does `cdc run` run? The request stays until one does"
        return request.sentence

    def _say(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            self.follower.say(f"target {self.target}, {self.table}: {sentence}")
