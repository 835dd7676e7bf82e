"""CPU seconds and memory are those of the right processes, ended ones included."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.ceiling import has_ended
from tests.bench.processes import cpu_seconds, peak_bytes

WORK = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"
CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {WORK!r}])\n"
READY = "print('ready', flush=True)\nimport sys\nsys.stdin.read()\n"
PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {WORK + READY!r}])\n"


@contextmanager
def running(program: str) -> Iterator[int]:
    """A program that has said that it is ready; its process id."""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.communicate()


def test_a_process_counts_itself() -> None:
    with running(WORK + READY) as pid:
        assert cpu_seconds(pid) >= 0.19


def test_a_process_counts_children_that_have_ended() -> None:
    with running(CHILD + READY) as pid:
        assert cpu_seconds(pid) >= 0.19


def test_a_process_counts_children_that_live() -> None:
    with running(PARENT) as pid:
        assert cpu_seconds(pid) >= 0.19


def test_a_child_that_has_ended_counts_until_somebody_has_waited_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", WORK], stdin=subprocess.DEVNULL) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert has_ended(process)
        assert cpu_seconds(process.pid) >= 0.19
        process.wait()
        assert cpu_seconds(process.pid) == 0.0
        assert peak_bytes(process.pid) == 0


def test_a_peak_of_memory_is_remembered_after_it_is_over() -> None:
    held = "data = bytearray(64 << 20)\ndata[::4096] = b'x' * len(data[::4096])\ndel data\n"
    with running(READY) as small, running(held + READY) as large:
        assert peak_bytes(large) - peak_bytes(small) > 48 << 20


def test_memory_is_what_the_kernel_calls_the_high_water_mark(tmp_path: Path) -> None:
    with running(READY) as pid:
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text("Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t 10 kB\n", encoding="utf-8")
        assert peak_bytes(pid, tmp_path) == 2048 * 1024
