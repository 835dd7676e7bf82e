"""The other direction, for tests: what pgoutput writes for a message, after ``proto.c``'s writers."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from cdc.pgoutput import messages as m


def encode(message: m.Message) -> bytes:
    """The bytes of one message; a change with an xid is encoded as it stands in a streamed block."""
    match message:
        case m.Begin():
            return b"B" + struct.pack(">QqI", message.final_lsn, message.commit_time_us, message.xid)
        case m.Commit():
            return b"C" + _commit(message)
        case m.Origin():
            return b"O" + struct.pack(">Q", message.commit_lsn) + _string(message.name)
        case m.RelationMessage():
            names = _namespace(message.schema) + _string(message.name)
            identity = message.replica_identity.encode()
            columns = b"".join(
                bytes([c.flags]) + _string(c.name) + struct.pack(">Ii", c.type_oid, c.typmod) for c in message.columns
            )
            count = struct.pack(">H", len(message.columns))
            return b"R" + _xid(message.xid) + _uint32(message.oid) + names + identity + count + columns
        case m.Type():
            return b"Y" + _xid(message.xid) + _uint32(message.oid) + _namespace(message.schema) + _string(message.name)
        case m.Insert():
            return b"I" + _xid(message.xid) + _uint32(message.oid) + b"N" + encode_tuple(message.new)
        case m.Update():
            old = b"" if message.old is None else str(message.old_kind).encode() + encode_tuple(message.old)
            return b"U" + _xid(message.xid) + _uint32(message.oid) + old + b"N" + encode_tuple(message.new)
        case m.Delete():
            old = message.old_kind.encode() + encode_tuple(message.old)
            return b"D" + _xid(message.xid) + _uint32(message.oid) + old
        case m.Truncate():
            flags = message.cascade | message.restart_identity << 1
            oids = b"".join(map(_uint32, message.oids))
            return b"T" + _xid(message.xid) + _uint32(len(message.oids)) + bytes([flags]) + oids
        case m.LogicalMessage():
            head = struct.pack(">BQ", message.transactional, message.lsn)
            return b"M" + _xid(message.xid) + head + _string(message.prefix) + _counted(message.content)
        case m.StreamStart():
            return b"S" + struct.pack(">IB", message.xid, message.is_first)
        case m.StreamStop():
            return b"E"
        case m.StreamCommit():
            return b"c" + _uint32(message.xid) + _commit(message)
        case m.StreamAbort():
            ids = b"A" + struct.pack(">II", message.xid, message.subxid)
            if message.abort_lsn is None or message.abort_time_us is None:
                return ids
            return ids + struct.pack(">Qq", message.abort_lsn, message.abort_time_us)
        case m.BeginPrepare():
            return b"b" + _prepared(message)
        case m.Prepare():
            return b"P\0" + _prepared(message)
        case m.StreamPrepare():
            return b"p\0" + _prepared(message)
        case m.CommitPrepared():
            numbers = (message.commit_lsn, message.end_lsn, message.commit_time_us, message.xid)
            return b"K\0" + struct.pack(">QQqI", *numbers) + _string(message.gid)
        case m.RollbackPrepared():
            lsns, times = (
                (message.prepare_end_lsn, message.rollback_end_lsn),
                (
                    message.prepare_time_us,
                    message.rollback_time_us,
                ),
            )
            return b"r\0" + struct.pack(">QQqqI", *lsns, *times, message.xid) + _string(message.gid)


def encode_tuple(values: Iterable[m.Value]) -> bytes:
    """The TupleData of one row."""
    encoded = [value.kind + (b"" if value.data is None else _counted(value.data)) for value in values]
    return struct.pack(">H", len(encoded)) + b"".join(encoded)


def _commit(message: m.Commit | m.StreamCommit) -> bytes:
    return struct.pack(">BQQq", message.flags, message.commit_lsn, message.end_lsn, message.commit_time_us)


def _prepared(message: m.BeginPrepare | m.Prepare | m.StreamPrepare) -> bytes:
    numbers = (message.prepare_lsn, message.end_lsn, message.prepare_time_us, message.xid)
    return struct.pack(">QQqI", *numbers) + _string(message.gid)


def _xid(xid: int | None) -> bytes:
    return b"" if xid is None else _uint32(xid)


def _uint32(number: int) -> bytes:
    return struct.pack(">I", number)


def _string(text: str) -> bytes:
    return text.encode() + b"\0"


def _namespace(schema: str) -> bytes:
    return b"\0" if schema == "pg_catalog" else _string(schema)


def _counted(data: bytes) -> bytes:
    return _uint32(len(data)) + data
