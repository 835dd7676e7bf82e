"""Servers of our own: they start as any user, outlive nobody, and leave nothing."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from cdc.demo.postgres import BINARIES_VARIABLE, Account, Cluster, find_binaries
from cdc.errors import SetupError

PROGRAM = """
import sys, time
from pathlib import Path
from cdc.demo.postgres import Cluster

with Cluster(binaries=Path(sys.argv[1])) as cluster:
    print(cluster.directory, cluster.pid, flush=True)
    time.sleep(100)
"""


def wait_until_gone(directory: Path, pid: int, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while directory.exists() or is_running(pid):
        assert time.monotonic() < deadline, f"{directory} or process {pid} is still there"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether the process is there, and not just waiting for somebody to ask how it ended."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_server_is_gone_when_its_process_ends_in_whatever_way(how: signal.Signals, postgres_binaries: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", PROGRAM, str(postgres_binaries)]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        directory, pid = process.stdout.readline().split()
        assert is_running(int(pid))
        os.killpg(process.pid, how)
        process.wait(30)
    wait_until_gone(Path(directory), int(pid))


def test_a_server_does_not_run_as_root_and_nobody_else_sees_its_files(postgres_binaries: Path) -> None:
    with Cluster(binaries=postgres_binaries) as cluster:
        status = (cluster.data / "PG_VERSION").stat()
        assert status.st_uid != 0
        assert status.st_uid == (Account.for_servers().uid or os.geteuid())
        assert stat.S_IMODE(cluster.directory.stat().st_mode) == 0o700
        assert len(f"{cluster.directory}/.s.PGSQL.{cluster.port}") < 100
        with psycopg.connect(f"host={cluster.directory} port={cluster.port} user=postgres") as connection:
            connection.execute("SELECT 1")


def test_programs_that_the_servers_user_cannot_read_are_copied(
    postgres_binaries: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    installation = postgres_binaries.resolve().parent
    package = hidden / installation.parent.name
    package.mkdir()
    subprocess.run(["cp", "-RL", str(installation), str(package / installation.name)], check=True)
    libraries = Path(f"{installation.parent}.libs")
    if libraries.is_dir():
        subprocess.run(["cp", "-R", str(libraries), str(hidden)], check=True)
    binaries = next(hidden.rglob("initdb")).parent
    hidden.chmod(0o700)
    with Cluster(binaries=binaries) as cluster, psycopg.connect(cluster.dsn()) as connection:
        connection.execute("SELECT 1")
        if os.geteuid() == 0:
            assert cluster.binaries != binaries
            assert "using a copy" in capfd.readouterr().err
        else:
            assert cluster.binaries == binaries


def test_settings_hold_from_the_next_start_on(postgres_binaries: Path) -> None:
    with Cluster(binaries=postgres_binaries, settings={"wal_level": "logical", "work_mem": "5MB"}) as cluster:
        with psycopg.connect(cluster.dsn()) as connection:
            assert connection.execute("SHOW wal_level").fetchone() == ("logical",)
        cluster.configure({"wal_level": "replica", "application_name": "it's"})
        cluster.restart()
        with psycopg.connect(cluster.dsn(), application_name="") as connection:
            assert connection.execute("SHOW wal_level").fetchone() == ("replica",)
            assert connection.execute("SHOW work_mem").fetchone() == ("5MB",)


def test_a_server_that_does_not_start_says_why(postgres_binaries: Path) -> None:
    cluster = Cluster(binaries=postgres_binaries, settings={"wal_level": "nonsense"})
    try:
        with pytest.raises(SetupError, match="wal_level"):
            cluster.start()
        assert not cluster.running
    finally:
        cluster.close()
    assert not cluster.directory.exists()


def test_programs_are_looked_for_where_one_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="initdb"):
        find_binaries(tmp_path)
    monkeypatch.setenv(BINARIES_VARIABLE, str(tmp_path))
    with pytest.raises(SetupError, match=str(tmp_path)):
        find_binaries()
