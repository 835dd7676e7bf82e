"""Start ``python -m cdc`` in a hundredth of a second: a process that has imported everything forks one that runs it.

Importing takes a worker most of a second of CPU, and the tests start hundreds of them. What a fork makes is a process
like any other: with its own pid, signals, memory, standard streams and exit status, and it runs ``cdc/__main__.py``
from its first line. `start` gives one; the process that forks is started with the first, and ends with ours.

``CDC_TEST_WARM=0`` makes every start a plain one, as ``fresh=True`` does for one.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Protocol

ROOT = Path(__file__).resolve().parents[1]

_IMPORTED = (
    *("cdc.cli", "cdc.service.worker", "cdc.service.checkup", "cdc.service.provision", "cdc.service.state"),
    *(
        "cdc.service.loading",
        "cdc.service.resync",
        "cdc.service.report",
        "cdc.bootstrap.assumed",
        "cdc.bootstrap.backup",
    ),
)
"""What the commands import, as `cdc.cli` does."""


class Process(Protocol):
    """What a test wants of a process; `asyncio.subprocess.Process` has it, too."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...

    def send_signal(self, signal: int, /) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


async def start(
    words: Sequence[str], *, output: IO[bytes], environment: Mapping[str, str], fresh: bool = False
) -> Process:
    """Start ``python -m cdc`` with these words; ``output`` gets its standard output and its standard error.

    ``fresh`` starts Python anew, as in life.
    """
    if fresh or os.environ.get("CDC_TEST_WARM") == "0":
        command = (sys.executable, "-m", "cdc", *words)
        return await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output, cwd=ROOT, env=environment)
    request = json.dumps({"words": list(words), "environment": dict(environment)}).encode() + b"\n"
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(_forker().requests, [request], [output.fileno(), theirs.fileno()])
    pid = int.from_bytes(ours.recv(8), "big")
    assert pid, "the process that forks has ended"
    return _Forked(ours, pid)


class _Forked:
    """A process whose parent tells its exit status through a socket."""

    def __init__(self, parent: socket.socket, pid: int) -> None:
        self.pid = pid
        self._parent = parent
        self._parent.setblocking(False)
        self._returncode: int | None = None
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(parent, self._listen)

    @property
    def returncode(self) -> int | None:
        """Its exit status, a signal as a negative number; `None` while it runs."""
        if self._returncode is None:
            self._listen()
        return self._returncode

    async def wait(self) -> int:
        """Wait until it has ended: its exit status."""
        await self._ended.wait()
        assert self._returncode is not None
        return self._returncode

    def send_signal(self, signal: int, /) -> None:
        """Send it a signal, if it runs."""
        if self.returncode is None:
            os.kill(self.pid, signal)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _listen(self) -> None:
        try:
            told = self._parent.recv(8)
        except BlockingIOError:
            return
        self._returncode = int.from_bytes(told, "big", signed=True) if told else -signal.SIGKILL
        self._loop.remove_reader(self._parent)
        self._parent.close()
        self._ended.set()


class _Forker:
    """The process that forks; it ends when its end of ``requests`` does."""

    def __init__(self) -> None:
        self.requests, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.warm"]
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
        atexit.register(self._close)

    def _close(self) -> None:
        self.requests.close()
        self._process.wait()


@cache
def _forker() -> _Forker:
    return _Forker()


# --- in the process that forks, and in what it forks


def serve() -> None:
    """Fork for each request that comes through standard input; returns in the process that is to run ``cdc``."""
    for name in _IMPORTED:
        importlib.import_module(name)
    # What was imported is shared with the forks; a collection would write to all of it.
    gc.collect()
    gc.freeze()
    # Whoever has forked a process and waited for it is of no interest here.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Ctrl-C at the terminal is for pytest; this process ends when pytest's end of the socket is closed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        while request and not request.endswith(b"\n"):
            request += requests.recv(1 << 20)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            output, asked_by = descriptors
            _become(json.loads(request), output, socket.socket(fileno=asked_by))
            return
        for descriptor in descriptors:
            os.close(descriptor)


def _become(request: dict[str, object], output: int, asked_by: socket.socket) -> None:
    """Fork once more: the child is the process that was asked for; its parent stays, to tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        asked_by.send(pid.to_bytes(8, "big"))
        _, status = os.waitpid(pid, 0)
        asked_by.send(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
        os._exit(0)
    asked_by.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    words, environment = request["words"], request["environment"]
    assert isinstance(words, list)
    assert isinstance(environment, dict)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = words


if __name__ == "__main__":
    serve()
    runpy.run_module("cdc", run_name="__main__", alter_sys=True)
