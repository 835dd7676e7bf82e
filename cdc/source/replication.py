"""The replication connection: commands to a walsender, then the stream of frames out of one slot.

One `ReplicationConnection` is one walsender. It is opened, answers a few commands, and once `start` returns it only
streams: `receive` hands over messages as bytes (unread; `cdc.pgoutput` knows what they say), `send_status` tells how
far they are durable. When the stream ends, for whatever reason, the next `receive` raises, and this connection is of no
more use: close it and open another.

libpq does the talking (TLS, SCRAM, keepalives), without ever blocking the event loop. It keeps what the kernel gave it
in its own buffer, so the order is always: take the frames that are there, read the socket, and wait only when both are
empty. Back-pressure is not calling `receive`: then TCP holds the server back.

What a stream fails with is told apart by type: `BinaryRefused` and `StreamPoisoned` (`cdc.source.stream_errors`) are
the two that a caller can do something about.

The source of protocol facts is PostgreSQL's manual, chapters "Streaming Replication Protocol" and "Logical Streaming
Replication Protocol".
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import psycopg
from psycopg import pq

from cdc.errors import CdcError, ServerError, SetupError, SourceUnavailable
from cdc.identifiers import quote
from cdc.lsn import INVALID_LSN, Lsn
from cdc.pgoutput.framing import EPOCH_UNIX_US, Keepalive, split_frames, standby_status_update
from cdc.source import waiting
from cdc.source.connection import Connection, connect_walsender, explain, place, server_error, source_errors
from cdc.source.libpq import FrameReader, frame_reader
from cdc.source.receive_buffer import bound_receive_buffer
from cdc.source.slot import FIRST_WITH_FAILOVER, PLUGIN, failover_refusal, read_slot, refusal
from cdc.source.stream_errors import BinaryRefused, StreamPoisoned, error_of, explain_end, missing_publication

__all__ = [
    "BinaryRefused",
    "CreatedSlot",
    "ReplicationConnection",
    "StreamPoisoned",
    "System",
    "parse_timeline_history",
]

MAX_RECEIVE_BYTES = 1 << 20
MAX_RECEIVE_FRAMES = 4_000
MAX_PACKED_FRAMES = 16_000
"""What one `receive` hands over at most (the last where frames are packed): a few ms of work, so that status updates
and other tasks get their turn."""

_PROTOCOL_VERSION = 1
"""Version 1 sends whole committed transactions, in commit order."""

_PROTOCOL_VERSION_STREAMING = 2
"""Version 2, of PostgreSQL 14 and later, can also stream parts of large transactions before they commit. Later versions
add what `cdc` does not ask for."""


@dataclass(frozen=True, slots=True)
class System:
    """Who the source is, and where its WAL ends: ``IDENTIFY_SYSTEM``."""

    system_identifier: str
    timeline: int
    wal_position: Lsn


@dataclass(frozen=True, slots=True)
class CreatedSlot:
    """A new slot: it streams every transaction that commits after ``consistent_point``.

    ``snapshot`` names the exported snapshot that shows exactly what was committed before; it lives until the connection
    that created the slot gets its next command or ends.
    """

    name: str
    consistent_point: Lsn
    snapshot: str | None


class ReplicationConnection:
    """One walsender of the source."""

    def __init__(self, connection: Connection, where: str) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._where = where
        self._slot = ""
        self._has_more = False
        self._has_ended = False
        self._reader: FrameReader | None = None
        self._warning: ServerError | None = None
        connection.add_notice_handler(self._notice)

    @classmethod
    async def open(cls, dsn: str, application_name: str) -> Self:
        """Connect with ``replication=database``. Raises `SourceUnavailable`, `SetupError` or `ConfigurationError`."""
        return cls(await connect_walsender(dsn, application_name=application_name), place(dsn))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def server_version(self) -> int:
        """For example 150004."""
        return self._pgconn.server_version

    @property
    def has_more(self) -> bool:
        """Whether the last `receive` has left something that the next one finds at once."""
        return self._has_more

    async def close(self) -> None:
        """End the connection: what was sent is still read by the server, which then releases the slot."""
        await self._connection.close()

    # --- commands

    async def identify_system(self) -> System:
        """Ask who the source is and where its WAL ends."""
        with source_errors("identify itself"):
            cursor = await self._connection.execute("IDENTIFY_SYSTEM")
            row = await cursor.fetchone()
        if row is None:
            raise SourceUnavailable(f"the source {self._where} does not identify itself")
        return System(str(row[0]), int(row[1]), Lsn.parse(row[2]))

    async def timeline_history(self, timeline: int) -> list[tuple[int, Lsn]]:
        """Where each earlier timeline was left on the way to this one: ``[(timeline, switch point), …]``, oldest first.

        The first timeline of a cluster has no history: the list is empty.
        """
        if timeline <= 1:
            return []
        with source_errors(f"show the history of timeline {timeline}"):
            cursor = await self._connection.execute(f"TIMELINE_HISTORY {timeline:d}".encode())
        content = cursor.pgresult.get_value(0, 1) if cursor.pgresult else None
        return parse_timeline_history((content or b"").decode("utf-8", "replace"))

    async def create_slot(
        self,
        name: str,
        *,
        temporary: bool = False,
        failover: bool = False,
        snapshot: Literal["export", "nothing"] = "nothing",
    ) -> CreatedSlot:
        """Create a logical slot; waits until the transactions that run now have ended.

        A temporary slot ends with this connection. An exported snapshot ends with its next command. ``failover`` lets
        standbys keep the slot (PostgreSQL 17 and later). Create publications first (hazard 24). Raises `SetupError`
        when the name is taken, no slot is free, or ``wal_level`` is not ``logical``.
        """
        command = self._create_command(name, temporary=temporary, failover=failover, snapshot=snapshot)
        try:
            cursor = await self._connection.execute(command.encode())
            row = await cursor.fetchone()
        except psycopg.Error as error:
            raise await self._explain_creation(server_error(error), name) from None
        if row is None:
            raise SourceUnavailable(f"the source {self._where} did not answer the creation of slot {name}")
        return CreatedSlot(str(row[0]), Lsn.parse(row[1]), row[2])

    def _create_command(self, name: str, *, temporary: bool, failover: bool, snapshot: str) -> str:
        head = f"CREATE_REPLICATION_SLOT {quote(name)} {'TEMPORARY ' if temporary else ''}LOGICAL {PLUGIN}"
        if failover and self.server_version < FIRST_WITH_FAILOVER:
            raise failover_refusal(self._where)
        if self.server_version < 150000:
            return f"{head} {'EXPORT_SNAPSHOT' if snapshot == 'export' else 'NOEXPORT_SNAPSHOT'}"
        options = [f"SNAPSHOT '{snapshot}'"] + (["FAILOVER true"] if failover else [])
        return f"{head} ({', '.join(options)})"

    async def give_failover(self, slot: str) -> bool:
        """Let standbys keep a slot that was created without ``failover``, or copied: a copy never has it.

        False, with nothing done, where the slot has it, is missing, is lost, or is in use (`start` then says so; the
        server would wait for the other session to end). Raises `SetupError` before PostgreSQL 17.
        """
        if self.server_version < FIRST_WITH_FAILOVER:
            raise failover_refusal(self._where)
        found = await read_slot(self._connection, slot)
        if found is None or found.failover or found.is_lost or found.active:
            return False
        with source_errors(f"give the slot {slot} failover"):
            await self._connection.execute(f"ALTER_REPLICATION_SLOT {quote(slot)} (FAILOVER true)".encode())
        return True

    async def _explain_creation(self, server: ServerError | None, name: str) -> CdcError:
        state = server.sqlstate if server else None
        if state == "42710":
            return SetupError(f"the source {self._where} already has a slot {name}", server=server)
        if state == "55000":
            return await self._explain_wal_level(server, name)
        return explain(server, f"create the slot {name}")

    async def _explain_wal_level(self, server: ServerError | None, name: str) -> CdcError:
        with source_errors("show its wal_level"):
            cursor = await self._connection.execute("SHOW wal_level")
            row = await cursor.fetchone()
        if row is not None and row[0] != "logical":
            return SetupError(
                f"the source {self._where} has wal_level = {row[0]}: set it to logical and restart the server",
                sql="ALTER SYSTEM SET wal_level = 'logical';  -- then restart the server",
                server=server,
            )
        return explain(server, f"use the slot {name}")

    # --- the stream

    async def start(
        self,
        slot: str,
        publications: Sequence[str],
        *,
        binary: bool = True,
        streaming: bool = False,
    ) -> None:
        """Begin to stream, from what the slot has confirmed. ``binary``: values in the binary format of their types.

        With ``streaming`` parts of large transactions come before their commit (`cdc.changes.streamed` puts them
        together). What is prepared for two-phase commit comes when it is committed, either way.

        Raises `SlotInUse` while another session streams from it, `ResyncNeeded` when the slot is missing or lost.
        (That a publication is missing shows only later, from `receive`.)
        """
        names = ", ".join(quote(name) for name in publications).replace("'", "''")
        version = _PROTOCOL_VERSION_STREAMING if streaming else _PROTOCOL_VERSION
        options = [f"proto_version '{version}'", f"publication_names '{names}'", "messages 'true'"]
        options += (["streaming 'on'"] if streaming else []) + (["binary 'true'"] if binary else [])
        command = f"START_REPLICATION SLOT {quote(slot)} LOGICAL {INVALID_LSN} ({', '.join(options)})"
        self._slot = slot
        try:
            self._pgconn.send_query(command.encode())
            await waiting.flush(self._pgconn)
            result = await waiting.result(self._pgconn)
        except psycopg.Error:
            raise explain(None, f"stream from the slot {slot}") from None
        if result is not None and result.status == pq.ExecStatus.COPY_BOTH:
            self._reader = frame_reader(self._pgconn)
            bound_receive_buffer(self._pgconn.socket)
            return
        server = error_of(result)
        while result is not None:
            result = await waiting.result(self._pgconn)
        raise await self._explain_start(server, slot)

    async def _explain_start(self, server: ServerError | None, slot: str) -> CdcError:
        """Name the reason by what the catalog shows: the server gives one SQLSTATE for several."""
        if server is not None and server.sqlstate in ("42704", "55000", "58P01"):
            database = self._pgconn.db.decode()
            reason = refusal(await read_slot(self._connection, slot), slot, database)
            if reason is not None:
                reason.server = server
                return reason
            if server.sqlstate == "55000":
                return await self._explain_wal_level(server, slot)
        return explain(server, f"stream from the slot {slot}")

    async def receive(self) -> tuple[Sequence[bytes], list[Keepalive]]:
        """All messages that are there, and the keepalives, each in order; waits for the first of either.

        Hands over at most `MAX_RECEIVE_BYTES` and one message, or `MAX_RECEIVE_FRAMES`. Messages are packed where the
        compiled core is there (cdc.pgoutput.packed). Cancelling it loses nothing. Raises `SourceUnavailable` when the
        connection ends, what the server says when the stream fails, and `ProtocolError` for a damaged frame.
        """
        if self._has_more:
            # More was there than one call hands over: the other tasks of the loop come first.
            await asyncio.sleep(0)
        messages: Sequence[bytes] = ()
        keepalives: list[Keepalive] = []
        try:
            messages, keepalives = self._take()
            while not (messages or keepalives or self._has_more or self._has_ended):
                await waiting.readable(self._pgconn)
                messages, keepalives = self._take()
        except psycopg.Error:
            # What came before the connection broke was handed over before; the next call meets the error again.
            raise explain(None, f"stream from the slot {self._slot}") from None
        if self._warning is not None:
            raise missing_publication(self._warning, self._slot)
        if messages or keepalives:
            return messages, keepalives
        raise await self._explain_end()

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        """Take note of the warning by which PostgreSQL 18 passes over a publication that it does not find.

        It sends nothing of that publication and goes on; older servers end the stream. Frames that come with the
        warning are not handed over, so that nothing behind it is ever acknowledged.
        """
        if notice.severity_nonlocalized == "WARNING" and notice.sqlstate == "55000":
            self._warning = ServerError(notice.sqlstate)

    def _take(self) -> tuple[Sequence[bytes], list[Keepalive]]:
        """Move frames out of libpq's buffer and the socket, as many as one `receive` hands over."""
        if self._has_ended:
            return (), []
        if self._reader is None:
            return self._take_each()
        messages, keepalives, after = self._reader.take(MAX_RECEIVE_BYTES, MAX_PACKED_FRAMES)
        self._has_more, self._has_ended = after > 0, after == -1
        if after < -1 and not (messages or keepalives):
            raise psycopg.OperationalError
        return messages, keepalives

    def _take_each(self) -> tuple[Sequence[bytes], list[Keepalive]]:
        """The same frame by frame, by way of psycopg."""
        frames: list[bytes] = []
        get, append = self._pgconn.get_copy_data, frames.append
        budget = MAX_RECEIVE_BYTES
        is_read = self._has_more = False
        try:
            while budget > 0 and len(frames) < MAX_RECEIVE_FRAMES:
                size, data = get(1)
                if size > 0:
                    append(bytes(data))
                    budget -= size
                    is_read = False
                elif size < 0 or is_read:
                    self._has_ended = size < 0
                    break
                else:
                    # One call takes about as much as libpq's buffer is large, of all that the kernel may hold.
                    self._pgconn.consume_input()
                    is_read = True
            else:
                self._has_more = True
        except psycopg.Error:
            if not frames:
                raise
        return split_frames(frames)

    async def _explain_end(self) -> CdcError:
        results = []
        try:
            while (result := await waiting.result(self._pgconn)) is not None:
                results.append(result)
        except psycopg.Error:
            return explain(None, f"stream from the slot {self._slot}")
        return explain_end(results, self._slot)

    async def send_status(self, write: Lsn, flush: Lsn, apply: Lsn) -> None:
        """Tell the server how far everything is received, durable and visible; it may forget what is before ``flush``.

        Works while nothing is received. When the connection is gone it does nothing: the next `receive` says so, and
        why, once it has handed over what had come before.
        """
        clock_us = time.time_ns() // 1_000 - EPOCH_UNIX_US
        frame = standby_status_update(write, flush, apply, clock_us=clock_us)
        try:
            while not self._pgconn.put_copy_data(frame):
                await waiting.writable(self._pgconn)
            await waiting.flush(self._pgconn)
        except psycopg.Error:
            # libpq refuses to send as soon as it has read the end of the stream, and `receive` is yet to tell of it.
            return


def parse_timeline_history(text: str) -> list[tuple[int, Lsn]]:
    """Read a ``.history`` file: a line per timeline that was left, ``timeline``, ``switch point`` and a reason."""
    lines = re.findall(r"^\s*(\d+)\s+([0-9A-Fa-f]+/[0-9A-Fa-f]+)", text, re.MULTILINE)
    return [(int(timeline), Lsn.parse(switch)) for timeline, switch in lines]
