"""A bootstrap that is interrupted, disturbed or run again: every table is whole, from a snapshot that shows it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from cdc.bootstrap.progress import Silence
from cdc.errors import SetupError
from cdc.service import loading
from cdc.source.stream_errors import StreamPoisoned
from tests.bootstrap import OnBegin, follow, make_config, rows, set_up, slot_position, states, until
from tests.conftest import MakeDatabase
from tests.database import Database

_RUN_AND_DIE = """
import asyncio, os, signal, sys
from cdc.service import loading
from cdc.bootstrap.progress import Silence
from cdc.config import Config

class Death(Silence):
    def copied(self, target, table, rows, size):
        if table == "public.waiting":
            os.kill(os.getpid(), signal.SIGKILL)

config = Config.model_validate_json(sys.stdin.read())
asyncio.run(loading.bootstrap(config, jobs=1, progress=Death(), range_bytes=16384))
"""


async def test_a_run_that_was_killed_resumes_with_the_tables_that_remain(
    source: Database, make_target: MakeDatabase
) -> None:
    for table, count in (("done", 2000), ("waiting", 1000)):
        source.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int, filler text)")
        source.execute(f"INSERT INTO {table} SELECT g, 0, repeat('x', 100) FROM generate_series(1, {count}) g")
        source.execute(f"CREATE INDEX {table}_n ON {table} (n)")
    internal = make_target()
    targets = {"internal": follow(internal)}
    config = make_config(source, targets)
    await set_up(config)
    names = {"dsn": source.dsn, "slot": config.source.slot, "publication": config.source.publication}
    process = subprocess.run(
        [sys.executable, "-c", _RUN_AND_DIE],
        input=json.dumps({"source": names, "targets": targets}).encode(),
        cwd=Path(__file__).resolve().parents[2],
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    start = slot_position(source, config)
    assert states(internal) == {"public.done": ("streaming", start), "public.waiting": ("copying", None)}
    assert 0 < internal.fetchval("SELECT count(*) FROM waiting") < 1000
    # What the stream will bring to the table that is complete, and the next snapshot to the other one.
    source.execute("UPDATE waiting SET n = 1 WHERE id % 7 = 0; DELETE FROM waiting WHERE id = 1; DELETE FROM done")
    summary = await loading.bootstrap(config, progress=Silence())
    assert summary.targets["internal"].tables == 1
    assert rows(internal, "waiting") == rows(source, "waiting")
    assert internal.fetchval("SELECT count(*) FROM done") == 2000
    assert slot_position(source, config) == start
    assert states(internal)["public.done"] == ("streaming", start)
    later = states(internal)["public.waiting"][1]
    assert later is not None
    assert later > start
    assert summary.targets["internal"].consistent_lsn == later
    indexes = internal.fetch("SELECT indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")
    assert [name for (name,) in indexes] == ["done_n", "done_pkey", "waiting_n", "waiting_pkey"]


async def test_a_second_run_has_nothing_to_do(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    await loading.bootstrap(config, progress=Silence())
    fence = internal.fetchval("SELECT fence FROM cdc.target")
    second = await loading.bootstrap(config, progress=Silence())
    assert second.targets == {}
    assert internal.fetchval("SELECT fence FROM cdc.target") == fence
    assert rows(internal, "a") == [("(1)",)]


async def test_a_slot_of_an_interrupted_run_that_no_target_recorded_is_replaced(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    old = source.create_slot(config.source.slot)
    with pytest.raises(SetupError, match="no target of pipeline 'cdc' knows"):
        await loading.bootstrap(config, progress=Silence())
    internal.execute("UPDATE cdc.target SET state = 'loading'")
    await loading.bootstrap(config, progress=Silence())
    assert slot_position(source, config) > old
    assert rows(internal, "a") == [("(1)",)]


async def test_hazard_26_a_slot_that_cannot_be_decoded_is_replaced_by_another(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    starts = []

    async def poisoned_once(dsn: str, slot: str, publications: object, *, application_name: str) -> None:
        # Nobody knows how to make a server do it: it was seen once.
        starts.append(slot_position(source, config))
        source.execute("INSERT INTO a VALUES (2)" if len(starts) == 1 else "SELECT 1")
        if len(starts) == 1:
            raise StreamPoisoned(f"the slot {slot} can never be decoded")

    monkeypatch.setattr("cdc.bootstrap.start.read_past_start", poisoned_once)
    await loading.bootstrap(config, progress=Silence())
    assert len(starts) == 2
    assert slot_position(source, config) == starts[1] > starts[0]
    assert rows(internal, "a") == [("(1)",), ("(2)",)]


async def test_a_table_that_joined_the_configuration_is_loaded_by_another_run(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    await loading.bootstrap(config, progress=Silence())
    source.execute("CREATE TABLE b (id int PRIMARY KEY, word text); INSERT INTO b VALUES (1, 'one')")
    with pytest.raises(SetupError, match=r"do not contain public\.b: run `cdc setup` first"):
        await loading.bootstrap(config, progress=Silence())
    await set_up(config)
    summary = await loading.bootstrap(config, progress=Silence())
    assert summary.targets["internal"].tables == 1
    assert rows(internal, "b") == [("(1,one)",)]
    assert internal.fetchval("SELECT state FROM cdc.target") == "streaming"
    assert internal.fetchval("SELECT position::text FROM cdc.target") == str(slot_position(source, config))


COLUMNS = "SELECT attname FROM pg_attribute WHERE attrelid = 'a'::regclass AND attnum > 0 AND NOT attisdropped"


@pytest.mark.parametrize(
    "rewrite",
    [
        "ALTER TABLE a ALTER COLUMN id TYPE bigint",
        "ALTER TABLE a ADD COLUMN extra float DEFAULT random()",
        "TRUNCATE a; INSERT INTO a VALUES (7, 'seven')",
        "ALTER TABLE a DROP COLUMN name",
        "DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY, name text); INSERT INTO a VALUES (8, 'eight');"
        " ALTER PUBLICATION {publication} ADD TABLE a",
    ],
)
async def test_hazard_23_a_table_rewritten_after_the_snapshot_is_copied_from_a_newer_one(
    source: Database, make_target: MakeDatabase, rewrite: str
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY, name text); INSERT INTO a VALUES (1, 'one'), (2, 'two')")
    source.execute("CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    progress = OnBegin(lambda: source.execute(rewrite.format(publication=config.source.publication)))
    summary = await loading.bootstrap(config, progress=progress)
    # A column that the source dropped after the target's table was created stays there, empty.
    present = ", ".join(name for (name,) in source.fetch(COLUMNS))
    assert rows(internal, "a", present) == rows(source, "a", present) != []
    start = slot_position(source, config)
    later = states(internal)["public.a"][1]
    assert later is not None
    assert later > start
    assert states(internal)["public.b"] == ("streaming", start)
    assert summary.targets["internal"].consistent_lsn == later
    assert internal.fetchval("SELECT position::text FROM cdc.target_table WHERE source_table = 'a'") == str(later)
    assert internal.fetchval("SELECT count(*) FROM pg_index WHERE indrelid = 'a'::regclass AND indisprimary") == 1
    assert any("newer snapshot" in said for said in progress.said)


_IS_COPIED = """
SELECT count(*) > 0 FROM pg_locks
 WHERE relation = 'a'::regclass AND mode = 'AccessShareLock' AND granted AND pid <> pg_backend_pid()
"""


async def test_a_copy_steps_aside_for_ddl_on_the_source(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY, name text); INSERT INTO a VALUES (1, 'one')")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    holder = psycopg.connect(internal.dsn)
    progress = OnBegin(lambda: holder.execute("LOCK TABLE a IN SHARE MODE"))
    with holder:
        async with asyncio.TaskGroup() as group:
            group.create_task(loading.bootstrap(config, progress=progress))
            async with source.session() as ddl:
                await until(lambda: progress.act is None and source.fetchval(_IS_COPIED))
                await ddl.execute("SET lock_timeout = '5s'")
                await ddl.execute("ALTER TABLE a ALTER COLUMN name SET DEFAULT 'x'")
            holder.rollback()
    assert rows(internal, "a") == rows(source, "a")
    assert any("stepped aside" in said for said in progress.said)
