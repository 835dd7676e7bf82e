"""The source's catalog as `cdc` reads it, compared with what pgoutput really sends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from cdc.changes.relation import DataType, ReplicaIdentity
from cdc.pgoutput.decoder import decode
from cdc.pgoutput.messages import RelationMessage
from cdc.source.catalog import SourceTable, describe_types, read_tables
from cdc.source.connection import Connection, connect
from tests.conftest import MakeRole, RecordChanges
from tests.database import Database


@pytest.fixture
async def session(source: Database) -> AsyncIterator[Connection]:
    async with await connect(source.dsn, application_name="cdc test") as connection:
        yield connection


async def table(session: Connection, name: str) -> SourceTable:
    (found,) = await read_tables(session, [name])
    return found


async def type_of(session: Connection, sql: str) -> DataType:
    """The type that a column declared as ``sql`` has."""
    await session.execute(f"CREATE TABLE public.probe (value {sql})".encode())
    found = await table(session, "public.probe")
    await session.execute("DROP TABLE public.probe")
    return found.relation.columns[0].type


SHAPES = (
    ('CREATE TABLE public.t ("id" int, "group" text, PRIMARY KEY ("id"))', "1"),
    ('CREATE TABLE public.t (x text, "B b" int NOT NULL, a int, PRIMARY KEY (a, "B b"))', "'x', 1, 1"),
    ("CREATE TABLE public.t (a int PRIMARY KEY, g int GENERATED ALWAYS AS (a * 2) STORED, b varchar(7)[])", "1"),
    (
        "CREATE TABLE public.t (a int, b int NOT NULL UNIQUE);"
        "ALTER TABLE public.t REPLICA IDENTITY USING INDEX t_b_key",
        "1, 1",
    ),
    ("CREATE TABLE public.t (a int, b int); ALTER TABLE public.t REPLICA IDENTITY FULL", "1"),
    ("CREATE TABLE public.t (a int PRIMARY KEY, b int); ALTER TABLE public.t REPLICA IDENTITY NOTHING", "1"),
    ("CREATE TABLE public.t (a int PRIMARY KEY DEFERRABLE, b int)", "1"),
    (
        "CREATE TABLE public.t (a int, gone int, b numeric(5,2) PRIMARY KEY); ALTER TABLE public.t DROP COLUMN gone",
        "1, 1.5",
    ),
    ("CREATE TABLE public.t (a int, gone int PRIMARY KEY); ALTER TABLE public.t DROP COLUMN gone", "1"),
)


@pytest.mark.parametrize(("ddl", "row"), SHAPES)
async def test_a_relation_of_the_catalog_is_the_one_that_pgoutput_sends(
    source: Database, session: Connection, record_changes: RecordChanges, ddl: str, row: str
) -> None:
    source.execute(ddl)
    source.execute("CREATE PUBLICATION p FOR TABLE public.t WITH (publish = 'insert')")
    slot = f"slot_{uuid4().hex[:12]}"
    source.create_slot(slot)
    source.execute(f"INSERT INTO public.t VALUES ({row})")
    sent = next(m for m in map(decode, record_changes(source, ["p"], slot)) if isinstance(m, RelationMessage))
    relation = (await table(session, "public.t")).relation
    assert (relation.oid, relation.schema, relation.name) == (sent.oid, sent.schema, sent.name)
    assert relation.replica_identity == ReplicaIdentity(sent.replica_identity)
    assert [(column.name, column.is_key, column.type.oid) for column in relation.columns] == [
        (column.name, bool(column.flags & 1), column.type_oid) for column in sent.columns
    ]
    described = await describe_types(session, [(column.type_oid, column.typmod) for column in sent.columns])
    assert [described[column.type_oid, column.typmod] for column in sent.columns] == [
        column.type for column in relation.columns
    ]


@pytest.mark.parametrize(
    ("ddl", "usable", "index", "candidates"),
    [
        ("CREATE TABLE public.t (a int PRIMARY KEY)", True, "t_pkey", ("t_pkey",)),
        ("CREATE TABLE public.t (a int)", False, None, ()),
        ("CREATE TABLE public.t (a int UNIQUE)", False, None, ()),
        ("CREATE TABLE public.t (a int NOT NULL UNIQUE)", False, None, ("t_a_key",)),
        ("CREATE TABLE public.t (a int PRIMARY KEY DEFERRABLE)", False, None, ()),
        ("CREATE TABLE public.t (a int); ALTER TABLE public.t REPLICA IDENTITY FULL", True, None, ()),
        ("CREATE TABLE public.t (a int PRIMARY KEY); ALTER TABLE public.t REPLICA IDENTITY NOTHING", False, None, None),
        ("CREATE TABLE public.t (a int NOT NULL); CREATE UNIQUE INDEX i ON public.t (a) WHERE a > 0", False, None, ()),
        ("CREATE TABLE public.t (a int NOT NULL); CREATE UNIQUE INDEX i ON public.t ((a + 1))", False, None, ()),
    ],
)
async def test_hazard_01_an_identity_is_usable_only_where_the_source_accepts_updates(
    source: Database, session: Connection, ddl: str, usable: bool, index: str | None, candidates: tuple[str, ...] | None
) -> None:
    source.execute(ddl)
    source.execute("INSERT INTO public.t VALUES (1)")
    found = await table(session, "public.t")
    assert (found.usable_identity, found.identity_index) == (usable, index)
    if candidates is not None:
        assert found.candidate_indexes == candidates
    source.execute("CREATE PUBLICATION p FOR TABLE public.t")
    if usable:
        source.execute("UPDATE public.t SET a = 2")
    else:
        with pytest.raises(Exception, match="replica identity"):
            source.execute("UPDATE public.t SET a = 2")


async def test_types_are_described_by_name_whatever_schema_they_live_in(source: Database, session: Connection) -> None:
    source.execute(
        "CREATE SCHEMA \"S s\"; CREATE TYPE \"S s\".mood AS ENUM ('sad', 'Ok');"
        'CREATE DOMAIN "S s".short AS varchar(5);'
        'CREATE TYPE "S s".pair AS (a int, moods "S s".mood[]); CREATE TYPE "S s".span AS RANGE (subtype = numeric)'
    )
    assert (await type_of(session, "numeric(5,2)")).sql == "numeric(5,2)"
    assert (await type_of(session, "timestamptz(3)")).sql == "timestamp(3) with time zone"
    mood = await type_of(session, '"S s".mood')
    assert (mood.sql, mood.kind, mood.labels, mood.is_builtin) == ('"S s".mood', "e", ("sad", "Ok"), False)
    array = await type_of(session, '"S s".mood[]')
    assert (array.kind, array.element) == ("a", mood)
    short = await type_of(session, '"S s".short')
    assert short.kind == "d"
    assert short.element is not None
    assert short.element.sql == "character varying(5)"
    pair = await type_of(session, '"S s".pair')
    assert [(one.name, one.type.sql) for one in pair.attributes] == [("a", "integer"), ("moods", '"S s".mood[]')]
    assert (pair.is_row_type, (await type_of(session, "pg_catalog.pg_class")).is_row_type) == (False, True)
    span = await type_of(session, '"S s".span')
    assert (span.kind, span.range_options) == ("r", 'multirange_type_name = "S s".span_multirange')
    assert span.element is not None
    assert span.element.sql == "numeric"
    several = await type_of(session, '"S s".span_multirange')
    assert (several.kind, several.element) == ("m", span)
    strings = await type_of(session, "varchar(7)[]")
    assert strings.element is not None
    assert (strings.sql, strings.element.sql) == ("character varying(7)[]", "character varying(7)")


async def test_hazard_25_a_type_is_binary_only_when_all_of_its_parts_are(source: Database, session: Connection) -> None:
    source.execute("CREATE TYPE public.holder AS (a int, b aclitem)")
    assert (await type_of(session, "int")).has_binary
    assert (await type_of(session, "int[]")).has_binary
    assert not (await type_of(session, "aclitem")).has_binary
    assert not (await type_of(session, "aclitem[]")).has_binary
    assert not (await type_of(session, "public.holder")).has_binary


async def test_a_type_that_is_gone_is_left_out(session: Connection) -> None:
    assert await describe_types(session, [(4_000_000_000, -1), (23, -1)]) == {(23, -1): (await type_of(session, "int"))}
    assert await describe_types(session, []) == {}


async def test_tables_come_with_what_a_bootstrap_needs(source: Database, session: Connection) -> None:
    source.execute(
        'CREATE TABLE public."a-B" (x text NOT NULL, id int, y text, PRIMARY KEY (id)); '
        'INSERT INTO public."a-B" SELECT repeat(\'x\', 1000), g FROM generate_series(1, 100) AS g; ANALYZE public."a-B"'
    )
    found = await table(session, "public.a-B")
    assert found.name == "public.a-B"
    assert (found.primary_key, found.primary_key_name) == (("id",), "a-B_pkey")
    assert found.not_null == {"x", "id"}
    assert found.pages == 15
    assert found.bytes >= 15 * 8192
    assert found.is_publishable
    assert found.is_readable
    assert found.is_owned


async def test_all_tables_are_those_of_users(source: Database, session: Connection) -> None:
    source.execute(
        "CREATE TABLE public.plain (a int); CREATE UNLOGGED TABLE public.unlogged (a int); "
        "CREATE TEMP TABLE temporary (a int); CREATE VIEW public.v AS SELECT 1; "
        "CREATE TABLE public.root (a int) PARTITION BY RANGE (a); "
        "CREATE TABLE public.leaf PARTITION OF public.root DEFAULT; "
        "CREATE SCHEMA cdc; CREATE TABLE cdc.own (a int)"
    )
    found = {one.name: one for one in await read_tables(session)}
    assert sorted(found) == ["public.leaf", "public.plain", "public.root", "public.unlogged"]
    publishable = sorted(name for name, one in found.items() if one.is_publishable)
    assert publishable == ["public.leaf", "public.plain", "public.root"]
    assert await read_tables(session, ["public.nothing"]) == []


async def test_rights_and_row_security_are_seen(source: Database, make_role: MakeRole) -> None:
    role = make_role("LOGIN")
    source.execute(
        "CREATE TABLE public.closed (a int); CREATE TABLE public.hidden (a int); "
        f'GRANT SELECT ON public.hidden TO "{role}"; ALTER TABLE public.hidden ENABLE ROW LEVEL SECURITY'
    )
    async with await connect(source.dsn_as(role), application_name="cdc") as connection:
        closed, hidden = await read_tables(connection)
    assert (closed.is_readable, closed.hides_rows, closed.is_owned) == (False, False, False)
    assert (hidden.is_readable, hidden.hides_rows, hidden.is_owned) == (True, True, False)
