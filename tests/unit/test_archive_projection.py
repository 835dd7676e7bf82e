"""Wanted columns out of rows in COPY's text format."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

import pytest

from cdc.bootstrap.archive.heartbeats import parse_rows
from cdc.bootstrap.archive.projection import project_rows
from cdc.errors import SetupError

ROWS = b"1\ta\\tb\tx\n2\t\\N\t\n3\t\\\\.\t\\n\n"


async def stream(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def project(chunks: Iterable[bytes], indices: Sequence[int]) -> bytes:
    return b"".join([chunk async for chunk in project_rows(stream(chunks), indices)])


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ((0,), b"1\n2\n3\n"),
        ((2,), b"x\n\n\\n\n"),
        ((0, 1), b"1\ta\\tb\n2\t\\N\n3\t\\\\.\n"),
        ((2, 0), b"x\t1\n\t2\n\\n\t3\n"),
        ((0, 1, 2), ROWS),
    ],
)
async def test_columns_come_in_the_wanted_order_wherever_chunks_are_cut(
    indices: tuple[int, ...], expected: bytes
) -> None:
    for size in range(1, len(ROWS) + 1):
        chunks = [ROWS[place : place + size] for place in range(0, len(ROWS), size)]
        assert await project(chunks, indices) == expected


async def test_a_row_of_many_megabytes_is_put_together_once() -> None:
    value = b"v" * (8 << 20)
    row = b"1\t" + value + b"\tsecret\n"
    chunks = [row[place : place + 65536] for place in range(0, len(row), 65536)]
    assert await project(chunks, (1, 0)) == value + b"\t1\n"


async def test_no_rows_give_no_rows() -> None:
    assert await project([], (0, 1)) == b""


async def test_a_row_with_too_few_columns_is_an_error_without_its_values() -> None:
    with pytest.raises(SetupError, match="fewer columns") as caught:
        await project([b"personal\tdata\n"], (0, 2))
    assert "personal" not in str(caught.value)


async def test_a_row_that_breaks_off_is_an_error() -> None:
    with pytest.raises(SetupError, match="not complete"):
        await project([b"1\t2\n1\t"], (0, 1))


def test_small_tables_are_read_to_their_values() -> None:
    rows = list(parse_rows(b"pix\t\\N\ta\\tb\\\\n\\n\n\\\\.\t\t\\\\\\\\\\t\n"))
    assert rows == [["pix", None, "a\tb\\n\n"], ["\\.", "", "\\\\\t"]]
