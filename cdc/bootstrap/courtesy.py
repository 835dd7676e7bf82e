"""The source comes first: a copy that somebody's DDL waits for is ended, and tried again afterwards.

A COPY holds ACCESS SHARE on its table until its transaction ends. DDL that wants ACCESS EXCLUSIVE waits for it, and
every statement of the application then waits behind the DDL. So a session of its own asks once a second whether anybody
waits for one of our copies, and ends that one's backend; the copy loses at most one range. (Cancelling is not enough: a
backend whose client does not read, because the target is busy, does not notice it, and one between two statements has
nothing to cancel.) Needs no right beyond being the role that copies: a role may end its own backends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cdc import statements
from cdc.errors import SourceUnavailable
from cdc.source.connection import Connection, connect, source_errors

INTERVAL_S = 1.0
"""How long somebody may wait for a copy of ours before it is noticed. ``pg_blocking_pids`` briefly holds all of the
lock manager's locks, so it is asked rarely, and only for sessions that do wait."""


class Copies:
    """The backends on the source that are copying for us."""

    def __init__(self) -> None:
        self._pids: set[int] = set()

    @contextmanager
    def copying(self, connection: Connection) -> Iterator[None]:
        """Name the connection's backend as one that may be ended, for the time of the block."""
        pid = connection.info.backend_pid
        self._pids.add(pid)
        try:
            yield
        finally:
            self._pids.discard(pid)

    async def end_blockers(self, connection: Connection) -> int:
        """End the copies that somebody waits for, and say how many that were."""
        if not self._pids:
            return 0
        with source_errors("say who waits for a copy"):
            cursor = await connection.execute(
                statements.load("source", "copy_end_blockers"), {"pids": sorted(self._pids)}
            )
            return len(await cursor.fetchall())

    async def step_aside(self, dsn: str, application_name: str, say: Callable[[str], None]) -> None:
        """End blockers every `INTERVAL_S` until cancelled; ``say`` is told each time. A lost connection is replaced."""
        while True:
            try:
                async with await connect(dsn, application_name=application_name) as connection:
                    while True:
                        await asyncio.sleep(INTERVAL_S)
                        ended = await self.end_blockers(connection)
                        if ended:
                            say(f"stepped aside: {ended} copies were ended, because a session on the source waits")
            except SourceUnavailable:
                await asyncio.sleep(INTERVAL_S)
