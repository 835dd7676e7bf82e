"""Tables of a following target, created from the catalog of a real source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cdc.changes.collation import Collation
from cdc.changes.relation import DataType
from cdc.errors import SetupError
from cdc.routing.route import Route
from cdc.source import catalog as source_catalog
from cdc.source.connection import connect as connect_source
from cdc.target import schema
from cdc.target.catalog import read_table
from cdc.target.schema import NewTable
from cdc.target.session import Session, connect
from tests.conftest import MakeDatabase, MakeRole
from tests.database import Database

TEXT = DataType(25, "pg_catalog", "text", "text")

SOURCE = """
CREATE SCHEMA learning;
CREATE TYPE public."Mood" AS ENUM ('it''s fine', 'back\\slash', 'a');
CREATE DOMAIN learning.code AS varchar(5) CHECK (value <> 'x');
CREATE TABLE learning."knowledge-elements" (
    "createdAt" timestamptz NOT NULL DEFAULT now(),
    id bigint GENERATED ALWAYS AS IDENTITY,
    "group" text NOT NULL,
    moods public."Mood"[],
    code learning.code,
    amount numeric(10,2) DEFAULT 1,
    twice int GENERATED ALWAYS AS (2 * 2) STORED,
    secret text,
    PRIMARY KEY ("group", id),
    CONSTRAINT "once-only" UNIQUE (code) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX "by-Mood" ON learning."knowledge-elements" USING gin (moods) WHERE amount > 0;
"""


@pytest.fixture
async def session(make_target: MakeDatabase) -> AsyncIterator[Session]:
    opened = await connect(make_target().dsn, application_name="cdc test", target="internal")
    yield opened
    await opened.close()


async def described(source: Database, route: Route) -> NewTable:
    """What the source's catalog makes of a route."""
    connection = await connect_source(source.dsn, application_name="cdc test")
    async with connection:
        (table,) = await source_catalog.read_tables(connection, [route.source_name])
    return schema.new_table(
        route,
        table.relation,
        not_null=table.not_null,
        primary_key=table.primary_key,
        primary_key_name=table.primary_key_name,
    )


EVERYTHING = Route("learning", "knowledge-elements", "learning", "knowledge-elements")


async def test_a_table_is_created_with_its_types_and_key_and_nothing_else(source: Database, session: Session) -> None:
    source.execute(SOURCE)
    table = await described(source, EVERYTHING)
    assert await schema.create_table(session, table)
    assert await schema.add_primary_key(session, table)
    found = await read_table(session.connection, table.schema, table.name)
    assert found is not None
    assert [(column.name, column.type.sql, column.not_null, column.has_default) for column in found.columns] == [
        ("createdAt", "timestamp with time zone", True, False),
        ("id", "bigint", True, False),
        ("group", "text", True, False),
        ("moods", 'public."Mood"[]', False, False),
        ("code", "learning.code", False, False),
        ("amount", "numeric(10,2)", False, False),
        ("secret", "text", False, False),
    ]
    assert [(key.name, key.columns) for key in found.unique_keys if key.is_primary] == [
        ("knowledge-elements_pkey", ("group", "id"))
    ]
    assert len(found.unique_keys) == 1
    mood = found.columns[3].type.element
    assert mood is not None
    assert mood.labels == ("it's fine", "back\\slash", "a")


async def test_the_primary_key_has_the_sources_name_where_that_is_free(source: Database, session: Session) -> None:
    source.execute("CREATE TABLE a (id int, CONSTRAINT its_key PRIMARY KEY (id))")
    source.execute("CREATE TABLE b (id int, CONSTRAINT taken PRIMARY KEY (id))")
    await session.connection.execute("CREATE TABLE public.taken ()")
    names = {}
    for name in ("a", "b"):
        table = await described(source, Route("public", name, "public", name))
        await schema.create_table(session, table)
        assert await schema.add_primary_key(session, table)
        found = await read_table(session.connection, "public", name)
        assert found is not None
        names[name] = [key.name for key in found.unique_keys if key.is_primary]
    assert names == {"a": ["its_key"], "b": ["b_pkey"]}


async def test_creating_again_changes_nothing(source: Database, session: Session) -> None:
    source.execute(SOURCE)
    table = await described(source, EVERYTHING)
    await schema.create_table(session, table)
    await schema.add_primary_key(session, table)
    assert not await schema.create_table(session, table)
    assert not await schema.add_primary_key(session, table)


async def test_invariant_07_a_table_gets_the_listed_columns_only(source: Database, session: Session) -> None:
    source.execute(SOURCE)
    listed = Route(
        "learning", "knowledge-elements", "learning", "knowledge-elements", (("id", "id"), ("createdAt", "created_at"))
    )
    table = await described(source, listed)
    assert [column.name for column in table.columns] == ["created_at", "id"]
    assert table.primary_key == (), "a key that needs a column which does not go there is no key there"
    assert await schema.create_table(session, table)
    assert not await schema.add_primary_key(session, table)
    assert await session.connection.fetchval("""SELECT to_regtype('public."Mood"')""") is None


async def test_invariant_09_what_exists_is_not_touched(source: Database, session: Session) -> None:
    source.execute(SOURCE)
    await session.connection.execute('CREATE SCHEMA learning; CREATE TABLE learning."knowledge-elements" (mine int)')
    table = await described(source, EVERYTHING)
    assert not await schema.create_table(session, table)
    await session.connection.execute(
        "DROP TABLE learning.\"knowledge-elements\"; CREATE TYPE public.\"Mood\" AS ENUM ('a', 'of mine')"
    )
    with pytest.raises(SetupError, match="lacks 2 of the source's labels") as caught:
        await schema.create_table(session, table)
    assert caught.value.sql is not None
    assert await session.connection.fetchval("SELECT to_regtype('learning.code')") is None, "it was one transaction"
    for statement in caught.value.sql.splitlines():
        await session.connection.execute(statement)
    assert await schema.create_table(session, table)
    labels = await session.connection.fetchval("""SELECT enum_range(NULL::public."Mood")::text[]""")
    assert labels == ["it's fine", "back\\slash", "a", "of mine"]


async def test_a_missing_extension_is_named_with_the_statement_that_creates_it(
    source: Database, session: Session
) -> None:
    source.execute("CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE TABLE public.t (name ext.citext)")
    table = await described(source, Route("public", "t", "public", "t"))
    with pytest.raises(SetupError, match=r"type ext\.citext is missing") as caught:
        await schema.create_table(session, table)
    assert caught.value.sql is not None
    await session.connection.execute(caught.value.sql)
    assert await schema.create_table(session, table)


async def test_tables_that_share_a_new_type_can_be_created_at_once(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TYPE public.mood AS ENUM ('a')")
    target = make_target()
    tables, sessions = [], []
    for number in range(3):
        source.execute(f"CREATE TABLE public.t{number} (mood public.mood)")
        tables.append(await described(source, Route("public", f"t{number}", "new", f"t{number}")))
        sessions.append(await connect(target.dsn, application_name="cdc test"))
    created = await asyncio.gather(*(schema.create_table(s, t) for s, t in zip(sessions, tables, strict=True)))
    assert created == [True, True, True]
    for session in sessions:
        await session.close()


async def test_without_the_right_to_create_the_error_says_so(
    source: Database, make_target: MakeDatabase, make_role: MakeRole
) -> None:
    source.execute(SOURCE)
    table = await described(source, EVERYTHING)
    session = await connect(make_target().dsn_as(make_role("LOGIN")), application_name="cdc test", target="internal")
    with pytest.raises(SetupError, match="lacks a right"):
        await schema.create_table(session, table)
    await session.close()


async def test_a_collation_that_the_server_cannot_make_is_named_with_its_column(session: Session) -> None:
    """A server without ICU makes none of ICU's; one that has it lacks another locale."""
    has_icu = await session.connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_collation WHERE collname LIKE '%-x-icu')"
    )
    definition = "provider = libc, locale = 'no_such_locale'" if has_icu else "provider = icu, locale = 'und'"
    theirs = Collation("ours", "theirs", definition)
    columns = (schema.NewColumn("id", TEXT, True), schema.NewColumn("name", TEXT, False, theirs))
    with pytest.raises(SetupError, match=r"the collation ours\.theirs of its column name cannot be created") as refused:
        await schema.create_table(session, schema.NewTable("public", "t", columns, ("id",)))
    assert "Leave the column out of the route" in str(refused.value)
    assert "table public.t" in str(refused.value)
    assert refused.value.server is not None
    assert f"SQLSTATE {refused.value.server.sqlstate}" in str(refused.value)
    assert await session.connection.fetchval("SELECT to_regnamespace('ours')") is None
