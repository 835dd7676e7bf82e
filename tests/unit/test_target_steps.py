"""How the messages of runs are joined before they are read; without a server."""

from __future__ import annotations

from cdc.target.steps import STRETCH_BYTES, stretched


def test_runs_that_are_read_alike_are_joined_and_their_order_stays() -> None:
    runs = [("a", [b"1"]), ("a", [b"2", b"3"]), ("b", [b"4"]), ("a", []), ("a", [b"5"])]
    assert list(stretched(runs)) == [("a", [b"1", b"2", b"3"]), ("b", [b"4"]), ("a", [b"5"])]
    assert list(stretched([("a", [])])) == []


def test_a_stretch_ends_where_it_is_full_and_a_huge_message_is_the_last_of_its_own() -> None:
    half, huge = bytes(STRETCH_BYTES // 2), bytes(STRETCH_BYTES * 3)
    found = [
        [len(message) for message in stretch] for _, stretch in stretched([("a", [half] * 3), ("a", [huge, b"x"])])
    ]
    assert found == [[len(half)] * 2, [len(half), len(huge)], [1]]
