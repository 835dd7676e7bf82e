"""Transactions that are streamed before their commit, put together: protocol 2 in, protocol 1 out.

With ``streaming 'on'`` the source sends what it has of a large transaction as soon as that fills its
``logical_decoding_work_mem``: in blocks between Stream Start and Stream Stop, which those of other transactions, and
whole small transactions, come between. Each message of a block tells the subtransaction that it belongs to, and what
was sent may abort: all of it, or a subtransaction (hazard 12). `StreamedTransactions` keeps the blocks, leaves out what
aborts, and at the Stream Commit gives out Begin, the changes and Commit as protocol 1 would have sent them there:
small transactions pass in between, so that what comes out is in the order of the commits.

The rules that it relies on (PostgreSQL's manual, "Logical Streaming Replication Protocol"; ``pgoutput.c``,
``reorderbuffer.c``):

- Blocks do not nest, and Stream Commit and Stream Abort stand outside of them.
- An abort names one subtransaction; its children are named before it, each by itself. Those of which nothing was sent
  are not named.
- Origin messages inside of blocks have no xid and tell nothing that protocol 1 would not tell: they are left out.

**Descriptions** (Relation, and Type, which goes with it) inside of a block carry the xid of the change that they were
sent for. pgoutput keeps book for each relation (``RelationSyncEntry``): whether it was described outside of blocks
(``schema_sent``), and to which streamed transactions (``streamed_txns``).

- A streamed transaction gets a description of its own before its first change of a relation, whatever was described
  outside; and another one after an invalidation, which clears the book wholly.
- Any Stream Abort, also of a single subtransaction, strikes the transaction out of the book of every relation: all are
  described again before their next change. So a description can be dropped together with the subtransaction that it
  was sent for.
- At a Stream Commit the relations whose book still names the transaction count as described outside, too.

So after a Stream Commit the description that is in force outside is the transaction's own only if no abort of it came
after that description, and none came outside after it. Otherwise the one that was sent outside is still meant, and is
given out again before the Commit: who reads protocol 1 keeps one description for each relation.

**Memory**: blocks lie in a spool file for each transaction once they are more than `BLOCK_BYTES`. In memory are the
ends of them, together at most `MAX_UNWRITTEN_BYTES` and one block, and for each aborted subtransaction eight bytes at
most: one that follows the last one takes none.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import gt
from struct import Struct
from typing import Final

from cdc.changes import stream_records
from cdc.changes.spool import SpoolFile, SpoolSpace, SpoolUnusable
from cdc.errors import ProtocolError
from cdc.pgoutput.decoder import decode
from cdc.pgoutput.messages import StreamAbort, StreamCommit, StreamStart, StreamStop
from cdc.pgoutput.packed import find_kind

BLOCK_BYTES: Final = 256 * 1024
"""How much of a transaction is compressed, written and read at once: zstd gains nothing from more, and some thousand
messages are a few milliseconds of work behind the source."""

MAX_UNWRITTEN_BYTES: Final = 8 * 1024 * 1024
"""How much all open transactions together may keep in memory before what is less than a block is written, too: a
hundred of them at once are not to take a hundred blocks of memory."""

Work = Callable[[], bytes | None]
"""Something that waits for the disk."""

Steps = Generator[Sequence[bytes] | Work, bytes | None, None]
"""Either messages, or work that is to be done before the next step and whose result is to be sent in."""

_NOTED: Final = stream_records.DESCRIPTIONS + b"SEcA"
"""What is looked at outside of blocks: descriptions, and what belongs to the streamed transactions."""

_BEGIN: Final = Struct(">cQqI")
_COMMIT: Final = Struct(">cBQQq")
_KEY = slice(5)
"""Kind and oid: what a description of protocol 1 is about, whether it is of a relation or of a type."""

_INSIDE_KEY: Final = slice(5, 9)
"""The oid of a description inside of a block, behind the xid. No other message there is shorter than that."""


class _Aborted:
    """The subtransactions of one transaction that have aborted, as ranges: a loop that fails often makes few."""

    def __init__(self) -> None:
        self._firsts = array("I")
        self._lasts = array("I")

    def add(self, xid: int) -> None:
        if self._lasts and xid == self._lasts[-1] + 1:
            self._lasts[-1] = xid
        elif self._firsts and xid == self._firsts[-1] - 1:
            self._firsts[-1] = xid
        else:
            self._firsts.append(xid)
            self._lasts.append(xid)

    def seal(self) -> None:
        """Nothing is added any more: it can be asked. As ranges do not overlap, each end is sorted by itself."""
        if any(map(gt, self._firsts, islice(self._firsts, 1, None))):
            self._firsts = array("I", sorted(self._firsts))
            self._lasts = array("I", sorted(self._lasts))

    def __contains__(self, xid: int) -> bool:
        index = bisect_right(self._firsts, xid) - 1
        return index >= 0 and xid <= self._lasts[index]


@dataclass(slots=True)
class _Transaction:
    """What has come of one transaction: records of a length and a message, in the file and, after it, ``unwritten``.

    ``described`` has the descriptions for which pgoutput's book names the transaction, with their arrival.
    """

    xid: int
    unwritten: bytearray = field(default_factory=bytearray)
    file: SpoolFile | None = None
    aborted: _Aborted = field(default_factory=_Aborted)
    described: dict[bytes, int] = field(default_factory=dict)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class StreamedTransactions:
    """The transactions of one stream whose commit is still to come. Close it with the stream: the files go with it.

    Without a ``space`` nothing is kept, and every message passes as it is: for a stream of protocol 1.
    """

    def __init__(self, space: SpoolSpace | None) -> None:
        self._space = space
        self._open: dict[int, _Transaction] = {}
        self._block: _Transaction | None = None
        self._outside: dict[bytes, tuple[int, bytes]] = {}
        self._arrivals = 0

    @property
    def transactions(self) -> int:
        """How many are open."""
        return len(self._open)

    @property
    def spooled_bytes(self) -> int:
        """What their files take on the disk."""
        return sum(transaction.file.size_bytes for transaction in self._open.values() if transaction.file)

    def close(self) -> None:
        """Forget everything; the slot sends it again."""
        for transaction in self._open.values():
            transaction.close()
        self._open.clear()
        self._block = None

    def feed(self, messages: Sequence[bytes]) -> Steps:
        """What protocol 1 would have sent by now, piece by piece; ``messages`` are none of them empty.

        Take every step before anything else is fed. Raises `ProtocolError` for what cannot stand where it stands, and
        work raises `SpoolUnusable`, which names the transactions that are open. After either it is of no more use.
        """
        # Nearly always there is nothing for us in it.
        if self._space is None or (self._block is None and find_kind(messages, _NOTED) < 0):
            yield messages
        else:
            yield from self._sort(messages)

    def _sort(self, messages: Sequence[bytes]) -> Steps:
        index, count = 0, len(messages)
        while index < count:
            block = self._block
            if block is None:
                found = find_kind(messages, _NOTED, index)
                found = count if found < 0 else found
                if found > index:
                    yield messages[index:found]
                if found < count:
                    yield from self._outside_of_blocks(messages[found])
                index = found + 1
                continue
            index = stream_records.keep(messages, index, block.unwritten, BLOCK_BYTES)
            if len(block.unwritten) >= BLOCK_BYTES:
                yield self._write(block)
            elif index < count:
                yield from self._inside_of_block(block, messages[index])
                index += 1

    def _outside_of_blocks(self, message: bytes) -> Steps:
        if message[0] in stream_records.DESCRIPTIONS:
            self._arrivals += 1
            self._outside[message[_KEY]] = (self._arrivals, message)
            yield [message]
            return
        match decode(message, protocol=2):
            case StreamStart(xid, is_first):
                self._block = self._start(xid, is_first=is_first)
            case StreamAbort(xid, subxid):
                self._abort(xid, subxid)
            case StreamCommit() as commit:
                yield from self._commit(commit)

    def _inside_of_block(self, block: _Transaction, message: bytes) -> Steps:
        """Take in what is no plain change: a description, the end of the block, an Origin, or damage."""
        if message[0] in stream_records.DESCRIPTIONS and len(message) > stream_records.HEADER:
            self._arrivals += 1
            block.described[message[:1] + message[_INSIDE_KEY]] = self._arrivals
            stream_records.append(message, block.unwritten)
        elif isinstance(decode(message, protocol=2, in_stream=True), StreamStop):
            self._block = None
            yield from self._bound()

    def _start(self, xid: int, *, is_first: bool) -> _Transaction:
        if is_first == (xid in self._open):
            raise ProtocolError(
                f"the stream is damaged: transaction {xid} is streamed {'anew' if is_first else 'without a beginning'}"
            )
        if is_first:
            self._open[xid] = _Transaction(xid)
        return self._open[xid]

    def _abort(self, xid: int, subxid: int) -> None:
        transaction = self._open.get(xid)
        if transaction is None:
            return  # nothing of it is here, so there is nothing to leave out
        if subxid == xid:
            del self._open[xid]
            transaction.close()
        else:
            transaction.aborted.add(subxid)
            transaction.described.clear()

    def _bound(self) -> Steps:
        """Write what is less than a block, too, where many of them are in memory: the longest first."""
        unwritten = sum(len(transaction.unwritten) for transaction in self._open.values())
        while unwritten > MAX_UNWRITTEN_BYTES:
            longest = max(self._open.values(), key=lambda transaction: len(transaction.unwritten))
            unwritten -= len(longest.unwritten)
            yield self._write(longest)

    def _write(self, transaction: _Transaction) -> Work:
        assert self._space is not None  # or nothing would have been kept
        space = self._space
        block, transaction.unwritten = transaction.unwritten, bytearray()

        def write() -> None:
            if transaction.file is None:
                transaction.file = space.open()
            transaction.file.append(block)

        return self._on_disk(write)

    def _on_disk(self, work: Work) -> Work:
        def named() -> bytes | None:
            try:
                return work()
            except SpoolUnusable as error:
                error.xids = frozenset(self._open)
                raise

        return named

    def _commit(self, commit: StreamCommit) -> Steps:
        transaction = self._open.get(commit.xid)
        if transaction is None:
            raise ProtocolError(f"the stream is damaged: transaction {commit.xid} commits and was never streamed")
        yield [_BEGIN.pack(b"B", commit.commit_lsn, commit.commit_time_us, commit.xid)]
        transaction.aborted.seal()
        has_aborted = transaction.aborted.__contains__
        given: dict[bytes, bytes] = {}

        def described(message: bytes) -> None:
            given[message[_KEY]] = message

        if transaction.file is not None:
            while (records := (yield self._on_disk(transaction.file.read))) is not None:
                yield stream_records.given_out(records, has_aborted, described)
        yield stream_records.given_out(bytes(transaction.unwritten), has_aborted, described)
        end = _COMMIT.pack(b"C", commit.flags, commit.commit_lsn, commit.end_lsn, commit.commit_time_us)
        yield [*self._in_force(transaction, given), end]
        del self._open[commit.xid]
        transaction.close()

    def _in_force(self, transaction: _Transaction, given: dict[bytes, bytes]) -> list[bytes]:
        """The descriptions that are in force outside, although the transaction brought others (``given``)."""
        again: list[bytes] = []
        for key, message in given.items():
            arrival, outside = transaction.described.get(key, 0), self._outside.get(key, (0, message))
            if arrival > outside[0]:
                self._outside[key] = (arrival, message)
            elif outside[1] != message:
                again.append(outside[1])
        return again
