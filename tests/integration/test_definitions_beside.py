"""Definitions of a generation that is loaded beside the tables that people read."""

from __future__ import annotations

from cdc.routing.target_routes import beside_schema
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.definitions import constraints, index_definitions, stage

BESIDE = beside_schema("public")

SOURCE = """
CREATE TABLE users (id serial PRIMARY KEY, "USING public.users" text UNIQUE, "on" text CHECK ("on" <> ' USING '));
CREATE INDEX "INDEX users ON public.users USING btree (id)" ON users ("on") WHERE "on" <> 'ON public.users USING btree';
CREATE TABLE answers (
    id int PRIMARY KEY, "userId" bigint NOT NULL REFERENCES users, "previousId" int REFERENCES answers
);
COMMENT ON TABLE users IS 'people'; COMMENT ON INDEX "INDEX users ON public.users USING btree (id)" IS 'odd';
CREATE VIEW everybody AS SELECT id FROM users;
INSERT INTO users VALUES (1, 'a', 'b'); INSERT INTO answers VALUES (1, 1, 1);
"""


def without(definitions: dict[str, str], namespace: str) -> dict[str, str]:
    """Definitions with the schema of their own table left out; names and values that look like one stay."""
    return {name: text.replace(f" ON {namespace}.", " ON ", 1) for name, text in definitions.items()}


async def test_a_generation_beside_gets_all_that_belongs_to_its_tables_and_touches_no_other(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(SOURCE)
    target = make_target()
    target.execute("CREATE TABLE users (id int, mine text); CREATE TABLE answers (id int)")
    columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'users'::regclass"
    before = index_definitions(target), target.fetch(columns)
    async with stage(source, target, bootstrap={"foreign_keys": True}, is_beside=True) as built:
        assert await built.build() == []
        odd = "INDEX users ON public.users USING btree (id)"
        here, there = index_definitions(target, BESIDE), index_definitions(source)
        assert here.keys() == there.keys()
        assert here.pop(odd).replace(f"{BESIDE}.", "public.") == there.pop(odd)
        assert without(here, BESIDE) == without(there, "public")
        assert constraints(target, "u", BESIDE) == {"users_USING public.users_key": 'UNIQUE ("USING public.users")'}
        assert constraints(target, "c", BESIDE) == constraints(source, "c")
        keys = constraints(target, "f", BESIDE)
        assert keys.keys() == constraints(source, "f").keys()
        assert {text.split(" REFERENCES ")[1].split("(")[0] for text in keys.values()} == {"users", "answers"}
        assert target.fetchval(f"SELECT obj_description('{BESIDE}.users'::regclass)") == "people"
        # Not before the swap: they go by the names of the tables that people read.
        assert target.fetch("SELECT FROM pg_views WHERE schemaname NOT IN ('pg_catalog', 'information_schema')") == []
        assert target.fetch("SELECT FROM pg_sequences WHERE schemaname <> 'cdc'") == []
        assert before == (index_definitions(target), target.fetch(columns))


async def test_a_foreign_key_out_of_a_generation_waits_for_the_swap(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(SOURCE)
    target = make_target()
    only = frozenset({"public.answers"})
    async with stage(source, target, bootstrap={"foreign_keys": True}) as present:
        assert await present.build() == []
    async with stage(source, target, bootstrap={"foreign_keys": True}, is_beside=True, only=only) as built:
        assert await built.build() == []
        assert constraints(target, "f", BESIDE).keys() == {"answers_previousId_fkey"}
    target.execute(f"DROP TABLE answers; ALTER TABLE {BESIDE}.answers SET SCHEMA public")
    async with stage(source, target, bootstrap={"foreign_keys": True}, is_loaded=True) as swapped:
        assert await swapped.build() == []
    assert constraints(target, "f").keys() == {"answers_previousId_fkey", "answers_userId_fkey"}
