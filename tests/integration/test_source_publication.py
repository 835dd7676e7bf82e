"""Our two publications on a real source, and what the application notices of them: nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import psycopg
import pytest

from cdc.config import insert_only_name
from cdc.errors import SetupError, SourceUnavailable
from cdc.source import publication
from cdc.source.catalog import read_tables
from cdc.source.connection import Connection, connect
from tests.conftest import MakeRole, RecordChanges
from tests.database import Database

NAME = 'a-"B" group'


@pytest.fixture
async def session(source: Database) -> AsyncIterator[Connection]:
    source.execute(
        'CREATE TABLE public."keyed-T" (id int PRIMARY KEY, v int); CREATE TABLE public.keyless (id int, v int); '
        "CREATE UNLOGGED TABLE public.unlogged (id int); CREATE TABLE public.child () INHERITS (public.keyless); "
        'INSERT INTO public."keyed-T" VALUES (1, 1); INSERT INTO public.keyless VALUES (1, 1)'
    )
    async with await connect(source.dsn, application_name="cdc test") as connection:
        yield connection


async def ensure(session: Connection, *names: str) -> list[str]:
    return await publication.ensure(session, NAME, await read_tables(session, names))


async def members(session: Connection) -> dict[str, list[str]]:
    found = await publication.read(session, (NAME, insert_only_name(NAME)))
    return {name: sorted(table for _, table in one.tables) for name, one in found.items()}


async def test_hazard_01_updates_of_a_table_without_identity_go_on_working(
    source: Database, session: Connection, record_changes: RecordChanges
) -> None:
    await ensure(session, "public.keyed-T", "public.keyless")
    slot = f"slot_{uuid4().hex[:12]}"
    source.create_slot(slot)
    source.execute(
        "UPDATE public.keyless SET v = 2; DELETE FROM public.keyless; INSERT INTO public.keyless VALUES (2, 2)"
    )
    source.execute('UPDATE public."keyed-T" SET v = 2')
    kinds = [message[:1] for message in record_changes(source, [NAME, insert_only_name(NAME)], slot)]
    assert [kind for kind in kinds if kind in (b"I", b"U", b"D")] == [b"I", b"U"]


async def test_running_it_twice_changes_nothing(session: Connection) -> None:
    assert len(await ensure(session, "public.keyed-T", "public.keyless", "public.unlogged")) == 4
    assert await members(session) == {NAME: ["keyed-T"], f"{NAME}_insert_only": ["keyless"]}
    assert await ensure(session, "public.keyed-T", "public.keyless", "public.unlogged") == []


async def test_publications_exist_even_when_they_are_empty(session: Connection) -> None:
    await ensure(session)
    assert await members(session) == {NAME: [], f"{NAME}_insert_only": []}


async def test_a_table_that_gains_or_loses_its_identity_moves(source: Database, session: Connection) -> None:
    await ensure(session, "public.keyed-T", "public.keyless")
    source.execute('ALTER TABLE public."keyed-T" DROP CONSTRAINT "keyed-T_pkey"')
    source.execute("ALTER TABLE public.keyless REPLICA IDENTITY FULL")
    await ensure(session, "public.keyed-T", "public.keyless")
    assert await members(session) == {NAME: ["keyless"], f"{NAME}_insert_only": ["keyed-T"]}
    source.execute('UPDATE public."keyed-T" SET v = 3; UPDATE public.keyless SET v = 3')


async def test_hazard_24_a_publication_is_altered_never_dropped(source: Database, session: Connection) -> None:
    await ensure(session, "public.keyed-T")
    before = source.fetch("SELECT oid, pubname FROM pg_publication ORDER BY pubname")
    source.execute('ALTER PUBLICATION "a-""B"" group" SET (publish = \'insert\', publish_via_partition_root = true)')
    done = await ensure(session, "public.keyless")
    assert all(statement.startswith("ALTER PUBLICATION") for statement in done)
    assert source.fetch("SELECT oid, pubname FROM pg_publication ORDER BY pubname") == before
    found = (await publication.read(session, [NAME]))[NAME]
    assert (found.operations, found.via_root) == (publication.ALL_OPERATIONS, False)


async def test_hazard_27_a_table_that_left_the_configuration_leaves_the_publication(session: Connection) -> None:
    await ensure(session, "public.keyed-T", "public.keyless")
    await ensure(session, "public.keyless")
    assert await members(session) == {NAME: [], f"{NAME}_insert_only": ["keyless"]}


async def test_a_publication_for_all_tables_is_refused(source: Database, session: Connection) -> None:
    source.execute('CREATE PUBLICATION "a-""B"" group" FOR ALL TABLES')
    with pytest.raises(SetupError, match="FOR ALL TABLES"):
        await ensure(session, "public.keyed-T")


async def test_invariant_06_row_filters_and_column_lists_are_refused(source: Database, session: Connection) -> None:
    if session.info.server_version < 150000:
        assert (await publication.read(session, [NAME])) == {}
        return
    for narrowing in ("(id)", "WHERE (id > 0)"):
        source.execute(f'CREATE PUBLICATION "a-""B"" group" FOR TABLE public."keyed-T" {narrowing}')
        with pytest.raises(SetupError, match=r"row filter or a column list for public\.keyed-T") as caught:
            await ensure(session, "public.keyed-T")
        assert caught.value.sql is not None
        source.execute(caught.value.sql)
        await ensure(session, "public.keyed-T")
        await publication.drop(session, NAME)


async def test_invariant_06_the_application_may_still_drop_a_published_column(
    source: Database, session: Connection
) -> None:
    await ensure(session, "public.keyed-T")
    source.execute('ALTER TABLE public."keyed-T" DROP COLUMN v')


async def test_a_role_that_does_not_own_the_tables_gets_the_sql(source: Database, make_role: MakeRole) -> None:
    role = make_role("LOGIN")
    source.execute("CREATE TABLE public.theirs (id int PRIMARY KEY)")
    source.execute(f'GRANT CREATE ON DATABASE "{source.name}" TO "{role}"')
    async with await connect(source.dsn_as(role), application_name="cdc") as connection:
        tables = await read_tables(connection)
        with pytest.raises(SetupError, match=f"role {role} may not alter its publications.*owner") as caught:
            await publication.ensure(connection, NAME, tables)
        assert await publication.read(connection, [NAME]) == {}
        assert caught.value.sql is not None
        source.execute(caught.value.sql)
        assert await publication.ensure(connection, NAME, tables) == []


async def test_setting_up_does_not_wait_behind_a_migration(
    source: Database, session: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publication, "LOCK_TIMEOUT_S", 1)
    with psycopg.connect(source.dsn) as migration:
        migration.execute('LOCK TABLE public."keyed-T" IN SHARE MODE')
        with pytest.raises(SourceUnavailable, match="55P03"):
            await ensure(session, "public.keyed-T")
    await ensure(session, "public.keyed-T")


async def test_what_foreign_publications_send_is_read_with_its_operations(
    source: Database, session: Connection
) -> None:
    source.execute(
        "CREATE PUBLICATION theirs FOR TABLE public.\"keyed-T\" WITH (publish = 'insert'); "
        "CREATE PUBLICATION more FOR TABLE public.\"keyed-T\" WITH (publish = 'update, delete')"
    )
    assert await publication.read_published(session, ["theirs", "more", "absent"]) == {
        "public.keyed-T": {"insert", "update", "delete"}
    }


async def test_teardown_drops_both_and_nothing_else(source: Database, session: Connection) -> None:
    source.execute("CREATE PUBLICATION theirs")
    await ensure(session)
    assert sorted(await publication.drop(session, NAME)) == [NAME, f"{NAME}_insert_only"]
    assert await publication.drop(session, NAME) == []
    assert source.fetch("SELECT pubname FROM pg_publication") == [("theirs",)]
