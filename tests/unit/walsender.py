"""A walsender for tests: what pgoutput sends of a history when it streams, and what the history was.

`Walsender` keeps the book of descriptions that ``pgoutput.c`` keeps (``RelationSyncEntry``): ``schema_sent`` and
``streamed_txns`` of each relation, cleared by an invalidation; the transaction struck out of all at any Stream Abort;
moved to ``schema_sent`` at its Stream Commit. ``told`` is what a reader has to learn: the committed transactions in the
order of their commits, each change with the shape of its relation where it was decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cdc.lsn import Lsn
from cdc.pgoutput import messages as m
from tests.streams import Told
from tests.unit.pgoutput_encoder import encode

RELATIONS = 2


@dataclass
class _Change:
    xid: int
    oid: int
    number: int


@dataclass
class _Invalidation:
    """DDL of a transaction at its place: what comes after it is described anew."""

    xid: int
    oid: int
    version: int


@dataclass
class _Running:
    """A transaction that has not ended: its stack of subtransactions, and what was not sent yet."""

    xid: int
    stack: list[int] = field(default_factory=list)
    children: dict[int, list[int]] = field(default_factory=dict)
    pending: list[_Change | _Invalidation] = field(default_factory=list)
    sent: list[tuple[int, tuple[object, ...]]] = field(default_factory=list)
    streamed: set[int] = field(default_factory=set)
    touched: set[int] = field(default_factory=set)
    altered: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    decoded: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


class Walsender:
    """Takes what happens at the source, in order. Operations that locks would forbid do nothing."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.told: list[Told] = []
        self._running: dict[int, _Running] = {}
        self._versions = dict.fromkeys(range(RELATIONS), 0)
        self._next_version = 1
        self._next_xid = 100
        self._lsn = 1000
        self._numbers = 0
        self._schema_sent: set[int] = set()
        self._streamed_txns: dict[int, set[int]] = {oid: set() for oid in range(RELATIONS)}

    # --- what happens at the source

    def begin(self, slot: int) -> None:
        if slot not in self._running:
            self._running[slot] = _Running(self._xid())

    def savepoint(self, slot: int) -> None:
        if running := self._running.get(slot):
            xid = self._xid()
            running.children.setdefault(running.stack[-1] if running.stack else running.xid, []).append(xid)
            running.stack.append(xid)

    def release(self, slot: int) -> None:
        if (running := self._running.get(slot)) and running.stack:
            running.stack.pop()

    def change(self, slot: int, oid: int) -> None:
        """A row is inserted, in a transaction that begins where none runs."""
        self.begin(slot)
        running = self._running[slot]
        if any(oid in other.altered for other in self._running.values() if other is not running):
            return
        self._numbers += 1
        running.touched.add(oid)
        running.pending.append(_Change(running.stack[-1] if running.stack else running.xid, oid, self._numbers))

    def alter(self, slot: int, oid: int) -> None:
        """DDL inside a transaction, under a lock that nobody else's rows go with."""
        running = self._running.get(slot)
        others = [other for other in self._running.values() if other is not running]
        if running is None or any(oid in other.touched or oid in other.altered for other in others):
            return
        xid = running.stack[-1] if running.stack else running.xid
        version = self._version()
        running.altered.setdefault(oid, []).append((xid, version))
        running.pending.append(_Invalidation(xid, oid, version))

    def rename(self, oid: int) -> None:
        """DDL that takes no lock on the table, committed at once by somebody else."""
        if not any(oid in running.altered for running in self._running.values()):
            self._versions[oid] = self._version()
            self._invalidate(oid)

    def analyze(self, oid: int) -> None:
        self._invalidate(oid)

    def rollback_to(self, slot: int) -> None:
        """The innermost subtransaction aborts, with all that were its children."""
        if (running := self._running.get(slot)) and running.stack:
            gone = self._family(running, running.stack.pop())
            running.pending = [item for item in running.pending if item.xid not in gone]
            running.sent = [(xid, change) for xid, change in running.sent if xid not in gone]
            for altered in (running.altered, running.decoded):
                for oid in list(altered):
                    altered[oid] = [(xid, version) for xid, version in altered[oid] if xid not in gone]
                    if not altered[oid]:
                        del altered[oid]
            for xid in gone:
                if xid in running.streamed:
                    self._stream_abort(running.xid, xid)

    def rollback(self, slot: int) -> None:
        if running := self._running.pop(slot, None):
            for xid in sorted(running.streamed - {running.xid}):
                self._stream_abort(running.xid, xid)
            if running.xid in running.streamed:
                self._stream_abort(running.xid, running.xid)

    def commit(self, slot: int) -> None:
        running = self._running.pop(slot, None)
        if running is None:
            return
        self._lsn += 10
        lsn, end_lsn = Lsn(self._lsn), Lsn(self._lsn + 5)
        is_streamed = running.xid in running.streamed
        if is_streamed:
            self._block(running)
            self._send(m.StreamCommit(running.xid, 0, lsn, end_lsn, self._lsn))
            for oid, streamed in self._streamed_txns.items():
                if running.xid in streamed:
                    self._schema_sent.add(oid)
                streamed.discard(running.xid)
        else:
            self._send(m.Begin(lsn, self._lsn, running.xid))
            self._decode(running, in_stream=False)
            self._send(m.Commit(0, lsn, end_lsn, self._lsn))
        for oid, altered in running.altered.items():
            self._versions[oid] = altered[-1][1]
            self._invalidate(oid)
        changes = [change for _, change in running.sent]
        if changes:
            self.told.append(Told(running.xid, lsn, self._lsn, end_lsn, changes))

    # --- what is sent

    def stream(self, slot: int) -> None:
        """The transaction is the largest, and memory is short."""
        if (running := self._running.get(slot)) and running.pending:
            self._block(running)

    def _block(self, running: _Running) -> None:
        self._send(m.StreamStart(running.xid, running.xid not in running.streamed))
        running.streamed.add(running.xid)
        self._decode(running, in_stream=True)
        self._send(m.StreamStop())

    def _decode(self, running: _Running, *, in_stream: bool) -> None:
        for item in running.pending:
            if in_stream:
                running.streamed.add(item.xid)
            if isinstance(item, _Invalidation):
                running.decoded.setdefault(item.oid, []).append((item.xid, item.version))
                self._invalidate(item.oid)
                continue
            xid = item.xid if in_stream else None
            shape = self._shape(running, item.oid)
            book = self._streamed_txns[item.oid]
            if running.xid not in book if in_stream else item.oid not in self._schema_sent:
                self._send(m.Type(xid, 50 + item.oid, "public", shape.name))
                self._send(m.RelationMessage(xid, *_fields(shape)))
                if in_stream:
                    book.add(running.xid)
                else:
                    self._schema_sent.add(item.oid)
            value = (m.Value(b"b", item.number.to_bytes(4, "big")),)
            self._send(m.Insert(xid, item.oid, value))
            type_ = m.Type(None, 50 + item.oid, "public", shape.name)
            running.sent.append((item.xid, (encode(m.Insert(None, item.oid, value)), shape, type_)))
        running.pending = []
        # What a block has put into the caches is not left there.
        for oid in running.decoded:
            self._invalidate(oid)

    def _stream_abort(self, xid: int, subxid: int) -> None:
        self._send(m.StreamAbort(xid, subxid))
        for streamed in self._streamed_txns.values():
            streamed.discard(xid)

    def _shape(self, running: _Running, oid: int) -> m.RelationMessage:
        version = running.decoded[oid][-1][1] if oid in running.decoded else self._versions[oid]
        columns = (m.RelationColumn(1, f"c{version}", 50 + oid, -1),)
        return m.RelationMessage(None, oid, "public", f"r{oid} {version}", "d", columns)

    def _invalidate(self, oid: int) -> None:
        self._schema_sent.discard(oid)
        self._streamed_txns[oid].clear()

    def _family(self, running: _Running, xid: int) -> list[int]:
        """A subtransaction behind all that it began, as an abort names them."""
        children = running.children.get(xid, [])
        return [one for child in children for one in self._family(running, child)] + [xid]

    def _send(self, message: m.Message) -> None:
        self.messages.append(encode(message))

    def _xid(self) -> int:
        self._next_xid += 1
        return self._next_xid

    def _version(self) -> int:
        self._next_version += 1
        return self._next_version


def _fields(shape: m.RelationMessage) -> tuple[int, str, str, str, tuple[m.RelationColumn, ...]]:
    return shape.oid, shape.schema, shape.name, shape.replica_identity, shape.columns
