"""`cdc bootstrap --from live` on real servers: what each target holds afterwards."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from cdc.bootstrap import definitions
from cdc.bootstrap.progress import Silence
from cdc.errors import SetupError
from cdc.pgoutput.decoder import decode
from cdc.pgoutput.messages import Insert
from cdc.service import loading
from tests.bootstrap import follow, make_config, rows, set_up, slot_position, states
from tests.conftest import MakeDatabase, MakeRole, MakeServer
from tests.database import Database

PIX_ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "pix-2020.pgsql"


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
    summary = await loading.bootstrap(config, jobs=3, progress=Silence(), range_bytes=64 * 1024)

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
        await loading.bootstrap(config, progress=Silence(), range_bytes=64 * 1024)
        done.set()
    copied = {id for (id,) in internal.fetch("SELECT id FROM log")}
    messages = source.changes(config.source.slot, config.source.publication_names, binary=False)
    inserts = [message for message in map(decode, messages) if isinstance(message, Insert)]
    streamed = [int(insert.new[0].data or b"") for insert in inserts]
    assert len(streamed) > 4
    assert len(copied) > 5000
    assert not copied & set(streamed)
    assert sorted([*copied, *streamed]) == sorted(id for (id,) in source.fetch("SELECT id FROM log"))


async def test_what_a_target_must_not_get_never_reaches_its_server(
    source: Database, make_target: MakeDatabase, own_server: MakeServer
) -> None:
    source.execute("CREATE TABLE users (id int PRIMARY KEY, email text, name text)")
    source.execute("INSERT INTO users VALUES (1, 'jane@example.org', 'Jane-Doe-4711')")
    there = own_server(side="target", log_statement="all", log_min_messages="debug1", log_connections="on")
    external = make_target("external", server=there)
    config = make_config(
        source,
        {"external": {"dsn": external.dsn, "columns": "listed", "tables": {"public.users": ["id", "name"]}}},
    )
    await set_up(config)
    await loading.bootstrap(config, progress=Silence())
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
    summary = await loading.bootstrap(config, progress=Silence())
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


async def test_foreign_keys_of_an_owned_target_are_respected_where_they_cannot_be_switched_off(
    source: Database, make_target: MakeDatabase, make_role: MakeRole
) -> None:
    source.execute(
        "CREATE TABLE child (id int PRIMARY KEY, parent int, word text); CREATE TABLE parent (id int PRIMARY KEY)"
    )
    source.execute("INSERT INTO parent SELECT generate_series(1, 500)")
    source.execute("INSERT INTO child SELECT g, 1 + g % 500, repeat('x', 50) FROM generate_series(1, 5000) g")
    datamart = make_target("datamart")
    role = make_role()
    datamart.execute(
        "CREATE TABLE parent (id int PRIMARY KEY);"
        "CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, word text);"
        f'ALTER TABLE parent OWNER TO "{role}"; ALTER TABLE child OWNER TO "{role}";'
        f'GRANT CREATE, TEMP ON DATABASE "{datamart.name}" TO "{role}"'
    )
    config = make_config(
        source,
        {
            "datamart": {
                "dsn": datamart.dsn_as(role),
                "schema": "owned",
                "tables": {"public.child": ["id", "parent", "word"], "public.parent": ["id"]},
            }
        },
    )
    await set_up(config)
    await loading.bootstrap(config, progress=Silence(), range_bytes=32 * 1024)
    for table in ("parent", "child"):
        assert rows(datamart, table) == rows(source, table)
    # An interrupted run is begun anew, although a table that others refer to cannot be truncated.
    datamart.execute("DELETE FROM child; UPDATE cdc.target_table SET state = 'copying'")
    await loading.bootstrap(config, progress=Silence())
    for table in ("parent", "child"):
        assert rows(datamart, table) == rows(source, table)


async def test_several_source_tables_fill_one_table_of_an_owned_target(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(
        "CREATE TABLE y2024 (id int PRIMARY KEY, at date); CREATE TABLE y2025 (id bigint PRIMARY KEY, at date)"
    )
    source.execute("INSERT INTO y2024 VALUES (1, '2024-01-01'); INSERT INTO y2025 VALUES (2, 'infinity')")
    datamart = make_target("datamart")
    datamart.execute("CREATE TABLE days (id bigint, at timestamp)")
    columns = {"to": "public.days", "columns": ["id", "at"]}
    tables = {"public.y2024": columns, "public.y2025": columns}
    config = make_config(source, {"datamart": {"dsn": datamart.dsn, "schema": "owned", "tables": tables}})
    await set_up(config)
    summary = await loading.bootstrap(config, progress=Silence())
    assert summary.targets["datamart"].tables == 1
    assert datamart.fetch("SELECT id, at::text FROM days ORDER BY 1") == [(1, "2024-01-01 00:00:00"), (2, "infinity")]
    # A run that ended between the two begins with both: nobody can tell whose the rows are.
    datamart.execute("UPDATE cdc.target_table SET state = 'copying' WHERE source_table = 'y2025'")
    await loading.bootstrap(config, progress=Silence())
    assert datamart.fetchval("SELECT count(*) FROM days") == 2


async def test_an_index_that_cannot_be_built_is_a_warning_with_its_sql(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY, name text); INSERT INTO a VALUES (1, 'x')")
    source.execute("CREATE FUNCTION public.plain(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT $1 $$")
    source.execute("CREATE INDEX a_plain ON a (public.plain(name)); CREATE INDEX a_name ON a (name)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal)})
    await set_up(config)
    summary = await loading.bootstrap(config, progress=Silence())
    assert len(summary.warnings) == 1
    assert 'CREATE INDEX "a_plain" ON "public"."a" USING btree (public.plain(name));' in summary.warnings[0]
    names = internal.fetch("SELECT indexname FROM pg_indexes WHERE tablename = 'a' ORDER BY 1")
    assert names == [("a_name",), ("a_pkey",)]
    assert internal.fetchval("SELECT state FROM cdc.target") == "streaming"


async def test_the_planner_knows_what_was_copied(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY, kind text); CREATE INDEX a_upper ON a (upper(kind))")
    source.execute("INSERT INTO a SELECT n, 'k' || n % 3 FROM generate_series(1, 900) AS n")
    internal, datamart = make_target(), make_target("datamart")
    datamart.execute("CREATE SCHEMA maddo; CREATE TABLE maddo.kinds (id int, kind text)")
    owned = {"public.a": {"to": "maddo.kinds", "columns": ["id", "kind"]}}
    targets = {
        "internal": follow(internal, "public.*"),
        "datamart": {"dsn": datamart.dsn, "schema": "owned", "tables": owned},
    }
    config = make_config(source, targets)
    await set_up(config)
    summary = await loading.bootstrap(config, progress=Silence())
    assert not summary.warnings
    known = "SELECT n_distinct FROM pg_stats WHERE tablename = %s AND attname IN ('kind', 'upper')"
    assert internal.fetch(known, "a") == [(3,)]
    assert internal.fetch(known, "a_upper") == [(3,)]
    assert datamart.fetch(known, "kinds") == [(3,)]


async def test_a_run_that_ended_behind_the_rows_leaves_their_statistics_to_the_next(
    source: Database, make_target: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 900)")
    internal = make_target()
    config = make_config(source, {"internal": follow(internal, "public.*")})
    await set_up(config)

    async def fail(*_: object, **__: object) -> list[str]:
        raise SetupError("it ended here")

    with monkeypatch.context() as patch:
        patch.setattr(definitions, "build", fail)
        with pytest.raises(SetupError, match="it ended here"):
            await loading.bootstrap(config, progress=Silence())
    await loading.bootstrap(config, progress=Silence())
    assert internal.fetch("SELECT n_distinct FROM pg_stats WHERE tablename = 'a'") == [(-1,)]
