"""Many rows of one relation at once: what `cdc.pgoutput.tuples.read_fields` does, without walking every column.

Rows of one relation resemble each other. Where two messages have the same *layout* (the same kinds and lengths at the
same places) their fields are at the same places too, and ``struct`` can check the one and slice out the other in two
calls, however many columns there are: 0.9 µs instead of 2.6 µs for 11 columns. `LayoutReader` remembers the layouts
that it has met, by the length of the message.

It is never wrong: a layout is only used after every byte that `read_fields` would have looked at has been compared, so
that its result is the result of `read_fields`. It is hardly ever slower: where rows do not resemble each other (several
columns of varying length), it notices after a call that remembering does not pay, and leaves it for a while.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final

from cdc.pgoutput.damage import damaged
from cdc.pgoutput.tuples import FIRST_TUPLE, NULL, UNCHANGED, read_fields

# What was measured, in units of 0.4 µs: the profit of a row whose layout is known, the loss of one that was tried in
# vain, and the cost of learning a layout.
HIT: Final = 3
MISS: Final = 1
LEARN: Final = 24

CREDIT: Final = 64 * LEARN
"""How far learning may run ahead of its profit: enough for the 64 lengths that a short text column may have."""

REST: Final = 20_000
"""Rows that are read plainly once the credit is used up. Trying in vain thus costs at most 0.03 µs a row."""

MAX_LAYOUTS: Final = 256
"""Layouts kept for a relation; a few hundred bytes each, and none holds a value."""

_SENTINELS: Final = (NULL, UNCHANGED)

_Unpack = Callable[[bytes], tuple[Any, ...]]
_Layout = tuple[_Unpack, tuple[bytes, ...], _Unpack, Callable[[tuple[Any, ...]], tuple[Any, ...]] | None]


class LayoutReader:
    """Reads the rows of one relation whose tuple is the last thing in their message.

    That is every ``I`` and ``D`` message, and an ``U`` message without an old tuple. ``wire`` is that of `read_fields`;
    ``offset`` is where the tuple starts. Keep one per relation and kind of change.
    """

    __slots__ = ("_credit", "_layouts", "_offset", "_resting", "_wire")

    def __init__(self, wire: bytes, offset: int = FIRST_TUPLE) -> None:
        self._wire = wire
        self._offset = offset
        self._layouts: dict[int, _Layout] = {}
        self._credit = CREDIT
        self._resting = 0

    def read(self, messages: Sequence[bytes]) -> list[Sequence[bytes]]:
        """Return the fields of each message, in the same order.

        Raises what `read_fields` raises, and `ProtocolError` for bytes behind a tuple.
        """
        if self._resting > 0:
            self._resting -= len(messages)
            return self._walk(messages)
        rows: list[Sequence[bytes]] = []
        append = rows.append
        layout_of = self._layouts.get
        misses = learned = 0
        for message in messages:
            layout = layout_of(len(message))
            if layout is not None:
                skeleton, expected, slice_out, arrange = layout
                if skeleton(message) == expected:
                    append(slice_out(message) if arrange is None else arrange(slice_out(message) + _SENTINELS))
                    continue
            misses += 1
            (fields,) = self._walk((message,))
            append(fields)
            if (learned + 1) * LEARN <= self._credit:
                learned += 1
                self._learn(message, fields)
        profit = (len(messages) - misses) * HIT - misses * MISS - learned * LEARN
        self._credit = min(self._credit + profit, CREDIT)
        if self._credit < LEARN:
            self._credit = CREDIT
            self._resting = REST
        return rows

    def _walk(self, messages: Sequence[bytes]) -> list[Sequence[bytes]]:
        rows: list[Sequence[bytes]] = []
        offset, wire = self._offset, self._wire
        for message in messages:
            fields, end = read_fields(message, offset, wire)
            if end != len(message):
                raise damaged("a row's message", end, f"the end, but {len(message) - end} bytes follow")
            rows.append(fields)
        return rows

    def _learn(self, message: bytes, fields: Sequence[bytes]) -> None:
        # The skeleton is every byte that says where the next one is: the count, kinds and lengths. A run of them is one
        # item of the struct, what lies between is padding; for the fields themselves it is the other way round.
        skeleton, slices = [f"{self._offset}x"], [f"{self._offset + 2}x"]
        run, order, sliced = 2, [], 0
        for field in fields:
            if field is NULL or field is UNCHANGED:
                run += 1
                slices.append("x")
                order.append(-2 if field is NULL else -1)
            else:
                skeleton.append(f"{run + 5}s{len(field) - 4}x")
                run = 0
                slices.append(f"x{len(field)}s")
                order.append(sliced)
                sliced += 1
        if run:
            skeleton.append(f"{run}s")
        if sliced < len(fields) < 2:
            return  # An itemgetter of one item gives no tuple; a relation of one column gains nothing anyway.
        arrange = itemgetter(*order) if sliced < len(fields) else None
        unpack_skeleton = struct.Struct("".join(skeleton)).unpack
        if len(self._layouts) >= MAX_LAYOUTS:
            self._layouts.clear()
        slice_out = struct.Struct("".join(slices)).unpack
        self._layouts[len(message)] = (unpack_skeleton, unpack_skeleton(message), slice_out, arrange)
