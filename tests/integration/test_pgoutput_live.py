"""What real servers send, in every protocol version, is decoded to the last byte, and means what the database holds."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import pq

from cdc.lsn import INVALID_LSN, Lsn
from cdc.pgoutput import messages as m
from cdc.pgoutput.decoder import decode
from cdc.pgoutput.framing import Keepalive, split_frames, standby_status_update
from cdc.pgoutput.tuples import BINARY, FIRST_TUPLE, TEXT, UnexpectedFormat, read_fields
from tests.conftest import RecordChanges
from tests.database import Database
from tests.unit.pgoutput_encoder import encode

SLOT = "pgoutput_live"

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE "knowledge-elements" (
    id bigint PRIMARY KEY, "answerId" int, mood mood, count positive, snapshot jsonb, tags text[], rights aclitem
);
ALTER TABLE "knowledge-elements" ALTER snapshot SET STORAGE EXTERNAL;
CREATE TABLE log (at timestamptz, "group" text);
ALTER TABLE log REPLICA IDENTITY FULL;
CREATE TABLE child (id serial PRIMARY KEY, parent bigint REFERENCES "knowledge-elements");
CREATE PUBLICATION p FOR TABLE "knowledge-elements", log, child;
"""

WORKLOAD = """
INSERT INTO "knowledge-elements"
    VALUES (1, 10, 'ok', 3, to_jsonb(repeat('x', 9000)), '{a,NULL,"b c"}', 'postgres=r/postgres');
INSERT INTO "knowledge-elements" (id) VALUES (2);
UPDATE "knowledge-elements" SET "answerId" = 11 WHERE id = 1;
UPDATE "knowledge-elements" SET id = 5 WHERE id = 2;
INSERT INTO log VALUES ('2026-05-04 03:02:01Z', 'first'), (NULL, 'second');
UPDATE log SET "group" = 'last' WHERE at IS NULL;
DELETE FROM log WHERE at IS NOT NULL;
DELETE FROM "knowledge-elements" WHERE id = 5;
SELECT pg_logical_emit_message(true, 'cdc.heartbeat', '{"count": 1}');
"""

PROTOCOL_1 = {
    m.Begin,
    m.Commit,
    m.Origin,
    m.RelationMessage,
    m.Type,
    m.Insert,
    m.Update,
    m.Delete,
    m.Truncate,
    m.LogicalMessage,
}
STREAMING = {m.StreamStart, m.StreamStop, m.StreamCommit, m.StreamAbort}
TWO_PHASE = {m.BeginPrepare, m.Prepare, m.CommitPrepared, m.RollbackPrepared}


def decode_all(raw: Iterable[bytes], *, protocol: int, parallel: bool = False) -> list[m.Message]:
    """Decode a recorded stream; what is decoded, encoded again, is what the server sent."""
    in_stream = False
    decoded = []
    for message in raw:
        decoded.append(decode(message, protocol=protocol, in_stream=in_stream, parallel=parallel))
        assert encode(decoded[-1]) == message
        if isinstance(decoded[-1], m.StreamStart | m.StreamStop):
            in_stream = isinstance(decoded[-1], m.StreamStart)
    assert not in_stream
    return decoded


def kinds(decoded: Iterable[m.Message]) -> set[type[m.Message]]:
    return {type(message) for message in decoded}


def server_version(database: Database) -> int:
    return database.connection().info.server_version // 10_000


def create_slot(source: Database, *, two_phase: bool = False) -> None:
    source.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', false, %s)", SLOT, two_phase)


@contextmanager
def replication_origin(source: Database) -> Iterator[None]:
    """Transactions of the test's connection look as if they had come from another server."""
    name = f"origin of {source.name}"
    source.execute("SELECT pg_replication_origin_create(%s)", name)
    source.execute("SELECT pg_replication_origin_session_setup(%s)", name)
    try:
        yield
    finally:
        source.execute("SELECT pg_replication_origin_session_reset()")
        source.execute("SELECT pg_replication_origin_drop(%s)", name)


