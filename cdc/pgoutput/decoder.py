"""One pgoutput message, from bytes to data: `decode`.

Every message of protocol versions 1 to 4 is read, strictly: what is unknown, too short, too long, out of place or not
UTF-8 is a `ProtocolError`, and nothing else is ever raised. (Version 2 adds streaming, 3 two-phase commit, 4 parallel
streaming.) Formats, and the place where a message may stand, are those
of PostgreSQL's manual ("Logical Replication Message Formats", "Logical Streaming Replication Protocol") and of the
readers in PostgreSQL's own ``src/backend/replication/logical/proto.c``, which also refuse unknown flags and unset LSNs.

Decoding keeps no state: the caller says what it asked the server for (``protocol``, ``parallel``) and whether the
message stands between Stream Start and Stream Stop. The rows of the hot path do not come here: `cdc.pgoutput.tuples`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cdc.lsn import Lsn
from cdc.pgoutput import messages
from cdc.pgoutput.damage import damaged
from cdc.pgoutput.messages import Message
from cdc.pgoutput.reading import Reader

_BEGIN: Final = struct.Struct(">xQqI")
_COMMIT: Final = struct.Struct(">xBQQq")


def decode(message: bytes, *, protocol: int = 1, in_stream: bool = False, parallel: bool = False) -> Message:
    """Read one message of the output plugin ``pgoutput``.

    ``protocol`` is the ``proto_version`` that the stream was started with; a message of a later one is an error.
    ``in_stream`` says that the message stands behind a Stream Start and not yet behind its Stream Stop: changes then
    carry an xid. ``parallel`` says that the stream was started with ``streaming 'parallel'``: a Stream Abort then
    carries its LSN and time.

    Raises `ProtocolError` whenever the bytes are not exactly one such message.
    """
    if not in_stream and (boundary := _boundary(message)) is not None:
        return boundary
    format_ = _FORMATS.get(message[:1])
    if format_ is None:
        raise damaged("a pgoutput message", 0, "the kind of a message, as protocol versions 1 to 4 have them")
    what = f"a pgoutput message ({format_.name})"
    if protocol < format_.since:
        raise damaged(what, 0, f"a message of protocol version {protocol}, and this one is of {format_.since}")
    if not (format_.inside if in_stream else format_.outside):
        where = "inside" if in_stream else "outside of"
        raise damaged(what, 0, f"a message that may stand {where} a streamed block")
    reader = Reader(message, what, with_xid=in_stream, with_abort_info=parallel)
    decoded = format_.read(reader)
    reader.finish()
    return decoded


def _boundary(message: bytes) -> Message | None:
    # Each transaction has a Begin and a Commit, and many have a single row: an undamaged one is read in one go, 1 µs
    # instead of 3. `None` says that the message is another one, or is for the strict reading to complain about.
    if len(message) == _BEGIN.size and message[0] == 0x42:
        final_lsn, commit_time_us, xid = _BEGIN.unpack(message)
        return messages.Begin(Lsn(final_lsn), commit_time_us, xid) if final_lsn else None
    if len(message) == _COMMIT.size and message[0] == 0x43:
        flags, commit_lsn, end_lsn, commit_time_us = _COMMIT.unpack(message)
        return messages.Commit(flags, Lsn(commit_lsn), Lsn(end_lsn), commit_time_us) if flags == 0 else None
    return None


def _begin(reader: Reader) -> Message:
    return messages.Begin(reader.set_lsn(), reader.int64(), reader.uint32())


def _commit(reader: Reader) -> Message:
    return messages.Commit(reader.no_flags(), reader.lsn(), reader.lsn(), reader.int64())


def _origin(reader: Reader) -> Message:
    return messages.Origin(reader.lsn(), reader.string())


def _relation(reader: Reader) -> Message:
    xid, oid = reader.xid_in_stream(), reader.uint32()
    schema, name = reader.namespace(), reader.string()
    replica_identity = reader.one_of(b"dfin", "the replica identity d, f, i or n")
    columns = tuple(_column(reader) for _ in range(reader.count16()))
    return messages.RelationMessage(xid, oid, schema, name, replica_identity, columns)


def _column(reader: Reader) -> messages.RelationColumn:
    return messages.RelationColumn(reader.flags(0b1), reader.string(), reader.uint32(), reader.int32())


def _type(reader: Reader) -> Message:
    return messages.Type(reader.xid_in_stream(), reader.uint32(), reader.namespace(), reader.string())


def _insert(reader: Reader) -> Message:
    xid, oid = reader.xid_in_stream(), reader.uint32()
    reader.one_of(b"N", "N, a new tuple")
    return messages.Insert(xid, oid, _tuple(reader))


def _update(reader: Reader) -> Message:
    xid, oid = reader.xid_in_stream(), reader.uint32()
    marker = reader.one_of(b"KON", "K, O or N, a tuple")
    if marker == "N":
        return messages.Update(xid, oid, None, None, _tuple(reader))
    old = _tuple(reader)
    reader.one_of(b"N", "N, a new tuple")
    return messages.Update(xid, oid, marker, old, _tuple(reader))


def _delete(reader: Reader) -> Message:
    xid, oid = reader.xid_in_stream(), reader.uint32()
    marker = reader.one_of(b"KO", "K or O, an old tuple")
    return messages.Delete(xid, oid, marker, _tuple(reader))


def _tuple(reader: Reader) -> messages.Tuple:
    return tuple(_value(reader) for _ in range(reader.count16()))


def _value(reader: Reader) -> messages.Value:
    kind = reader.one_of(b"nutb", "a column of kind n, u, t or b").encode()
    return messages.Value(kind, reader.counted() if kind in b"tb" else None)


def _truncate(reader: Reader) -> Message:
    xid, count = reader.xid_in_stream(), reader.uint32()
    flags = reader.flags(0b11)
    # A damaged count is harmless: reading ends where the message does.
    oids = tuple(reader.uint32() for _ in range(count))
    return messages.Truncate(xid, oids, cascade=flags & 1 == 1, restart_identity=flags & 2 == 2)


def _logical_message(reader: Reader) -> Message:
    xid, flags = reader.xid_in_stream(), reader.flags(0b1)
    return messages.LogicalMessage(xid, flags == 1, reader.lsn(), reader.string(), reader.counted())


def _stream_start(reader: Reader) -> Message:
    return messages.StreamStart(reader.uint32(), reader.flags(0b1) == 1)


def _stream_stop(_: Reader) -> Message:
    return messages.StreamStop()


def _stream_commit(reader: Reader) -> Message:
    return messages.StreamCommit(reader.uint32(), reader.no_flags(), reader.lsn(), reader.lsn(), reader.int64())


def _stream_abort(reader: Reader) -> Message:
    xid, subxid = reader.uint32(), reader.uint32()
    if not reader.with_abort_info:
        return messages.StreamAbort(xid, subxid)
    return messages.StreamAbort(xid, subxid, reader.lsn(), reader.int64())


def _begin_prepare(reader: Reader) -> Message:
    return messages.BeginPrepare(*_prepared(reader))


def _prepare(reader: Reader) -> Message:
    return messages.Prepare(reader.no_flags(), *_prepared(reader))


def _commit_prepared(reader: Reader) -> Message:
    return messages.CommitPrepared(reader.no_flags(), *_prepared(reader))


def _stream_prepare(reader: Reader) -> Message:
    return messages.StreamPrepare(reader.no_flags(), *_prepared(reader))


def _prepared(reader: Reader) -> tuple[Lsn, Lsn, int, int, str]:
    return reader.set_lsn(), reader.set_lsn(), reader.int64(), reader.uint32(), reader.string()


def _rollback_prepared(reader: Reader) -> Message:
    flags, prepare_end_lsn, rollback_end_lsn = reader.no_flags(), reader.set_lsn(), reader.set_lsn()
    times = reader.int64(), reader.int64()
    return messages.RollbackPrepared(flags, prepare_end_lsn, rollback_end_lsn, *times, reader.uint32(), reader.string())


@dataclass(frozen=True, slots=True)
class _Format:
    """How one kind of message is read, since which protocol version it exists, and where it may stand."""

    name: str
    read: Callable[[Reader], Message]
    since: int = 1
    outside: bool = True
    inside: bool = False


_FORMATS: Final[dict[bytes, _Format]] = {
    b"B": _Format("Begin", _begin),
    b"C": _Format("Commit", _commit),
    b"O": _Format("Origin", _origin, inside=True),
    b"R": _Format("Relation", _relation, inside=True),
    b"Y": _Format("Type", _type, inside=True),
    b"I": _Format("Insert", _insert, inside=True),
    b"U": _Format("Update", _update, inside=True),
    b"D": _Format("Delete", _delete, inside=True),
    b"T": _Format("Truncate", _truncate, inside=True),
    b"M": _Format("Message", _logical_message, inside=True),
    b"S": _Format("Stream Start", _stream_start, since=2),
    b"E": _Format("Stream Stop", _stream_stop, since=2, outside=False, inside=True),
    b"c": _Format("Stream Commit", _stream_commit, since=2),
    b"A": _Format("Stream Abort", _stream_abort, since=2),
    b"b": _Format("Begin Prepare", _begin_prepare, since=3),
    b"P": _Format("Prepare", _prepare, since=3),
    b"K": _Format("Commit Prepared", _commit_prepared, since=3),
    b"r": _Format("Rollback Prepared", _rollback_prepared, since=3),
    b"p": _Format("Stream Prepare", _stream_prepare, since=3),
}
