"""What `cdc check` finds at the source: everything that would stop or endanger replication, with what mends it.

A real replication connection is opened, because only that proves that one can be: the attribute, pg_hba.conf, the free
walsender and the network between. Nothing is changed. What `cdc setup` and `cdc bootstrap` have yet to make is no error
before the slot exists; once it does, it is: the stream would lack it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cdc import statements
from cdc.config import SourceConfig
from cdc.errors import CdcError
from cdc.identifiers import quote
from cdc.observe.finding import Finding, Severity
from cdc.source import heartbeat
from cdc.source.connection import Connection, connect, place, source_errors
from cdc.source.replication import ReplicationConnection
from cdc.source.slot import FIRST_WITH_FAILOVER, Slot, failover_refusal, read_slot, refusal
from cdc.source.table_findings import published_findings, read_checked_tables, table_findings

OLDEST_VERSION = 140000
"""Logical messages in pgoutput and binary values came with PostgreSQL 14."""

SHORT_SENDER_TIMEOUT_MS = 10_000
"""Status updates go out every few seconds: a limit below this one cuts a connection that is only slow."""

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class _Server:
    """One row of ``sql/source/server.sql``."""

    version: int
    is_standby: bool
    wal_level: str
    max_slots: int
    used_slots: int
    max_senders: int
    used_senders: int
    slot_wal_limit: str
    sender_timeout_ms: int
    idle_slot_timeout: int
    user: str
    database: str
    may_create: bool
    may_beat: bool
    has_heartbeat: bool


async def check(source: SourceConfig, *, pipeline: str, routed: Collection[str]) -> list[Finding]:
    """All findings about the source, in the order in which they are best mended.

    ``routed`` are the tables (``schema.table``) that any target wants. A source that cannot be reached is one finding.
    """
    dsn = source.dsn.get_secret_value()
    try:
        async with await connect(dsn, application_name=source.application_name) as connection:
            server = await _read_server(connection)
            slot = await read_slot(connection, source.slot)
            findings = [
                _finding(Severity.OK, "connection", f"{place(dsn)} answers as {server.user}"),
                *_server_findings(server),
                await _replication_finding(dsn, source.application_name),
                *_capacity_findings(server, slot),
                *_protection_findings(server),
                *_slot_findings(slot, source.slot, server.database),
                *(_failover_findings(server, slot, place(dsn)) if source.failover else ()),
                *await _heartbeat_findings(connection, server, pipeline, slot),
                *await published_findings(connection, source, routed, is_started=slot is not None),
            ]
            tables = await read_checked_tables(connection, source, routed)
            findings += table_findings(tables, routed, user=server.user)
            return findings
    except CdcError as error:
        return [_finding(Severity.ERROR, "connection", str(error), error.sql)]


def _finding(severity: Severity, subject: str, message: str, mend: str | None = None) -> Finding:
    return Finding(severity, "source", subject, message, mend)


async def _read_server(connection: Connection) -> _Server:
    with source_errors("show its settings"):
        cursor = await connection.execute(statements.load("source", "server"))
        row = await cursor.fetchone()
    return _Server(*(row or ()))


async def _replication_finding(dsn: str, application_name: str) -> Finding:
    try:
        async with await ReplicationConnection.open(dsn, application_name) as walsender:
            system = await walsender.identify_system()
    except CdcError as error:
        return _finding(Severity.ERROR, "replication connection", str(error), error.sql)
    message = f"opened: system {system.system_identifier}, timeline {system.timeline}, WAL at {system.wal_position}"
    return _finding(Severity.OK, "replication connection", message)


def _server_findings(server: _Server) -> list[Finding]:
    findings = []
    if server.version < OLDEST_VERSION:
        message = f"PostgreSQL {server.version // 10000} is too old: 14 is the oldest that sends what cdc needs"
        findings.append(_finding(Severity.ERROR, "version", message))
    if server.is_standby:
        message = "this server is a standby, and publications and heartbeats have to be written: name the primary"
        findings.append(_finding(Severity.ERROR, "primary", message))
    if server.wal_level == "logical":
        findings.append(_finding(Severity.OK, "wal_level", "logical"))
    else:
        message = f"wal_level is {server.wal_level}: the WAL lacks what logical decoding needs; set it and restart"
        mend = "ALTER SYSTEM SET wal_level = 'logical';  -- then restart the server"
        findings.append(_finding(Severity.ERROR, "wal_level", message, mend))
    return findings


def _capacity_findings(server: _Server, slot: Slot | None) -> list[Finding]:
    findings = []
    free_slots = server.max_slots - server.used_slots
    if free_slots < 1:
        severity = Severity.ERROR if slot is None else Severity.WARNING
        message = f"all {server.max_slots} replication slots are taken, and a bootstrap needs one"
        mend = f"ALTER SYSTEM SET max_replication_slots = {server.max_slots + 10};  -- then restart the server"
        findings.append(_finding(severity, "max_replication_slots", message, mend))
    else:
        message = f"{free_slots} of {server.max_slots} replication slots are free"
        findings.append(_finding(Severity.OK, "max_replication_slots", message))
    free_senders = server.max_senders - server.used_senders
    is_running = slot is not None and slot.active
    if free_senders < 1 and not is_running:
        message = f"all {server.max_senders} walsenders are taken, and the worker needs one"
        mend = f"ALTER SYSTEM SET max_wal_senders = {server.max_senders + 10};  -- then restart the server"
        findings.append(_finding(Severity.ERROR, "max_wal_senders", message, mend))
    else:
        message = f"{free_senders} of {server.max_senders} walsenders are free"
        findings.append(_finding(Severity.OK, "max_wal_senders", message))
    return findings


def _protection_findings(server: _Server) -> list[Finding]:
    findings = []
    if server.slot_wal_limit == "-1":
        message = (
            "no limit: while no worker runs, the slot keeps WAL until the disk of the source is full; set what the "
            "disk can spare (a slot that needs more is lost, and its targets are bootstrapped again)"
        )
        mend = "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();"
        findings.append(_finding(Severity.WARNING, "max_slot_wal_keep_size", message, mend))
    else:
        message = f"{server.slot_wal_limit}: the only protection of the source's disk while no worker runs"
        findings.append(_finding(Severity.OK, "max_slot_wal_keep_size", message))
    timeout_s = server.sender_timeout_ms / 1000
    if server.sender_timeout_ms == 0:
        message = "off: after a network failure the slot can stay in use by a connection that is gone"
    elif server.sender_timeout_ms < SHORT_SENDER_TIMEOUT_MS:
        message = f"{timeout_s:g} s: a connection that is only slow is cut"
    else:
        message = ""
    if message:
        mend = "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();"
        findings.append(_finding(Severity.WARNING, "wal_sender_timeout", message, mend))
    else:
        findings.append(_finding(Severity.OK, "wal_sender_timeout", f"{timeout_s:g} s"))
    if server.idle_slot_timeout:
        message = "a slot that nobody reads for that long is invalidated, and its targets are bootstrapped again"
        mend = "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();"
        findings.append(_finding(Severity.WARNING, "idle_replication_slot_timeout", message, mend))
    message = "an UPDATE or DELETE between dropping and re-creating a primary key fails while the table is published"
    findings.append(_finding(Severity.INFO, "primary keys", f"{message}: do both in one transaction"))
    return findings


def _failover_findings(server: _Server, slot: Slot | None, where: str) -> list[Finding]:
    """What ``failover = true`` comes to on this source."""
    if server.version < FIRST_WITH_FAILOVER:
        return [_finding(Severity.ERROR, "failover", str(failover_refusal(where)))]
    if slot is not None and not slot.failover and not slot.is_lost:
        message = f"the slot {slot.name} lacks it, and no standby keeps it: the worker sets it when it is started"
        return [_finding(Severity.WARNING, "failover", message)]
    message = (
        "a standby with sync_replication_slots keeps the slot; name the standby's own slot in "
        "synchronized_standby_slots here, or targets may hold transactions that it lacks when it takes over"
    )
    return [_finding(Severity.INFO, "failover", message)]


def _slot_findings(slot: Slot | None, name: str, database: str) -> list[Finding]:
    subject = f"slot {name}"
    if slot is None:
        return [_finding(Severity.INFO, subject, "not there yet: a bootstrap creates it", "cdc bootstrap --from live")]
    reason = refusal(slot, name, database)
    if reason is not None:
        return [_finding(Severity.ERROR, subject, str(reason), reason.sql)]
    kept = f"keeps {(slot.retained_bytes or 0) / _MIB:,.0f} MiB of WAL"
    if slot.safe_wal_size is not None:
        kept += f", {slot.safe_wal_size / _MIB:,.0f} MiB until it can be lost"
    if slot.wal_status == "unreserved":
        message = f"about to be lost: {kept}; start the worker now, or raise max_slot_wal_keep_size"
        return [_finding(Severity.WARNING, subject, message)]
    state = f"in use by process {slot.active_pid}" if slot.active else "free"
    return [_finding(Severity.OK, subject, f"{state}, {kept}")]


async def _heartbeat_findings(
    connection: Connection, server: _Server, pipeline: str, slot: Slot | None
) -> list[Finding]:
    missing = Severity.WARNING if slot is None else Severity.ERROR
    if not server.has_heartbeat and not server.may_create:
        message = f"the role {server.user} may not create the schema cdc, and with it the heartbeat"
        mend = f"GRANT CREATE ON DATABASE {quote(server.database)} TO {quote(server.user)};"
        return [_finding(Severity.ERROR, "heartbeat", message, mend)]
    if not server.has_heartbeat:
        return [_finding(missing, "heartbeat", "not set up yet", "cdc setup")]
    if not server.may_beat:
        user = quote(server.user)
        mend = f"GRANT USAGE ON SCHEMA cdc TO {user}; GRANT SELECT, INSERT, UPDATE ON cdc.heartbeat TO {user};"
        return [_finding(Severity.ERROR, "heartbeat", f"the role {server.user} may not write it", mend)]
    last = await heartbeat.read(connection, pipeline)
    if last is None:
        return [_finding(missing, "heartbeat", f"not set up for pipeline {pipeline}", "cdc setup")]
    return [_finding(Severity.OK, "heartbeat", f"number {last.count}, written at {last.at:%Y-%m-%d %H:%M:%S} UTC")]
