"""What the compiled core does beside what its plain twins do: what it takes, what it refuses, and when it is used."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from cdc.changes.packed_accumulator import PackedAccumulator
from cdc.pgoutput import packed
from cdc.pgoutput.compiled import is_compiled
from tests.unit.test_accumulator import TYPES, begin, commit, relation
from tests.unit.test_compaction import tuple_data

NEEDS_CORE = pytest.mark.skipif(not is_compiled(), reason="the compiled core is not built, or CDC_UNCOMPILED is set")
ROW = b"I\0\0\0\7N" + tuple_data((bytes(1000),))


@NEEDS_CORE
def test_a_transaction_without_rows_does_not_keep_the_room_of_a_large_one_behind_it() -> None:
    accumulator = PackedAccumulator(part_bytes=1 << 24)
    accumulator.descriptions.learn(TYPES, frozenset(TYPES))
    accumulator.feed([begin(1), relation(7), commit(1)])
    assert [part.row_count for part in accumulator.take()] == [0]
    accumulator.feed([begin(2), commit(2), begin(3)])
    for _ in range(5):
        accumulator.feed([ROW] * 1000)
    (empty,) = accumulator.take()
    assert empty.packed is not None
    assert empty.row_count == 0
    assert empty.packed.block.size < 1024
    assert empty.packed.block.size < empty.size
    accumulator.feed([commit(3)])
    (large,) = accumulator.take()
    assert large.row_count == 5000


_WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from cdc.changes import stream_records
from cdc.changes.packed_accumulator import accumulator_for
from cdc.changes.row_reader import row_reader
from cdc.pgoutput import compiled, packed
from cdc.service import worker
from cdc.source import libpq
reader = row_reader(None, b"bb", (0, 1), (0,))
frames, _ = packed.split_frames([b"w" + bytes(24) + b"x"])
worker._say_what_is_compiled()
print(
    compiled.is_compiled(),
    type(accumulator_for(part_bytes=1)).__name__,
    reader.projection,
    type(frames).__name__,
    stream_records.given_out is stream_records.plain_given_out,
    libpq.frame_reader(type("Connection", (), {"pgconn_ptr": 1})()),
    f"why={compiled.why_not()}",
)
"""


@NEEDS_CORE
@pytest.mark.parametrize("name", ["cdc.changes._folding", "cdc.source._copy_data"])
def test_without_one_of_its_modules_the_core_is_not_used_at_all(name: str) -> None:
    asked = [sys.executable, "-c", _WITHOUT, name]
    done = subprocess.run(asked, check=True, capture_output=True, text=True)
    *logged, said = done.stdout.splitlines()
    assert said.startswith("False Accumulator None list True None why=")
    assert name in said
    assert "not whole" in "".join([*logged, done.stderr])


def folding(columns: int, key: tuple[int, ...]) -> Any:
    """Imported when it is asked for: the module need not be there."""
    from cdc.changes._folding import Folding

    return Folding(columns, key, False)


@NEEDS_CORE
def test_a_projection_refuses_what_its_buffers_are_not_made_for() -> None:
    from cdc.changes._rows import Projection

    with pytest.raises(ValueError, match="a column travels twice"):
        Projection(b"bb", (0, 1, 1), (0,))
    with pytest.raises(IndexError):
        Projection(b"bb", (0, 2), (0,))
    with pytest.raises(IndexError):
        Projection(b"bb", (1,), (1,))


@NEEDS_CORE
def test_messages_are_bytes_and_are_filled_once() -> None:
    unfit: Any = ["text"]
    missing: Any = [None]
    filled: Any = packed.Messages([b"a"])
    for wrong in (unfit, missing):
        with pytest.raises(TypeError):
            packed.Messages(wrong)
        with pytest.raises(TypeError):
            packed.split_frames(wrong)
    for taken in (filled, filled[:0]):
        with pytest.raises(TypeError, match="never change"):
            taken.__init__([b"b"])
    assert list(filled) == [b"a"]


@NEEDS_CORE
def test_nothing_is_asked_of_a_transaction_that_is_not_open_or_of_a_folding_that_is_finished() -> None:
    from cdc.changes._blocks import Packer
    from cdc.changes._rows import BlockRows, Projection

    with pytest.raises(AssertionError, match="no transaction is open"):
        _ = Packer(1).open_transaction
    accumulator = PackedAccumulator(part_bytes=1 << 24)
    accumulator.descriptions.learn(TYPES, frozenset(TYPES))
    accumulator.feed([begin(1), relation(7), ROW, commit(1)])
    (part,) = accumulator.take()
    assert part.packed is not None
    rows = BlockRows(part.packed.block, [Projection(b"bb", (0, 1), (0,))])
    with pytest.raises(ValueError, match="a projection of another table"):
        folding(3, (0,)).add(rows, 0, 1)
    with pytest.raises(IndexError):
        folding(1, (1,))
    folded = folding(2, (0,))
    with pytest.raises(IndexError):
        folded.add(rows, 2, 1)
    assert folded.finish() == (0, [], 0)
    with pytest.raises(IndexError):
        folded.encode(0, 1, b"", 10, None)
    for again in (lambda: folded.add(rows, 0, 1), folded.finish):
        with pytest.raises(AssertionError, match="the folding is finished"):
            again()
