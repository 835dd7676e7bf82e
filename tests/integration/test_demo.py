"""The demo: it ends with a true verdict, and however it ends, it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cdc.config import Config
from cdc.demo import latency
from cdc.demo.comparison import Compared, compare
from cdc.demo.latency import Latency, percentile
from cdc.demo.postgres import BINARIES_VARIABLE, Cluster
from cdc.demo.verdict import TargetVerdict, Verdict
from tests.database import Database

MakeDatabase = Callable[..., Database]
MakeServer = Callable[..., Cluster]

LAST_STEP_BEFORE_THE_KILL = "`cdc run`"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for everything that the demo writes, which the user of its servers can reach."""
    directory = Path(tempfile.mkdtemp(prefix="demo-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def start(place: Path, binaries: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cdc", "demo", *arguments],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "TMPDIR": str(place), BINARIES_VARIABLE: str(binaries), "PGOPTIONS": "-c nonsense=1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def left_behind(place: Path) -> list[str]:
    """Files of the demo, and processes that have to do with them."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [*map(str, place.iterdir()), *(line for line in listed.splitlines() if str(place) in line)]


@pytest.mark.timeout(300)
def test_the_demo_ends_with_every_table_of_every_target_equal_to_the_source(
    place: Path, postgres_binaries: Path
) -> None:
    with start(place, postgres_binaries, "--seconds", "5", "--json") as demo:
        output, said = demo.communicate(timeout=280)
    assert demo.returncode == 0, output + said
    verdict = json.loads(output)
    assert verdict["equal"] is True
    assert {name: target["tables"] for name, target in verdict["targets"].items()} == {
        "internal": 17,
        "external": 7,
        "datamart": 6,
    }
    for target in verdict["targets"].values():
        assert target["mismatches"] == []
        assert target["rows"] > 1000
        assert 0 < target["lag_p50_s"] <= target["lag_p99_s"]
    assert verdict["killed"] == 1
    assert verdict["transactions"] > 200
    assert verdict["reads"] > 10
    assert verdict["torn_reads"] == 0
    assert verdict["problems"] == []
    assert left_behind(place) == []


@pytest.mark.parametrize(
    ("how", "step"),
    [
        (signal.SIGINT, "Starting"),
        (signal.SIGINT, LAST_STEP_BEFORE_THE_KILL),
        (signal.SIGTERM, LAST_STEP_BEFORE_THE_KILL),
        (signal.SIGKILL, LAST_STEP_BEFORE_THE_KILL),
    ],
)
def test_a_demo_that_is_interrupted_leaves_nothing_behind(
    how: signal.Signals, step: str, place: Path, postgres_binaries: Path
) -> None:
    with start(place, postgres_binaries) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if step in line:
                break
        else:
            pytest.fail(demo.communicate()[1])
        demo.send_signal(how)
        rest, said = demo.communicate(timeout=60)
    assert demo.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130), rest + said
    assert "Traceback" not in said
    deadline = time.monotonic() + 20
    while left_behind(place):  # after SIGKILL others tidy up
        assert time.monotonic() < deadline, left_behind(place)
        time.sleep(0.1)


def configured(source: Database, target: Database, **keys: object) -> Config:
    return Config.model_validate(
        {"source": {"dsn": source.dsn}, "targets": {"internal": {"dsn": target.dsn, "include": ["public.*"], **keys}}}
    )


async def compared(source: Database, target: Database, **keys: object) -> Compared:
    found = await compare(configured(source, target, **keys), source.dsn, {"internal": target.dsn})
    return found["internal"]


ROWS = """
CREATE TABLE "two-columns" (id int, "Value" text);
INSERT INTO "two-columns" VALUES (1, NULL), (2, ''), (3, 'x'), (3, 'x');
"""


async def test_equal_tables_are_equal_whatever_the_order_of_their_rows(
    source: Database, make_target: MakeDatabase
) -> None:
    target = make_target()
    source.execute(ROWS)
    target.execute('CREATE TABLE "two-columns" ("Value" text, id int)')
    target.execute("INSERT INTO \"two-columns\" (id, \"Value\") VALUES (3, 'x'), (2, ''), (3, 'x'), (1, NULL)")
    assert await compared(source, target) == Compared(tables=1, rows=4, mismatches=())


@pytest.mark.parametrize(
    ("difference", "missing", "surplus"),
    [
        ('DELETE FROM "two-columns" WHERE id = 1', 1, 0),
        ("INSERT INTO \"two-columns\" VALUES (3, 'x')", 0, 1),
        ('UPDATE "two-columns" SET "Value" = NULL WHERE id = 2', 1, 1),
        ('TRUNCATE "two-columns"', 4, 0),
    ],
)
async def test_every_difference_of_a_row_is_seen_and_no_value_is_told(
    difference: str, missing: int, surplus: int, source: Database, make_target: MakeDatabase
) -> None:
    target = make_target()
    for database in (source, target):
        database.execute(ROWS)
    target.execute(difference)
    assert (await compared(source, target)).mismatches == (
        f"public.two-columns differs: {missing} rows of the source are not there, and {surplus} rows are not the "
        "source's",
    )


async def test_what_nobody_asked_for_is_a_mismatch(source: Database, make_target: MakeDatabase) -> None:
    target = make_target()
    for database in (source, target):
        database.execute(ROWS + "CREATE TABLE secrets (id int)")
    found = await compared(source, target, exclude=["public.secrets"])
    assert found.mismatches == ("public.secrets is there, and nobody asked for it",)
    listed = await compared(
        source, target, include=[], columns="listed", tables={"public.two-columns": ["id"], "public.secrets": ["id"]}
    )
    assert listed.mismatches == ("public.two-columns has columns that nobody asked for",)


async def test_a_table_that_is_missing_is_a_mismatch(source: Database, make_target: MakeDatabase) -> None:
    source.execute(ROWS)
    assert (await compared(source, make_target())).mismatches == ("public.two-columns lacks Value, id",)


async def test_the_latency_of_a_row_is_the_difference_of_its_commit_times(
    own_server: MakeServer, make_database: MakeDatabase
) -> None:
    server = own_server(track_commit_timestamp="on")
    source, target = (make_database(name, server=server) for name in ("source", "target"))
    for database in (source, target):
        database.execute('CREATE TABLE "passage-events" (id int)')
    begun = datetime.now(UTC)
    source.execute('INSERT INTO "passage-events" VALUES (1), (2)')
    time.sleep(0.3)
    target.execute('INSERT INTO "passage-events" VALUES (1)')
    ended = datetime.now(UTC)
    everything = (begun - timedelta(seconds=1), ended)
    names = (source.dsn, target.dsn, "public", "passage-events")
    measured = await latency.measure(*names, measured=everything, disturbed=[])
    assert measured.rows == 1
    assert measured.p50_s is not None
    assert 0.3 <= measured.p50_s < 5
    assert measured.p99_s == measured.undisturbed_p99_s == measured.p50_s
    disturbed = await latency.measure(*names, measured=everything, disturbed=[(begun, ended)])
    assert (disturbed.p99_s, disturbed.undisturbed_p99_s) == (measured.p99_s, None)
    assert (await latency.measure(*names, measured=(ended, ended), disturbed=[])).p50_s is None


def test_a_percentile_is_a_sample() -> None:
    samples = [float(number) for number in range(100, 0, -1)]
    assert (percentile(samples, 50), percentile(samples, 99), percentile(samples, 100)) == (50, 99, 100)
    assert percentile([0.5], 99) == 0.5
    assert percentile([], 50) is None


@pytest.mark.parametrize(
    ("mismatches", "torn", "problems", "equal", "success"),
    [
        ((), 0, (), True, True),
        (("public.users differs",), 0, (), False, False),
        ((), 1, (), True, False),
        ((), 0, ("external does not hold …",), True, False),
    ],
)
def test_the_verdict_is_good_only_when_everything_was(
    mismatches: tuple[str, ...], torn: int, problems: tuple[str, ...], equal: bool, success: bool
) -> None:
    target = TargetVerdict(Compared(3, 100, mismatches), Latency(10, 0.01, 2.0, 0.02))
    verdict = Verdict(
        targets={"internal": target},
        seconds=10,
        killed=1,
        recovered_s=1.5,
        transactions=1000,
        reads=200,
        torn_reads=torn,
        problems=problems,
    )
    assert (verdict.equal, verdict.is_success) == (equal, success)
    shown = json.loads(verdict.to_json())
    assert shown["equal"] is equal
    assert shown["targets"]["internal"]["mismatches"] == list(mismatches)
    assert all(sentence in " ".join(verdict.sentences()) for sentence in (*mismatches, *problems))
