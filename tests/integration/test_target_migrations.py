"""The cdc schema of a target: however it came to be, it is the same."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from cdc.errors import SetupError
from cdc.target import migrations
from cdc.target.session import Session, connect
from tests.conftest import MakeDatabase, MakeRole
from tests.database import Database


async def opened(target: Database) -> Session:
    return await connect(target.dsn, application_name="cdc test", target="internal")


def dump(binaries: Path, target: Database) -> str:
    """The schema as SQL, without the keys that pg_dump makes up for each run."""
    command: list[str | Path] = [binaries / "pg_dump", "--schema-only", "--schema=cdc", "--dbname", target.dsn]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return "\n".join(line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


async def test_a_schema_migrated_step_by_step_equals_a_fresh_one(
    make_target: MakeDatabase, target_binaries: Path
) -> None:
    fresh, stepwise = make_target(), make_target()
    first, second = await opened(fresh), await opened(stepwise)
    try:
        assert await migrations.migrate(first) == migrations.known()
        for count in range(1, len(migrations.known()) + 1):
            applied = await migrations.migrate(second, migrations.known()[:count])
            assert [migration.version for migration in applied] == [count]
        assert dump(target_binaries, fresh) == dump(target_binaries, stepwise)
    finally:
        await first.close()
        await second.close()


async def test_migrating_twice_changes_nothing(make_target: MakeDatabase, target_binaries: Path) -> None:
    target = make_target()
    session = await opened(target)
    try:
        assert await migrations.pending(session) == migrations.known()
        await migrations.migrate(session)
        before = dump(target_binaries, target), target.fetch("SELECT * FROM cdc.migration ORDER BY version")
        assert await migrations.migrate(session) == ()
        assert await migrations.pending(session) == ()
        assert (dump(target_binaries, target), target.fetch("SELECT * FROM cdc.migration ORDER BY version")) == before
    finally:
        await session.close()


async def test_migrating_from_two_places_at_once_is_done_once(make_target: MakeDatabase) -> None:
    target = make_target()
    sessions = [await opened(target) for _ in range(2)]
    try:
        applied = await asyncio.gather(*(migrations.migrate(session) for session in sessions))
        assert sorted(len(each) for each in applied) == [0, len(migrations.known())]
    finally:
        for session in sessions:
            await session.close()


async def test_a_schema_of_a_newer_version_is_left_alone(make_target: MakeDatabase) -> None:
    target = make_target()
    session = await opened(target)
    try:
        await migrations.migrate(session)
        target.execute("INSERT INTO cdc.migration (version, name) VALUES (9999, 'future')")
        with pytest.raises(SetupError, match="has migration 9999"):
            await migrations.migrate(session)
        with pytest.raises(SetupError, match="has migration 9999"):
            await migrations.pending(session)
    finally:
        await session.close()


async def test_every_table_and_column_of_the_schema_says_what_it_is_for(make_target: MakeDatabase) -> None:
    target = make_target()
    session = await opened(target)
    await migrations.migrate(session)
    await session.close()
    silent = target.fetch(
        "SELECT c.relname, a.attname FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum >= 0 AND NOT a.attisdropped"
        " WHERE c.relnamespace = 'cdc'::regnamespace AND c.relkind = 'r'"
        " AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid, 'pg_class') IS NULL)"
    )
    assert silent == []


async def test_removing_leaves_nothing_and_takes_nothing_of_others(make_target: MakeDatabase) -> None:
    target = make_target()
    session = await opened(target)
    try:
        await migrations.migrate(session)
        target.execute("CREATE TABLE cdc.heartbeat (id int)")
        await migrations.remove(session)
        assert target.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'cdc'::regnamespace") == [("heartbeat",)]
        target.execute("DROP TABLE cdc.heartbeat")
        await migrations.migrate(session)
        await migrations.remove(session)
        assert target.fetchval("SELECT to_regnamespace('cdc')") is None
        await migrations.remove(session)
    finally:
        await session.close()


async def test_without_the_right_to_create_schemas_setup_says_so(
    make_target: MakeDatabase, make_role: MakeRole
) -> None:
    target = make_target()
    session = await connect(target.dsn_as(make_role("LOGIN")), application_name="cdc test", target="internal")
    try:
        with pytest.raises(SetupError, match="lacks a right") as caught:
            await migrations.migrate(session)
        assert caught.value.server is not None
        assert caught.value.server.sqlstate == "42501"
    finally:
        await session.close()
