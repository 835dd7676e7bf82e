"""Extensions that a target lacks: said before anything is loaded."""

from __future__ import annotations

import pytest

from cdc.bootstrap.extensions import require_extensions
from cdc.errors import SetupError
from cdc.observe.finding import Finding, Severity
from cdc.service import checkup
from cdc.source.connection import connect as connect_source
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.definitions import Stage, stage

SOURCE = """
CREATE SCHEMA ext; CREATE EXTENSION pg_trgm SCHEMA ext; CREATE EXTENSION btree_gist SCHEMA ext;
CREATE EXTENSION unaccent SCHEMA ext;
CREATE TABLE users (id int PRIMARY KEY, name text, age int, CHECK (ext.similarity(name, 'x') < 2));
CREATE INDEX users_trgm ON users USING gin (name ext.gin_trgm_ops);
CREATE INDEX users_gist ON users USING gist (age);
CREATE INDEX users_name ON users (name);
INSERT INTO users VALUES (1, 'a', 3);
"""


async def required(built: Stage) -> list[str]:
    async with await connect_source(built.source.dsn, application_name="cdc test") as connection:
        return await require_extensions(
            built.config, connection, {"internal": (built.session, built.build_target.routes)}
        )


async def test_missing_extensions_are_refused_with_the_statements_that_create_them(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(SOURCE)
    async with stage(source, make_target()) as built:
        with pytest.raises(SetupError, match="target internal lacks the extension pg_trgm") as refused:
            await required(built)
        assert "index users_trgm of public.users" in str(refused.value)
        assert refused.value.sql is not None
        assert "unaccent" not in refused.value.sql, "nothing uses it"
        built.target.execute(refused.value.sql)
        assert await required(built) == []
        assert await built.build() == []
        assert built.indexes().keys() == {"users_pkey", "users_trgm", "users_gist", "users_name"}


async def test_missing_extensions_can_be_skipped_with_what_needs_them(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(SOURCE)
    async with stage(source, make_target(), bootstrap={"missing_extensions": "skip"}) as built:
        gist, trgm = await required(built)
        assert "lacks the extension btree_gist, which the source has for index users_gist of public.users" in gist
        assert "they are left out" in trgm
        assert len(await built.build()) == 3
        assert built.indexes().keys() == {"users_pkey", "users_name"}


async def test_a_check_says_what_the_load_would_refuse(source: Database, make_target: MakeDatabase) -> None:
    source.execute(SOURCE)

    async def found(built: Stage) -> list[Finding]:
        return [one for one in await checkup.check(built.config) if one.subject == "extensions"]

    async with stage(source, make_target(), bootstrap={"missing_extensions": "skip"}) as built:
        built.target.execute("DROP TABLE users")
        gist, trgm = await found(built)
        assert gist.severity is trgm.severity is Severity.WARNING
        assert "they are left out" in trgm.message
    async with stage(source, make_target()) as built:
        assert await found(built) == []  # its table is there, so nothing is created
        built.target.execute("DROP TABLE users")
        (refused,) = await found(built)
        assert (refused.stops, refused.where) == (True, "internal")
        assert "target internal lacks the extension pg_trgm" in refused.message
        built.target.execute(refused.mend or "")
        assert await found(built) == []


async def test_a_column_whose_type_is_missing_is_refused_unless_it_is_not_routed(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(
        "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE DOMAIN mail AS citext;"
        "CREATE TABLE a (id int PRIMARY KEY, email mail[], tags hstore)"
    )
    target = make_target()
    target.execute("CREATE EXTENSION citext; CREATE EXTENSION hstore")
    async with stage(source, target, bootstrap={"missing_extensions": "skip"}) as built:
        target.execute("DROP EXTENSION citext CASCADE; DROP EXTENSION hstore CASCADE")
        with pytest.raises(SetupError, match=r"citext, which the source has for column email of public\.a"):
            await required(built)
    tables = {"public.a": ["id"]}
    async with stage(source, make_target(), columns="listed", tables=tables) as built:
        assert await required(built) == []
