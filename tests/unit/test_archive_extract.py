"""The one dump in a provider's tar.gz, unpacked while it arrives."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import random
import tarfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cdc.bootstrap.archive.extract import extract, local_archive
from cdc.errors import BackupUnavailable, SetupError, TransientError

DUMP = b"PGDMP" + random.Random(3).randbytes(3_000_000)


def tar(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.type = (len(content), kind) if kind == tarfile.REGTYPE else (0, kind)
            member.mode = 0o666
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tar_gz(*members: tuple[str, bytes]) -> bytes:
    return gzip.compress(tar(*members), compresslevel=1)


async def stream(content: bytes, size: int = 50_000) -> AsyncIterator[bytes]:
    for place in range(0, len(content), size):
        yield content[place : place + size]


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("member", ["/app/data/20261122_pix.pgsql", "20261122_pix.pgsql", "../../x/20261122_pix.pgsql"])
async def test_the_dump_lands_in_the_directory_whatever_its_path_was(tmp_path: Path, member: str) -> None:
    found = await extract(stream(tar_gz(("/app/README", b"hello"), (member, DUMP))), tmp_path)
    assert found == tmp_path / "20261122_pix.pgsql"
    assert found.read_bytes() == DUMP
    assert found.stat().st_mode & 0o777 == 0o600
    assert left_in(tmp_path) == ["20261122_pix.pgsql"]


async def test_an_earlier_file_of_that_name_is_replaced_and_a_link_is_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.write_bytes(b"precious")
    (inside / "a.pgsql.part").symlink_to(outside)
    (inside / "a.pgsql").write_bytes(b"older")
    await extract(stream(tar_gz(("a.pgsql", DUMP))), inside)
    assert (inside / "a.pgsql").read_bytes() == DUMP
    assert outside.read_bytes() == b"precious"
    assert left_in(inside) == ["a.pgsql"]


@pytest.mark.parametrize("size", [1, 4096, 10_000_000])
async def test_chunks_may_be_of_any_size(tmp_path: Path, size: int) -> None:
    found = await extract(stream(tar_gz(("a.pgsql", DUMP[:20_000])), size), tmp_path)
    assert found.read_bytes() == DUMP[:20_000]


async def test_an_archive_that_breaks_off_anywhere_can_be_downloaded_again(tmp_path: Path) -> None:
    content = tar_gz(("a.pgsql", DUMP))
    for length in (0, 1, 5, 100, len(content) // 2, len(content) - 20_000, len(content) - 1):
        with pytest.raises(BackupUnavailable, match="breaks off") as caught:
            await extract(stream(content[:length]), tmp_path)
        assert isinstance(caught.value, TransientError)
        assert left_in(tmp_path) == []


async def test_an_archive_whose_checksum_is_wrong_is_not_taken(tmp_path: Path) -> None:
    content = bytearray(tar_gz(("a.pgsql", DUMP)))
    content[-6] ^= 1
    with pytest.raises(BackupUnavailable, match="damaged"):
        await extract(stream(bytes(content)), tmp_path)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tar_gz(("a.txt", b"x"), ("b.sql", b"y")), "holds no dump: no file in it ends in .pgsql"),
        (tar_gz(("a.pgsql", b"x"), ("x/b.pgsql", b"y")), r"several dumps .a.pgsql, b.pgsql, …."),
        (gzip.compress(tar(("a.pgsql", b""), kind=tarfile.DIRTYPE)), "holds no dump"),
        (gzip.compress(tar(("a.pgsql", b""), kind=tarfile.SYMTYPE)), "holds no dump"),
        (gzip.compress(b"PGDMP" + b"x" * 5000), "not a tar file"),
        (b"<html>Retry later</html>", "does not begin as gzip's files do"),
        (tar(("a.pgsql", b"x")), "does not begin as gzip's files do"),
    ],
    # Not the contents: gzip puts the time into them, and each test process has another.
    ids=["no dump", "two dumps", "a directory", "a link", "no tar", "a page", "not compressed"],
)
async def test_what_holds_not_exactly_one_dump_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        await extract(stream(content), tmp_path)
    assert left_in(tmp_path) == []


async def test_what_the_download_raises_is_raised_and_nothing_is_left(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield tar_gz(("a.pgsql", DUMP))[:500_000]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await extract(broken(), tmp_path)
    assert left_in(tmp_path) == []


async def test_a_cancelled_extraction_leaves_neither_a_file_nor_a_thread(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield tar_gz(("a.pgsql", DUMP))[:1_000_000]
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(extract(stalled(), tmp_path))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left_in(tmp_path) == []


async def test_a_download_waits_for_the_disk_instead_of_filling_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0
    content = tar_gz(("a.pgsql", random.Random(5).randbytes(20_000_000)))
    release, opened = threading.Event(), threading.Event()

    async def counted() -> AsyncIterator[bytes]:
        nonlocal taken
        async for chunk in stream(content, 100_000):
            taken += len(chunk)
            yield chunk

    def hold(path: Path, flags: int, mode: int) -> int:
        opened.set()
        release.wait(30)
        return open_file(path, flags, mode)

    open_file = os.open
    monkeypatch.setattr(os, "open", hold)
    task = asyncio.ensure_future(extract(counted(), tmp_path))
    assert await asyncio.to_thread(opened.wait, 30)
    before = -1
    while taken != before:
        before = taken
        await asyncio.sleep(0.3)
    assert 0 < taken < 6_000_000
    release.set()
    assert (await task).stat().st_size == 20_000_000


async def test_a_full_disk_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode: open_file("/dev/full", os.O_WRONLY))
    with pytest.raises(SetupError, match=r"no room in .* for the unpacked archive: set bootstrap\.directory"):
        await extract(stream(tar_gz(("a.pgsql", DUMP))), tmp_path)


async def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot be unpacked into .*gone: No such file"):
        await extract(stream(tar_gz(("a.pgsql", DUMP))), tmp_path / "gone")


async def test_a_local_dump_is_used_as_it_is_and_a_local_tar_gz_is_unpacked(tmp_path: Path) -> None:
    dump, packed, out = tmp_path / "a.pgsql", tmp_path / "b.tar.gz", tmp_path / "out"
    out.mkdir()
    dump.write_bytes(DUMP)
    packed.write_bytes(tar_gz(("/x/b.pgsql", DUMP)))
    assert await local_archive(dump, out) == dump
    assert left_in(out) == []
    assert await local_archive(packed, out) == out / "b.pgsql"
    assert (out / "b.pgsql").read_bytes() == DUMP


async def test_a_local_tar_gz_that_is_cut_short_is_nothing_to_try_again(tmp_path: Path) -> None:
    packed = tmp_path / "b.tar.gz"
    packed.write_bytes(tar_gz(("/x/b.pgsql", DUMP))[:-100])
    with pytest.raises(SetupError, match=r"b.tar.gz is cut short or damaged"):
        await local_archive(packed, tmp_path)
    with pytest.raises(SetupError, match=r"none.tar.gz cannot be read: No such file"):
        await local_archive(tmp_path / "none.tar.gz", tmp_path)
