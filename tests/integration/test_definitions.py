"""What tables get once their rows are there, on real servers: the source's definitions, and nothing unasked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdc.errors import FenceLost
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.definitions import constraints, index_definitions, stage
from tests.servers import major, needs

PIX_ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "pix-2020.pgsql"

LONG = "answers_that-were-given_in-an-assessment_by-users_of-an-Orga_fk"
assert len(LONG.encode()) == 63

PIX = f"""
CREATE EXTENSION pg_trgm;
CREATE TABLE users (
    id serial PRIMARY KEY, email varchar(255), "lastName" text, "group" int, at timestamptz,
    CONSTRAINT "users_email_not_blank" CHECK (email <> ''),
    CONSTRAINT "group" UNIQUE ("group") DEFERRABLE INITIALLY DEFERRED
);
CREATE UNIQUE INDEX users_lower_email ON users (lower(email));
CREATE UNIQUE INDEX "users_one-per Day" ON users ("group", at DESC NULLS LAST) INCLUDE ("lastName") WHERE "group" > 3;
CREATE INDEX "users_lastName_trgm" ON users USING gin ("lastName" gin_trgm_ops);
CREATE INDEX users_day ON users (cast(at AT TIME ZONE 'UTC+1' AS date) DESC);
CREATE TABLE "organization-learners" (
    id bigint PRIMARY KEY, "userId" int NOT NULL, "values" jsonb, during int4range,
    CONSTRAINT "one-at-a-time" EXCLUDE USING gist (during WITH &&)
);
CREATE INDEX "values" ON "organization-learners" USING gin ("values" jsonb_path_ops);
CREATE TABLE "certification-courses" (
    id bigint PRIMARY KEY, "userId" bigint, "previousId" int, "learnerId" bigint,
    CONSTRAINT "{LONG}" FOREIGN KEY ("userId") REFERENCES users ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT previous FOREIGN KEY ("previousId") REFERENCES "certification-courses",
    CONSTRAINT learner FOREIGN KEY ("learnerId") REFERENCES "organization-learners" DEFERRABLE
);
ALTER TABLE "organization-learners" ADD "courseId" bigint;
ALTER TABLE "organization-learners"
    ADD CONSTRAINT course FOREIGN KEY ("courseId") REFERENCES "certification-courses" (id);
