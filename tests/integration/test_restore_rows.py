"""Tables of a backup into targets: what can go that way, and what arrives."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from cdc.bootstrap.archive.rows import Archive
from cdc.bootstrap.copying import Job, TargetAccess
from cdc.bootstrap.courtesy import Copies
from cdc.bootstrap.restoring import TableRestore, plan_restore, read_uniques, restore
from cdc.bootstrap.text_forms import reads_text
from cdc.changes.relation import DataType
from cdc.errors import FenceLost, SetupError, TableStopped, TerminalError
from cdc.identifiers import quote
from cdc.routing.patterns import split
from cdc.routing.route import Route
from cdc.source.catalog import read_tables
from cdc.source.connection import connect as connect_source
from cdc.target import migrations, position
from cdc.target.catalog import read_table
from cdc.target.session import connect as connect_target
from tests.archives import PIX_ARCHIVE, opened
from tests.conftest import MakeDatabase, MakeRole, MakeServer
from tests.database import Database
from tests.faults.proxy import Direction, Proxy
from tests.servers import binaries

ANSWERS = """
    CREATE TABLE answers (
        id bigint PRIMARY KEY, "challengeId" text, secret text, "group" int, tags text[], payload json
    );
    INSERT INTO answers SELECT g, 'c' || g % 7, 'secret' || g, g, ARRAY[E'\\t', NULL, 'x'], '{"a":  1}'
      FROM generate_series(1, 3000) g;