@pytest.mark.parametrize("binary", [True, False])
def test_every_message_of_protocol_1_is_decoded(source: Database, record_changes: RecordChanges, binary: bool) -> None:
    source.execute(SCHEMA)
    create_slot(source)
    with source.transaction():
        source.execute(WORKLOAD)
    source.execute("SELECT pg_logical_emit_message(false, 'cdc.watermark', '\\x00ff'::bytea)")
    source.execute('TRUNCATE "knowledge-elements", log RESTART IDENTITY CASCADE')
    with replication_origin(source):
        source.execute("INSERT INTO child VALUES (1, NULL)")
        raw = record_changes(source, ["p"], SLOT, binary=binary)
    decoded = decode_all(raw, protocol=1)
    assert kinds(decoded) == PROTOCOL_1

    kind, other = (b"b", b"t") if binary else (b"t", b"b")
    relations = {message.name: message for message in decoded if isinstance(message, m.RelationMessage)}
    elements = relations["knowledge-elements"]
    assert (elements.schema, elements.replica_identity, elements.xid) == ("public", "d", None)
    assert [column.name for column in elements.columns if column.is_key] == ["id"]
    assert elements.columns[1] == m.RelationColumn(0, "answerId", 23, -1)
    assert all(column.is_key for column in relations["log"].columns)
    # A domain is announced with its own oid and the name of its base type; `decode` adds what the wire leaves out.
    types = {message.oid: (message.schema, message.name) for message in decoded if isinstance(message, m.Type)}
    assert types[elements.columns[2].type_oid] == ("public", "mood")
    assert types[elements.columns[3].type_oid] == ("pg_catalog", "int4")

    first = next(message for message in decoded if isinstance(message, m.Insert))
    assert first.oid == elements.oid
    assert first.new[2] == m.Value(kind, b"ok")
    # aclitem has no send function: text, even in a binary stream.
    assert first.new[6] == m.Value(b"t", b"postgres=r/postgres")
    assert other not in {value.kind for value in first.new[:6]}

    updates = [message for message in decoded if isinstance(message, m.Update)]
    assert [update.old_kind for update in updates] == [None, "K", "O"]
    assert updates[0].new[4] == m.Value(b"u")
    assert updates[1].old is not None
    assert [value.kind for value in updates[1].old] == [kind, *[b"n"] * 6]
    assert [message.old_kind for message in decoded if isinstance(message, m.Delete)] == ["O", "K"]
    truncate = next(message for message in decoded if isinstance(message, m.Truncate))
    assert set(truncate.oids) == {relation.oid for relation in relations.values()}
    assert (truncate.cascade, truncate.restart_identity) == (True, True)
    emitted = [message for message in decoded if isinstance(message, m.LogicalMessage)]
    assert [(message.transactional, message.prefix, message.content) for message in emitted] == [
        (True, "cdc.heartbeat", b'{"count": 1}'),
        (False, "cdc.watermark", b"\x00\xff"),
    ]
    begins = [message for message in decoded if isinstance(message, m.Begin)]
    commits = [message for message in decoded if isinstance(message, m.Commit)]
    assert [begin.final_lsn for begin in begins] == [commit.commit_lsn for commit in commits]
    assert all(commit.commit_lsn < commit.end_lsn for commit in commits)
    origin = next(message for message in decoded if isinstance(message, m.Origin))
    assert origin.name == f"origin of {source.name}"


def streamed_transactions(source: Database) -> None:
    """Large transactions that a server streams: one with an aborted part, one that aborts wholly, two interleaved."""
    source.execute("CREATE TABLE big (id int PRIMARY KEY, filler text); CREATE PUBLICATION p FOR TABLE big")
    # The decoding session's own budget, so that a few hundred rows are a large transaction.
    source.execute("SET logical_decoding_work_mem = '64kB'")


INSERT_BIG = "INSERT INTO big SELECT i, repeat('f', 100) FROM generate_series({}, {}) AS i"


def streamed_workload(source: Database) -> None:
    with source.transaction():
        source.execute(INSERT_BIG.format(1, 2000))
        source.execute("SELECT pg_logical_emit_message(true, 'cdc.watermark', 'inside')")
        source.execute("SAVEPOINT lost")
        source.execute(INSERT_BIG.format(10_001, 12_000))
        with psycopg.connect(source.dsn) as other:
            other.execute(INSERT_BIG.format(20_001, 22_000).encode())
            source.execute(INSERT_BIG.format(12_001, 13_000))
        source.execute("ROLLBACK TO lost")
        source.execute("UPDATE big SET filler = '' WHERE id <= 10")
        source.execute("DELETE FROM big WHERE id = 11")
        source.execute("TRUNCATE ONLY big")
        source.execute(INSERT_BIG.format(1, 2000))
    source.execute("INSERT INTO big VALUES (0, 'small')")