ALTER TABLE "organization-learners" ADD CONSTRAINT "by-user" FOREIGN KEY ("userId") REFERENCES users;
COMMENT ON TABLE users IS 'It''s \\ who answers';
COMMENT ON COLUMN users."lastName" IS 'family name';
COMMENT ON INDEX users_day IS 'for reports';
COMMENT ON CONSTRAINT "group" ON users IS 'only one';
INSERT INTO users SELECT g, 'u' || g, 'Name ' || g, g, now() FROM generate_series(1, 50) g;
INSERT INTO "organization-learners" VALUES (1, 1, '{{"a": 1}}', '[1,5)', NULL);
INSERT INTO "certification-courses" VALUES (1, 1, NULL, 1), (2, 2, 1, NULL);
UPDATE "organization-learners" SET "courseId" = 2;
"""


async def test_a_target_gets_what_the_source_has(source: Database, make_target: MakeDatabase) -> None:
    source.execute(PIX)
    target = make_target()
    target.execute("CREATE EXTENSION pg_trgm")
    async with stage(source, target, bootstrap={"foreign_keys": True}) as built:
        assert await built.build() == []
        assert built.indexes() == index_definitions(source)
        for kind in "cux":
            assert constraints(target, kind) == constraints(source, kind) != {}
        keys = constraints(target, "f")
        assert keys.keys() == constraints(source, "f").keys()
        assert keys[LONG] == 'FOREIGN KEY ("userId") REFERENCES users(id) DEFERRABLE INITIALLY DEFERRED'
        assert set(
            target.fetch(
                "SELECT convalidated, confdeltype, condeferred FROM pg_constraint"
                " WHERE contype = 'f' AND connamespace = 'public'::regnamespace"
            )
        ) == {(True, "a", True)}
        comments = (
            "SELECT obj_description('users'::regclass), col_description('users'::regclass, 3),"
            " obj_description('users_day'::regclass), obj_description(oid, 'pg_constraint')"
            " FROM pg_constraint WHERE conname = 'group'"
        )
        assert target.fetch(comments) == [("It's \\ who answers", "family name", "for reports", "only one")]
        assert ("unique index", "users_lower_email of public.users") in built.steps()
        assert ("foreign key", f"{LONG} of public.certification-courses") in built.steps()
        assert "target internal: index users_day of public.users is built" in built.said

        before = target.fetch("SELECT relname, relfilenode FROM pg_class ORDER BY 1"), built.steps()
        assert await built.build() == []
        assert before == (target.fetch("SELECT relname, relfilenode FROM pg_class ORDER BY 1"), built.steps())
        assert built.said == [], "what is there is not built twice"


async def test_what_needs_a_column_that_is_not_routed_is_left_out(source: Database, make_target: MakeDatabase) -> None:
    source.execute(PIX)
    target = make_target("external")
    listed: dict[str, Any] = {
        "columns": "listed",
        "tables": {
            "public.users": ["id", "email", "group"],
            "public.certification-courses": ["id", "userId", "learnerId"],
            "public.organization-learners": ["userId"],
        },
    }
    async with stage(source, target, bootstrap={"foreign_keys": True}, **listed) as built:
        (warning,) = await built.build()
        assert "foreign key learner" in warning
        assert "not all columns of public.organization-learners" in warning
        assert built.indexes().keys() == {"users_pkey", "certification-courses_pkey", "users_lower_email", "group"}
        assert constraints(target, "f").keys() == {LONG, "by-user"}
        assert constraints(target, "c").keys() == {"users_email_not_blank"}
        assert [
            name for (name,) in target.fetch("SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'")
        ] == ["users_id_seq"]
        assert target.fetch("SELECT description FROM pg_description WHERE description = 'family name'") == []


async def test_foreign_keys_are_made_only_where_somebody_asks_for_them(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p)")
    async with stage(source, make_target()) as built:
        assert await built.build() == []
        assert constraints(built.target, "f") == {}


async def test_a_foreign_key_to_a_table_that_is_not_routed_is_refused(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p)")
    async with stage(source, make_target(), bootstrap={"foreign_keys": True}, include=["public.c"]) as built:
        (warning,) = await built.build()
        assert "foreign key c_p_fkey of public.c is left out: public.p, which it points to, is not routed" in warning
        assert constraints(built.target, "f") == {}


async def test_what_is_not_valid_at_the_source_is_left_out_with_a_warning(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(
        "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int); INSERT INTO c VALUES (-1, 5);"
        "ALTER TABLE c ADD CONSTRAINT parent FOREIGN KEY (p) REFERENCES p NOT VALID,"
        " ADD CONSTRAINT positive CHECK (id > 0) NOT VALID"
    )
    async with stage(source, make_target(), bootstrap={"foreign_keys": True}) as built:
        warnings = sorted(await built.build())
        why = "of public.c is left out: rows of the source need not satisfy it, it is not valid there"
        assert warnings == [f"target internal: {what} {why}" for what in ("check positive", "foreign key parent")]
        assert constraints(built.target, "c") == constraints(built.target, "f") == {}


@pytest.mark.parametrize("concurrently", [False, True])
async def test_a_constraint_that_the_rows_do_not_satisfy_does_not_stay_to_refuse_others(
    source: Database, make_target: MakeDatabase, concurrently: bool
) -> None:
    source.execute(
        "CREATE TABLE p (id int PRIMARY KEY); INSERT INTO p VALUES (1);"
        "CREATE TABLE c (id int PRIMARY KEY CHECK (id > 0), p int REFERENCES p, u int UNIQUE);"
        "INSERT INTO c VALUES (1, 1, 1)"
    )
    async with stage(source, make_target(), bootstrap={"foreign_keys": True}) as built:
        built.target.execute("INSERT INTO c VALUES (-1, 2, 1)")
        built.source.execute("INSERT INTO c SELECT g, 1, g FROM generate_series(2, 400000) g")
        warnings = sorted(await built.build(concurrently=concurrently))
        assert [warning.split(" could not")[0] for warning in warnings] == [
            "target internal: check c_id_check of public.c",
            "target internal: foreign key c_p_fkey of public.c",
            "target internal: unique index c_u_key of public.c",
        ]
        assert "SQLSTATE 23514" in warnings[0]
        assert 'ALTER TABLE "public"."c" ADD CONSTRAINT "c_id_check" CHECK ((id > 0)) NOT VALID;' in warnings[0]
        assert 'CREATE UNIQUE INDEX "c_u_key" ON "public"."c" USING btree (u);' in warnings[2]
        built.target.execute("INSERT INTO c VALUES (-2, 3, 1)")
        assert built.indexes().keys() == {"p_pkey", "c_pkey"}
        assert built.target.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0
        # Once that is mended, the next run finishes.
        built.target.execute("DELETE FROM c WHERE id < 0")
        assert await built.build(concurrently=concurrently) == []


async def test_a_function_that_the_target_lacks_costs_only_what_needs_it(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(
        "CREATE FUNCTION plain(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT $1 $$;"
        "CREATE TABLE a (id int PRIMARY KEY, name text CHECK (plain(name) <> ''));"
        "CREATE INDEX a_plain ON a (plain(name)); CREATE INDEX a_name ON a (name);"
        "CREATE VIEW v AS SELECT plain(name) FROM a"
    )
    async with stage(source, make_target()) as built:
        warnings = sorted(await built.build())
        assert len(warnings) == 3
        assert 'CREATE INDEX "a_plain" ON "public"."a" USING btree (public.plain(name));' in warnings[1]
        assert 'CREATE VIEW "public"."v" AS SELECT public.plain(' in " ".join(warnings[2].split())
        assert built.indexes().keys() == {"a_pkey", "a_name"}


async def test_what_only_a_newer_version_knows_costs_an_older_target_that_alone(
    source: Database, make_target: MakeDatabase
) -> None:
    needs(source, 15, "NULLS NOT DISTINCT")
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a int, b int, UNIQUE NULLS NOT DISTINCT (a))")
    source.execute("CREATE INDEX t_b ON t (b)")
    async with stage(source, make_target()) as built:
        lacking = await built.build()
        if major(built.target) >= 15:
            assert lacking == []
            assert {"t_a_key", "t_b"} <= set(built.indexes())
        else:
            (said,) = lacking
            assert "t_a_key of public.t could not be built" in said
            assert "t_b" in built.indexes()


async def test_a_name_that_is_taken_is_left_to_whom_it_belongs(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY, name text); CREATE INDEX by_name ON a (name)")
    async with stage(source, make_target()) as built:
        built.target.execute("CREATE VIEW by_name AS SELECT 1")
        (warning,) = await built.build()
        assert "its name is taken there" in warning
        built.target.execute("DROP VIEW by_name")
        assert await built.build() == []
        assert "by_name" in built.indexes()


async def test_a_target_that_somebody_else_has_taken_gets_nothing_more(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(
        "CREATE TABLE a (id int PRIMARY KEY, name text CHECK (name <> '')); CREATE INDEX by_name ON a (name)"
    )
    async with stage(source, make_target()) as built:
        built.target.execute("UPDATE cdc.target SET fence = 8")
        with pytest.raises(FenceLost):
            await built.build()
        assert built.indexes().keys() == {"a_pkey"}


async def test_tables_that_cdc_did_not_create_get_nothing(source: Database, make_target: MakeDatabase) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY, name text); CREATE INDEX by_name ON a (name)")
    async with stage(source, make_target()) as built:
        states = {name: replace(state, created_by_cdc=False) for name, state in built.build_target.states.items()}
        built.build_target = replace(built.build_target, states=states)
        assert await built.build() == []
        assert built.indexes().keys() == {"a_pkey"}


async def test_the_archive_of_pix_gets_all_of_its_definitions(
    source: Database, make_target: MakeDatabase, postgres_binaries: Path
) -> None:
    command = [str(postgres_binaries / "pg_restore"), "--no-owner", "--no-acl", "-d", source.dsn, str(PIX_ARCHIVE)]
    restored = await asyncio.create_subprocess_exec(*command)
    assert await restored.wait() == 0
    async with stage(source, make_target(), bootstrap={"foreign_keys": True}) as built:
        assert await built.build() == []
        target = built.target
        assert all_indexes(target) == all_indexes(source)
        for kind in "cux":
            assert constraints(target, kind) == constraints(source, kind)
        assert constraints(target, "f").keys() == constraints(source, "f").keys()
        assert len(constraints(target, "f")) == 51
        positions = "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public' ORDER BY 1"
        assert target.fetch(positions) == source.fetch(positions) != []


def all_indexes(database: Database) -> set[str]:
    """The definitions of indexes; those of primary keys have the names that PostgreSQL gives them."""
    keys = {name for (name,) in database.fetch("SELECT conname FROM pg_constraint WHERE contype = 'p'")}
    return {text for name, text in index_definitions(database).items() if name not in keys}


async def test_a_foreign_key_waits_for_the_unique_index_that_it_points_to(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute("CREATE TABLE parent (id int PRIMARY KEY)")
    for number in range(8):
        source.execute(
            f"ALTER TABLE parent ADD c{number} int UNIQUE DEFAULT 1;"
            f"CREATE TABLE child{number} (id int PRIMARY KEY, parent int REFERENCES parent (c{number}))"
        )
    source.execute("INSERT INTO parent VALUES (1)")
    async with stage(source, make_target(), bootstrap={"foreign_keys": True}, jobs=4) as built:
        assert await built.build() == []
        assert len(constraints(built.target, "f")) == 8
