"""A table is cut so that no page is read twice and none is left out."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cdc.bootstrap.ranges import PAGE_BYTES, PageRange, split


def test_an_empty_table_is_one_range_without_a_condition() -> None:
    assert split(0, 0) == (PageRange(0, None),)
    assert PageRange(0, None).condition() == ""


def test_a_small_table_is_read_in_one_go() -> None:
    assert split(10, 10 * PAGE_BYTES, range_bytes=1024 * 1024) == (PageRange(0, None),)


def test_the_last_range_is_open_ended() -> None:
    ranges = split(25, 25 * PAGE_BYTES, range_bytes=10 * PAGE_BYTES)
    assert ranges == (PageRange(0, 10), PageRange(10, 20), PageRange(20, None))
    assert ranges[1].condition() == "ctid >= '(10,0)'::pg_catalog.tid AND ctid < '(20,0)'::pg_catalog.tid"


def test_large_values_outside_the_heap_make_ranges_shorter() -> None:
    assert len(split(100, 100 * PAGE_BYTES, range_bytes=100 * PAGE_BYTES)) == 1
    assert len(split(100, 1000 * PAGE_BYTES, range_bytes=100 * PAGE_BYTES)) == 10


@given(st.integers(0, 5_000), st.integers(0, 10**9), st.integers(1, 10**8))
def test_ranges_join_without_gap_or_overlap(pages: int, total_bytes: int, range_bytes: int) -> None:
    ranges = split(pages, total_bytes, range_bytes)
    assert ranges[0].first == 0
    assert ranges[-1].end is None
    for one, following in pairwise(ranges):
        assert one.end == following.first
        assert one.first < following.first
