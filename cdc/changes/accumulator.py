"""From pgoutput messages to whole transactions.

`Accumulator` is fed the messages of one replication stream, in order, and hands out `Part` objects. It keeps row
changes as the bytes they came in and looks only at their first five: the kind and the relation's oid. It does no I/O;
when a relation is new or uses a type it has not met, it stops with `UnknownTypes`, the caller asks the source's
catalog, and feeds the rest.

pgoutput (protocol 1) sends transactions one after another, in the order of their commits, never interleaved
(PostgreSQL's manual, "Logical Streaming Replication Protocol"), so one open transaction is all the state there is.

It is the specification of `cdc.changes.packed_accumulator`, which hands out the same changes packed into blocks, and is
used in its place where there is no compiled core (`accumulator_for`).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import NoReturn

from cdc.changes.descriptions import Descriptions, NeedTypes
from cdc.changes.transaction import Change, Kind, Mark, Part, Run, Truncation
from cdc.changes.type_rows import TypeKey
from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.pgoutput.decoder import decode
from cdc.pgoutput.messages import LogicalMessage, Message, Origin, RelationMessage, Truncate, Type

PART_OVERHEAD = 700
RUN_OVERHEAD = 200
ROW_OVERHEAD = 56
MARK_OVERHEAD = 200
"""Bytes that Python takes for a part, a run (or a truncation), a row beside its message, and a mark beside its content
(sys.getsizeof, CPython 3.11). With small transactions they are most of the memory, so they count against every limit
(invariant 10)."""

OUR_PREFIX = "cdc."
"""How the prefix of a logical message begins that `cdc` has written. pgoutput sends everybody's, or nobody's."""

_RELATION_OID = Struct(">I").unpack_from
_BEGIN = Struct(">cQqI")
_COMMIT = Struct(">cBQQq")
"""The layouts of Begin and Commit (manual, "Logical Replication Message Formats")."""

_KINDS = {int(kind): kind for kind in Kind}


class UnknownTypes(Exception):
    """A relation is new, or uses types whose names are not known yet: learn ``keys`` and feed ``remaining``.

    ``relations`` are oids of which it is not known whether they are partitions. Control flow, not an error: nothing of
    ``remaining`` has been taken in.
    """

    def __init__(
        self, keys: frozenset[TypeKey], remaining: Sequence[bytes], relations: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(f"{len(keys)} types and {len(relations)} relations to look up")
        self.keys = keys
        self.remaining = remaining
        self.relations = relations


class Accumulator:
    """Collects the messages of one stream into parts.

    One accumulator serves one replication connection: after a reconnection the source describes its relations again.
    A transaction is cut where a part of it has grown beyond ``part_bytes``. With ``with_roots`` the caller is asked of
    every relation whether it is a partition, once (`place`), and its rows are those of its root then.
    """

    def __init__(self, *, part_bytes: int, with_roots: bool = False) -> None:
        self._part_bytes = part_bytes
        self.descriptions = Descriptions(with_roots=with_roots, changed=lambda _oid, _relation: None)
        self._ready: list[Part] = []
        self._open: Part | None = None
        self._changes: list[Change] = []  # those of the open part

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun whose commit has not been fed yet."""
        return self._open is not None

    @property
    def is_due(self) -> bool:
        """Whether there are parts to take that will not grow any more."""
        return bool(self._ready)

    def take(self) -> list[Part]:
        """The parts that are complete since the last call, in order."""
        ready, self._ready = self._ready, []
        return ready

    def feed(self, messages: Sequence[bytes]) -> None:
        """Take in messages, in the stream's order.

        Raises `UnknownTypes` to be fed again, and `ProtocolError` for bytes that are not pgoutput's.
        """
        open_part = self._open
        ready = self._ready
        run: Run | None = None
        rows: list[bytes] = []
        run_oid = run_kind = -1
        for index, message in enumerate(messages):
            kind = message[0] if message else -1
            if kind == 0x49 or kind == 0x55 or kind == 0x44:  # I, U, D: nearly all there is
                if len(message) < 7:
                    damaged(message)
                oid = _RELATION_OID(message, 1)[0]
                if run is None or oid != run_oid or kind != run_kind:
                    if open_part is None:
                        damaged(message)
                    relation = self.descriptions.relations.get(oid)
                    if relation is None:
                        raise undescribed(oid)
                    rows = []
                    run = Run(relation, _KINDS[kind], rows, open_part.commit_time_us)
                    run_oid, run_kind = oid, kind
                    self._changes.append(run)
                    open_part.relations.add(relation)
                    open_part.size += RUN_OVERHEAD
                assert open_part is not None  # a run exists only inside a transaction
                rows.append(message)
                open_part.row_count += 1
                open_part.size += len(message) + ROW_OVERHEAD
                if open_part.size > self._part_bytes:
                    open_part, run = self._cut(open_part), None
                continue
            run = None
            # Every transaction has these two: read here, without an object each, they cost a small one a tenth less.
            if kind == 0x42 and len(message) == _BEGIN.size and open_part is None:  # B
                _, commit_lsn, commit_time_us, xid = _BEGIN.unpack(message)
                open_part = self._begin(xid, Lsn(commit_lsn), commit_time_us)
                continue
            if kind == 0x43 and len(message) == _COMMIT.size and open_part is not None:  # C
                _, flags, commit_lsn, end_lsn, _ = _COMMIT.unpack(message)
                if flags or commit_lsn != open_part.commit_lsn:
                    damaged(message)
                open_part.end_lsn = Lsn(end_lsn)
                ready.append(open_part)
                open_part = None
                continue
            try:
                open_part = self._control(message, open_part)
            except NeedTypes as need:
                self._open = open_part
                raise UnknownTypes(need.keys, messages[index:], need.relations) from None
            if open_part is not None and open_part.size > self._part_bytes:
                open_part = self._cut(open_part)
        self._open = open_part

    def _control(self, message: bytes, part: Part | None) -> Part | None:
        """Everything that is not a row; returns the transaction that is open afterwards."""
        decoded = decode(message)
        item = taken_in(decoded, message, self.descriptions, None if part is None else part.commit_time_us)
        if item is not None and part is not None:
            self._changes.append(item)
            part.size += size_of(item)
            if isinstance(item, Mark):
                part.marks.append(item)
            else:
                part.relations.update(item.relations)
        return part

    def _begin(self, xid: int, commit_lsn: Lsn, commit_time_us: int, *, is_first: bool = True) -> Part:
        self._changes = []
        return Part(xid, commit_lsn, commit_time_us, is_first, changes=self._changes, size=PART_OVERHEAD)

    def _cut(self, part: Part) -> Part:
        """End a part in the middle of its transaction and begin the next."""
        self._ready.append(part)
        return self._begin(part.xid, part.commit_lsn, part.commit_time_us, is_first=False)


