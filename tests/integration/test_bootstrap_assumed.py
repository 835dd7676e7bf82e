"""`cdc bootstrap --from none`: targets that already hold everything join the stream as they are."""

from __future__ import annotations

import pytest

from cdc.bootstrap import assumed
from cdc.bootstrap.progress import Silence
from cdc.errors import SetupError
from cdc.service import loading
from tests.bootstrap import follow, make_config, rows, set_up, slot_position, states
from tests.conftest import MakeDatabase
from tests.database import Database


async def test_targets_join_the_stream_with_the_rows_that_they_have(
    source: Database, make_target: MakeDatabase
) -> None:
    for database in (source, internal := make_target()):
        database.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1), (2)")
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    summary = await assumed.bootstrap(config, progress=Silence())
    start = slot_position(source, config)
    assert rows(internal, "a") == [("(1)",), ("(2)",)]
    assert states(internal) == {"public.a": ("streaming", start)}
    assert internal.fetch("SELECT state, position::text, slot FROM cdc.target") == [
        ("streaming", str(start), config.source.slot)
    ]
    assert f"its tables (1) are taken to hold what the source held at {start}" in str(summary)
    again = await assumed.bootstrap(config, progress=Silence())
    assert again.warnings == ()
    assert slot_position(source, config) == start


async def test_a_table_that_is_missing_is_refused_before_a_slot_exists(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    config = make_config(source, {"internal": follow(make_target())})
    await set_up(config)
    with pytest.raises(SetupError, match=r"public\.a.*does not exist there"):
        await assumed.bootstrap(config, progress=Silence())
    assert source.fetch("SELECT FROM pg_replication_slots WHERE slot_name = %s", config.source.slot) == []


async def test_a_half_copied_table_is_not_taken_for_complete(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    await loading.bootstrap(config, progress=Silence())
    internal.execute("UPDATE cdc.target_table SET state = 'copying', position = NULL, consistent_from = NULL")
    with pytest.raises(SetupError, match=r"a part of their rows only: public\.a of target internal.*--from live"):
        await assumed.bootstrap(config, progress=Silence())
