"""Streamed transactions, put together: whatever interleaves, aborts or is described anew, protocol 1 comes out."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.changes import stream_records, streamed
from cdc.changes.spool import SpoolSpace, SpoolUnusable
from cdc.changes.streamed import StreamedTransactions
from cdc.errors import ProtocolError
from cdc.lsn import Lsn
from cdc.pgoutput import messages as m
from cdc.pgoutput.compiled import is_compiled
from cdc.pgoutput.packed import Messages
from tests.streams import protocol_1, transactions
from tests.unit.pgoutput_encoder import encode
from tests.unit.walsender import RELATIONS, Walsender

_WHY = "the compiled core is not built, or CDC_UNCOMPILED is set"
ROOM = 1 << 30
SLOTS = 2

# One sample is one operation: what is listed twice happens twice as often.
_operations = st.sampled_from(
    [(name, slot) for name in ("begin", "release", "rollback", "commit") for slot in range(SLOTS)]
    + [(name, slot) for name in ("savepoint", "rollback_to", "stream") for slot in range(SLOTS)] * 3
    + [("change", slot, oid) for slot in range(SLOTS) for oid in range(RELATIONS)] * 3
    + [("alter", slot, oid) for slot in range(SLOTS) for oid in range(RELATIONS)]
    + [(name, oid) for name in ("rename", "analyze") for oid in range(RELATIONS)]
)


def sent(history: Sequence[tuple[object, ...]]) -> Walsender:
    """What the walsender sends of a history; whatever still runs at its end commits."""
    walsender = Walsender()
    for name, *arguments in history:
        getattr(walsender, str(name))(*arguments)
    for slot in range(SLOTS):
        walsender.commit(slot)
    return walsender


@pytest.mark.parametrize(
    "is_packed", [False, pytest.param(True, marks=pytest.mark.skipif(not is_compiled(), reason=_WHY))]
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    history=st.lists(_operations, min_size=30, max_size=90),
    at_once=st.integers(1, 30),
    block_bytes=st.sampled_from([60, 300, 1 << 18]),
    unwritten_bytes=st.sampled_from([0, 200, 1 << 23]),
)
def test_hazard_12_what_comes_out_tells_what_was_committed(
    history: list[tuple[object, ...]], at_once: int, block_bytes: int, unwritten_bytes: int, is_packed: bool
) -> None:
    walsender, space = sent(history), SpoolSpace(ROOM)
    given_out = stream_records.given_out if is_packed else stream_records.plain_given_out
    with (
        mock.patch.object(stream_records, "given_out", given_out),
        mock.patch.object(streamed, "BLOCK_BYTES", block_bytes),
        mock.patch.object(streamed, "MAX_UNWRITTEN_BYTES", unwritten_bytes),
        closing(StreamedTransactions(space)) as stream,
    ):
        messages = protocol_1(walsender.messages, stream, at_once=at_once, pack=Messages if is_packed else list)
        assert transactions(messages) == walsender.told
        assert (stream.transactions, stream.spooled_bytes, space.used_bytes) == (0, 0, 0)


# --- examples, which say what a case is about


def begun(*operations: tuple[object, ...]) -> Walsender:
    walsender = Walsender()
    for name, *arguments in operations:
        getattr(walsender, str(name))(*arguments)
    return walsender


def come(walsender: Walsender, *, at_once: int = 100) -> object:
    return transactions(protocol_1(walsender.messages, SpoolSpace(ROOM), at_once=at_once))


def test_a_description_from_outside_that_is_newer_stays_in_force() -> None:
    walsender = begun(
        ("begin", 0), ("change", 0, 0), ("stream", 0),
        ("rename", 0), ("begin", 1), ("change", 1, 0), ("commit", 1),
        ("commit", 0), ("begin", 1), ("change", 1, 0), ("commit", 1),
    )  # fmt: skip
    assert come(walsender) == walsender.told
    names = [change[1].name for told in walsender.told for change in told.changes]  # type: ignore[attr-defined]
    assert names == ["r0 2", "r0 0", "r0 2"]


def test_a_description_of_a_streamed_transaction_is_in_force_after_its_commit() -> None:
    walsender = begun(
        ("begin", 1), ("change", 1, 0), ("commit", 1),
        ("begin", 0), ("alter", 0, 0), ("change", 0, 0), ("stream", 0), ("commit", 0),
        ("begin", 1), ("change", 1, 0), ("commit", 1),
    )  # fmt: skip
    assert come(walsender) == walsender.told


def test_a_description_goes_with_the_subtransaction_that_it_was_sent_for() -> None:
    walsender = begun(
        ("begin", 0), ("change", 0, 0), ("stream", 0),
        ("savepoint", 0), ("alter", 0, 0), ("change", 0, 0), ("stream", 0), ("rollback_to", 0),
        ("change", 0, 0), ("commit", 0), ("begin", 1), ("change", 1, 0), ("commit", 1),
    )  # fmt: skip
    assert come(walsender) == walsender.told


def test_a_description_that_aborted_is_not_in_force_instead_of_one_from_outside() -> None:
    walsender = begun(
        ("begin", 0), ("change", 0, 0), ("stream", 0),
        ("rename", 0), ("begin", 1), ("change", 1, 0), ("commit", 1),
        ("savepoint", 0), ("change", 0, 0), ("stream", 0), ("rollback_to", 0), ("commit", 0),
        ("begin", 1), ("change", 1, 0), ("commit", 1),
    )  # fmt: skip
    assert come(walsender) == walsender.told


def test_what_a_streamed_transaction_described_is_in_force_after_another_one_that_described_nothing() -> None:
    walsender = begun(
        ("begin", 1), ("change", 1, 0), ("commit", 1),
        ("rename", 0), ("begin", 0), ("change", 0, 0), ("stream", 0), ("commit", 0),
        ("begin", 0), ("change", 0, 0), ("stream", 0),
        ("savepoint", 0), ("change", 0, 0), ("stream", 0), ("rollback_to", 0), ("commit", 0),
        ("begin", 1), ("change", 1, 0), ("commit", 1),
    )  # fmt: skip
    assert come(walsender) == walsender.told


def test_nothing_is_given_out_before_the_commit_but_small_transactions_are() -> None:
    walsender = begun(("begin", 0), ("change", 0, 0), ("stream", 0), ("begin", 1), ("change", 1, 1), ("commit", 1))
    with closing(StreamedTransactions(SpoolSpace(ROOM))) as stream:
        (told,) = transactions(protocol_1(walsender.messages, stream))
        assert told == walsender.told[0]
        assert stream.transactions == 1


def test_what_aborts_wholly_gives_its_room_back() -> None:
    walsender = begun(("begin", 0), ("change", 0, 0), ("stream", 0))
    space = SpoolSpace(ROOM)
    with mock.patch.object(streamed, "BLOCK_BYTES", 1), closing(StreamedTransactions(space)) as stream:
        protocol_1(walsender.messages, stream)
        assert stream.spooled_bytes == space.used_bytes > 0
        assert protocol_1([encode(m.StreamAbort(101, 101))], stream) == []
        assert (stream.transactions, space.used_bytes) == (0, 0)


def test_the_end_of_a_stream_gives_all_room_back() -> None:
    walsender = begun(("begin", 0), ("change", 0, 0), ("stream", 0))
    space = SpoolSpace(ROOM)
    with mock.patch.object(streamed, "BLOCK_BYTES", 1), closing(StreamedTransactions(space)) as stream:
        protocol_1(walsender.messages, stream)
    assert space.used_bytes == 0


def test_an_abort_of_what_was_never_streamed_changes_nothing() -> None:
    assert protocol_1([encode(m.StreamAbort(7, 7)), encode(m.StreamAbort(7, 8))], SpoolSpace(ROOM)) == []


def test_a_million_subtransactions_that_abort_take_no_memory_where_they_follow_one_another() -> None:
    aborted = streamed._Aborted()
    for xid in range(10, 10_000):
        aborted.add(xid)
    for xid in (20_002, 20_001, 20_000):
        aborted.add(xid)
    aborted.add(5)
    aborted.seal()
    assert len(aborted._firsts) == 3
    asked = (4, 5, 6, 9, 10, 9_999, 10_000, 19_999, 20_000, 20_002, 20_003)
    assert [xid for xid in asked if xid in aborted] == [5, 10, 9_999, 20_000, 20_002]


START, STOP = encode(m.StreamStart(9, True)), encode(m.StreamStop())
INSERT = encode(m.Insert(9, 7, (m.Value(b"n"),)))
COMMIT = encode(m.StreamCommit(9, 0, Lsn(10), Lsn(15), 1))


@pytest.mark.parametrize(
    "messages",
    [
        [STOP],
        [START, START],
        [START, STOP, START],
        [encode(m.StreamStart(9, False))],
        [COMMIT],
        [START, COMMIT],
        [START, encode(m.StreamAbort(9, 9))],
        [START, encode(m.Begin(Lsn(10), 1, 9))],
        [START, INSERT[:9]],
        [START, b"?" + INSERT[1:]],
        [START, STOP + b"\0"],
        [START + b"\0"],
    ],
)
def test_what_cannot_stand_where_it_stands_is_a_damaged_stream(messages: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        protocol_1(messages, SpoolSpace(ROOM))


def test_an_origin_inside_of_a_block_is_left_out() -> None:
    origin = encode(m.Origin(Lsn(0), "elsewhere"))
    assert len(protocol_1([START, origin, INSERT, STOP, COMMIT], SpoolSpace(ROOM))) == 3


def test_without_a_space_every_message_passes() -> None:
    with closing(StreamedTransactions(None)) as stream:
        assert list(stream.feed([START, INSERT])) == [[START, INSERT]]


# --- the spool


def test_blocks_come_back_in_their_order_and_take_less_room_than_they_are(tmp_path: Path) -> None:
    space = SpoolSpace(ROOM, tmp_path)
    blocks = [bytes([number]) * 100_000 for number in range(5)]
    with closing(space.open()) as file:
        for block in blocks:
            file.append(block)
        assert 0 < file.size_bytes == space.used_bytes < 10_000
        assert [file.read() for _ in range(6)] == [*blocks, None]
    assert space.used_bytes == 0


def test_invariant_08_a_spool_file_is_private_and_has_no_name(tmp_path: Path) -> None:
    with closing(SpoolSpace(ROOM, tmp_path).open()) as file:
        file.append(b"a row")
        found = os.fstat(file._file.fileno())
        assert (stat.S_IMODE(found.st_mode), found.st_nlink) == (0o600, 0)
        assert list(tmp_path.iterdir()) == []


def test_the_limit_holds_for_all_files_together(tmp_path: Path) -> None:
    space = SpoolSpace(200, tmp_path)
    with closing(space.open()) as one, closing(space.open()) as other:
        one.append(os.urandom(120))
        with pytest.raises(SpoolUnusable, match="max_spool_bytes allows 200"):
            other.append(os.urandom(120))
    assert space.used_bytes == 0
    with closing(space.open()) as again:
        again.append(os.urandom(120))


def test_the_transactions_that_were_in_the_spool_are_named_when_it_is_full() -> None:
    walsender = begun(("begin", 0), ("change", 0, 0), ("stream", 0), ("begin", 1), ("change", 1, 0), ("stream", 1))
    inside = sum(4 + len(message) for message in walsender.messages if message[0] in b"RYI")
    with (
        mock.patch.object(streamed, "MAX_UNWRITTEN_BYTES", inside - 1),
        closing(StreamedTransactions(SpoolSpace(1))) as stream,
        pytest.raises(SpoolUnusable) as full,
    ):
        protocol_1(walsender.messages, stream)
    assert full.value.xids == {101, 102}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_refuses_is_the_same_as_a_limit_that_is_reached(tmp_path: Path, number: int) -> None:
    space = SpoolSpace(ROOM, tmp_path)
    with closing(space.open()) as file:
        with mock.patch.object(file, "_file") as refusing:
            refusing.write.side_effect = OSError(number, os.strerror(number), "/secret/place")
            with pytest.raises(SpoolUnusable, match=os.strerror(number)) as refused:
                file.append(b"a row")
        assert "secret" not in str(refused.value)
    assert space.used_bytes == 0


def test_a_directory_that_is_not_there_is_named_by_its_setting(tmp_path: Path) -> None:
    with pytest.raises(SpoolUnusable, match=r"worker\.spool_directory"):
        SpoolSpace(ROOM, tmp_path / "missing").open()


def test_what_the_disk_has_damaged_is_never_read_as_rows(tmp_path: Path) -> None:
    for at in (0, 3, 10, 100, -1):
        with closing(SpoolSpace(ROOM, tmp_path).open()) as file:
            file.append(os.urandom(500))
            place = at % file.size_bytes
            byte = os.pread(file._file.fileno(), 1, place)[0]
            os.pwrite(file._file.fileno(), bytes([byte ^ 0xFF]), place)
            with pytest.raises(SpoolUnusable):
                file.read()


# --- the compiled twin of what records are made of

_kept = st.lists(
    st.tuples(st.sampled_from(b"IUDTMRYEBC"), st.integers(5, 7), st.binary(min_size=3, max_size=40)), max_size=30
)


@pytest.mark.skipif(not is_compiled(), reason=_WHY)
@given(kept=_kept, start=st.integers(0, 5), limit=st.integers(0, 900), held=st.binary(max_size=9))
def test_both_keep_the_same_messages(kept: list[tuple[int, int, bytes]], start: int, limit: int, held: bytes) -> None:
    messages = [bytes([kind]) + xid.to_bytes(4, "big") + rest for kind, xid, rest in kept]
    start = min(start, len(messages))
    plain, packed = bytearray(held), bytearray(held)
    assert stream_records.keep(Messages(messages), start, packed, limit) == stream_records.plain_keep(
        messages, start, plain, limit
    )
    assert packed == plain


@pytest.mark.skipif(not is_compiled(), reason=_WHY)
@given(kept=_kept, aborted=st.sets(st.integers(5, 7)))
def test_both_give_out_the_same_messages(kept: list[tuple[int, int, bytes]], aborted: set[int]) -> None:
    records = bytearray()
    for kind, xid, rest in kept:
        stream_records.append(bytes([kind]) + xid.to_bytes(4, "big") + rest.ljust(5), records)
    told: list[list[bytes]] = [[], []]
    given_out = [
        list(of(bytes(records), aborted.__contains__, said.append))
        for of, said in zip((stream_records.plain_given_out, stream_records.given_out), told, strict=True)
    ]
    assert given_out[0] == given_out[1]
    assert told[0] == told[1]


@pytest.mark.skipif(not is_compiled(), reason=_WHY)
@pytest.mark.parametrize("records", [b"\0", b"\0\0\0\x0aIxxxxoooo", b"\0\0\0\x03Ixx", b"\xff\xff\xff\xffIxxxxoooo1"])
def test_records_that_are_damaged_are_never_read_behind_their_end(records: bytes) -> None:
    with pytest.raises(ValueError, match="cut off"):
        stream_records.given_out(records, lambda _: False, lambda _: None)
