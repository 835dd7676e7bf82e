"""A lane's slot was to be dropped, and no answer came: whether it is gone is found out before anybody moves on."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.test_lanes import TABLES, add, load_alone, own_slot, slots, write
from tests.pipeline import Pipeline, follow
from tests.warm import ROOT

_RUN = """
import sys
from cdc import cli
from cdc.errors import SourceUnavailable
from cdc.service import lanes

drop, asked, is_done = lanes.drop_lane_slot, [], sys.argv.pop(1) == "done"

async def lost(*arguments, **named):
    asked.append(1)
    if is_done or len(asked) > 1:
        await drop(*arguments, **named)
    if len(asked) == 1:
        raise SourceUnavailable("the connection was lost before the answer came")
    return True

lanes.drop_lane_slot = lost
lanes.AGAIN_S = 0.5
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("what", ["done", "not done"])
async def test_a_drop_whose_answer_is_lost_costs_nobody_a_change(
    source: Database, make_target: MakeDatabase, tmp_path: Path, what: str
) -> None:
    source.execute(TABLES)
    write(source, 30)
    async with Pipeline(source, {"internal": follow(make_target("internal"))}) as pipeline:
        await pipeline.load()
        await add(pipeline, "late", make_target("late"))
        await load_alone(pipeline, "late")
        write(source, 20)
        with (tmp_path / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _RUN, what, "--config", str(pipeline.file), "run", cwd=ROOT, stderr=log
            )
        try:
            async with asyncio.timeout(60):
                while "target is in the shared lane" not in (tmp_path / "log").read_text():
                    # The shared slot moves on whenever it may.
                    write(source, 1)
                    await asyncio.sleep(0.02)
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()
        assert own_slot(pipeline, "late") not in slots(pipeline)
        assert "needs a resync" not in (tmp_path / "log").read_text()
        await pipeline.start()
        write(source, 5)
        await pipeline.assert_caught_up_and_equal()
        assert pipeline.targets["late"].fetchval("SELECT state FROM cdc.target") == "streaming"
