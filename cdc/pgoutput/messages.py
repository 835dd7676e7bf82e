"""Every message that pgoutput can send, as data.

The names, fields and their order are those of PostgreSQL's manual, "Logical Replication Message Formats". Times are
microseconds since 2000-01-01 UTC on the source's clock; an ``xid`` that may be `None` is only sent inside a streamed
block, where it tells the subtransaction. What can hold a row's value is left out of ``repr``, so that no log shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cdc.lsn import Lsn


@dataclass(frozen=True, slots=True)
class Begin:
    """A transaction that has committed starts; ``final_lsn`` is where its commit record starts."""

    final_lsn: Lsn
    commit_time_us: int
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The transaction ends. ``end_lsn``, the first byte behind the commit record, is what a position is made of."""

    flags: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time_us: int


@dataclass(frozen=True, slots=True)
class Origin:
    """The transaction came to the source by replication: ``commit_lsn`` is its commit on the server named ``name``."""

    commit_lsn: Lsn
    name: str


@dataclass(frozen=True, slots=True)
class RelationColumn:
    """A column of a `RelationMessage`. Bit 1 of ``flags``: it is part of the replica identity."""

    flags: int
    name: str
    type_oid: int
    typmod: int

    @property
    def is_key(self) -> bool:
        """Whether the column is part of the replica identity (every column is, with REPLICA IDENTITY FULL)."""
        return self.flags & 1 == 1


@dataclass(frozen=True, slots=True)
class RelationMessage:
    """The shape of a relation, sent before its first change and whenever it has changed.

    ``replica_identity`` is ``pg_class.relreplident``: d, n, f or i. ``columns`` are in the order of the tuples.
    """

    xid: int | None
    oid: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[RelationColumn, ...]


@dataclass(frozen=True, slots=True)
class Type:
    """The name of a type that is not built in. A domain comes with its own oid and the name of its base type."""

    xid: int | None
    oid: int
    schema: str
    name: str


@dataclass(frozen=True, slots=True)
class Value:
    """One column of a tuple.

    ``kind`` is ``b"n"`` (NULL), ``b"u"`` (TOASTed, unchanged, not sent), ``b"t"`` (text) or ``b"b"`` (binary); ``data``
    is `None` for the first two.
    """

    kind: bytes
    data: bytes | None = field(default=None, repr=False)


Tuple = tuple[Value, ...]
"""The values of one row, in the order of its relation's columns."""


@dataclass(frozen=True, slots=True)
class Insert:
    """A new row."""

    xid: int | None
    oid: int
    new: Tuple


@dataclass(frozen=True, slots=True)
class Update:
    """A changed row. ``old_kind`` is ``K`` (``old`` holds the old key), ``O`` (the whole old row) or `None`."""

    xid: int | None
    oid: int
    old_kind: str | None
    old: Tuple | None
    new: Tuple


@dataclass(frozen=True, slots=True)
class Delete:
    """A deleted row. ``old_kind`` is ``K`` (``old`` holds its key) or ``O`` (the whole row)."""

    xid: int | None
    oid: int
    old_kind: str
    old: Tuple


@dataclass(frozen=True, slots=True)
class Truncate:
    """One TRUNCATE of the published relations ``oids``."""

    xid: int | None
    oids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """What ``pg_logical_emit_message`` wrote. One that is not transactional stands between transactions."""

    xid: int | None
    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StreamStart:
    """A block of a transaction that is still running (protocol 2). Until the `StreamStop`, messages carry an xid."""

    xid: int
    is_first: bool


@dataclass(frozen=True, slots=True)
class StreamStop:
    """The streamed block ends."""


@dataclass(frozen=True, slots=True)
class StreamCommit:
    """A streamed transaction has committed; its fields are those of `Commit`."""

    xid: int
    flags: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time_us: int


@dataclass(frozen=True, slots=True)
class StreamAbort:
    """A part of a streamed transaction, or all of it (``subxid == xid``), has aborted.

    ``abort_lsn`` and ``abort_time_us`` are sent with ``streaming 'parallel'`` (protocol 4) only.
    """

    xid: int
    subxid: int
    abort_lsn: Lsn | None = None
    abort_time_us: int | None = None


@dataclass(frozen=True, slots=True)
class BeginPrepare:
    """A prepared transaction starts (protocol 3, two-phase); its changes follow, then a `Prepare`."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_time_us: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class Prepare:
    """The changes of a prepared transaction are all here; whether it commits is not known yet."""

    flags: int
    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_time_us: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class CommitPrepared:
    """A prepared transaction has committed."""

    flags: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time_us: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class RollbackPrepared:
    """A prepared transaction has been rolled back."""

    flags: int
    prepare_end_lsn: Lsn
    rollback_end_lsn: Lsn
    prepare_time_us: int
    rollback_time_us: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class StreamPrepare:
    """A streamed transaction has been prepared; its fields are those of `Prepare`."""

    flags: int
    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_time_us: int
    xid: int
    gid: str


Message = (
    Begin
    | Commit
    | Origin
    | RelationMessage
    | Type
    | Insert
    | Update
    | Delete
    | Truncate
    | LogicalMessage
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
    | BeginPrepare
    | Prepare
    | CommitPrepared
    | RollbackPrepared
    | StreamPrepare
)
"""Whatever `cdc.pgoutput.decoder.decode` returns."""
