"""Runs `cdc` itself the way its user does: as programs, of which one can be killed.

No program started here outlives the demo, however the demo ends: a guard holds the reading end of a pipe, and kills the
program when the writing end, which only we have, is closed. Ctrl-C at the terminal reaches the demo alone, because each
program is in a session of its own.
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from cdc.errors import TerminalError

STOP_TIMEOUT_S = 20.0
"""What `cdc run` promises after SIGTERM."""

_GUARD = 'trap \'\' INT TERM HUP QUIT; read -r word; [ "$word" = done ] || kill -9 "$1"'

_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

_TOLD = 12
"""Lines of a program's log that are shown when it fails."""


def _end_with_parent() -> None:
    """Runs in the child before its program: the kernel kills it when the demo ends before its guard watches."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Program:
    """A running ``cdc …``; its output goes into a file. Made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process, guard: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._guard = guard
        self._log = log

    @classmethod
    async def start(cls, arguments: list[str], file: Path, environ: Mapping[str, str], log: Path) -> Program:
        """Start ``cdc --config <file> <arguments>``, appending what it prints to ``log``."""
        output: IO[bytes]
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cdc", "--config", str(file), *arguments),
                env=dict(environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        try:
            guard = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _GUARD, "sh", str(process.pid)),
                stdin=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except BaseException:
            process.kill()
            raise
        return cls(process, guard, log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; `None` while it runs."""
        return self._process.returncode

    def said(self) -> list[str]:
        """The lines that it has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines()

    async def wait(self) -> int:
        """Wait for its end."""
        status = await self._process.wait()
        if self._guard.returncode is None:
            await self._guard.communicate(b"done\n")
        return status

    async def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is said."""
        if self._process.returncode is None:
            self._process.kill()
        await self.wait()

    async def terminate(self) -> int:
        """SIGTERM, as a platform stops it; killed when it takes longer than it promises. Returns the exit status."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                return await self.wait()
        except TimeoutError:
            await self.kill()
            return -signal.SIGKILL

    def failure(self, what: str) -> TerminalError:
        """An error that says how it ended, with its last lines."""
        told = "\n".join(f"    {line}" for line in self.said()[-_TOLD:])
        return TerminalError(f"`{what}` ended with status {self.status}; its last lines were\n{told}")


@asynccontextmanager
async def running(program: Program) -> AsyncIterator[Program]:
    """Kill it at the end of the block if it still runs then."""
    try:
        yield program
    finally:
        await program.kill()


async def complete(arguments: list[str], file: Path, environ: Mapping[str, str], log: Path) -> list[str]:
    """Run ``cdc <arguments>`` to its end and return the lines it printed. Raises `TerminalError` when it fails."""
    async with running(await Program.start(arguments, file, environ, log)) as program:
        if await program.wait() != 0:
            raise program.failure(" ".join(["cdc", *arguments]))
        return program.said()