def surviving_keys(decoded: list[m.Message]) -> set[bytes]:
    """Replay a streamed history the way its messages say, and return the keys of the rows that are left.

    The changes of a streamed transaction are kept apart, by subtransaction, until its Stream Commit (hazard 12).
    """
    keys: set[bytes] = set()
    open_: dict[int, list[tuple[int, m.Message]]] = {}
    top = 0
    for message in decoded:
        match message:
            case m.StreamStart():
                top = message.xid
                open_.setdefault(top, [])
            case m.StreamStop():
                top = 0
            case m.StreamAbort():
                if message.subxid == message.xid:
                    del open_[message.xid]
                else:
                    kept = [change for change in open_[message.xid] if change[0] != message.subxid]
                    open_[message.xid] = kept
            case m.StreamCommit():
                for _, change in open_.pop(message.xid):
                    replay(keys, change)
            case m.Insert() | m.Update() | m.Delete() | m.Truncate():
                if top:
                    assert message.xid is not None
                    open_[top].append((message.xid, message))
                else:
                    replay(keys, message)
            case _:
                pass
    assert open_ == {}
    return keys


def replay(keys: set[bytes], change: m.Message) -> None:
    match change:
        case m.Insert():
            keys.add(change.new[0].data or b"")
        case m.Delete():
            keys.remove(change.old[0].data or b"")
        case m.Truncate():
            keys.clear()
        case _:
            pass


def keys_of(source: Database) -> set[bytes]:
    return {key.to_bytes(4, "big") for (key,) in source.fetch("SELECT id FROM big")}


def test_hazard_12_streamed_transactions_of_protocol_2_interleave_and_abort_in_parts(
    source: Database, record_changes: RecordChanges
) -> None:
    streamed_transactions(source)
    create_slot(source)
    streamed_workload(source)
    raw = record_changes(source, ["p"], SLOT, proto_version="2", streaming="on")
    decoded = decode_all(raw, protocol=2)
    assert kinds(decoded) >= STREAMING | {m.RelationMessage, m.Insert, m.Update, m.Delete, m.Truncate, m.LogicalMessage}
    assert len({message.xid for message in decoded if isinstance(message, m.StreamStart)}) > 1
    aborts = [message for message in decoded if isinstance(message, m.StreamAbort)]
    assert all(message.abort_lsn is None for message in aborts)
    assert any(message.subxid != message.xid for message in aborts)
    assert surviving_keys(decoded) == keys_of(source)


def test_prepared_transactions_of_protocol_3_are_decoded(source: Database, record_changes: RecordChanges) -> None:
    options = {"proto_version": "3", "streaming": "on", "two_phase": "on"}
    streamed_transactions(source)
    create_slot(source, two_phase=True)
    if server_version(source) < 15:
        with pytest.raises(psycopg.Error):
            record_changes(source, ["p"], SLOT, **options)
        return
    raw: list[bytes] = []
    for first, last, end in [(1, 10, "COMMIT"), (11, 20, "ROLLBACK"), (21, 2000, "COMMIT")]:
        gid = f"{source.name} élève {first}"
        source.execute(f"BEGIN; {INSERT_BIG.format(first, last)}; PREPARE TRANSACTION '{gid}'")
        # A prepared transaction is sent as one only to whoever listens before it ends.
        raw += record_changes(source, ["p"], SLOT, **options)
        source.execute(f"{end} PREPARED '{gid}'")
        raw += record_changes(source, ["p"], SLOT, **options)
    decoded = decode_all(raw, protocol=3)
    assert kinds(decoded) >= TWO_PHASE | {m.StreamStart, m.StreamPrepare, m.Insert}
    ends = [m.Prepare, m.CommitPrepared, m.Prepare, m.RollbackPrepared, m.StreamPrepare, m.CommitPrepared]
    assert [type(message) for message in decoded if type(message) in ends] == ends
    gids = {message.gid for message in decoded if isinstance(message, m.CommitPrepared | m.RollbackPrepared)}
    assert gids == {f"{source.name} élève {first}" for first in (1, 11, 21)}


def test_an_abort_in_a_parallel_stream_of_protocol_4_has_its_lsn_and_time(
    source: Database, record_changes: RecordChanges
) -> None:
    options = {"proto_version": "4", "streaming": "parallel"}
    streamed_transactions(source)
    create_slot(source)
    streamed_workload(source)
    if server_version(source) < 16:
        with pytest.raises(psycopg.Error):
            record_changes(source, ["p"], SLOT, **options)
        return
    decoded = decode_all(record_changes(source, ["p"], SLOT, **options), protocol=4, parallel=True)
    assert kinds(decoded) >= STREAMING
    aborts = [message for message in decoded if isinstance(message, m.StreamAbort)]
    assert all(message.abort_lsn and message.abort_time_us for message in aborts)
    assert surviving_keys(decoded) == keys_of(source)


