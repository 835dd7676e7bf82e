"""What depends on a replaced table: views and rights go on as before, anything else stops the swap with the SQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cdc.errors import SetupError, TerminalError
from cdc.target.catalog import read_table
from cdc.target.dependents import obstacles
from cdc.target.missing_indexes import build_missing, missing_indexes
from cdc.target.schema import NewColumn, NewTable
from tests.conftest import MakeDatabase, MakeRole
from tests.database import Database
from tests.swap import Generations, as_owner, generations, table_swap


@pytest.fixture
def target(make_target: MakeDatabase) -> Database:
    return make_target("internal")


@pytest.fixture
async def both(target: Database) -> AsyncIterator[Generations]:
    async with generations(target) as made:
        made.make("users")
        yield made


async def refused(both: Generations, match: str) -> str:
    """The SQL that a swap is refused with, before anything is changed."""
    before = both.state()
    found = await obstacles(both.session, [table_swap()])
    with pytest.raises(SetupError, match=match) as error:
        await both.swap()
    assert both.state() == before
    assert found, "it can be asked beforehand"
    assert "nothing was changed" in str(error.value)
    return error.value.sql or ""


async def test_a_view_keeps_its_columns_options_owner_and_grants(both: Generations, make_role: MakeRole) -> None:
    analyst, reader = make_role(), make_role()
    both.database.execute(
        f"""
        GRANT SELECT ON users TO "{analyst}" WITH GRANT OPTION;
        CREATE SCHEMA reports;
        CREATE VIEW reports."per-name" (label, "Count") WITH (security_barrier)
            AS SELECT name || ' ''x'' \\ ', count(*) FROM users GROUP BY users.id;
        ALTER VIEW reports."per-name" OWNER TO "{analyst}";
        GRANT USAGE ON SCHEMA reports TO "{reader}", "{analyst}";
        GRANT SELECT ON reports."per-name" TO "{reader}";
        COMMENT ON COLUMN reports."per-name".label IS 'as it was';
        CREATE VIEW reports.sum AS SELECT sum("Count") AS name FROM reports."per-name";
        CREATE VIEW reports.nothing AS SELECT FROM users;
        """
    )
    known = (
        "SELECT relname, relowner, relacl::text, reloptions::text, col_description(oid, 1) FROM pg_class"
        " WHERE relnamespace = 'reports'::regnamespace ORDER BY 1"
    )
    before = both.database.fetch(known)
    result = await both.swap()
    assert result.views == ("reports.nothing", "reports.per-name")
    assert both.database.fetch(known) == before
    with both.database.transaction():
        both.database.execute(f'SET LOCAL ROLE "{reader}"')
        assert both.database.fetch('SELECT label, "Count" FROM reports."per-name" LIMIT 1') == [("new 'x' \\ ", 1)]
    assert both.database.fetchval("SELECT name FROM reports.sum") == 4


async def test_a_view_over_two_tables_in_two_schemas_is_made_again_once(both: Generations) -> None:
    both.database.execute(
        """
        CREATE SCHEMA learning; CREATE SCHEMA cdc_new_learning;
        CREATE TABLE learning.users (id int PRIMARY KEY, name text);
        CREATE TABLE cdc_new_learning.users (id int PRIMARY KEY, name text);
        INSERT INTO cdc_new_learning.users VALUES (1, 'new learning');
        CREATE VIEW report AS SELECT u.name || l.name AS name FROM users u JOIN learning.users l USING (id);
        INSERT INTO cdc.target_table (pipeline, source_schema, source_table, target_schema, target_table, state)
        SELECT p, 'learning', 'users', s, 'users', 'streaming'
          FROM (VALUES ('cdc', 'learning'), ('cdc+', 'cdc_new_learning')) AS v (p, s)
        """
    )
    await both.swap(table_swap(), table_swap("users", "learning"))
    assert both.names("report") == {"newnew learning"}
    assert both.schemas() == []


@pytest.mark.parametrize(
    ("made", "match", "sql"),
    [
        (
            "CREATE MATERIALIZED VIEW m AS SELECT DISTINCT name FROM users;"
            "CREATE UNIQUE INDEX ON m (name text_pattern_ops)",
            "materialized view public.m",
            [
                "DROP MATERIALIZED VIEW public.m;",
                "CREATE MATERIALIZED VIEW public.m AS",
                "CREATE UNIQUE INDEX m_name_idx",
            ],
        ),
        (
            "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM users; END",
            r"function public.f\(\)",
            ["DROP FUNCTION public.f();", "CREATE OR REPLACE FUNCTION public.f()"],
        ),
        (
            "CREATE TABLE notes (user_id int REFERENCES users ON DELETE CASCADE)",
            "foreign key notes_user_id_fkey of public.notes points to it",
            [
                'ALTER TABLE "public"."notes" DROP CONSTRAINT "notes_user_id_fkey";',
                "REFERENCES public.users(id) ON DELETE",
            ],
        ),
        (
            "CREATE FUNCTION g() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
            "CREATE TRIGGER t AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION g()",
            "trigger t on public.users",
            ["DROP TRIGGER t on public.users;", "CREATE TRIGGER t AFTER INSERT ON public.users"],
        ),
        (
            "CREATE POLICY p ON users FOR SELECT TO PUBLIC USING (id > 0)",
            "policy p on public.users",
            [
                "DROP POLICY p on public.users;",
                "CREATE POLICY p ON public.users AS PERMISSIVE FOR SELECT TO PUBLIC USING",
            ],
        ),
        (
            "CREATE RULE r AS ON INSERT TO users DO ALSO NOTHING",
            "rule r on public.users",
            ["DROP RULE r on public.users;", "CREATE RULE r AS"],
        ),
        (
            "CREATE STATISTICS s ON id, name FROM users",
            "statistics object public.s",
            ["DROP STATISTICS public.s;", "CREATE STATISTICS public.s"],
        ),
        (
            "CREATE TABLE child () INHERITS (users)",
            "child table public.child",
            ["ALTER TABLE public.child NO INHERIT public.users;"],
        ),
        ("CREATE TABLE notes (u users)", "table column|table public.notes", []),
        ("CREATE VIEW v AS SELECT u FROM users u", "view public.v has a column of its row type", []),
        (
            "ALTER TABLE users ADD COLUMN note text",
            "column note is not in the table",
            ['ALTER TABLE "public"."users" DROP COLUMN "note";'],
        ),
        (
            "ALTER TABLE users ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY",
            "column id is an identity",
            ["DROP IDENTITY IF EXISTS"],
        ),
        (
            "ALTER TABLE users ADD CONSTRAINT c CHECK (id > 0)",
            "check c is not on the table",
            ['DROP CONSTRAINT "c";', 'ADD CONSTRAINT "c" CHECK ((id > 0));'],
        ),
        (
            "ALTER TABLE cdc_new_public.users ALTER id TYPE bigint; CREATE VIEW v AS SELECT name, id FROM users",
            "view public.v would change the type of its column id from integer to bigint",
            ['DROP VIEW "public"."v";'],
        ),
        (
            "ALTER TABLE cdc_new_public.users RENAME name TO title; ALTER TABLE users RENAME name TO title;"
            "ALTER TABLE users ALTER title TYPE varchar(9); CREATE VIEW v AS SELECT title FROM users",
            r"would change the type of its column title from character varying\(9\) to text",
            [],
        ),
        (
            'CREATE VIEW v AS SELECT name COLLATE "C" AS c, name FROM users;'
            'ALTER TABLE cdc_new_public.users ALTER name TYPE text COLLATE "C"',
            "view public.v would change the collation of its column name",
            [],
        ),
        (
            "CREATE SEQUENCE cdc_new_public_x; CREATE TABLE x (id int);"
            "ALTER INDEX cdc_new_public.users_pkey RENAME TO x",
            "something else in schema public has the name of its index x",
            [],
        ),
    ],
)
async def test_what_depends_on_the_old_table_stops_the_swap_with_the_sql(
    both: Generations, made: str, match: str, sql: list[str]
) -> None:
    both.database.execute(made)
    told = await refused(both, match)
    for statement in sql:
        assert statement in told


async def test_the_sql_that_is_shown_clears_the_way_and_makes_everything_again(both: Generations) -> None:
    both.database.execute(
        """
        CREATE MATERIALIZED VIEW m AS SELECT DISTINCT name FROM users;
        CREATE UNIQUE INDEX m_name ON m (upper(name), name);
        CREATE FUNCTION f() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM users; END;
        CREATE TABLE notes (user_id int REFERENCES users); CREATE STATISTICS s ON id, name FROM users;
        CREATE POLICY p ON users FOR UPDATE TO CURRENT_USER USING (id > 0) WITH CHECK (id > 1);
        """
    )
    with pytest.raises(SetupError) as error:
        await both.swap()
    before, after = (error.value.sql or "").split("-- and when the tables have been replaced:")
    both.database.execute(before)
    await both.swap()
    both.database.execute("TRUNCATE users, notes; INSERT INTO users VALUES (1, 'later')")
    both.database.execute(after)
    assert both.names("m") == {"later"}
    assert both.database.fetchval("SELECT f()") == 1
    assert both.database.fetchval("SELECT count(*) FROM pg_policy WHERE polrelid = 'users'::regclass") == 1


async def test_all_obstacles_of_all_tables_are_told_at_once(both: Generations) -> None:
    both.make("answers")
    both.database.execute("CREATE MATERIALIZED VIEW m AS TABLE users; ALTER TABLE answers ADD COLUMN note text")
    with pytest.raises(SetupError) as error:
        await both.swap(table_swap(), table_swap("answers"))
    assert "public.users: materialized view public.m" in str(error.value)
    assert "public.answers: column note" in str(error.value)


async def test_obstacles_are_found_before_the_new_table_is_there(both: Generations) -> None:
    """A load of twelve hours must not fail at its end: the shape that the source gives is enough to ask."""
    table = await read_table(both.session.connection, "public", "users")
    assert table is not None
    types = {column.name: column.type for column in table.columns}
    both.database.execute(
        "DROP SCHEMA cdc_new_public CASCADE; ALTER TABLE users ADD CONSTRAINT c CHECK (id > 0);"
        "ALTER TABLE users ALTER id TYPE bigint;"
        "CREATE VIEW fits AS SELECT name, count(*) FROM users GROUP BY users.id;"
        "CREATE VIEW ids AS SELECT id FROM users"
    )
    columns = tuple(NewColumn(name, types[name], False) for name in ("id", "name"))
    shape = NewTable("cdc_new_public", "users", columns, ("id",))
    asked = replace(table_swap(), shape=shape, constraints=frozenset({"another"}))
    before = both.state()
    found = {obstacle.what for obstacle in await obstacles(both.session, [asked])}
    assert found == {
        "column group is not in the table that takes its place, and its values would be lost",
        "check c is not on the table that takes its place",
        "view public.ids would change the type of its column id from bigint to integer",
    }
    known = replace(asked, constraints=frozenset({"c"}))
    assert len(await obstacles(both.session, [known])) == 2
    assert len(await obstacles(both.session, [table_swap()])) == 0, "what is not known is not held against it"
    assert both.state() == before


async def test_foreign_keys_between_replaced_tables_go_with_them(both: Generations) -> None:
    both.make("answers")
    for schema in ("public", "cdc_new_public"):
        both.database.execute(
            f"ALTER TABLE {schema}.answers ADD CONSTRAINT k FOREIGN KEY (id) REFERENCES {schema}.users"
        )
    await both.swap(table_swap(), table_swap("answers"))
    keys = "SELECT conname, confrelid::regclass::text FROM pg_constraint WHERE contype = 'f' AND conname = 'k'"
    assert both.database.fetch(keys) == [("k", "users")]


async def test_a_foreign_key_that_cdc_made_is_made_again_where_its_table_stays(both: Generations) -> None:
    both.make("answers")
    both.database.execute(
        "DROP TABLE cdc_new_public.answers;"
        "DELETE FROM cdc.target_table WHERE pipeline = 'cdc+' AND source_table = 'answers';"
        "ALTER TABLE answers ADD CONSTRAINT k FOREIGN KEY (id) REFERENCES users DEFERRABLE INITIALLY DEFERRED"
    )
    await both.swap(whole=False)
    assert both.database.fetch(
        "SELECT confrelid::regclass::text, convalidated, condeferred FROM pg_constraint WHERE conname = 'k'"
    ) == [("users", True, True)]


async def test_grants_end_up_exactly_as_they_were(both: Generations, make_role: MakeRole) -> None:
    owner, analyst, partner, nobody = (make_role() for _ in range(4))
    both.database.execute(
        f"""
        GRANT CREATE ON SCHEMA public TO "{owner}";
        ALTER TABLE users OWNER TO "{owner}";
        GRANT SELECT ON users TO PUBLIC;
        GRANT SELECT, UPDATE ON users TO "{analyst}" WITH GRANT OPTION;
        GRANT SELECT (id, "group"), UPDATE (name) ON users TO "{partner}";
        GRANT SELECT, DELETE ON cdc_new_public.users TO "{nobody}", "{analyst}";
        """
    )
    grants = (
        "SELECT r.rolname, g.privilege_type, g.is_grantable, a.attname FROM pg_class c"
        " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attacl IS NOT NULL"
        " CROSS JOIN LATERAL aclexplode(coalesce(a.attacl, c.relacl)) AS g LEFT JOIN pg_roles r ON r.oid = g.grantee"
        " WHERE c.oid = 'public.users'::regclass ORDER BY 1, 2, 4"
    )
    table = (
        "SELECT relowner, ARRAY(SELECT a::text FROM unnest(relacl) AS a ORDER BY 1) FROM pg_class"
        " WHERE oid = 'public.users'::regclass"
    )
    before = both.database.fetch(grants), both.database.fetch(table)
    await both.swap()
    assert (both.database.fetch(grants), both.database.fetch(table)) == before


async def test_comments_options_and_settings_are_carried_over_where_the_new_table_has_none(both: Generations) -> None:
    both.database.execute(
        """
        COMMENT ON TABLE users IS 'it''s \\ old'; COMMENT ON COLUMN users."group" IS 'a column';
        COMMENT ON COLUMN users.name IS 'old'; COMMENT ON COLUMN cdc_new_public.users.name IS 'new';
        ALTER TABLE users SET (autovacuum_vacuum_scale_factor = 0.01, toast.autovacuum_enabled = false);
        ALTER TABLE users SET (fillfactor = 70);
        ALTER TABLE cdc_new_public.users SET (fillfactor = 90);
        ALTER TABLE users ALTER name SET STATISTICS 500, ALTER name SET STORAGE EXTERNAL,
            ALTER name SET (n_distinct = -0.5),
            ALTER name SET DEFAULT 'none', ALTER name SET COMPRESSION pglz;
        ALTER TABLE users REPLICA IDENTITY FULL; ALTER TABLE users ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        """
    )
    await both.swap()
    assert both.database.fetch(
        "SELECT obj_description(oid), col_description(oid, 2), col_description(oid, 3), relreplident, relrowsecurity,"
        " relforcerowsecurity FROM pg_class WHERE oid = 'users'::regclass"
    ) == [("it's \\ old", "new", "a column", "f", True, True)]
    options = both.database.fetchval(
        "SELECT c.reloptions || t.reloptions FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid"
        " WHERE c.oid = 'users'::regclass"
    )
    assert set(options) == {"fillfactor=90", "autovacuum_vacuum_scale_factor=0.01", "autovacuum_enabled=false"}
    assert both.database.fetch(
        "SELECT attstattarget, attstorage, attoptions::text, attcompression, pg_get_expr(adbin, adrelid)"
        " FROM pg_attribute JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
        " WHERE attrelid = 'users'::regclass AND attname = 'name'"
    ) == [(500, "e", "{n_distinct=-0.5}", "p", "'none'::text")]


async def test_an_owned_sequence_survives_its_table(both: Generations) -> None:
    both.database.execute(
        "CREATE SEQUENCE users_id_seq OWNED BY users.id; SELECT setval('users_id_seq', 77);"
        "ALTER TABLE users ALTER id SET DEFAULT nextval('users_id_seq')"
    )
    await both.swap()
    assert both.database.fetchval("SELECT pg_get_serial_sequence('users', 'id')") == "public.users_id_seq"
    assert both.database.fetchval("INSERT INTO users (name) VALUES ('x') RETURNING id") == 78


async def test_a_publication_of_ours_gets_the_new_table_and_its_readers_are_told(both: Generations) -> None:
    both.database.execute("CREATE PUBLICATION feed FOR TABLE users; CREATE PUBLICATION everything FOR ALL TABLES")
    await both.swap()
    published = (
        "SELECT pubname FROM pg_publication_tables WHERE schemaname = 'public' AND tablename = 'users' ORDER BY 1"
    )
    assert both.database.fetch(published) == [("everything",), ("feed",)]
    assert ["publication feed has the new table public.users" in told for told in both.said] == [True]


async def test_a_publication_of_somebody_else_stops_the_swap(both: Generations, make_role: MakeRole) -> None:
    ours, theirs = make_role("LOGIN"), make_role()
    both.database.execute(
        f"""
        CREATE PUBLICATION feed FOR TABLE users; ALTER PUBLICATION feed OWNER TO "{theirs}";
        """
    )
    async with as_owner(both, ours) as limited:
        told = await refused(limited, "publication feed belongs to another role")
    assert 'ALTER PUBLICATION "feed" DROP TABLE "public"."users";' in told


async def test_a_view_of_somebody_else_needs_a_grant_that_is_named(both: Generations, make_role: MakeRole) -> None:
    ours, theirs = make_role("LOGIN"), make_role()
    both.database.execute(
        f"""
        CREATE VIEW report AS SELECT name FROM users; ALTER VIEW report OWNER TO "{theirs}";
        GRANT SELECT ON users TO "{theirs}";
        """
    )
    async with as_owner(both, ours) as limited:
        told = await refused(limited, f"view public.report belongs to {theirs}")
        assert told == f'GRANT "{theirs}" TO CURRENT_USER;'
        both.database.execute(told.replace("CURRENT_USER", f'"{ours}"'))
        await limited.swap()
    assert both.names("report") == {"new"}
    assert (
        both.database.fetchval("SELECT relowner::regrole::text FROM pg_class WHERE relname = 'report'") == f'"{theirs}"'
    )


async def test_a_role_without_ownership_of_the_table_is_refused(both: Generations, make_role: MakeRole) -> None:
    ours = make_role("LOGIN")
    async with as_owner(both, ours) as limited:
        both.database.execute(
            f'ALTER TABLE users OWNER TO CURRENT_USER; REVOKE CREATE ON SCHEMA public FROM PUBLIC, "{ours}"'
        )
        told = await refused(limited, "it belongs to postgres")
    assert 'GRANT CREATE ON SCHEMA "public" TO CURRENT_USER;' in told


async def test_an_analysts_indexes_are_built_on_the_new_table_before_the_swap(both: Generations) -> None:
    """Expressions, predicates, names that want quotes; constraints stay constraints."""
    both.database.execute(
        """
        CREATE INDEX "by Name" ON users (lower(name) text_pattern_ops DESC NULLS LAST) INCLUDE (id) WHERE "group" > 1;
        ALTER TABLE users ADD CONSTRAINT "one-each" UNIQUE (id, name) DEFERRABLE INITIALLY DEFERRED;
        CREATE UNIQUE INDEX fine ON users (id, "group"); CREATE UNIQUE INDEX fine ON cdc_new_public.users (id, "group");
        ALTER TABLE users REPLICA IDENTITY USING INDEX users_pkey;
        """
    )
    definitions = (
        "SELECT pg_get_indexdef(indexrelid), pg_get_constraintdef(k.oid) FROM pg_index"
        " LEFT JOIN pg_constraint k ON conindid = indexrelid WHERE indrelid = 'public.users'::regclass ORDER BY 1"
    )
    before = both.database.fetch(definitions)
    missing = await missing_indexes(both.session, [table_swap()])
    assert [index.name for index in missing] == ["by Name", "one-each"]
    with pytest.raises(
        SetupError, match=r"public.users: index by Name is not on the table that takes its place"
    ) as error:
        await both.swap()
    assert 'CREATE INDEX CONCURRENTLY "by Name" ON "cdc_new_public"."users" USING' in (error.value.sql or "")
    assert 'not wanted any more: DROP INDEX "public"."by Name";' in (error.value.sql or "")
    assert 'not wanted any more: ALTER TABLE "public"."users" DROP CONSTRAINT "one-each";' in (error.value.sql or "")
    for index in missing:
        await build_missing(both.session, index)
        await build_missing(both.session, index)
    assert await missing_indexes(both.session, [table_swap()]) == []
    await both.swap()
    assert both.database.fetch(definitions) == before
    assert both.database.fetchval("SELECT indisreplident FROM pg_index WHERE indexrelid = 'users_pkey'::regclass")


async def test_a_build_that_was_interrupted_is_begun_anew(both: Generations) -> None:
    both.database.execute(
        "CREATE UNIQUE INDEX by_name ON users (name) WHERE id = 1; INSERT INTO cdc_new_public.users VALUES (9, 'x')"
    )
    both.database.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'by_name'::regclass")
    assert await missing_indexes(both.session, [table_swap()]) == [], "what is not valid there is nothing to keep"
    both.database.execute("UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'by_name'::regclass")
    (index,) = await missing_indexes(both.session, [table_swap()])
    both.database.execute("CREATE UNIQUE INDEX by_name ON cdc_new_public.users (name) WHERE id = 1")
    both.database.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'cdc_new_public.by_name'::regclass"
    )
    await build_missing(both.session, index)
    assert await missing_indexes(both.session, [table_swap()]) == []


async def test_a_unique_index_that_does_not_fit_leaves_nothing_behind_and_no_value_in_its_error(
    both: Generations,
) -> None:
    both.database.execute("UPDATE users SET name = id; CREATE UNIQUE INDEX by_name ON users (name)")
    both.database.execute("UPDATE cdc_new_public.users SET name = 'secret'")
    (index,) = await missing_indexes(both.session, [table_swap()])
    with pytest.raises(TerminalError, match="SQLSTATE 23505") as error:
        await build_missing(both.session, index)
    assert "secret" not in str(error.value)
    assert both.database.fetchval("SELECT to_regclass('cdc_new_public.by_name')") is None