"""

OpenArchive = Callable[..., Archive]


@pytest.fixture
def archive_of(postgres_binaries: Path, tmp_path: Path) -> OpenArchive:
    """Dumps a database and opens the archive."""
    numbers = itertools.count()

    def make(database: Database, *options: str) -> Archive:
        return opened(postgres_binaries, database, tmp_path / f"{next(numbers)}.pgsql", *options)

    return make


async def plan(
    source: Database,
    target: Database,
    archive: Archive,
    table: str = "public.answers",
    *,
    to: str | None = None,
    columns: dict[str, str] | None = None,
    follows: bool = False,
    role: str | None = None,
) -> TableRestore | str:
    route = Route(*split(table), *split(to or table), None if columns is None else tuple(columns.items()))
    async with await connect_source(source.dsn, application_name="tests") as connection:
        (found,) = await read_tables(connection, [table])
    dsn = target.dsn if role is None else target.dsn_as(role)
    session = await connect_target(dsn, application_name="tests", target="there")
    try:
        name = (route.target_schema, route.target_table)
        there = await read_table(session.connection, *name)
        uniques = (await read_uniques(session.connection, [name]))[name]
        return plan_restore(
            route,
            found,
            archive.toc,
            there,
            uniques,
            target="there",
            follows=follows,
            triggers_disabled=session.triggers_disabled,
        )
    finally:
        await session.close()


async def taken(target: Database) -> TargetAccess:
    session = await connect_target(target.dsn, application_name="tests")
    try:
        await migrations.migrate(session)
        await position.register(session, "cdc", "there")
        fence = (await position.take(session, "cdc")).fence
    finally:
        await session.close()
    return TargetAccess(name="there", dsn=target.dsn, pipeline="cdc", fence=fence)


@pytest.fixture
async def job() -> AsyncIterator[Job]:
    made = Job("", "tests", Copies())
    yield made
    await made.close()


async def test_every_table_of_pix_with_a_key_arrives_as_it_was(
    source: Database, make_target: MakeDatabase, archive_of: OpenArchive, job: Job
) -> None:
    target = make_target()
    for database, programs, section in ((source, binaries(), []), (target, binaries("target"), ["--section=pre-data"])):
        program = [str(programs / "pg_restore"), "--no-owner", *section, f"--dbname={database.dsn}"]
        await asyncio.to_thread(subprocess.run, [*program, str(PIX_ARCHIVE)], check=True)
    archive = archive_of(source)
    tables = [entry.name for entry in archive.toc.entries if entry.description == "TABLE DATA"]
    access = await taken(target)
    keyed = {name for (name,) in source.fetch("SELECT conrelid::regclass::text FROM pg_constraint WHERE contype = 'p'")}
    rows = restored = 0
    for table in tables:
        planned = await plan(source, target, archive, f"public.{table}", follows=True)
        if not keyed & {table, quote(table)}:
            assert planned == "it has no key"
            continue
        assert isinstance(planned, TableRestore), (table, planned)
        assert planned.indices is None
        restored += 1
        counted, _ = await restore(job, access, archive, planned)
        assert contents(target, quote(table)) == contents(source, quote(table))
        rows += counted
    assert (len(tables), restored) == (40, 39)
    assert rows > 300


async def test_a_column_that_is_not_routed_never_travels_and_order_and_names_are_the_target_s(
    source: Database, make_target: MakeDatabase, archive_of: OpenArchive, job: Job
) -> None:
    source.execute(ANSWERS)
    target = make_target()
    target.execute(
        """
        CREATE SCHEMA maddo;
        CREATE TABLE maddo.a (tags text[], own text DEFAULT 'pix', "group" numeric, challenge varchar(20),
                              double int GENERATED ALWAYS AS (id * 2) STORED, id int PRIMARY KEY);
        """
    )
    archive = archive_of(source)
    columns = {"id": "id", "group": "group", "challengeId": "challenge", "tags": "tags"}
    planned = await plan(source, target, archive, to="maddo.a", columns=columns)
    assert isinstance(planned, TableRestore)
    assert planned.target_columns == ("id", "challenge", "group", "tags")
    assert planned.indices == (0, 1, 3, 4)
    seen = bytearray()
    server = urlsplit(target.dsn)
    async with Proxy(server.hostname or "", server.port or 0) as proxy:

        def record(data: bytes) -> bytes:
            seen.extend(data)
            return data

        access = replace(await taken(target), dsn=proxy.dsn(target.dsn))
        proxy.damage(Direction.TO_SERVER, record)
        told: list[int] = []
        rows, size = await restore(job, access, archive, planned, copied=told.append)
        await job.close()
    assert rows == 3000
    assert size == sum(told)
    assert b"c3\t3" in seen
    assert b"secret" not in seen
    mine = 'id, "challengeId", "group", tags, \'pix\', id * 2'
    theirs = 'id, challenge, "group", tags, own, double'
    assert target.fetch(f"SELECT ({theirs})::text FROM maddo.a ORDER BY id") == source.fetch(
        f"SELECT ({mine})::text FROM answers ORDER BY id"
    )


async def test_rows_in_another_encoding_arrive_as_the_same_characters(
    source: Database, make_target: MakeDatabase, archive_of: OpenArchive, job: Job
) -> None:
    source.execute(
        'CREATE TABLE "réponses" (id int PRIMARY KEY, "clé" text); INSERT INTO "réponses" VALUES (1, \'é€ß\')'
    )
    target = make_target()
    target.execute('CREATE TABLE "réponses" (id int, "clé" text)')
    archive = archive_of(source, "--encoding=LATIN9")
    assert archive.toc.encoding == "LATIN9"
    planned = await plan(source, target, archive, "public.réponses", follows=True)
    assert isinstance(planned, TableRestore)
    await restore(job, await taken(target), archive, planned)
    assert target.fetch('SELECT * FROM "réponses"') == [(1, "é€ß")]


async def test_an_encoding_in_which_bytes_are_ambiguous_is_copied_live(
    source: Database, make_target: MakeDatabase, archive_of: OpenArchive
) -> None:
    source.execute("CREATE TABLE answers (id int PRIMARY KEY)")
    target = make_target()
    target.execute("CREATE TABLE answers (id int)")
    assert "SJIS" in str(await plan(source, target, archive_of(source, "--encoding=SJIS"), follows=True))


AFTERWARDS = [
    ("ALTER TABLE answers ADD COLUMN more int", "its columns are not those that it had in the backup"),
    ("ALTER TABLE answers DROP COLUMN secret", "its columns are not those that it had in the backup"),
    ('ALTER TABLE answers DROP "group", ADD "group" int', "its columns are not those that it had in the backup"),
    ("ALTER TABLE answers RENAME secret TO hint", "its columns are not those that it had in the backup"),
    ("ALTER TABLE answers RENAME TO a; CREATE TABLE answers (LIKE a INCLUDING ALL)", "it was created anew"),
    ("ALTER TABLE answers REPLICA IDENTITY NOTHING", "it has no key"),
    ("ALTER TABLE answers REPLICA IDENTITY FULL", "it has no key"),
]


@pytest.mark.parametrize(("ddl", "reason"), AFTERWARDS)
async def test_a_table_that_is_not_what_it_was_in_the_backup_is_copied_live(
    source: Database, make_target: MakeDatabase, archive_of: OpenArchive, ddl: str, reason: str
) -> None:
    source.execute(ANSWERS)
    archive = archive_of(source)
    source.execute(ddl)
    target = make_target()
    target.execute("CREATE TABLE answers (id bigint)")
    answer = await plan(source, target, archive, columns={"id": "id"}, follows=True)
    assert isinstance(answer, str)
    assert reason in answer


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--exclude-table-data=answers"], "the backup does not hold its rows"),
        (["--schema-only"], "the backup does not hold its rows"),
        (["--data-only"], "the backup does not create it"),
        (["--inserts"], "as INSERT statements"),
    ],
    ids=str,
)
async def test_a_table_that_the_backup_does_not_hold_like_that_is_copied_live(
    source: Database, make_target: MakeDatabase, archive_of: OpenArchive, options: list[str], reason: str
) -> None:
    source.execute(ANSWERS)
    target = make_target()
    target.execute("CREATE TABLE answers (id bigint)")
    answer = await plan(source, target, archive_of(source, *options), columns={"id": "id"}, follows=True)
    assert isinstance(answer, str)
    assert reason in answer


OBSTACLES = [
    ('CREATE TABLE answers (id bigint PRIMARY KEY, "challengeId" text UNIQUE)', "answers_challengeId_key may refuse"),
    (
        'CREATE TABLE answers (id bigint PRIMARY KEY, "challengeId" text);'
        'CREATE UNIQUE INDEX extra ON answers (lower("challengeId"))',
        "extra may refuse",
    ),
    (
        'CREATE TABLE answers (id bigint PRIMARY KEY, "group" int);'
        'CREATE UNIQUE INDEX extra ON answers ("group") WHERE "group" > 2',
        "extra may refuse",
    ),
    (
        'CREATE TABLE answers (id bigint PRIMARY KEY, "group" int,'
        ' EXCLUDE USING btree (id WITH =) WHERE ("group" > 2))',
        "answers_id_excl may refuse",
    ),
    (
        'CREATE TABLE answers (id bigint, "challengeId" text) PARTITION BY RANGE (id);'
        'CREATE TABLE leaf PARTITION OF answers DEFAULT; CREATE UNIQUE INDEX extra ON leaf ("challengeId")',
        "extra may refuse",
    ),
    ('CREATE TABLE answers (id bigint, "group" text, secret char(9))', "its column secret is character"),
    (
        "CREATE TABLE answers (id bigint);"
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER t BEFORE INSERT ON answers FOR EACH ROW EXECUTE FUNCTION f();"
        "ALTER TABLE answers ENABLE ALWAYS TRIGGER t",
        "its trigger t would fire again",
    ),
]


@pytest.mark.parametrize(("ddl", "reason"), OBSTACLES)
async def test_a_target_that_may_refuse_a_passing_state_gets_the_table_live(
    source: Database, make_target: MakeDatabase, archive_of: OpenArchive, ddl: str, reason: str
) -> None:
    source.execute(ANSWERS)
    target = make_target("datamart")
    target.execute(ddl)
    answer = await plan(source, target, archive_of(source))
    assert isinstance(answer, str)
    assert reason in answer


async def test_an_index_that_only_refuses_rows_of_the_same_key_is_no_obstacle(
    source: Database, make_target: MakeDatabase, archive_of: OpenArchive
) -> None:
    source.execute(ANSWERS)
    target = make_target("datamart")
    target.execute(
        'CREATE TABLE answers (id bigint PRIMARY KEY, "challengeId" text, UNIQUE ("challengeId", id));'
        'CREATE UNIQUE INDEX ON answers (lower("challengeId"), id); CREATE INDEX ON answers ("challengeId")'
    )
    assert isinstance(await plan(source, target, archive_of(source)), TableRestore)


async def test_foreign_keys_are_an_obstacle_where_they_fire(
    source: Database, make_target: MakeDatabase, make_role: MakeRole, archive_of: OpenArchive
) -> None:
    source.execute(ANSWERS)
    archive = archive_of(source)
    role = make_role("LOGIN")
    for ddl in (
        'CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE answers (id bigint, "group" int REFERENCES other)',
        "CREATE TABLE answers (id bigint PRIMARY KEY); CREATE TABLE other (answer bigint REFERENCES answers)",
    ):
        target = make_target("datamart")
        target.execute(ddl)
        target.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON answers TO {quote(role)}")
        answer = await plan(source, target, archive, role=role)
        assert isinstance(answer, str)
        assert "foreign keys there" in answer
        assert isinstance(await plan(source, target, archive), TableRestore)


async def test_a_primary_key_that_does_not_identify_rows_in_the_stream_is_an_obstacle(
    source: Database, make_target: MakeDatabase, archive_of: OpenArchive
) -> None:
    source.execute(
        "CREATE TABLE answers (id int PRIMARY KEY, u int NOT NULL UNIQUE);"
        "ALTER TABLE answers REPLICA IDENTITY USING INDEX answers_u_key"
    )
    target = make_target()
    target.execute("CREATE TABLE answers (id int, u int)")
    archive = archive_of(source)
    assert "primary key is not what identifies" in str(await plan(source, target, archive, follows=True))
    columns = {"u": "u"}
    assert isinstance(await plan(source, target, archive, columns=columns, follows=True), TableRestore)


async def test_what_cannot_be_written_at_all_stops_the_table_as_a_live_copy_would(
    source: Database, make_target: MakeDatabase, archive_of: OpenArchive
) -> None:
    source.execute(ANSWERS)
    target = make_target("datamart")
    target.execute("CREATE TABLE answers (id bigint, needed int NOT NULL)")
    with pytest.raises(TableStopped, match="needed is NOT NULL without a default"):
        await plan(source, target, archive_of(source))


async def test_a_target_that_crashes_in_the_middle_gets_every_row_once(
    source: Database, make_target: MakeDatabase, own_server: MakeServer, archive_of: OpenArchive, job: Job
) -> None:
    source.execute(ANSWERS)
    source.execute("UPDATE answers SET secret = repeat(secret, 100)")
    there = own_server(side="target")
    target = make_target(server=there)
    target.execute(ANSWERS.partition(";")[0])
    archive = archive_of(source)
    planned = await plan(source, target, archive, follows=True)
    assert isinstance(planned, TableRestore)
    access = await taken(target)
    crashes = [there.restart]

    def crash_once(_: int) -> None:
        if crashes:
            crashes.pop()("immediate")

    assert (await restore(job, access, archive, planned, copied=crash_once))[0] == 3000
    assert not crashes
    assert contents(target, "answers") == contents(source, "answers")


async def test_rows_are_not_there_when_the_target_is_somebody_else_s_or_refuses_them_or_the_archive_is_damaged(
    source: Database, make_target: MakeDatabase, archive_of: OpenArchive, job: Job
) -> None:
    source.execute(ANSWERS)
    target = make_target("datamart")
    target.execute('CREATE TABLE answers (id bigint, "group" smallint)')
    archive = archive_of(source)
    planned = await plan(source, target, archive)
    assert isinstance(planned, TableRestore)
    access = await taken(target)
    with pytest.raises(FenceLost, match="was taken by another worker"):
        await restore(job, replace(access, fence=access.fence - 1), archive, planned)
    target.execute("ALTER TABLE answers ADD CHECK (id < 2999)")
    with pytest.raises(TerminalError, match=r"restoring public\.answers into public\.answers failed.*23514") as caught:
        await restore(job, access, archive, planned)
    assert "secret" not in str(caught.value)
    target.execute("ALTER TABLE answers DROP CONSTRAINT answers_id_check")
    size = archive.path.stat().st_size
    os.truncate(archive.path, size - 3000)
    with pytest.raises(SetupError, match=r"rows of public\.answers cannot be read"):
        await restore(job, access, archive, planned)
    assert target.fetchval("SELECT count(*) FROM answers") == 0


STRINGS = ("text", "varchar")

VALUES = {
    "int2": ["0", "-32768", "32767"],
    "int4": ["0", "-2147483648", "2147483647", "32767"],
    "int8": ["0", "9223372036854775807", "-9007199254740993", "12"],
    "numeric": ["0", "NaN", "1.00", "0.1", "123456789.123456789123456789", "-1e30", "16777217"],
    "text": [
        "",
        " x ",
        "\\N",
        "\\.",
        "a\tb\nc",
        "é",
        " 12 ",
        "1e3",
        "0.1",
        "t",
        "{1}",
        "10.0.0.1",
        "08:00:2b:01:02:03",
    ],
    "varchar": ["", " x "],
    "uuid": ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"],
    "json": ['{"b": 1,  "a": [null]}', "null", '"\\n"'],
    "jsonb": ['{"b": 1,  "a": [null]}', "null", '"\\n"'],
}


def test_text_that_is_read_is_what_an_assignment_gives(source: Database) -> None:
    source.execute("CREATE TABLE value (v text)")
    names = [*VALUES, "float4", "float8", "bool", "inet", "cidr", "macaddr", "macaddr8"]
    pairs = [
        (of, to)
        for of in VALUES
        for to in names
        if reads_text(DataType(0, "pg_catalog", of, of), DataType(0, "pg_catalog", to, to))
    ]
    assert len(pairs) > 50
    for of, to in pairs:
        source.execute(
            f"DROP TABLE IF EXISTS s, assigned, copied; CREATE TABLE s (v {of});"
            f"CREATE TABLE assigned (v {to}); CREATE TABLE copied (v {to})"
        )
        for value in VALUES[of]:
            source.execute(f"INSERT INTO s VALUES (%s::{of})", value)
            with contextlib.suppress(psycopg.DataError):
                # Strings become what no assignment makes of them by a cast (cdc.target.conversion).
                is_cast = of in STRINGS and to not in STRINGS
                source.execute(f"INSERT INTO assigned SELECT {f'v::{to}' if is_cast else 'v'} FROM s")
            cursor = source.connection().cursor()
            with cursor.copy("COPY s TO STDOUT") as reading:
                text = b"".join(bytes(block) for block in reading)
            with (
                contextlib.suppress(psycopg.DataError),
                cursor.copy("COPY copied FROM STDIN") as writing,
            ):
                writing.write(text)
            source.execute("TRUNCATE s")
        expected = source.fetch("SELECT v::text FROM assigned")
        assert source.fetch("SELECT v::text FROM copied") == expected, (of, to)


def contents(database: Database, table: str) -> list[tuple[Any, ...]]:
    return sorted(database.fetch(f"SELECT t::text FROM {table} AS t"))
