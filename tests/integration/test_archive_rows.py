"""Rows and heartbeats out of archives that a real pg_dump made."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tracemalloc
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from cdc.bootstrap.archive.copy_statement import copy_columns
from cdc.bootstrap.archive.heartbeats import read_heartbeats
from cdc.bootstrap.archive.pg_restore import PgRestore
from cdc.bootstrap.archive.rows import CHUNK_BYTES, Archive, open_archive, read_rows
from cdc.bootstrap.archive.toc import TocEntry
from cdc.bootstrap.programs import installed_binaries
from cdc.demo.postgres import Cluster
from cdc.errors import SetupError, TransientError
from cdc.identifiers import quote, quote_list, quote_qualified
from cdc.source import heartbeat
from cdc.source.connection import connect
from tests.archives import PIX_ARCHIVE, dump, opened
from tests.database import Database

EVIL = 'a\nCOPY public.b (x) FROM stdin;\n"\\.\n--'

AWKWARD = rf"""
    CREATE TABLE b (x text);
    INSERT INTO b VALUES ('\.'), (''), (NULL), (E'\n\\.\n'), ('\N'), (E'\t'), ('\'), (E'\\\n'), (repeat('é', 70000));
    CREATE TABLE {quote(EVIL)} ("c, d" int, "select" text);
    INSERT INTO {quote(EVIL)} SELECT g, repeat(E'\\.\n', g) FROM generate_series(1, 2000) g;
    CREATE TABLE empty (id int PRIMARY KEY);
    CREATE TABLE nothing ();
    INSERT INTO nothing DEFAULT VALUES;
    CREATE TABLE generated (id int, twice int GENERATED ALWAYS AS (id * 2) STORED, z text);
    INSERT INTO generated (id, z) SELECT g, 'z' FROM generate_series(1, 3) g;
    CREATE SCHEMA "Sch.ema";
    CREATE TABLE "Sch.ema".b (y int);
    INSERT INTO "Sch.ema".b VALUES (7);
"""


def entry_of(archive: Archive, name: str, schema: str = "public") -> TocEntry:
    entry = archive.toc.table_data(schema, name)
    assert entry is not None
    return entry


async def rows_of(archive: Archive, entry: TocEntry) -> bytes:
    async with aclosing(read_rows(archive, entry)) as chunks:
        return b"".join([chunk async for chunk in chunks])


def copied(database: Database, entry: TocEntry) -> bytes:
    columns = quote_list(copy_columns(entry))
    table = quote_qualified(entry.schema or "", entry.name)
    with database.connection().cursor().copy(f"COPY {table} {f'({columns})' if columns else ''} TO STDOUT") as copy:
        return b"".join(bytes(block) for block in copy)


def children() -> set[int]:
    """The processes that this one has started and that have not been waited for."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


@pytest.mark.parametrize("options", [(), ("--compress=0",), ("--load-via-partition-root",)], ids=str)
async def test_rows_are_what_copy_says_whatever_they_and_their_tables_are_called(
    source: Database, postgres_binaries: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    source.execute(AWKWARD)
    archive = opened(postgres_binaries, source, tmp_path / "a.pgsql", *options)
    entries = [entry for entry in archive.toc.entries if entry.description == "TABLE DATA"]
    assert len(entries) == 6
    for entry in entries:
        assert await rows_of(archive, entry) == copied(source, entry), entry.name
    assert await rows_of(archive, entry_of(archive, "b", "Sch.ema")) == b"7\n"
    assert await rows_of(archive, entry_of(archive, "empty")) == b""
    assert copy_columns(entry_of(archive, "generated")) == ("id", "z")


async def test_an_archive_that_was_written_into_a_pipe_gives_its_rows(
    source: Database, postgres_binaries: Path, tmp_path: Path
) -> None:
    source.execute(AWKWARD)
    path = tmp_path / "piped.pgsql"
    with path.open("ab") as file:
        process = subprocess.run(
            [postgres_binaries / "pg_dump", "--format=custom", source.dsn], check=True, stdout=subprocess.PIPE
        )
        file.write(process.stdout)
    archive = open_archive(path, None)
    for name in ("generated", "b", EVIL):
        entry = entry_of(archive, name)
        assert entry.data_offset is None
        assert await rows_of(archive, entry) == copied(source, entry)


async def test_every_table_of_the_archive_of_pix_can_be_read() -> None:
    archive = open_archive(PIX_ARCHIVE, None)
    counts = {
        entry.name: (await rows_of(archive, entry)).count(b"\n")
        for entry in archive.toc.entries
        if entry.description == "TABLE DATA"
    }
    assert len(counts) == 40
    assert counts["answers"] == 38
    assert counts["assessment-results"] == 0
    assert await read_heartbeats(archive) == {}


async def test_archives_of_every_installed_version_are_read(tmp_path: Path) -> None:
    for binaries in installed_binaries():
        if not all((binaries / program).is_file() for program in ("initdb", "pg_dump")):
            continue
        with await asyncio.to_thread(Cluster, binaries=binaries) as cluster:
            database = Database(cluster, "old")
            database.execute(AWKWARD)
            archive = opened(binaries, database, tmp_path / f"{binaries.parent.name}.pgsql")
            for entry in archive.toc.entries:
                if entry.description == "TABLE DATA":
                    assert await rows_of(archive, entry) == copied(database, entry), entry.name
            database.close()


async def test_chunks_are_large_and_memory_does_not_grow_with_the_table(
    source: Database, postgres_binaries: Path, tmp_path: Path
) -> None:
    source.execute(
        "CREATE TABLE a (id int, t text); INSERT INTO a SELECT g, repeat('x', 1000) FROM generate_series(1, 40000) g"
    )
    archive = opened(postgres_binaries, source, tmp_path / "a.pgsql")
    sizes: list[int] = []
    tracemalloc.start()
    try:
        async with aclosing(read_rows(archive, entry_of(archive, "a"))) as chunks:
            async for chunk in chunks:
                sizes.append(len(chunk))
                # Whoever writes is slower than pg_restore: what it has printed must not pile up here.
                await asyncio.sleep(0.001)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(sizes) > 40_000_000
    assert min(sizes[:-1]) > CHUNK_BYTES // 2
    assert peak < 8 * CHUNK_BYTES


async def large(source: Database, binaries: Path, path: Path) -> tuple[Archive, TocEntry]:
    source.execute("CREATE TABLE a (t text); INSERT INTO a SELECT repeat('secret', 2000) FROM generate_series(1, 3000)")
    archive = opened(binaries, source, path, "--compress=0")
    return archive, entry_of(archive, "a")


async def test_no_process_is_left_when_the_reader_stops_or_is_cancelled(
    source: Database, postgres_binaries: Path, tmp_path: Path
) -> None:
    archive, entry = await large(source, postgres_binaries, tmp_path / "a.pgsql")
    before = children()
    async with aclosing(read_rows(archive, entry)) as chunks:
        assert len(await anext(chunks)) > 0
        assert children() - before
    assert not children() - before

    reading = asyncio.Event()

    async def read() -> None:
        async with aclosing(read_rows(archive, entry)) as chunks:
            async for _ in chunks:
                reading.set()
                await asyncio.Event().wait()

    task = asyncio.ensure_future(read())
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not children() - before


async def test_a_pg_restore_that_somebody_ends_can_be_tried_again(
    source: Database, postgres_binaries: Path, tmp_path: Path
) -> None:
    archive, entry = await large(source, postgres_binaries, tmp_path / "a.pgsql")
    before = children()

    async def read() -> None:
        async with aclosing(read_rows(archive, entry)) as chunks:
            await anext(chunks)
            (pid,) = children() - before
            os.kill(pid, signal.SIGKILL)
            async for _ in chunks:
                continue

    with pytest.raises(TransientError, match=r"pg_restore, reading public\.a, was ended by signal 9"):
        await read()


def cut(content: bytearray, place: int) -> None:
    del content[place:]


def scramble(content: bytearray, place: int) -> None:
    content[place : place + 2000] = b"\xff" * 2000


@pytest.mark.parametrize("harm", [cut, scramble])
@pytest.mark.parametrize("options", [(), ("--compress=0",)], ids=str)
async def test_damage_among_the_rows_is_an_error_that_holds_none_of_them(
    source: Database,
    postgres_binaries: Path,
    tmp_path: Path,
    harm: Callable[[bytearray, int], None],
    options: tuple[str, ...],
) -> None:
    source.execute(
        "CREATE TABLE a (t text); INSERT INTO a SELECT 'secret' || md5(g::text) FROM generate_series(1, 9000) g"
    )
    path = dump(postgres_binaries, source, tmp_path / "a.pgsql", *options)
    offset = entry_of(open_archive(path, None), "a").data_offset
    assert offset is not None
    content = bytearray(path.read_bytes())
    # With an uncompressed archive only a block's length can be wrong: its first one stands five bytes behind.
    harm(content, (offset + len(content)) // 2 if harm is cut or not options else offset + 1)
    path.write_bytes(content)
    archive = open_archive(path, None)
    with pytest.raises(SetupError, match=r"rows of public\.a cannot be read from the archive .*a\.pgsql") as caught:
        await rows_of(archive, entry_of(archive, "a"))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_program_that_is_gone_and_rows_that_are_inserts_are_named(
    source: Database, postgres_binaries: Path, tmp_path: Path
) -> None:
    source.execute("CREATE TABLE a (t text); INSERT INTO a VALUES ('x')")
    archive = opened(postgres_binaries, source, tmp_path / "a.pgsql", "--inserts")
    entry = entry_of(archive, "a")
    with pytest.raises(SetupError, match=r"rows of public\.a cannot be read .*: it does not hold them as COPY"):
        await rows_of(archive, entry)
    gone = replace(archive, pg_restore=PgRestore(tmp_path / "pg_restore", (18, 1)))
    with pytest.raises(SetupError, match=r"pg_restore 18\.1 .* cannot be run: No such file"):
        await rows_of(gone, replace(entry, copy_statement="COPY public.a (t) FROM stdin;\n"))


async def test_the_heartbeats_of_a_backup_are_those_that_its_snapshot_saw(
    source: Database, postgres_binaries: Path, tmp_path: Path
) -> None:
    source.execute("CREATE TABLE heartbeat (pipeline text, count int); INSERT INTO heartbeat VALUES ('other', 9)")
    async with await connect(source.dsn, application_name="tests") as connection:
        for pipeline in ("pix", "pix-2"):
            await heartbeat.ensure(connection, pipeline)
        expected = [await heartbeat.beat(connection, pipeline) for pipeline in ("pix", "pix", "pix-2")][1:]
        archive = opened(postgres_binaries, source, tmp_path / "a.pgsql")
        await heartbeat.beat(connection, "pix")
    found = await read_heartbeats(archive)
    assert set(found) == {"pix", "pix-2"}
    for beat in expected:
        held = found[beat.pipeline]
        assert (held.count, held.at, held.incarnation) == (beat.count, beat.at, beat.incarnation)
        assert held.system_identifier == source.fetchval("SELECT system_identifier::text FROM pg_control_system()")


async def test_a_table_of_that_name_which_is_not_ours_is_an_error(
    source: Database, postgres_binaries: Path, tmp_path: Path
) -> None:
    source.execute("CREATE SCHEMA cdc; CREATE TABLE cdc.heartbeat (pipeline text, count int)")
    archive = opened(postgres_binaries, source, tmp_path / "a.pgsql")
    with pytest.raises(SetupError, match=r"a table cdc\.heartbeat that is not one of this version"):
        await read_heartbeats(archive)
