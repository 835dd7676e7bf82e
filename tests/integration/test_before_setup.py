"""Before anything is set up nothing has vanished: what is said then is what comes first."""

from __future__ import annotations

import json

from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow


async def test_a_worker_that_starts_too_early_says_what_to_run_and_waits_for_it(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, value text); INSERT INTO items VALUES (1, 'first')")
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        for _ in ("before setup", "before a bootstrap"):
            worker = await pipeline.start(ready=False)
            line = await pipeline.logged("no stream", worker)
            sentence = "nothing is set up yet: no target has ever been loaded. Run `cdc setup`, then `cdc bootstrap"
            assert line["reason"].startswith(sentence)
            assert json.loads((await worker.get("/readyz"))[1])["missing"]["source"] == line["reason"]
            await worker.terminate()
            await pipeline.setup()

        await pipeline.load()
        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()
