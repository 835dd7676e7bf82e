"""In which order the ranges of a round are copied, and how large they are."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import cast

import pytest

from cdc.bootstrap.copying import Job, SnapshotTooOld, TargetAccess
from cdc.bootstrap.incremental_ranges import Part
from cdc.bootstrap.plan import Load, TableCopy
from cdc.bootstrap.progress import Silence
from cdc.bootstrap.ranges import PAGE_BYTES
from cdc.bootstrap.rounds import LEAST_RANGE_BYTES, Work, copy_round
from cdc.routing.route import Route

ACCESS = TargetAccess("internal", "postgresql://", "cdc", 1)
GIGABYTE = 1 << 30


def a_table(name: str, size: int, references: frozenset[tuple[str, str]] = frozenset()) -> Work:
    route = cast(Route, None)
    copy = TableCopy(route, ("a",), ("a",), "binary", references, size // PAGE_BYTES, size, name)
    return Work(ACCESS, Load("public", name, ()), (copy,))


class Recorder:
    """Jobs that copy nothing, and take as long as the range is large."""

    def __init__(self, too_old: str | None = None) -> None:
        self._too_old = too_old
        self.at: Counter[str] = Counter()
        self.seen: list[tuple[str, int]] = []
        self._by_copy: dict[TableCopy, str] = {}

    def know(self, works: list[Work]) -> None:
        self._by_copy = {copy: work.load.table for work in works for copy in work.copies}

    async def copy(self, access: TargetAccess, copy: TableCopy, part: Part, snapshot: str) -> tuple[int, int]:
        table = self._by_copy[copy]
        if table == self._too_old:
            raise SnapshotTooOld(table)
        self.at[table] += 1
        self.seen.append((table, self.at[table]))
        await asyncio.sleep(0)
        self.at[table] -= 1
        return 1, 1


async def run(works: list[Work], *, jobs: int, range_bytes: int) -> Recorder:
    recorder = Recorder()
    recorder.know(works)
    ended = []

    async def finish(_: Job, work: Work) -> None:
        ended.append(work)

    left = await copy_round(
        [cast(Job, recorder)] * jobs,
        works,
        snapshot="s",
        range_bytes=range_bytes,
        finish=finish,
        progress=Silence(),
    )
    assert left == []
    assert set(ended) == set(works)
    return recorder


async def test_large_tables_come_first_and_each_job_has_one_of_its_own_while_there_are_enough() -> None:
    works = [a_table(f"a{number}", number * GIGABYTE // 8) for number in range(1, 9)]
    recorder = await run(works, jobs=3, range_bytes=GIGABYTE)
    tables = [table for table, _ in recorder.seen]
    assert tables[:3] == ["a8", "a7", "a6"]
    alone = [jobs_at_it for _, jobs_at_it in recorder.seen]
    joined = alone.index(2)
    assert joined > tables.index("a1"), "two jobs were at one table while others waited"


async def test_jobs_join_where_the_last_table_is_copied() -> None:
    recorder = await run([a_table("small", GIGABYTE // 8), a_table("large", GIGABYTE)], jobs=3, range_bytes=GIGABYTE)
    assert max(jobs_at_it for _, jobs_at_it in recorder.seen) == 3


async def test_one_job_completes_a_table_before_it_begins_another() -> None:
    works = [a_table("small", GIGABYTE // 8), a_table("large", GIGABYTE)]
    recorder = await run(works, jobs=1, range_bytes=GIGABYTE // 32)
    tables = [table for table, _ in recorder.seen]
    assert tables == sorted(tables)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (GIGABYTE, 64),
        (10 * GIGABYTE, 80),  # 128 MB at most
        (4 * LEAST_RANGE_BYTES, 4),
        (PAGE_BYTES, 1),
    ],
)
async def test_a_range_is_small_beside_the_share_of_a_job(size: int, expected: int) -> None:
    recorder = await run([a_table("a", size)], jobs=4, range_bytes=128 * 1024**2)
    assert len(recorder.seen) == expected


async def test_a_table_waits_for_those_that_it_refers_to() -> None:
    parent, child = a_table("parent", PAGE_BYTES), a_table("child", GIGABYTE)
    child.after.append(parent)
    recorder = await run([child, parent], jobs=3, range_bytes=GIGABYTE)
    assert [table for table, _ in recorder.seen[:2]] == ["parent", "child"]


async def test_a_table_that_the_snapshot_cannot_show_leaves_with_those_that_wait_for_it() -> None:
    parent, child, other = (
        a_table(name, PAGE_BYTES * size) for size, name in enumerate(("parent", "child", "other"), 1)
    )
    child.after.append(parent)
    works = [child, parent, other]
    recorder = Recorder(too_old="parent")
    recorder.know(works)
    ended = []

    async def finish(_: Job, work: Work) -> None:
        ended.append(work)

    async with asyncio.timeout(10):
        left = await copy_round(
            [cast(Job, recorder)] * 2,
            works,
            snapshot="s",
            range_bytes=GIGABYTE,
            finish=finish,
            progress=Silence(),
        )
    assert (left, ended) == ([child, parent], [other])
