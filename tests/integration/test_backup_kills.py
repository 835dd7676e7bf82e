"""A bootstrap that is killed at every step, and started again: it goes on where it was, and does nothing twice."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from cdc.config import Config
from cdc.service import loading
from tests.backup import bootstrap_settings
from tests.bootstrap import follow, rows, set_up
from tests.conftest import MakeDatabase
from tests.database import Database, unique_name
from tests.scalingo import StandIn

_RUN = """
import asyncio, json, os, signal, sys
from contextlib import asynccontextmanager
from cdc.bootstrap.backup import BackupChoice
from cdc.bootstrap.progress import Silence
from cdc.bootstrap.run import Scope
from cdc.config import Config
from cdc.service import load_stream, loading, swapping
from cdc.target.run_record import RunRecord

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def when(*happens):
    if [what, *words] == list(happens)[: 1 + len(words)]:
        die()

class Death(Silence):
    def copied(self, target, table, rows, size):
        when("copied", table)
    def finish(self, target, table):
        when("finish", table)
    def download(self, done, total):
        if what == "download" and 0 < done < total:
            die()
    def say(self, message):
        if what == "say" and words[0] in message:
            die()

async def until_cut_over(stream):
    if what == "overlap":
        (delivery,) = stream.deliveries.values()
        while delivery.position is None:
            await delivery.changed()
        begin = delivery.position
        while delivery.position == begin:
            await delivery.changed()
        if delivery.consistent_at is None:
            die()
    await wait_for_cut_over(stream)
    when("cut-over")

@asynccontextmanager
async def step(record, kind, name=None):
    async with real_step(record, kind, name) as one:
        when("step", kind, name)
        yield one

async def swap(*arguments, **options):
    result = await real_swap(*arguments, **options)
    when("swapped")
    return result

wait_for_cut_over, load_stream.LoadStream.until_cut_over = load_stream.LoadStream.until_cut_over, until_cut_over
real_swap, swapping.swap = swapping.swap, swap
real_step, RunRecord.step = RunRecord.step, step

def run(settings, anew):
    config, scope = Config.model_validate(settings), Scope(anew=anew)
    return loading.bootstrap(config, scope=scope, from_backup=BackupChoice(), jobs=1, progress=Death())

