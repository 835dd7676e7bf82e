"""From pgoutput messages to whole transactions.

`Accumulator` is fed the messages of one replication stream, in order, and hands out `Part` objects. It keeps row
changes as the bytes they came in and looks only at their first five: the kind and the relation's oid. It does no I/O;
when a relation is new or uses a type it has not met, it stops with `UnknownTypes`, the caller asks the source's
catalog, and feeds the rest.

pgoutput (protocol 1) sends transactions one after another, in the order of their commits, never interleaved
(PostgreSQL's manual, "Logical Streaming Replication Protocol"), so one open transaction is all the state there is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from struct import Struct
from typing import NoReturn

from cdc.changes.relation import Column, DataType, Place, Relation, ReplicaIdentity
from cdc.changes.transaction import Kind, Mark, Part, Run, Truncation
from cdc.changes.type_rows import TypeKey
from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.pgoutput.decoder import decode
from cdc.pgoutput.messages import LogicalMessage, Origin, RelationMessage, Truncate, Type

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
        self._with_roots = with_roots
        self._places: dict[int, Place | None] = {}
        self._relations: dict[int, Relation] = {}
        self._descriptions: dict[int, bytes] = {}
        self._types: dict[TypeKey, DataType] = {}
        self._type_names: dict[int, tuple[str, str]] = {}
        self._ready: list[Part] = []
        self._open: Part | None = None

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun whose commit has not been fed yet."""
        return self._open is not None

    def learn(self, types: dict[TypeKey, DataType], asked: frozenset[TypeKey]) -> None:
        """Take what the catalog said about ``asked``.

        A type that the catalog no longer knows has been dropped since the change was made; the stream's own Type
        message then has its name (hazard 15: the message describes the past).
        """
        self._types.update(types)
        for oid, modifier in asked - types.keys():
            schema, name = self._type_names.get(oid, ("pg_catalog", f"unknown type {oid}"))
            self._types[oid, modifier] = DataType(oid=oid, schema=schema, name=name, sql=f'"{schema}"."{name}"')

    @property
    def placed(self) -> frozenset[int]:
        """The oids of all relations that were asked about."""
        return frozenset(self._places)

    def place(self, places: Mapping[int, Place], asked: Collection[int]) -> None:
        """Take what the catalog says of the relations ``asked``; those without a place are no partitions now.

        May be said again when that has changed: what comes from now on belongs there.
        """
        for oid in asked:
            known, found = self._places.get(oid), places.get(oid)
            self._places[oid] = found
            if found != known and oid in self._relations:
                relation = self._relations[oid]
                self._relations[oid] = relation.by_itself() if found is None else relation.at(found)

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
        run_oid = run_kind = -1
        for index, message in enumerate(messages):
            kind = message[0] if message else -1
            if kind == 0x49 or kind == 0x55 or kind == 0x44:  # I, U, D: nearly all there is
                if len(message) < 7:
                    _damaged(message)
                oid = _RELATION_OID(message, 1)[0]
                if run is None or oid != run_oid or kind != run_kind:
                    if open_part is None:
                        _damaged(message)
                    relation = self._relations.get(oid)
                    if relation is None:
                        raise ProtocolError(f"the stream changes relation {oid} without having described it")
                    run = Run(relation, _KINDS[kind], [], open_part.commit_time_us)
                    run_oid, run_kind = oid, kind
                    open_part.changes.append(run)
                    open_part.relations.add(relation)
                    open_part.size += RUN_OVERHEAD
                assert open_part is not None  # a run exists only inside a transaction
                run.rows.append(message)
                open_part.row_count += 1
                open_part.size += len(message) + ROW_OVERHEAD
                if open_part.size > self._part_bytes:
                    open_part, run = self._cut(open_part), None
                continue
            run = None
            # Every transaction has these two: read here, without an object each, they cost a small one a tenth less.
            if kind == 0x42 and len(message) == _BEGIN.size and open_part is None:  # B
                _, commit_lsn, commit_time_us, xid = _BEGIN.unpack(message)
                open_part = Part(xid, Lsn(commit_lsn), commit_time_us, size=PART_OVERHEAD)
                continue
            if kind == 0x43 and len(message) == _COMMIT.size and open_part is not None:  # C
                _, flags, commit_lsn, end_lsn, _ = _COMMIT.unpack(message)
                if flags or commit_lsn != open_part.commit_lsn:
                    _damaged(message)
                open_part.end_lsn = Lsn(end_lsn)
                ready.append(open_part)
                open_part = None
                continue
            try:
                open_part = self._control(message, open_part)
            except _NeedTypes as need:
                self._open = open_part
                raise UnknownTypes(need.keys, messages[index:], need.relations) from None
            if open_part is not None and open_part.size > self._part_bytes:
                open_part = self._cut(open_part)
        self._open = open_part

    def _control(self, message: bytes, part: Part | None) -> Part | None:
        """Everything that is not a row; returns the transaction that is open afterwards."""
        decoded = decode(message)
        match decoded:
            case RelationMessage():
                self._describe(decoded, message)
            case Type():
                self._type_names[decoded.oid] = (decoded.schema, decoded.name)
            case Truncate():
                if part is None:
                    _damaged(message)
                relations = tuple(self._relations[oid] for oid in decoded.oids if oid in self._relations)
                if len(relations) != len(decoded.oids):
                    raise ProtocolError("the stream truncates a relation without having described it")
                part.changes.append(
                    Truncation(relations, decoded.cascade, decoded.restart_identity, part.commit_time_us)
                )
                part.relations.update(relations)
                part.size += len(message) + RUN_OVERHEAD
            case LogicalMessage():
                self._mark(decoded, part)
            case Origin():
                pass
            case _:
                _damaged(message)
        return part

    def _mark(self, message: LogicalMessage, part: Part | None) -> None:
        # A message outside a transaction is delivered at once and belongs to no commit: nothing of ours is sent so.
        # Those of other programs come along, and nothing bounds what they hold or how many there are.
        if part is not None and message.prefix.startswith(OUR_PREFIX):
            mark = Mark(message.prefix, message.content, message.lsn)
            part.changes.append(mark)
            part.marks.append(mark)
            part.size += len(message.content) + MARK_OVERHEAD

    def _describe(self, message: RelationMessage, raw: bytes) -> None:
        # The source repeats a description after any invalidation (an ANALYZE is enough). The same description keeps the
        # same object, so that whatever is cached by relation stays.
        if self._descriptions.get(message.oid) == raw:
            return
        keys = frozenset((column.type_oid, column.typmod) for column in message.columns)
        missing = keys - self._types.keys()
        is_new = self._with_roots and message.oid not in self._places
        if missing or is_new:
            raise _NeedTypes(missing, frozenset({message.oid} if is_new else ()))
        try:
            identity = ReplicaIdentity(message.replica_identity)
        except ValueError:
            raise ProtocolError(f"relation {message.oid} has a replica identity that is not known") from None
        columns = tuple(
            Column(column.name, self._types[column.type_oid, column.typmod], bool(column.flags & 1))
            for column in message.columns
        )
        relation = Relation(message.oid, message.schema, message.name, identity, columns)
        place = self._places.get(message.oid)
        self._relations[message.oid] = relation if place is None else relation.at(place)
        self._descriptions[message.oid] = raw

    def _cut(self, part: Part) -> Part:
        """End a part in the middle of its transaction and begin the next."""
        self._ready.append(part)
        return Part(part.xid, part.commit_lsn, part.commit_time_us, is_first=False, size=PART_OVERHEAD)


class _NeedTypes(Exception):
    def __init__(self, keys: frozenset[TypeKey], relations: frozenset[int]) -> None:
        super().__init__()
        self.keys = keys
        self.relations = relations


def _damaged(message: bytes) -> NoReturn:
    name = chr(message[0]) if message and 0x41 <= message[0] <= 0x7A else "?"
    raise ProtocolError(
        f"the stream is damaged: a message of type {name!r} and {len(message)} bytes stands where it cannot be"
    )
