"""`cdc resync` deletes no row to write it anew where more hangs on it: rows that refer to it, the owner's columns."""

from __future__ import annotations

from typing import Any

import pytest

from cdc.errors import TerminalError
from tests.conftest import MakeDatabase, MakeRole
from tests.database import Database
from tests.resync import Replicated

TABLES = """
CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE);
CREATE TABLE answers (id int PRIMARY KEY, user_id int);
INSERT INTO users SELECT n, 'u' || n FROM generate_series(1, 9) AS n;
INSERT INTO answers SELECT n, n % 9 + 1 FROM generate_series(1, 90) AS n;
"""
REFERS = "CREATE TABLE answers (id int PRIMARY KEY, user_id int REFERENCES users ON DELETE CASCADE)"
MOVED = """
UPDATE users SET email = NULL WHERE id IN (1, 2);
UPDATE users SET email = 'u2' WHERE id = 1;
UPDATE users SET email = 'u1' WHERE id = 2;
"""


@pytest.fixture
def owned(make_target: MakeDatabase, make_role: MakeRole) -> tuple[Database, str]:
    """A target, and a role that owns its tables and cannot disable triggers, so that foreign keys fire."""
    target, role = make_target(), make_role()
    target.execute(f'GRANT ALL ON DATABASE "{target.name}" TO "{role}"; GRANT ALL ON SCHEMA public TO "{role}"')
    return target, target.dsn_as(role)


async def replicated(source: Database, target: tuple[Database, str], tables: str, **columns: list[str]) -> Replicated:
    """The target's tables are made by the role, and loaded."""
    database, dsn = target
    wanted: dict[str, Any] = {f"public.{name}": listed for name, listed in columns.items()}
    found = Replicated(source, database, schema="owned", tables=wanted)
    found.settings["targets"]["warehouse"]["dsn"] = dsn
    role = dsn.partition("//")[2].partition("@")[0].partition(":")[0]
    database.execute(f'SET ROLE "{role}"; {tables}')
    await found.load()
    return found


@pytest.mark.parametrize(
    "tables",
    [
        f"CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE); {REFERS}",
        f"CREATE TABLE users (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text UNIQUE); {REFERS}",
        "CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE, remark text);"
        "CREATE TABLE answers (id int PRIMARY KEY, user_id int)",
    ],
    ids=["a foreign key", "a foreign key to an identity", "a column of the owner's"],
)
async def test_unique_values_that_have_moved_are_refused_where_more_hangs_on_a_row(
    source: Database, owned: tuple[Database, str], tables: str
) -> None:
    source.execute(TABLES)
    target, _ = owned
    pipeline = await replicated(source, owned, tables, users=["id", "email"], answers=["id", "user_id"])
    if "remark" in tables:
        target.execute("UPDATE users SET remark = 'mine'")
    target.execute(MOVED)
    before = [pipeline.rows(target, table) for table in ("users", "answers")]
    async with pipeline.worker():
        with pytest.raises(TerminalError, match=r"users.*users_email_key. have moved between rows.* Drop that index"):
            await pipeline.resync("public.users")
        assert [pipeline.rows(target, table) for table in ("users", "answers")] == before
        source.execute("INSERT INTO users VALUES (10, 'u10'); INSERT INTO answers VALUES (91, 10)")
        await pipeline.assert_equal("answers")
        assert target.fetchval("SELECT state FROM cdc.resync") == "failed"
        assert pipeline.state("users") == "streaming"
        assert target.fetchval("SELECT last_error FROM cdc.target") is None, "the target itself has no trouble"

        target.execute("ALTER TABLE users DROP CONSTRAINT users_email_key")
        await pipeline.resync("public.users")
        await pipeline.caught_up()
        assert target.fetch("SELECT id, email FROM users ORDER BY 1") == source.fetch("SELECT * FROM users ORDER BY 1")
        await pipeline.assert_equal("answers")
        if "remark" in tables:
            assert target.fetchval("SELECT count(*) FROM users WHERE remark = 'mine'") == 9


async def test_rows_known_by_an_identity_are_updated_in_a_table_that_is_read_whole(
    source: Database, owned: tuple[Database, str]
) -> None:
    source.execute(TABLES)
    target, _ = owned
    tables = f"CREATE TABLE users (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text UNIQUE); {REFERS}"
    pipeline = await replicated(source, owned, tables, users=["id", "email"], answers=["id", "user_id"])
    target.execute("UPDATE users SET email = 'wrong' WHERE id = 3")
    async with pipeline.worker():
        (outcome,), _ = await pipeline.resync("public.users")
        assert outcome.way == "whole"
        await pipeline.assert_equal("users")
        await pipeline.assert_equal("answers")


@pytest.mark.parametrize("unique", ["", "UNIQUE"], ids=["in place", "whole"])
async def test_a_column_that_no_update_can_change_is_refused_before_anything_is_changed(
    source: Database, owned: tuple[Database, str], unique: str
) -> None:
    source.execute(f"{TABLES}; ALTER TABLE users ADD number int; UPDATE users SET number = id * 10")
    target, _ = owned
    users = f"id int PRIMARY KEY, email text {unique}, number int GENERATED ALWAYS AS IDENTITY"
    tables = f"CREATE TABLE users ({users}); {REFERS}"
    columns = {"users": ["id", "email", "number"], "answers": ["id", "user_id"]}
    pipeline = await replicated(source, owned, tables, **columns)
    target.execute(
        "ALTER TABLE users ALTER number SET GENERATED BY DEFAULT; UPDATE users SET number = 77 WHERE id = 3;"
        "ALTER TABLE users ALTER number SET GENERATED ALWAYS"
    )
    async with pipeline.worker():
        with pytest.raises(TerminalError, match="no UPDATE can change") as refused:
            await pipeline.resync("public.users")
        await pipeline.assert_equal("answers")
        assert target.fetchval("SELECT number FROM users WHERE id = 3") == 77
        assert refused.value.sql is not None
        target.execute(refused.value.sql)
        await pipeline.resync("public.users")
        await pipeline.assert_equal("users")
        await pipeline.assert_equal("answers")
