"""Ranges of keys: together they hold every key once, and what differs between two sets of keys is always found."""

from __future__ import annotations

import random
import zlib
from bisect import bisect_right
from collections.abc import Collection, Iterable
from itertools import pairwise

import pytest

from cdc.bootstrap.incremental_ranges import (
    COPIED_AT_ONCE,
    PARTS,
    Digest,
    KeyRange,
    KeyRanges,
    differing,
    digests_sql,
    key_ranges,
    merged,
)

LEAST, GREATEST = -(2**63), 2**63 - 1


def holds(one: KeyRange, key: int) -> bool:
    return (one.first is None or key >= one.first) and (one.end is None or key < one.end)


def digests(of: KeyRange, keys: Iterable[int]) -> dict[int, Digest]:
    """What a server would say of these keys."""
    inner = [part.first or 0 for part in of.split()[1:]]
    parts: dict[int, list[int]] = {}
    for key in keys:
        if holds(of, key):
            parts.setdefault(bisect_right(inner, key), []).append(key)
    return {n: Digest(len(found), str(sum(found)), str(sum(map(_hash, found)))) for n, found in parts.items()}


def _hash(key: int) -> int:
    return zlib.crc32(str(key).encode())


def find(of: Iterable[KeyRange], source: Collection[int], target: Collection[int]) -> list[KeyRange]:
    pending, found = list(of), []
    while pending:
        one = pending.pop()
        copied, compared = differing(one, digests(one, source), digests(one, target))
        assert all(part != one for part in compared), "it is narrowed down, or it would never end"
        found += copied
        pending += compared
    return found


@pytest.mark.parametrize(
    ("lowest", "highest", "pages"), [(1, 5_000_000, 10**6), (7, 7, 1), (-5, 5, 1), (LEAST, GREATEST, 1000), (0, 9, 0)]
)
def test_every_key_is_in_one_range(lowest: int, highest: int, pages: int) -> None:
    ranges = key_ranges(lowest, highest, pages)
    assert len(ranges) <= 2 + 5
    for key in (LEAST, lowest - 1, lowest, (lowest + highest) // 2, highest, highest + 1, GREATEST):
        assert sum(holds(one, key) for one in ranges) == 1


def test_a_table_that_looked_empty_is_one_range() -> None:
    assert key_ranges(None, None, 0) == (KeyRange(None, None),)
    assert KeyRanges('"id"', (KeyRange(None, None),)).condition() == ""


@pytest.mark.parametrize("one", [KeyRange(0, 1_000_000), KeyRange(-3, 4), KeyRange(LEAST, GREATEST), KeyRange(5, 6)])
def test_a_range_is_the_sum_of_its_parts(one: KeyRange) -> None:
    parts = one.split()
    assert len(parts) <= PARTS
    assert (parts[0].first, parts[-1].end) == (one.first, one.end)
    assert all(left.end == right.first for left, right in pairwise(parts))


def test_a_range_without_an_end_is_not_cut() -> None:
    assert KeyRange(5, None).split() == (KeyRange(5, None),)


def test_whatever_is_missing_is_in_a_part_that_is_copied_and_what_is_equal_in_none() -> None:
    chance = random.Random(5)
    source = sorted(chance.sample(range(100_000), 15_000))
    missing = {*chance.sample(source, 5), *source[7_000:7_200], *source[-20:]}
    target = (set(source) - missing) | {-4, 100_001}
    found = find(key_ranges(source[0], source[-1], 1000), source, target)
    copied = {key for key in source if any(holds(one, key) for one in found)}
    assert missing <= copied
    assert len(copied) < len(source) / 4


def test_a_key_that_took_the_place_of_another_is_noticed() -> None:
    assert find([KeyRange(0, 1000)], [1, 4], [2, 3]) != []  # as many, with the same sum


def test_what_the_target_has_none_of_is_not_narrowed_down() -> None:
    many = Digest(COPIED_AT_ONCE + 1, "0", "0")
    copied, compared = differing(KeyRange(0, PARTS), {0: many, 1: many}, {1: Digest(1, "0", "0")})
    assert (copied, compared) == ([KeyRange(0, 1)], [KeyRange(1, 2)])


def test_what_cannot_be_cut_is_copied_whole() -> None:
    many, fewer = Digest(COPIED_AT_ONCE + 2, "0", "0"), Digest(COPIED_AT_ONCE + 1, "0", "0")
    assert differing(KeyRange(None, 5), {0: many}, {0: fewer}) == ([KeyRange(None, 5)], [])


def test_what_only_the_target_has_is_left_alone() -> None:
    assert differing(KeyRange(0, PARTS), {}, {0: Digest(1, "0", "0")}) == ([], [])


def test_neighbours_are_read_as_one() -> None:
    ranges = (KeyRange(30, None), KeyRange(10, 20), KeyRange(None, 5), KeyRange(20, 30), KeyRange(7, 8))
    assert merged(ranges) == (KeyRange(None, 5), KeyRange(7, 8), KeyRange(10, None))


def test_conditions_are_of_the_type_that_an_index_answers() -> None:
    two = KeyRanges('"id"', (KeyRange(None, 5), KeyRange(7, 8)))
    assert two.condition() == '("id" < 5) OR ("id" >= 7 AND "id" < 8)'
    assert KeyRange(-(2**40), 2**40).condition('"id"') == (
        "\"id\" >= '-1099511627776'::int8 AND \"id\" < '1099511627776'::int8"
    )
    assert KeyRange(None, 2**63).condition("id") == "id < '9223372036854775808'::numeric"


def test_a_range_without_parts_is_counted_as_one() -> None:
    assert digests_sql('ONLY "a"', '"id"', KeyRange(None, None)).startswith("SELECT 0, pg_catalog.count(*),")
    assert " WHERE " not in digests_sql('ONLY "a"', '"id"', KeyRange(None, None))
    assert "'{1}'::int8[]" in digests_sql('ONLY "a"', '"id"', KeyRange(0, 2))
