"""What the catalog of a target says, read back from a real server."""

from __future__ import annotations

from cdc.target.catalog import read_table, read_tables, tables_with_rows, types_by_name
from cdc.target.session import connect
from tests.conftest import MakeDatabase, MakeRole

SCHEMA = """
CREATE SCHEMA "sch-ema";
CREATE TYPE "sch-ema"."Mood" AS ENUM ('z', 'a');
CREATE DOMAIN "sch-ema".code AS varchar(5) NOT NULL;
CREATE TYPE "sch-ema".pair AS (a int, b "sch-ema"."Mood");
CREATE TABLE public.parent (id int PRIMARY KEY, "group" text UNIQUE DEFERRABLE);
CREATE TABLE "sch-ema"."knowledge-elements" (
    "createdAt" timestamptz DEFAULT now(),
    id bigint GENERATED ALWAYS AS IDENTITY,
    gone text,
    moods "sch-ema"."Mood"[],
    amount numeric(10,2),
    names varchar(20)[],
    code "sch-ema".code,
    pair "sch-ema".pair,
    twice int GENERATED ALWAYS AS (2 * 2) STORED,
    label text NOT NULL,
    parent int REFERENCES public.parent ON DELETE CASCADE,
    again int,
    CONSTRAINT deferred_fk FOREIGN KEY (again) REFERENCES public.parent DEFERRABLE INITIALLY DEFERRED,
    PRIMARY KEY (label, id)
);
ALTER TABLE "sch-ema"."knowledge-elements" DROP COLUMN gone;
CREATE UNIQUE INDEX included ON "sch-ema"."knowledge-elements" (amount) INCLUDE (names);
CREATE UNIQUE INDEX partial ON "sch-ema"."knowledge-elements" (parent) WHERE parent > 0;
CREATE UNIQUE INDEX expression ON "sch-ema"."knowledge-elements" (lower(label));
CREATE INDEX plain ON "sch-ema"."knowledge-elements" (parent);
CREATE FUNCTION public.noop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER normal AFTER INSERT ON public.parent FOR EACH ROW EXECUTE FUNCTION public.noop();
CREATE TRIGGER always AFTER INSERT ON public.parent FOR EACH ROW EXECUTE FUNCTION public.noop();
CREATE TRIGGER disabled AFTER INSERT ON public.parent FOR EACH ROW EXECUTE FUNCTION public.noop();
ALTER TABLE public.parent ENABLE ALWAYS TRIGGER always, DISABLE TRIGGER disabled;
CREATE VIEW public.view AS SELECT 1 AS one;
"""


async def test_columns_keys_and_foreign_keys_are_described_by_name(make_target: MakeDatabase) -> None:
    target = make_target()
    target.execute(SCHEMA)
    session = await connect(target.dsn, application_name="cdc test")
    names = [("sch-ema", "knowledge-elements"), ("public", "parent"), ("public", "view"), ("public", "nothing")]
    tables = await read_tables(session.connection, names)
    assert set(tables) == set(names[:3])
    table, parent = tables[names[0]], tables[names[1]]

    columns = {column.name: column for column in table.columns}
    assert [(name, column.type.sql) for name, column in columns.items()] == [
        ("createdAt", "timestamp with time zone"),
        ("id", "bigint"),
        ("moods", '"sch-ema"."Mood"[]'),
        ("amount", "numeric(10,2)"),
        ("names", "character varying(20)[]"),
        ("code", '"sch-ema".code'),
        ("pair", '"sch-ema".pair'),
        ("twice", "integer"),
        ("label", "text"),
        ("parent", "integer"),
        ("again", "integer"),
    ]
    mood = columns["moods"].type.element
    assert mood is not None
    assert (mood.kind, mood.labels, mood.schema, mood.name) == ("e", ("z", "a"), "sch-ema", "Mood")
    base = columns["code"].type.element
    assert base is not None
    assert (columns["code"].type.kind, base.sql, columns["code"].not_null) == ("d", "character varying(5)", True)
    pair = columns["pair"].type.attributes
    assert [(one.name, one.type.sql) for one in pair] == [("a", "integer"), ("b", '"sch-ema"."Mood"')]
    assert [name for name, column in columns.items() if column.has_default] == ["createdAt", "id"]
    assert [name for name, column in columns.items() if column.generated] == ["twice"]
    assert (columns["id"].identity, columns["label"].identity) == ("a", "")

    assert [(key.columns, key.is_primary) for key in table.unique_keys] == [
        (("label", "id"), True),
        (("amount",), False),
    ]
    assert [(key.columns, key.is_immediate) for key in parent.unique_keys] == [(("id",), True), (("group",), False)]

    assert [(key.name, key.deferrable, key.on_delete) for key in table.foreign_keys] == [
        ("deferred_fk", True, "a"),
        ("knowledge-elements_parent_fkey", False, "c"),
    ]
    assert {(key.referenced_schema, key.referenced_table) for key in table.foreign_keys} == {("public", "parent")}
    assert parent.referenced_by == table.foreign_keys
    fires = [[trigger.name for trigger in parent.triggers if trigger.fires(as_replica=r)] for r in (False, True)]
    assert fires == [["always", "normal"], ["always"]]
    assert not tables[names[2]].is_writable

    await session.connection.execute("INSERT INTO public.parent VALUES (1)")
    assert await tables_with_rows(session.connection, names[:2]) == {("public", "parent")}
    assert await tables_with_rows(session.connection, []) == frozenset()
    # Names that the query uses, or might.
    target.execute("CREATE TABLE c (relkind int, oid int); INSERT INTO c VALUES (1, 1)")
    target.execute('CREATE TABLE "cdc_is" (relkind int, oid int) PARTITION BY LIST (oid)')
    named = [("public", "c"), ("public", "cdc_is")]
    assert await tables_with_rows(session.connection, named) == {("public", "c")}
    types = await types_by_name(session.connection, [("sch-ema", "Mood"), ("public", "nothing")])
    assert [type_.sql for type_ in types.values()] == ['"sch-ema"."Mood"']
    await session.close()


async def test_rights_and_row_security_are_those_of_our_role(make_target: MakeDatabase, make_role: MakeRole) -> None:
    target = make_target()
    role = make_role("LOGIN")
    target.execute(f"""
        CREATE TABLE public.t (id int);
        ALTER TABLE public.t ENABLE ROW LEVEL SECURITY;
        GRANT SELECT, INSERT ON public.t TO "{role}";
    """)
    for dsn, privileges, hidden in (
        (target.dsn_as(role), {"SELECT", "INSERT"}, True),
        (target.dsn, {"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"}, False),
    ):
        session = await connect(dsn, application_name="cdc test")
        table = await read_table(session.connection, "public", "t")
        assert table is not None
        assert (set(table.privileges), table.row_security) == (privileges, hidden)
        await session.close()
