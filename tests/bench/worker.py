"""`cdc` as an operator would start it: ``python -m cdc run``, one process for all targets."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from cdc.errors import SetupError
from tests.bench.readers import STOP_TIMEOUT_S, Task, environment, wait_until_free, wait_until_streaming


class CdcReader:
    """A worker whose targets follow the source's schema, with the settings that nobody has set."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._directory = tempfile.TemporaryDirectory(prefix="cdc-bench-")
        self._file = Path(self._directory.name) / "cdc.toml"
        self._log = Path(self._directory.name) / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The worker's."""
        return self._process.pid if self._process is not None else None

    def prepare(self) -> None:
        """`cdc setup`, and a bootstrap that copies nothing and creates the slot."""
        self._file.write_text(self._configuration(), encoding="utf-8")
        self._run("setup")
        self._run("bootstrap", "--from", "none")

    def start(self, until: str) -> None:
        """Start the worker."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command("run"),
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until_streaming(self._task.servers, [self._task.name], self)

    def has_read_all(self) -> bool:
        """The targets show it."""
        return False

    def check(self) -> None:
        """Raise `SetupError` with the worker's last words when it has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise SetupError(f"cdc run ended with status {self._process.returncode}: {self._last_words()}")

    def stop(self) -> None:
        """SIGTERM, and wait for the orderly end."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise SetupError(f"cdc run did not end within {STOP_TIMEOUT_S:g} s: {self._last_words()}") from None
        self._process = None
        if status != 0:
            raise SetupError(f"cdc run ended with status {status}: {self._last_words()}")
        wait_until_free(self._task.servers, [self._task.name])

    def remove(self) -> None:
        """`cdc teardown`."""
        self._run("teardown", "--yes")
        self._directory.cleanup()

    def abandon(self) -> None:
        """Kill the worker."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()

    def _run(self, *words: str) -> None:
        done = subprocess.run(
            self._command(*words),
            check=False,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            raise SetupError(f"cdc {' '.join(words)} failed: {done.stdout[-2000:]}")

    def _last_words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cdc", "--config", str(self._file), *words]

    def _configuration(self) -> str:
        task = self._task
        include = ", ".join(f'"public.{table}"' for table in task.tables)
        targets = "".join(
            f"""
            [targets.{target}]
            dsn = "{task.reach_target(target)}"
            schema = "follow"
            include = [{include}]
            """
            for target in task.targets
        )
        return f"""
            pipeline = "{task.name}"
            [source]
            dsn = "{task.source_dsn}"
            slot = "{task.name}"
            publication = "{task.name}"
            {targets}
            [worker]
            metrics_address = "127.0.0.1:0"
            [logs]
            format = "json"
        """