def taken_in(
    decoded: Message, message: bytes, descriptions: Descriptions, commit_time_us: int | None
) -> Mark | Truncation | None:
    """Take in what is not a row, nor a Begin or a Commit in its place; returns what it adds to the open transaction.

    ``message`` are its bytes; ``commit_time_us`` is that of the open transaction, `None` without one. Raises
    `NeedTypes`, and `ProtocolError`.
    """
    match decoded:
        case RelationMessage():
            descriptions.describe(decoded, message)
        case Type():
            descriptions.name_type(decoded)
        case Truncate():
            if commit_time_us is None:
                damaged(message)
            known = descriptions.relations
            relations = tuple(known[oid] for oid in decoded.oids if oid in known)
            if len(relations) != len(decoded.oids):
                raise ProtocolError("the stream truncates a relation without having described it")
            return Truncation(relations, decoded.cascade, decoded.restart_identity, commit_time_us)
        case LogicalMessage():
            # One outside a transaction is delivered at once and belongs to no commit: nothing of ours is sent so. Those
            # of other programs come along, and nothing bounds what they hold or how many there are.
            if commit_time_us is not None and decoded.prefix.startswith(OUR_PREFIX):
                return Mark(decoded.prefix, decoded.content, decoded.lsn)
        case Origin():
            pass
        case _:
            damaged(message)
    return None


def size_of(item: Mark | Truncation) -> int:
    """About the memory that it takes."""
    if isinstance(item, Mark):
        return len(item.content) + MARK_OVERHEAD
    return RUN_OVERHEAD + 8 * len(item.relations)


def undescribed(oid: int) -> ProtocolError:
    """The error for a row of a relation that the stream has not described."""
    return ProtocolError(f"the stream changes relation {oid} without having described it")


def damaged(message: bytes) -> NoReturn:
    """Raise the error for a message that stands where it cannot be."""
    name = chr(message[0]) if message and 0x41 <= message[0] <= 0x7A else "?"
    raise ProtocolError(
        f"the stream is damaged: a message of type {name!r} and {len(message)} bytes stands where it cannot be"
    )
