"""What comes before the rows of a backup: the slot, the lower end, the first heartbeat, the backup itself, its refusal.

Why a backup that holds the first heartbeat can be joined to the slot, whoever made it and wherever (the design's
section 7). Every transaction is either streamed by the slot, or it had written its commit record before the slot's
start. Of the latter, each had begun before the slot was there, so once all transactions of that time have ended
(`cdc.source.visibility`) each is visible. Only then is the first heartbeat committed. Who sees the heartbeat took his
snapshot afterwards, on the primary or, because a standby replays commits in their order, on a standby; so he sees all
of them. Nothing is missing at the lower end. What is there twice is the business of the overlap mode.

What the run relies on is recorded in the targets before a backup is asked for: which heartbeat the backup must hold,
and the file of each table (`cdc.source.filenodes`). So a run that is killed goes on with the same backup.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cdc.bootstrap.archive.extract import local_archive
from cdc.bootstrap.archive.heartbeats import BackupHeartbeat, read_heartbeats
from cdc.bootstrap.archive.pg_restore import find_pg_restore
from cdc.bootstrap.archive.rows import Archive, open_archive
from cdc.bootstrap.archive.toc import read_toc
from cdc.bootstrap.backups import Backup, Backups, open_backups
from cdc.bootstrap.copying import hold_fence
from cdc.bootstrap.download import archive_file, download
from cdc.bootstrap.run import LoadLane, Run
from cdc.bootstrap.targets import Loading
from cdc.config import Config
from cdc.errors import SetupError
from cdc.source import heartbeat
from cdc.source.clock import read_clock
from cdc.source.filenodes import read_filenodes
from cdc.source.visibility import wait_until_visible
from cdc.target import backup_load
from cdc.target.backup_load import BackupLoad
from cdc.target.session import target_errors
from cdc.target.table_state import mark_copying


@dataclass(frozen=True, slots=True)
class BackupChoice:
    """Which backup to take: a local file, the provider's ``newest`` that can serve, or else a new one."""

    file: Path | None = None
    newest: bool = False


async def look_ahead(config: Config, choice: BackupChoice) -> None:
    """Refuse, before anything is made anywhere, what would only be found when a backup has been waited for.

    Raises `SetupError` without a ``pg_restore``, a place for the file, or a database that has backups;
    `ConfigurationError` for settings that are missing.
    """
    await asyncio.to_thread(find_pg_restore, config.bootstrap.pg_restore)
    if choice.file is None:
        async with open_backups(config.bootstrap):
            return
    # The file itself may be made when the stream is set up: only then can it hold the first heartbeat.
    if not await asyncio.to_thread(choice.file.parent.is_dir):
        raise SetupError(f"--file: there is no directory {choice.file.parent}")


async def remove_archives(run: Run, choice: BackupChoice) -> None:
    """Remove what was downloaded or unpacked: it holds every row, also what no target may have.

    A file of the operator's own stays.
    """
    directory = _directory(run.config)
    for loading in run.loadings.values():
        known = await backup_load.read(await loading.ready(), loading.aim.key)
        if known is None or known.backup is None:
            continue
        file = archive_file(directory, known.backup) if choice.file is None else Path(known.backup)
        if file != choice.file and file.parent == directory:
            await asyncio.to_thread(file.unlink, missing_ok=True)


def _directory(config: Config) -> Path:
    return config.bootstrap.directory or Path(tempfile.gettempdir())


async def expect(run: Run) -> dict[str, BackupLoad]:
    """Create the slots that are missing, wait for the lower end, commit the first heartbeat; by target.

    Durable when it returns, and done once: what an earlier run recorded holds for this one, too.
    """
    for lane in run.lanes:
        if lane.needs_slot:
            async with run.new_slot(lane):
                pass  # its snapshot is of no use here: the backup brings the rows
    expected: dict[str, BackupLoad] = {}
    waiting: list[tuple[LoadLane, Loading]] = []
    for lane in run.lanes:
        for name, loading in lane.loadings.items():
            if not loading.is_being_loaded:
                continue
            known = await backup_load.read(await loading.ready(), loading.aim.key)
            if known is None or known.slot != lane.slot:
                waiting.append((lane, loading))
            else:
                expected[name] = known
    if not waiting:
        return expected
    async with await run.connect() as connection:
        async with run.records.step("wait", targets=[loading.name for _, loading in waiting]):
            await wait_until_visible(connection, run.progress.say)
        filenodes = await read_filenodes(connection)
        beat = await heartbeat.beat(connection, run.config.pipeline)
    for lane, loading in waiting:
        load = BackupLoad(lane.slot, beat.count, beat.at)
        session = await loading.ready()
        with target_errors("recording what the backup must hold", session.where):
            async with session.connection.transaction():
                # Tables that keep their rows are copied live: nothing is recorded that would let a run empty them.
                for remaining in (load for load in loading.remaining() if not loading.keeps_rows(load)):
                    for route in remaining.routes:
                        file = filenodes.get(route.source_name)
                        await mark_copying(
                            session,
                            loading.aim.key,
                            route,
                            source_oid=file.oid if file else None,
                            source_filenode=file.filenode if file else None,
                            source_attributes=file.attributes if file else None,
                        )
                await backup_load.record(session, loading.aim.key, load)
                await hold_fence(session.connection, loading.access)
        await loading.read_states()
        expected[loading.name] = load
    return expected


