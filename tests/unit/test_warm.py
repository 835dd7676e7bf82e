"""A forked ``python -m cdc`` is what a plain one is (`tests.warm`)."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cdc import __version__
from tests.warm import Process, start

CONFIGURATION = """
[source]
dsn = "postgresql://${HOST}/app"

[targets.internal]
dsn = "postgresql://there/app"
include = ["public.*"]
"""


async def started(tmp_path: Path, *words: str, fresh: bool, **environment: str) -> Process:
    with (tmp_path / f"output-{fresh}").open("wb") as output:
        variables = {"PATH": os.environ["PATH"], **environment}
        return await start(words, output=output, environment=variables, fresh=fresh)


async def said(tmp_path: Path, *words: str, fresh: bool, **environment: str) -> tuple[int, str]:
    process = await started(tmp_path, *words, fresh=fresh, **environment)
    status = await process.wait()
    assert process.returncode == status
    return status, (tmp_path / f"output-{fresh}").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "expected", "text"),
    [
        (["--version"], 0, f"cdc {__version__}\n"),
        (["--help"], 0, "Usage: python -m cdc"),
        (["nonsense"], 2, "Try 'python -m cdc --help'"),
        (["config", "show"], 2, "there is no file cdc.toml here"),
        (["config", "show", "FILE"], 0, "postgresql://somewhere/app"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
async def test_output_and_exit_status_are_those_of_a_plain_start(
    tmp_path: Path, words: list[str], expected: int, text: str
) -> None:
    file = tmp_path / "cdc.toml"
    file.write_text(CONFIGURATION, encoding="utf-8")
    words = ["--config", str(file), *words[:-1]] if "FILE" in words else words
    plain = await said(tmp_path, *words, fresh=True, HOST="somewhere")
    assert plain == await said(tmp_path, *words, fresh=False, HOST="somewhere")
    assert plain[0] == expected
    assert text in plain[1]


async def test_a_forked_process_takes_signals_and_says_how_it_ended(tmp_path: Path) -> None:
    pipe = tmp_path / "cdc.toml"
    os.mkfifo(pipe)
    # They read their configuration from a pipe that nobody writes to.
    one, other = [await started(tmp_path, "--config", str(pipe), "run", fresh=False) for _ in range(2)]
    assert one.pid != other.pid
    assert (one.returncode, other.returncode) == (None, None)
    one.kill()
    async with asyncio.timeout(20):
        assert await one.wait() == -signal.SIGKILL
        assert other.returncode is None
        other.terminate()
        assert await other.wait() == -signal.SIGTERM