# Everything is imported once; each run is a process of its own.
for line in sys.stdin:
    if (child := os.fork()) == 0:
        settings, (what, *words), anew, log = json.loads(line)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        print(asyncio.run(run(settings, anew)), flush=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runs:
    """Runs bootstraps, each in a process of its own, which kills itself at the moment that it is told."""

    def __init__(self, settings: dict[str, Any], log: Path, *, anew: bool = False) -> None:
        self.output = ""
        self._settings, self._log, self._anew = settings, log, anew

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUN],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate()

    def __call__(self, *death: str) -> int:
        """The exit status of one run; ``output`` is what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = [self._settings, death or ["never"], self._anew, str(self._log)]
        self._process.stdin.write(json.dumps(asked) + "\n")
        status = int(self._process.stdout.readline())
        self.output = self._log.read_text(encoding="utf-8")
        return status

    def until(self, *death: str) -> None:
        """One run that has to come to this moment."""
        assert self(*death) == -signal.SIGKILL, f"it did not come to {death}: {self.output[-3000:]}"

    def to_the_end(self) -> None:
        """One run that nobody kills."""
        assert self() == 0, self.output[-3000:]


def settings_of(source: Database, target: Database, **bootstrap: Any) -> dict[str, Any]:
    slot = unique_name("slot").replace("-", "_")
    return {
        "source": {"dsn": source.dsn, "slot": slot, "publication": slot},
        "targets": {"internal": follow(target)},
        "worker": {"heartbeat_interval_s": 0.3},
        "bootstrap": bootstrap,
    }


def fill(source: Database) -> None:
    source.execute(
        "CREATE TABLE item (id int PRIMARY KEY, label text UNIQUE, n int, filler text);"
        "CREATE TABLE large (id int PRIMARY KEY, n int, filler text);"
        "CREATE TABLE log (what text);"
        "CREATE INDEX item_n ON item (n);"
        "CREATE VIEW labels AS SELECT id, label FROM item;"
        # What cannot be compressed makes an archive of several pieces.
        "INSERT INTO item SELECT n, 'label ' || n, 0, md5(n::text) FROM generate_series(1, 50) n;"
        "INSERT INTO large SELECT n, 0, (SELECT string_agg(md5(n || '-' || m), '') FROM generate_series(1, 30) m)"
        "  FROM generate_series(1, 200) n;"
        "INSERT INTO log SELECT 'line ' || n FROM generate_series(1, 30) n"
    )


def write(source: Database, n: int) -> None:
    """What the application does between two runs; all of it can be told apart afterwards."""
    source.execute(
        f"UPDATE item SET label = NULL WHERE id = {n}; UPDATE item SET label = 'label {n}' WHERE id = {n + 1};"
        f"INSERT INTO item VALUES ({1000 + n}, 'new {n}', {n}, 'x'); DELETE FROM item WHERE id = {30 + n};"
        f"UPDATE large SET n = {n} WHERE id % 7 = {n % 7}; UPDATE large SET id = id + 1000 WHERE id = {n};"
        f"INSERT INTO log VALUES ('while {n}'), ('while {n}')"
    )


FILES = "SELECT relname, pg_relation_filenode(oid) FROM pg_class WHERE relname IN ('large', 'large_pkey')"


@pytest.mark.timeout(300)
async def test_killed_at_every_step_it_goes_on_and_does_nothing_twice(
    source: Database, make_target: MakeDatabase, scalingo: StandIn, tmp_path: Path
) -> None:
    fill(source)
    internal = make_target()
    for number in (1, 2):
        (tmp_path / "internal").mkdir(exist_ok=True)
        (tmp_path / "internal" / f"{number}.sql").write_text(f"CREATE TABLE enriched_{number} (n int);\n")
    scalingo.add_database(source.dsn)
    settings = settings_of(
        source, internal, **bootstrap_settings(scalingo), directory=str(tmp_path), enrichment=str(tmp_path)
    )
    scalingo.may_begin.clear()
    scalingo.downloads.bytes_per_s = 400_000.0
    deaths = [
        ("step", "wait"),
        ("step", "backup"),
        ("say", "is scheduled"),
        ("download",),
        ("finish", "public.large"),
        ("step", "primary key", "public.item"),
        ("copied", "public.log"),
        ("overlap",),
        ("cut-over",),
        ("step", "unique index"),
        ("step", "index"),
        ("step", "enrichment", "2.sql"),
    ]
    seen: dict[str, Any] = {}
    with Runs(settings, tmp_path / "log") as run:
        for n, death in enumerate(deaths, 1):
            await asyncio.to_thread(run.until, *death)
            write(source, n)
            if death == ("say", "is scheduled"):
                # It is made while nobody waits for it.
                seen["load"] = internal.fetch("SELECT slot, first_heartbeat, backup FROM cdc.backup_load")
                scalingo.may_begin.set()
            if death == ("finish", "public.large"):
                seen["files"] = internal.fetch(FILES)
                assert internal.fetch("SELECT source_table FROM cdc.target_table WHERE state = 'overlap'") == [
                    ("large",)
                ]
                seen["downloads"] = len(downloads(scalingo))
        await asyncio.to_thread(run.to_the_end)
        assert "warning" not in run.output
    for table in ("item", "large", "log"):
        assert rows(internal, table) == rows(source, table)
    assert internal.fetchval("SELECT count(*) FROM labels") == source.fetchval("SELECT count(*) FROM labels")
    assert internal.fetch("SELECT state FROM cdc.target") == [("streaming",)]
    assert {state for (state,) in internal.fetch("SELECT state FROM cdc.target_table")} == {"streaming"}

    # One backup, one whole download, and of the tables that were complete none was touched again.
    (backup,) = scalingo.backups
    assert seen["load"] == [(settings["source"]["slot"], seen["load"][0][1], backup.id)]
    assert len(downloads(scalingo)) == seen["downloads"] == 2
    assert internal.fetch(FILES) == seen["files"]
    for table in ("public.large", "public.item"):
        assert done(internal, "primary key", table) == 1
    assert done(internal, "table", "public.large") == 1
    # Its rows were in, without a key: who has not recorded it restores it again.
    assert done(internal, "table", "public.item") == 2
    assert done(internal, "enrichment", "1.sql") == done(internal, "enrichment", "2.sql") == 1


def downloads(scalingo: StandIn) -> list[Any]:
    return [request for request in scalingo.requests if request.path.startswith("/downloads/")]


def done(target: Database, kind: str, name: str | None = None) -> int:
    """How often a step came to its end."""
    found = target.fetchval(
        "SELECT count(*) FROM cdc.bootstrap_step WHERE kind = %s AND (%s::text IS NULL OR object = %s)"
        " AND finished_at IS NOT NULL",
        *(kind, name, name),
    )
    return int(found)


async def test_killed_around_the_swap_it_goes_on_and_nobody_misses_a_row(
    source: Database, make_target: MakeDatabase, scalingo: StandIn, tmp_path: Path
) -> None:
    fill(source)
    internal = make_target()
    scalingo.add_database(source.dsn)
    settings = settings_of(source, internal, **bootstrap_settings(scalingo), directory=str(tmp_path))
    config = Config.model_validate(settings)
    await set_up(config)
    await loading.bootstrap(config, jobs=2)
    internal.execute("CREATE VIEW readers AS SELECT id, n FROM large; GRANT SELECT ON large TO PUBLIC")
    old = internal.fetchval("SELECT 'large'::regclass::oid")
    with Runs(settings, tmp_path / "log", anew=True) as run:
        for n, death in enumerate([("overlap",), ("step", "swap"), ("swapped",)], 1):
            write(source, n)
            await asyncio.to_thread(run.until, *death)
            assert internal.fetchval("SELECT count(*) FROM readers") == 200
        new = internal.fetchval("SELECT 'large'::regclass::oid")
        assert new != old
        await asyncio.to_thread(run.to_the_end)
    # The swap was done: the same command finishes what comes after it, and loads nothing a third time.
    assert internal.fetchval("SELECT 'large'::regclass::oid") == new
    assert len(scalingo.backups) == 1
    assert source.fetch("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()") == [
        (settings["source"]["slot"],)
    ]
    assert internal.fetch("SELECT pipeline, state FROM cdc.target") == [("cdc", "streaming")]
    assert internal.fetchval("SELECT count(*) FROM labels") == internal.fetchval("SELECT count(*) FROM item")
