"""`cdc resync` as somebody types it: what is mistyped, what is not set up, and what happens after Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys

import pytest

from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow
from tests.warm import ROOT

TABLES = """
CREATE TABLE users (id int PRIMARY KEY, name text);
INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, 200) AS n;
"""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("public.user",), "no target takes a table public.user"),
        (
            ("public.uesrs", "--target", "warehouse"),
            "target warehouse does not take a table public.uesrs; did you mean",
        ),
        (("users",), "name the table as schema.table"),
        (("public.users", "--target", "warehosue"), "there is no target warehosue; the configuration has warehouse"),
        (("public.users", "--max-rows-per-second", "0"), "Invalid value for '--max-rows-per-second'"),
    ],
)
async def test_what_is_mistyped_is_refused_and_asks_for_nothing(
    source: Database, make_target: MakeDatabase, words: tuple[str, ...], says: str
) -> None:
    source.execute(TABLES)
    target = make_target()
    async with Pipeline(source, {"warehouse": follow(target, "public.users")}) as pipeline:
        pipeline.settings["targets"]["warehouse"] |= {"columns": "listed", "tables": {"public.users": ["id", "name"]}}
        del pipeline.settings["targets"]["warehouse"]["include"]
        pipeline.configure()
        await pipeline.setup()
        status, printed = await pipeline.cdc("resync", *words)
        assert status == 2
        assert says in " ".join(printed.replace("│", " ").split())
        assert target.fetchval("SELECT count(*) FROM cdc.resync") == 0


async def test_before_setup_it_names_the_command(source: Database, make_target: MakeDatabase) -> None:
    source.execute(TABLES)
    async with Pipeline(source, {"warehouse": follow(make_target())}) as pipeline:
        status, printed = await pipeline.cdc("resync", "public.users")
        assert status != 0
        assert "run `cdc setup`" in printed


async def test_a_table_whose_setup_was_forgotten_names_it_and_works_afterwards(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    async with Pipeline(source, {"warehouse": follow(make_target())}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)")
        status, printed = await pipeline.cdc("resync", "public.late")
        assert status != 0
        assert "does not publish public.late in full: run `cdc setup`" in " ".join(printed.split())
        await pipeline.setup()
        source.execute("INSERT INTO late VALUES (2)")
        status, printed = await pipeline.cdc("resync", "public.late")
        assert status == 0, printed
        source.execute("INSERT INTO late VALUES (3)")
        await pipeline.assert_caught_up_and_equal()


async def test_a_request_goes_on_without_the_command_and_is_followed_again(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    target = make_target()
    async with Pipeline(source, {"warehouse": follow(target)}) as pipeline:
        await pipeline.load()
        target.execute("DELETE FROM users WHERE id % 2 = 0")
        command = [sys.executable, "-m", "cdc", "--config", str(pipeline.file), "resync", "public.users"]
        asking = await asyncio.create_subprocess_exec(
            *command, "--max-rows-per-second", "5", cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        await pipeline.until(
            lambda: target.fetchval("SELECT count(*) FROM cdc.resync") == 1, "the request is in the target"
        )
        asking.send_signal(signal.SIGINT)
        await asking.communicate()
        status, shown = await pipeline.cdc("status", "--json")
        (request,) = json.loads(shown)["targets"][0]["resyncs"]
        assert (request["table"], request["state"]) == ("public.users", "asked")
        status, shown = await pipeline.cdc("status")
        assert "public.users is read again: 0 rows since" in " ".join(shown.split())

        await pipeline.start()
        await pipeline.until(
            lambda: target.fetchval("SELECT row_count FROM cdc.resync") >= 5, "the worker serves it without anybody"
        )
        # At five rows a second it would take forty; whoever asks again sets the pace.
        status, printed = await pipeline.cdc("resync", "public.users")
        assert status == 0, printed
        assert target.fetch("SELECT state, row_count FROM cdc.resync") == [("done", 200)]
        await pipeline.assert_caught_up_and_equal()
        assert (await pipeline.target_status("warehouse")).resyncs == ()


async def test_a_table_that_the_source_has_not_is_refused_at_once(source: Database, make_target: MakeDatabase) -> None:
    source.execute(TABLES)
    target = make_target()
    async with Pipeline(source, {"warehouse": follow(target)}) as pipeline:
        await pipeline.load()
        status, printed = await pipeline.cdc("resync", "public.user")
        assert status == 2, printed
        assert "the source has no table public.user; did you mean public.users?" in " ".join(printed.split())
        assert target.fetch("SELECT FROM cdc.resync") == []
