"""`cdc bootstrap --from live` on real servers: what each target holds afterwards, and what stops it before it begins."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc.bootstrap import live
from cdc.bootstrap.progress import Silence
from cdc.config import Config
from cdc.errors import ResyncNeeded, SetupError, SlotInUse
from cdc.lsn import Lsn
from cdc.pgoutput.decoder import decode
from cdc.pgoutput.messages import Insert
from cdc.service import provision
from cdc.source.replication import ReplicationConnection
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database, unique_name

PIX_ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "pix-2020.pgsql"


def make_config(source: Database, targets: dict[str, dict[str, Any]]) -> Config:
    slot = unique_name("slot").replace("-", "_")
    return Config.model_validate({"source": {"dsn": source.dsn, "slot": slot, "publication": slot}, "targets": targets})


async def set_up(config: Config) -> None:
    await provision.setup(config, lambda _: None)


def rows(database: Database, table: str, columns: str = "t.*") -> list[tuple[Any, ...]]:
    return sorted(database.fetch(f"SELECT ({columns})::text FROM {table} AS t"))


def states(target: Database) -> dict[str, tuple[str, Lsn | None]]:
    found = target.fetch(
        "SELECT source_schema || '.' || source_table, state, consistent_from::text FROM cdc.target_table"
    )
    return {name: (state, Lsn.parse(lsn) if lsn else None) for name, state, lsn in found}


class OnBegin(Silence):
    """Does something once, when the first copy of a table is about to begin: the snapshot is older than that."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act: Callable[[], object] | None = act
        self.said: list[str] = []

    def begin(self, target: str, table: str, ranges: int) -> None:
        act, self.act = self.act, None
        if act is not None:
            act()

    def say(self, message: str) -> None:
        self.said.append(message)


def slot_position(source: Database, config: Config) -> Lsn:
    return Lsn.parse(
        source.fetchval(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", config.source.slot
        )
    )


def follow(target: Database, *include: str, **more: Any) -> dict[str, Any]:
    return {"dsn": target.dsn, "include": list(include) or ["public.*"], **more}


async def test_three_targets_each_get_what_their_routes_name(source: Database, make_target: MakeDatabase) -> None:
    source.execute(
        """
        CREATE TYPE mood AS ENUM ('sad', 'so-so', 'very happy');
        CREATE TABLE "knowledge-elements" (
            "createdAt" timestamptz NOT NULL, "group" text, mood mood, secret text,
            payload json, id bigint PRIMARY KEY, tags text[] NOT NULL DEFAULT '{}', price numeric(10, 2)
        );
        CREATE INDEX "knowledge-elements_group" ON "knowledge-elements" (lower("group"));
        CREATE UNIQUE INDEX secret_is_unique ON "knowledge-elements" (secret);
        CREATE TABLE keyless (a int, b text);
        CREATE SCHEMA pgboss;
        CREATE TABLE pgboss.job (id int PRIMARY KEY);
        INSERT INTO "knowledge-elements"
        SELECT now() - g * interval '1 s', 'group ' || g, (ARRAY['sad', 'very happy'])[1 + g % 2]::mood, 'secret' || g,
               CASE WHEN g % 3 = 0 THEN '{"a": null,  "a": 1}' END::json, g, ARRAY['x', NULL, 'y"' || g],
               CASE WHEN g % 5 = 0 THEN 'NaN' ELSE g / 7.0 END
          FROM generate_series(1, 2000) g;
        INSERT INTO keyless VALUES (1, 'x'), (1, 'x'), (NULL, NULL);
        """
    )
    internal, external, datamart = (make_target(name) for name in ("internal", "external", "datamart"))
    datamart.execute(
        "CREATE SCHEMA maddo; CREATE TABLE maddo.elements (created_at timestamptz, element_id int, mood text,"
        " source text DEFAULT 'pix', group_length int GENERATED ALWAYS AS (length(name)) STORED, name varchar(20))"
    )
    config = make_config(
        source,
        {
            "internal": follow(internal, "public.*"),
            "external": {
                "dsn": external.dsn,
                "columns": "listed",
                "tables": {"public.knowledge-elements": ["id", "group", "createdAt"]},
            },
            "datamart": {
                "dsn": datamart.dsn,
                "schema": "owned",
                "tables": {
                    "public.knowledge-elements": {
                        "to": "maddo.elements",
                        "columns": {"id": "element_id", "createdAt": "created_at", "mood": "mood", "group": "name"},
                    }
                },
            },
        },
    )
    await set_up(config)
    summary = await live.bootstrap(config, jobs=3, progress=Silence(), range_bytes=64 * 1024)

    assert summary.targets["internal"].tables == 2
    assert summary.targets["internal"].rows == 2003
    assert not summary.warnings
    assert "internal: 2 tables, 2,003 rows" in str(summary)
    for table in ('"knowledge-elements"', "keyless"):
        assert rows(internal, table, "t.*") == rows(source, table, "t.*")
    wanted = '"createdAt", "group", id'
    assert external.fetch('SELECT * FROM "knowledge-elements" ORDER BY id') == source.fetch(
        f'SELECT {wanted} FROM "knowledge-elements" ORDER BY id'
    )
    assert rows(datamart, "maddo.elements", "created_at, element_id, mood, name") == rows(
        source, '"knowledge-elements"', '"createdAt", id, mood, "group"'
    )
    assert datamart.fetchval("SELECT count(*) FROM maddo.elements WHERE source = 'pix' AND group_length > 6") == 2000

    indexes = "SELECT indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
    assert [name for (name,) in internal.fetch(indexes)] == [
        "knowledge-elements_group", "knowledge-elements_pkey", "secret_is_unique"
    ]  # fmt: skip
    assert [name for (name,) in external.fetch(indexes)] == ["knowledge-elements_group", "knowledge-elements_pkey"]
    assert internal.fetchval("SELECT attnotnull FROM pg_attribute WHERE attname = 'tags' AND attnum > 0")
    assert datamart.fetch("SELECT indexname FROM pg_indexes WHERE schemaname = 'maddo'") == []
    assert internal.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'pgboss'") == 0

    confirmed = str(slot_position(source, config))
    for name, target in (("internal", internal), ("external", external), ("datamart", datamart)):
        state, position, slot = target.fetch("SELECT state, position::text, slot FROM cdc.target")[0]
        assert (state, position, slot) == ("streaming", confirmed, config.source.slot)
        assert str(summary.targets[name].consistent_lsn) == confirmed
        assert {state for state, _ in states(target).values()} == {"streaming"}