def test_the_fields_of_a_row_are_the_bytes_of_copy(source: Database, record_changes: RecordChanges) -> None:
    source.execute(
        """
        CREATE TABLE t (id int PRIMARY KEY, a bigint, b numeric, c text, d timestamptz, e jsonb, f uuid, g bytea,
                        h text[], i bool, j interval, k double precision);
        CREATE PUBLICATION p FOR TABLE t
        """
    )
    create_slot(source)
    source.execute(
        """
        INSERT INTO t VALUES
            (1, -1, 'NaN', '', 'infinity', '{"a": [1, null]}', gen_random_uuid(), decode('00', 'hex'),
             '{{a,b},{c,NULL}}', true, '1 mon -3 days', '-infinity'),
            (2, NULL, 12345678901234567890.12, repeat('é', 100000), NULL, NULL, NULL, ''::bytea, '{}', false, NULL, 0)
        """
    )
    inserts = [message for message in record_changes(source, ["p"], SLOT) if message[:1] == b"I"]
    rows = [read_fields(message, FIRST_TUPLE, bytes([BINARY]) * 12) for message in inserts]
    assert [end for _, end in rows] == [len(message) for message in inserts]
    with source.connection().cursor().copy("COPY (SELECT * FROM t ORDER BY id) TO STDOUT (FORMAT binary)") as copy:
        copied = b"".join(copy)
    header, trailer = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
    assert header + b"".join(b"\0\x0c" + b"".join(fields) for fields, _ in rows) + trailer == copied


def test_a_type_without_a_send_function_comes_as_text_and_is_named_when_binary_was_expected(
    source: Database, record_changes: RecordChanges
) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY, rights aclitem); CREATE PUBLICATION p FOR TABLE t")
    create_slot(source)
    source.execute("INSERT INTO t VALUES (1, 'postgres=r/postgres')")
    (insert,) = (message for message in record_changes(source, ["p"], SLOT) if message[:1] == b"I")
    fields, _ = read_fields(insert, FIRST_TUPLE, bytes([BINARY, TEXT]))
    assert fields == [b"\0\0\0\4\0\0\0\1", b"\0\0\0\x13postgres=r/postgres"]
    with pytest.raises(UnexpectedFormat) as caught:
        read_fields(insert, FIRST_TUPLE, bytes([BINARY, BINARY]))
    assert (caught.value.column_index, caught.value.kind) == (1, TEXT)


NOTED = """
SELECT write_lsn::text, flush_lsn::text, replay_lsn::text, confirmed_flush_lsn::text, reply_time = '2000-01-02 00:00Z'
FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid WHERE slot_name = %s
"""


class Replication:
    """A replication connection of the test's own, which blocks: frames in, status updates out."""

    def __init__(self, source: Database) -> None:
        self._connection = pq.PGconn.connect(f"{source.dsn}?replication=database".encode())
        assert self._connection.status == pq.ConnStatus.OK
        command = f"START_REPLICATION SLOT {SLOT} LOGICAL 0/0 (proto_version '1', publication_names 'p', binary 'true')"
        assert self._connection.exec_(command.encode()).status == pq.ExecStatus.COPY_BOTH

    def frame(self) -> bytes:
        """The next frame; waits for at most ten seconds."""
        while True:
            length, data = self._connection.get_copy_data(1)
            if length > 0:
                return bytes(data)
            assert select.select([self._connection.socket], [], [], 10)[0], "no frame within ten seconds"
            self._connection.consume_input()

    def send(self, frame: bytes) -> None:
        """Send one frame."""
        self._connection.put_copy_data(frame)
        self._connection.flush()

    def close(self) -> None:
        """Close the connection."""
        self._connection.finish()


def test_the_frames_of_a_walsender_are_read_and_it_understands_the_status_updates(source: Database) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    create_slot(source)
    source.execute("INSERT INTO t VALUES (1)")
    replication = Replication(source)
    try:
        end_lsn = INVALID_LSN
        while not end_lsn:
            for message in map(decode, split_frames([replication.frame()])[0]):
                end_lsn = message.end_lsn if isinstance(message, m.Commit) else INVALID_LSN
        update = standby_status_update(
            Lsn(end_lsn + 2), end_lsn, Lsn(end_lsn - 1), clock_us=86_400_000_000, reply_requested=True
        )
        replication.send(update)
        asked = time.time()
        alive: list[Keepalive] = []
        while not alive:
            _, alive = split_frames([replication.frame()])
        assert alive[0].end_lsn >= end_lsn
        assert abs(alive[0].sent_us / 1e6 + 946_684_800 - asked) < 60
        # The server answers before it takes note.
        told = [(str(Lsn(end_lsn + 2)), str(end_lsn), str(Lsn(end_lsn - 1)), str(end_lsn), True)]
        deadline = time.monotonic() + 10
        while (noted := source.fetch(NOTED, SLOT)) != told:
            assert time.monotonic() < deadline, noted
            time.sleep(0.01)
    finally:
        replication.close()
