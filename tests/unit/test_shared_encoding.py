"""Encoded bytes are shared by targets that want the same of the same block, and kept for a while only."""

from __future__ import annotations

import asyncio

import pytest

from cdc.target import copy_encoding
from cdc.target.copy_encoding import packed_stream
from cdc.target.shared_encoding import SharedEncoding
from cdc.target.steps import PackedPiece
from tests.twins import collected, needs_compiled_core
from tests.unit.test_compaction import tuple_data
from tests.unit.test_packed_twins import block_of, groups

pytestmark = needs_compiled_core

IDENTITY = (b"bbb", (0, 1, 2), (0,))
REVERSED = (b"bbb", (2, 1, 0), (2,))


def piece_of(rows: int, shape: tuple[bytes, tuple[int, ...], tuple[int, ...]] = IDENTITY) -> PackedPiece:
    part = block_of([b"I\0\0\0\1N" + tuple_data((b"%d" % number, b"some", None)) for number in range(rows)])
    assert part.packed is not None
    part.packed.block.is_shared = True
    return again(part_piece(part, shape), shape)


def part_piece(part: object, shape: tuple[bytes, tuple[int, ...], tuple[int, ...]]) -> PackedPiece:
    [group] = groups([part], *shape)  # type: ignore[list-item]  # a part
    assert group.packed is not None
    return group.packed[0]


def again(piece: PackedPiece, shape: tuple[bytes, tuple[int, ...], tuple[int, ...]]) -> PackedPiece:
    """The same rows, as another target with plans of its own takes them."""
    part = block_of([b"I\0\0\0\1N" + tuple_data((b"x", b"x", b"x"))])
    part.packed, part.relations = piece.changes, set(piece.changes.block.relations)
    return part_piece(part, shape)


def encoded(piece: PackedPiece) -> bytes:
    return asyncio.run(collected(packed_stream([piece], 3)))


def test_targets_with_the_same_projection_share_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_encoding, "_SHARED", SharedEncoding())
    first = piece_of(10_000)
    expected = encoded(first)
    other = again(first, REVERSED)
    assert other.rows.block is first.rows.block
    assert encoded(other) != expected
    # Whoever encodes once more would need this.
    monkeypatch.setattr(copy_encoding, "_encoded_pieces", None)
    assert encoded(again(first, IDENTITY)) == expected


def test_what_one_target_takes_alone_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = SharedEncoding()
    monkeypatch.setattr(copy_encoding, "_SHARED", kept)
    piece = piece_of(10)
    piece.rows.block.is_shared = False
    encoded(piece)
    assert kept.size == 0


def test_invariant_10_the_oldest_bytes_are_forgotten_first() -> None:
    pieces = [piece_of(1) for _ in range(5)]
    each = pieces[0].rows.block.size + 25
    kept = SharedEncoding(limit_bytes=4 * each)
    for piece in pieces:
        kept.keep(piece.rows, [bytes(25)])
    assert kept.size == 4 * each
    assert kept.find(pieces[0].rows) is None
    assert kept.find(pieces[4].rows) == [bytes(25)]
    kept.keep(piece_of(1).rows, [bytes(4 * each)])
    assert kept.find(pieces[4].rows) == [bytes(25)]
    assert kept.size == 4 * each


def test_invariant_10_a_wide_block_counts_behind_narrow_bytes() -> None:
    kept = SharedEncoding(limit_bytes=1 << 20)
    pieces = [piece_of(1_000) for _ in range(100)]
    for piece in pieces:
        kept.keep(piece.rows, [b"narrow"])
    held = [piece for piece in pieces if kept.find(piece.rows) is not None]
    assert held
    assert sum(piece.rows.block.size for piece in held) <= 1 << 20
