"""A backup on its way to the disk: over connections that are cut, refused, stalled and expired."""

from __future__ import annotations

import asyncio
import os
import stat
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cdc.bootstrap import download as module
from cdc.bootstrap import provider_http
from cdc.bootstrap.backups import Backup, Backups, open_backups
from cdc.bootstrap.download import download
from cdc.bootstrap.progress import Silence
from cdc.errors import BackupUnavailable, SetupError
from tests.database import Database
from tests.scalingo import StandIn
from tests.scalingo.dumps import packed

DUMP = b"PGDMP" + os.urandom(400_000)
NOW = datetime(2026, 5, 12, 9, 30, tzinfo=UTC)


class Seen(Silence):
    """What a person would have seen."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int | None]] = []
        self.said: list[str] = []

    def download(self, done: int, total: int | None) -> None:
        self.steps.append((done, total))

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_http, "RETRY_WAIT_S", (0.01, 0.02))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return packed(DUMP, tmp_path / "archive.tar.gz", "/var/backups/20260512_pix.pgsql")


@pytest.fixture
async def backups(scalingo: StandIn, archive: Path) -> AsyncIterator[Backups]:
    """One backup, made of random bytes."""
    addon = scalingo.add_database("postgresql:///nowhere")
    scalingo.add_backup(addon, archive, began_at=NOW)
    async with open_backups(scalingo.bootstrap(max_retry_count=3)) as found:
        yield found


async def fetch(backups: Backups, directory: Path, seen: Seen | None = None) -> Path:
    (backup,) = await backups.list()
    return await download(backups, backup, directory=directory, progress=seen or Seen())


def ranges(scalingo: StandIn) -> list[str | None]:
    return [request.headers.get("range") for request in scalingo.requests if request.path.startswith("/downloads/")]


async def test_a_backup_becomes_a_file_that_only_we_can_read(backups: Backups, archive: Path, tmp_path: Path) -> None:
    seen = Seen()
    directory = tmp_path / "new" / "directory"
    file = await fetch(backups, directory, seen)
    assert file.read_bytes() == DUMP
    (backup,) = await backups.list()
    assert file == directory / f"{backup.id}.pgsql"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in directory.iterdir()] == [file.name]
    size = archive.stat().st_size
    assert seen.steps[-1] == (size, size)
    assert [done for done, _ in seen.steps] == sorted({done for done, _ in seen.steps})
    assert seen.said == []


async def test_a_real_backup_of_a_real_database_arrives(scalingo: StandIn, source: Database, tmp_path: Path) -> None:
    source.execute("CREATE TABLE answers AS SELECT i AS id, md5(i::text) AS value FROM generate_series(1, 5000) i")
    scalingo.add_database(source.dsn)
    async with open_backups(scalingo.bootstrap()) as backups:
        done = await backups.wait_until_done(await backups.new_backup(), Seen().say)
        file = await download(backups, done, directory=tmp_path / "kept", progress=Seen())
    assert file.read_bytes()[:5] == b"PGDMP"


async def test_the_token_does_not_go_to_the_place_of_the_archive(
    backups: Backups, scalingo: StandIn, tmp_path: Path
) -> None:
    await fetch(backups, tmp_path / "kept")
    (request,) = [request for request in scalingo.requests if request.path.startswith("/downloads/")]
    assert "authorization" not in request.headers
    assert request.headers["accept-encoding"] == "identity"


async def test_what_is_there_already_is_not_downloaded_again(
    backups: Backups, scalingo: StandIn, tmp_path: Path
) -> None:
    seen = Seen()
    first = await fetch(backups, tmp_path / "kept")
    assert await fetch(backups, tmp_path / "kept", seen) == first
    assert len(ranges(scalingo)) == 1
    assert "was downloaded before" in seen.said[0]


async def test_what_an_earlier_run_left_half_done_is_no_file(
    backups: Backups, scalingo: StandIn, tmp_path: Path
) -> None:
    (backup,) = await backups.list()
    rest = tmp_path / "kept" / f"{backup.id}.part"
    rest.mkdir(parents=True)
    (rest / "20260512_pix.pgsql").write_bytes(b"half")
    assert (await fetch(backups, tmp_path / "kept")).read_bytes() == DUMP
    assert not rest.exists()


@pytest.mark.parametrize("has_length", [True, False])
async def test_a_cut_connection_goes_on_where_it_stopped(
    backups: Backups, scalingo: StandIn, tmp_path: Path, has_length: bool
) -> None:
    scalingo.downloads.has_length = has_length
    # More cuts than tries: each byte that arrives begins the count anew.
    scalingo.downloads.cut_after = deque([100_000, 1, 50_000, 7, 20_000])
    seen = Seen()
    file = await fetch(backups, tmp_path / "kept", seen)
    assert file.read_bytes() == DUMP
    first, *others = ranges(scalingo)
    assert first is None
    assert others == [f"bytes={begin}-" for begin in (100_000, 100_001, 150_001, 150_008, 170_008)]
    assert [done for done, _ in seen.steps] == sorted(done for done, _ in seen.steps)


async def test_without_ranges_what_is_there_already_is_skipped(
    backups: Backups, scalingo: StandIn, archive: Path, tmp_path: Path
) -> None:
    scalingo.downloads.knows_ranges = False
    scalingo.downloads.cut_after = deque([100_000, 300_000])
    seen = Seen()
    assert (await fetch(backups, tmp_path / "kept", seen)).read_bytes() == DUMP
    assert len(ranges(scalingo)) == 3
    assert seen.steps[-1][0] == archive.stat().st_size


async def test_a_cut_behind_the_last_byte_loses_nothing(
    backups: Backups, scalingo: StandIn, archive: Path, tmp_path: Path
) -> None:
    scalingo.downloads.has_length = False
    scalingo.downloads.cut_after = deque([archive.stat().st_size])
    assert (await fetch(backups, tmp_path / "kept")).read_bytes() == DUMP


async def test_a_range_is_never_one_of_another_archive(
    backups: Backups, scalingo: StandIn, archive: Path, tmp_path: Path
) -> None:
    other = packed(b"PGDMP" + os.urandom(300_000), tmp_path / "other.tar.gz", "/x.pgsql")

    class Replacing(Seen):
        def download(self, done: int, total: int | None) -> None:
            if not self.steps:
                os.replace(other, archive)
            super().download(done, total)

    scalingo.downloads.cut_after = deque([100_000])
    expected = other.stat().st_size
    seen = Replacing()
    file = await fetch(backups, tmp_path / "kept", seen)
    assert file.stat().st_size == 300_005
    assert seen.steps[-1] == (expected, expected)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_an_address_that_has_expired_is_asked_for_again(
    backups: Backups, scalingo: StandIn, tmp_path: Path, status: int
) -> None:
    scalingo.downloads.uses, scalingo.downloads.expired_status = 1, status
    scalingo.downloads.cut_after = deque([100_000, 100_000])
    assert (await fetch(backups, tmp_path / "kept")).read_bytes() == DUMP
    assert len(scalingo.asked("GET", "/archive")) == 3


async def test_an_address_that_is_always_expired_is_given_up(
    backups: Backups, scalingo: StandIn, tmp_path: Path
) -> None:
    scalingo.downloads.uses = 0
    with pytest.raises(BackupUnavailable, match=r"the address of backup \w+ is not valid any more \(HTTP 403\)"):
        await fetch(backups, tmp_path / "kept")
    assert len(scalingo.asked("GET", "/archive")) == 3
    assert list((tmp_path / "kept").iterdir()) == []


async def test_a_stalled_download_goes_on_over_another_connection(
    backups: Backups, scalingo: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_S", 0.3)
    scalingo.downloads.stall_after = deque([100_000])
    assert (await fetch(backups, tmp_path / "kept")).read_bytes() == DUMP
    assert ranges(scalingo) == [None, "bytes=100000-"]


async def test_a_download_that_is_cancelled_leaves_nothing(backups: Backups, scalingo: StandIn, tmp_path: Path) -> None:
    class First(Seen):
        def __init__(self) -> None:
            super().__init__()
            self.has_come = asyncio.Event()

        def download(self, done: int, total: int | None) -> None:
            self.has_come.set()

    scalingo.downloads.stall_after = deque([100_000])
    seen = First()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(fetch(backups, tmp_path / "kept", seen))
        await seen.has_come.wait()
        task.cancel()
    assert task.cancelled()
    assert list((tmp_path / "kept").iterdir()) == []


async def test_a_slow_download_is_no_stalled_one(
    backups: Backups, scalingo: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_S", 0.5)
    scalingo.downloads.bytes_per_s = 300_000
    assert (await fetch(backups, tmp_path / "kept")).read_bytes() == DUMP
    assert ranges(scalingo) == [None]


async def test_what_can_pass_is_tried_again_and_given_up_when_it_does_not(
    backups: Backups, scalingo: StandIn, tmp_path: Path
) -> None:
    scalingo.downloads.refuse = deque([503, 429])
    assert (await fetch(backups, tmp_path / "kept")).read_bytes() == DUMP
    scalingo.downloads.refuse = deque([503] * 10)
    with pytest.raises(BackupUnavailable, match=r"is refused for now \(HTTP 503\)"):
        await fetch(backups, tmp_path / "other")
    assert len(scalingo.downloads.refuse) == 7


async def test_a_refusal_is_one_clear_error(backups: Backups, scalingo: StandIn, tmp_path: Path) -> None:
    scalingo.downloads.refuse = deque([400])
    with pytest.raises(SetupError, match=r"the download of backup \w+ is refused \(HTTP 400\)"):
        await fetch(backups, tmp_path / "kept")


async def test_an_archive_that_breaks_off_is_downloaded_anew_and_then_given_up(
    backups: Backups, scalingo: StandIn, archive: Path, tmp_path: Path
) -> None:
    archive.write_bytes(archive.read_bytes()[:200_000])
    with pytest.raises(BackupUnavailable):
        await fetch(backups, tmp_path / "kept")
    assert len(ranges(scalingo)) == module.WHOLE_TRIES
    assert list((tmp_path / "kept").iterdir()) == []


async def test_another_size_than_scalingo_says_is_a_warning_only(
    backups: Backups, scalingo: StandIn, tmp_path: Path
) -> None:
    scalingo.downloads.size_said = 12_000_000
    seen = Seen()
    assert (await fetch(backups, tmp_path / "kept", seen)).read_bytes() == DUMP
    assert seen.said[0].endswith("were downloaded, Scalingo says 12.0 MB")


async def test_a_directory_that_cannot_be_written_is_one_clear_error(backups: Backups, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SetupError, match=r"Not a directory.*bootstrap\.directory names another place"):
        await fetch(backups, tmp_path / "file" / "kept")


async def test_a_backup_of_a_strange_name_stays_in_its_directory(
    backups: Backups, scalingo: StandIn, tmp_path: Path
) -> None:
    (backup,) = await backups.list()
    scalingo.backups[0].id = "../../etc/x"
    strange = Backup(
        "../../etc/x", backup.created_at, backup.started_at, backup.name, backup.size, backup.status, backup.method
    )
    scalingo.faults.answer("GET", "/archive", 200, await _address(backups, scalingo))
    file = await download(backups, strange, directory=tmp_path / "kept", progress=Seen())
    assert file.parent == tmp_path / "kept"


async def _address(backups: Backups, scalingo: StandIn) -> dict[str, str]:
    scalingo.backups[0].id = "plain"
    (backup,) = await backups.list()
    return {"download_url": (await backups.archive_url(backup)).get_secret_value()}


async def test_invariant_08_the_address_is_in_no_log_and_no_error(
    backups: Backups, scalingo: StandIn, tmp_path: Path
) -> None:
    scalingo.downloads.cut_after = deque([10, 10])
    scalingo.downloads.refuse = deque([503])
    with capture_logs() as lines:
        await fetch(backups, tmp_path / "kept")
    secrets = {request.path.removeprefix("/downloads/") for request in scalingo.requests if "downl" in request.path}
    assert secrets
    assert len(lines) >= 3
    assert not [secret for secret in secrets for line in lines if secret in str(line)]