async def test_a_second_run_has_nothing_to_do(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    first = await live.bootstrap(config, progress=Silence())
    second = await live.bootstrap(config, progress=Silence())
    assert second.targets["internal"].rows == 0
    assert second.targets["internal"].consistent_lsn == first.targets["internal"].consistent_lsn
    assert rows(internal, "a") == [("(1)",)]


async def test_what_is_written_during_the_copy_is_either_copied_or_streamed(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE log (id int PRIMARY KEY, filler text)")
    source.execute("INSERT INTO log SELECT -g, repeat('x', 200) FROM generate_series(1, 5000) g")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    done = asyncio.Event()

    async def write(first: int) -> None:
        async with source.session() as session:
            number = first
            while not done.is_set():
                await session.execute("INSERT INTO log VALUES (%s, 'new')", (number,))
                number += 4

    async with asyncio.TaskGroup() as group:
        for first in range(4):
            group.create_task(write(first))
        await live.bootstrap(config, progress=Silence(), range_bytes=64 * 1024)
        done.set()
    copied = {id for (id,) in internal.fetch("SELECT id FROM log")}
    messages = source.changes(config.source.slot, config.source.publication_names, binary=False)
    inserts = [message for message in map(decode, messages) if isinstance(message, Insert)]
    streamed = [int(insert.new[0].data or b"") for insert in inserts]
    assert len(streamed) > 4
    assert len(copied) > 5000
    assert not copied & set(streamed)
    assert sorted([*copied, *streamed]) == sorted(id for (id,) in source.fetch("SELECT id FROM log"))


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
    summary = await live.bootstrap(config, progress=progress)
    assert rows(internal, "a") == rows(source, "a") != []
    start = slot_position(source, config)
    later = states(internal)["public.a"][1]
    assert later is not None
    assert later > start
    assert states(internal)["public.b"] == ("streaming", start)
    assert summary.targets["internal"].consistent_lsn == later
    assert internal.fetchval("SELECT position::text FROM cdc.target_table WHERE source_table = 'a'") == str(later)
    assert internal.fetchval("SELECT count(*) FROM pg_index WHERE indrelid = 'a'::regclass AND indisprimary") == 1
    assert any("newer snapshot" in said for said in progress.said)


async def test_a_copy_steps_aside_for_ddl_on_the_source(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY, name text); INSERT INTO a VALUES (1, 'one')")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    holder = psycopg.connect(internal.dsn)
    progress = OnBegin(lambda: holder.execute("LOCK TABLE a IN SHARE MODE"))
    with holder:
        async with asyncio.TaskGroup() as group:
            group.create_task(live.bootstrap(config, progress=progress))
            async with source.session() as ddl:
                while not source.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE relation = 'a'::regclass AND mode = 'AccessShareLock'"
                    " AND pid <> pg_backend_pid()"
                ):
                    await asyncio.sleep(0.01)
                await ddl.execute("SET lock_timeout = '5s'")
                await ddl.execute("ALTER TABLE a ALTER COLUMN name SET DEFAULT 'x'")
            holder.rollback()
    assert rows(internal, "a") == rows(source, "a")
    assert any("stepped aside" in said for said in progress.said)


_RUN = """
import asyncio, sys
from cdc.bootstrap import live
from cdc.bootstrap.progress import Silence
from cdc.config import Config
asyncio.run(live.bootstrap(Config.model_validate_json(sys.stdin.read()), jobs=2, progress=Silence()))
"""


async def test_a_run_that_was_killed_resumes_with_the_tables_that_remain(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE done (id int PRIMARY KEY); INSERT INTO done VALUES (1)")
    source.execute("CREATE TABLE waiting (id int PRIMARY KEY, n int); INSERT INTO waiting VALUES (1, 1), (2, 1)")
    source.execute("CREATE INDEX waiting_n ON waiting (n); CREATE INDEX done_id ON done (id) INCLUDE (id)")
    internal = make_target()
    targets = {"internal": follow(internal)}
    config = make_config(source, targets)
    await set_up(config)
    with psycopg.connect(source.dsn) as holder:
        holder.execute("LOCK TABLE waiting IN ACCESS EXCLUSIVE MODE")
        plain = {
            "source": {"dsn": source.dsn, "slot": config.source.slot, "publication": config.source.publication},
            "targets": targets,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _RUN, stdin=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2]
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(plain).encode())
        process.stdin.close()
        while internal.fetchval("SELECT state FROM cdc.target_table WHERE source_table = 'done'") != "streaming":
            assert process.returncode is None
            await asyncio.sleep(0.05)
        process.kill()
        await process.wait()
        holder.rollback()
    assert states(internal)["public.waiting"] == ("copying", None)
    start = slot_position(source, config)
    # What a part of a copy would leave behind, and what the stream will bring to the table that is complete.
    internal.execute("INSERT INTO waiting VALUES (99, 99)")
    source.execute("UPDATE waiting SET n = 2 WHERE id = 2; INSERT INTO done VALUES (2)")
    summary = await live.bootstrap(config, progress=Silence())
    assert summary.targets["internal"].tables == 1
    assert rows(internal, "waiting") == [("(1,1)",), ("(2,2)",)]
    assert rows(internal, "done") == [("(1)",)]
    assert slot_position(source, config) == start
    assert states(internal)["public.done"] == ("streaming", start)
    later = states(internal)["public.waiting"][1]
    assert later is not None
    assert later > start
    assert summary.targets["internal"].consistent_lsn == later
    indexes = internal.fetch("SELECT indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")
    assert [name for (name,) in indexes] == ["done_id", "done_pkey", "waiting_n", "waiting_pkey"]


async def test_a_slot_of_an_interrupted_run_that_no_target_recorded_is_replaced(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    old = source.create_slot(config.source.slot)
    with pytest.raises(SetupError, match="no target of pipeline 'cdc' knows"):
        await live.bootstrap(config, progress=Silence())
    internal.execute("UPDATE cdc.target SET state = 'loading'")
    await live.bootstrap(config, progress=Silence())
    assert slot_position(source, config) > old
    assert rows(internal, "a") == [("(1)",)]


async def test_a_slot_that_vanished_is_never_silently_replaced(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    config = make_config(source, {"internal": follow(make_target())})
    await set_up(config)
    await live.bootstrap(config, progress=Silence())
    source.fetch("SELECT pg_drop_replication_slot(%s)", config.source.slot)
    with pytest.raises(ResyncNeeded, match="does not exist at the source any more.*cdc teardown"):
        await live.bootstrap(config, progress=Silence())


async def test_a_running_worker_is_left_alone(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    await live.bootstrap(config, progress=Silence())
    fence = internal.fetchval("SELECT fence FROM cdc.target")
    async with await ReplicationConnection.open(source.dsn, "worker") as worker:
        await worker.start(config.source.slot, config.source.publication_names)
        with pytest.raises(SlotInUse, match="stop the worker"):
            await live.bootstrap(config, progress=Silence())
    assert internal.fetchval("SELECT fence FROM cdc.target") == fence


async def test_rows_that_are_not_ours_are_never_touched(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    internal = make_target()
    internal.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (42)")
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    with pytest.raises(SetupError, match=r"public\.a of target internal.*--from none") as refused:
        await live.bootstrap(config, progress=Silence())
    assert 'TRUNCATE "public"."a"' in (refused.value.sql or "")
    assert rows(internal, "a") == [("(42)",)]
    assert source.fetch("SELECT FROM pg_replication_slots WHERE slot_name = %s", config.source.slot) == []


async def test_everything_that_cannot_be_written_is_said_at_once_and_before_anything_happens(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY, name text); CREATE TABLE b (id int PRIMARY KEY)")
    internal, datamart = make_target("internal"), make_target("datamart")
    internal.execute("CREATE TABLE a (id int PRIMARY KEY)")
    owned = {"to": "maddo.b", "columns": ["id"]}
    config = make_config(
        source,
        {
            "internal": follow(internal),
            "datamart": {"dsn": datamart.dsn, "schema": "owned", "tables": {"public.b": owned}},
        },
    )
    await set_up(config)
    with pytest.raises(SetupError) as refused:
        await live.bootstrap(config, progress=Silence())
    assert "lacks columns: name" in str(refused.value)
    assert "maddo.b (from public.b): the table does not exist" in str(refused.value)
    assert 'ADD COLUMN "name" text' in (refused.value.sql or "")
    assert source.fetch("SELECT FROM pg_replication_slots WHERE slot_name = %s", config.source.slot) == []


async def test_before_setup_the_message_says_so(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    config = make_config(source, {"internal": follow(make_target())})
    with pytest.raises(SetupError, match="run `cdc setup` first"):
        await live.bootstrap(config, progress=Silence())


async def test_a_table_that_joined_the_configuration_is_loaded_by_another_run(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    await live.bootstrap(config, progress=Silence())
    source.execute("CREATE TABLE b (id int PRIMARY KEY, word text); INSERT INTO b VALUES (1, 'one')")
    with pytest.raises(SetupError, match=r"do not contain public\.b: run `cdc setup` first"):
        await live.bootstrap(config, progress=Silence())
    await set_up(config)
    summary = await live.bootstrap(config, progress=Silence())
    assert summary.targets["internal"].tables == 1
    assert rows(internal, "b") == [("(1,one)",)]
    assert internal.fetchval("SELECT state FROM cdc.target") == "streaming"
    assert internal.fetchval("SELECT position::text FROM cdc.target") == str(slot_position(source, config))


async def test_what_a_target_must_not_get_never_reaches_its_server(
    source: Database, make_target: MakeDatabase, own_server: MakeServer
) -> None:
    source.execute("CREATE TABLE users (id int PRIMARY KEY, email text, name text)")
    source.execute("INSERT INTO users VALUES (1, 'jane@example.org', 'Jane-Doe-4711')")
    there = own_server(log_statement="all", log_min_messages="debug1", log_connections="on")
    external = make_target("external", server=there)
    config = make_config(
        source,
        {"external": {"dsn": external.dsn, "columns": "listed", "tables": {"public.users": ["id", "name"]}}},
    )
    await set_up(config)
    await live.bootstrap(config, progress=Silence())
    assert external.fetch("SELECT * FROM users") == [(1, "Jane-Doe-4711")]
    log = there.log_text()
    assert 'COPY "public"."users"' in log
    assert "email" not in log
    assert "jane@" not in log
    assert "Jane-Doe" not in log


async def test_the_archive_of_pix_is_loaded_whole(
    source: Database, make_target: MakeDatabase, postgres_binaries: Path
) -> None:
    assert PIX_ARCHIVE.exists(), f"the archive of PIX.md is missing: {PIX_ARCHIVE}"
    command = [str(postgres_binaries / "pg_restore"), "--no-owner", "--no-acl", "-d", source.dsn, str(PIX_ARCHIVE)]
    restored = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    _, errors = await restored.communicate()
    assert restored.returncode == 0, errors.decode()
    internal = make_target()
    config = make_config(source, {"internal": follow(internal, "public.*", exclude=["public.knex_*"])})
    await set_up(config)
    summary = await live.bootstrap(config, progress=Silence())
    assert not summary.warnings
    tables = [name for (name,) in internal.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    assert len(tables) > 35
    for table in tables:
        assert rows(internal, f'"{table}"') == rows(source, f'"{table}"'), table
    assert summary.targets["internal"].rows == sum(
        internal.fetchval(f'SELECT count(*) FROM "{table}"') for table in tables
    )
    indexes = (
        "SELECT indexname, replace(indexdef, 'public.', '') FROM pg_indexes"
        " WHERE schemaname = 'public' AND tablename NOT LIKE 'knex%'"
        " AND indexname NOT IN (SELECT conname FROM pg_constraint WHERE contype = 'p') ORDER BY 1"
    )
    assert internal.fetch(indexes) == source.fetch(indexes) != []