async def obtain(run: Run, choice: BackupChoice, expected: Mapping[str, BackupLoad]) -> Archive:
    """The archive, on disk and found fit: complete, of this source, not older than the slots, and readable.

    The last heartbeat that it holds is recorded in the targets when it returns. Raises `SetupError` for a backup that
    cannot serve; the next run then takes another one.
    """
    settings = run.config.bootstrap
    directory = _directory(run.config)
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    if choice.file is not None:
        if not await asyncio.to_thread(choice.file.exists):
            raise SetupError(
                f"there is no file {choice.file} yet. The stream is set up now: make the dump (`pg_dump -Fc "
                f"--file={choice.file} …`), and run the same command again"
            )
        path = await local_archive(choice.file, directory)
        identity = str(path)
    else:
        async with open_backups(settings) as backups:
            async with run.records.step("backup"):
                backup = await _backup(run, backups, choice, expected)
            async with run.records.step("download") as step:
                path = await download(backups, backup, directory=directory, progress=run.progress)
                step.size = path.stat().st_size
        identity = backup.id
    try:
        await asyncio.to_thread(read_toc, path)
    except SetupError:  # damaged; one that is only too new for this pg_restore is kept
        await _discard(run, choice, path, expected)
        raise
    archive = await asyncio.to_thread(open_archive, path, settings.pg_restore)
    found = (await read_heartbeats(archive)).get(run.config.pipeline)
    async with await run.connect() as connection:
        table_oid = await heartbeat.table_oid(connection)
    problem = refusal(found, run, expected, table_oid, is_local=choice.file is not None)
    if problem is not None:
        await _discard(run, choice, path, expected)
        raise SetupError(f"the backup {choice.file or path.name} cannot be used: {problem}")
    assert found is not None
    await _record(run, identity, found.count)
    return archive


def refusal(
    found: BackupHeartbeat | None,
    run: Run,
    expected: Mapping[str, BackupLoad],
    table_oid: int,
    *,
    is_local: bool = False,
) -> str | None:
    """Why a backup that holds this heartbeat cannot be joined to the slots, in a sentence; `None` when it can.

    ``table_oid`` is that of the source's ``cdc.heartbeat``.
    """
    remedy = (
        "The stream is set up now: make the dump now (`pg_dump -Fc`), and run the same command again"
        if is_local
        else "Take one that begins now: `cdc bootstrap --from backup`"
    )
    needed = max(load.first_heartbeat for load in expected.values())
    ours = run.source
    if found is None:
        return (
            "it holds no heartbeat of this pipeline, so it is older than the slot, or of another database, or "
            f"cdc.heartbeat was excluded from it. {remedy}"
        )
    if found.system_identifier != ours.system.system_identifier:
        return (
            f"it was made of another database cluster (system identifier {found.system_identifier}, the source's is "
            f"{ours.system.system_identifier})"
        )
    if found.incarnation != ours.incarnation:
        return "it was made before `cdc setup` set up this pipeline (its heartbeat is another incarnation's)"
    if found.table_oid != table_oid:
        # A row is copied with a database; the table that it is in is another one there.
        return "it was made of a copy of the source (its cdc.heartbeat is another table), which may have changed since"
    if found.count < needed:
        return (
            f"it is older than the slot: the last heartbeat in it is number {found.count}, and it has to hold number "
            f"{needed} or a later one. If it was taken on a standby, that is behind. {remedy}"
        )
    return None


async def _backup(run: Run, backups: Backups, choice: BackupChoice, expected: Mapping[str, BackupLoad]) -> Backup:
    """The backup that was asked for before, the newest one that can serve, or a new one; finished."""
    known = {load.backup for load in expected.values()}
    backup = None
    if len(known) == 1 and (identity := known.pop()) is not None:
        backup = await backups.get(identity)
        if backup is not None and backup.has_failed:
            run.progress.say(f"backup {backup.id} ended as {backup.status}")
            backup = None
        if backup is not None:
            run.progress.say(f"going on with backup {backup.id}")
    if backup is None:
        # Also without --latest: a run that was killed may have asked for one, and not have had the time to record it.
        asked_at = max(load.asked_at for load in expected.values())
        backup = await backups.newest_backup_after(asked_at)
        if backup is None and choice.newest:
            raise SetupError(
                f"there is no backup that began after {asked_at:%Y-%m-%d %H:%M:%S} UTC, when the stream was set up. "
                f"Wait for the next one and run the same command again, or leave out --latest to ask for one now"
            )
        if backup is None:
            backup = await backups.new_backup()
            run.progress.say(f"asked for backup {backup.id}")
        else:
            run.progress.say(f"taking backup {backup.id}, which began at {backup.began_at:%Y-%m-%d %H:%M:%S} UTC")
    await _record(run, backup.id)
    return await backups.wait_until_done(backup, run.progress.say)


async def _discard(run: Run, choice: BackupChoice, path: Path, expected: Mapping[str, BackupLoad]) -> None:
    """A backup that cannot serve: the next run takes another one."""
    await _forget_backup(run, expected)
    if choice.file is None:
        await asyncio.to_thread(path.unlink, missing_ok=True)


async def _forget_backup(run: Run, expected: Mapping[str, BackupLoad]) -> None:
    """The next run takes one that begins later than now: a clock may have made this one look younger than it is."""
    async with await run.connect() as connection:
        now, _ = await read_clock(connection)
    for name, load in expected.items():
        loading = run.loadings[name]
        await backup_load.record(await loading.ready(), loading.aim.key, replace(load, asked_at=now))


async def _record(run: Run, backup: str | None, found: int | None = None) -> None:
    for loading in run.loadings.values():
        await backup_load.record_backup(await loading.ready(), loading.aim.key, backup, found)
