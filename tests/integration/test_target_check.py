"""What cdc check says about a target, each finding provoked on a real server and mended by its own SQL."""

from __future__ import annotations

from uuid import UUID

from cdc.changes.relation import Relation
from cdc.lsn import Lsn
from cdc.observe.finding import Finding, Severity
from cdc.routing.route import Route
from cdc.source.catalog import read_tables
from cdc.source.connection import connect as connect_source
from cdc.target import migrations, position
from cdc.target.check import check
from cdc.target.history import History
from cdc.target.session import connect
from tests.conftest import MakeDatabase, MakeRole
from tests.database import Database

Routed = list[tuple[Route, Relation]]


async def routed(source: Database, *, to: str = "public") -> Routed:
    """Every table of the source, routed to the same name in schema ``to``."""
    connection = await connect_source(source.dsn, application_name="cdc test")
    async with connection:
        tables = await read_tables(connection)
    found = []
    for table in tables:
        relation = table.relation
        columns = tuple((column.name, column.name) for column in relation.columns)
        found.append((Route(relation.schema, relation.name, to, relation.name, columns), relation))
    return found


async def set_up(target: Database) -> None:
    """Migrate, register and load, as setup and a bootstrap do."""
    session = await connect(target.dsn, application_name="cdc test")
    await migrations.migrate(session)
    await position.register(session, "cdc", "datamart")
    fence = (await position.take(session, "cdc")).fence
    await position.record_history(session, "cdc", fence, History("7", 1, "cdc", UUID(int=1)), Lsn(1))
    await session.close()


async def problems(dsn: str, tables: Routed, *, follows: bool = False) -> list[Finding]:
    findings = await check("datamart", dsn, "cdc", follows=follows, tables=tables)
    assert {finding.where for finding in findings} == {"datamart"}
    # The servers of the tests run without fsync, and say so.
    return [f for f in findings if f.severity is not Severity.OK and f.subject != "fsync"]


async def test_a_target_that_is_as_it_should_be_has_no_finding_but_ok(
    source: Database, make_target: MakeDatabase
) -> None:
    target = make_target("datamart")
    for database in (source, target):
        database.execute('CREATE TABLE public."a-b" (id int PRIMARY KEY, "group" text)')
    await set_up(target)
    assert await problems(target.dsn, await routed(source)) == []


async def test_a_target_that_cannot_be_reached_is_one_finding() -> None:
    (finding,) = await check("x", "postgresql://u:secret@127.0.0.1:1/db", "cdc", follows=True, tables=[])
    assert finding.stops
    assert "nothing listens" in finding.message
    assert "secret" not in finding.message


async def test_each_step_that_is_missing_is_said(source: Database, make_target: MakeDatabase) -> None:
    target = make_target("datamart")
    (finding,) = await problems(target.dsn, [])
    assert (finding.severity, finding.mend) == (Severity.WARNING, "cdc setup")
    session = await connect(target.dsn, application_name="cdc test")
    await migrations.migrate(session, migrations.known()[:1])
    (finding,) = await problems(target.dsn, [])
    assert (finding.severity, finding.mend) == (Severity.ERROR, "cdc setup")
    await migrations.migrate(session)
    (finding,) = await problems(target.dsn, [])
    assert (finding.severity, finding.mend) == (Severity.WARNING, "cdc setup")
    await position.register(session, "cdc", "datamart")
    (finding,) = await problems(target.dsn, [])
    assert (finding.severity, finding.mend) == (Severity.INFO, "cdc bootstrap --from live")
    await session.close()
    source.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    _, finding = await problems(target.dsn, await routed(source), follows=True)
    assert (finding.subject, finding.severity) == ("public.t", Severity.INFO)
    _, finding = await problems(target.dsn, await routed(source))
    assert finding.stops


async def test_missing_rights_are_mended_by_the_grants_that_are_named(
    source: Database, make_target: MakeDatabase, make_role: MakeRole
) -> None:
    target = make_target("datamart")
    role = make_role("LOGIN")
    source.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    target.execute("CREATE SCHEMA data; CREATE TABLE data.t (id int PRIMARY KEY); GRANT SELECT ON data.t TO PUBLIC")
    target.execute(
        f'REVOKE ALL ON DATABASE "{target.name}" FROM PUBLIC; GRANT CONNECT ON DATABASE "{target.name}" TO PUBLIC'
    )
    tables = await routed(source, to="data")
    dsn = target.dsn_as(role)
    errors = [finding for finding in await problems(dsn, tables) if finding.stops]
    assert {finding.subject for finding in errors} == {"TEMPORARY", "schema cdc", "schema data", "data.t"}
    for finding in errors:
        assert finding.mend is not None
        target.execute(finding.mend)
    assert [finding for finding in await problems(dsn, tables) if finding.stops] == []
    target.execute("DROP TABLE data.t")
    (error,) = [finding for finding in await problems(dsn, tables, follows=True) if finding.stops]
    assert "may not create the missing tables" in error.message


async def test_what_endangers_a_table_is_mended_by_the_sql_that_is_named(
    source: Database, make_target: MakeDatabase, make_role: MakeRole
) -> None:
    target = make_target("datamart")
    role = make_role("LOGIN")
    source.execute("""
        CREATE TYPE public.mood AS ENUM ('a', 'b', 'c');
        CREATE TABLE public.parent (id int PRIMARY KEY);
        CREATE TABLE public.child (id int PRIMARY KEY, parent int, mood public.mood, name text);
    """)
    target.execute("""
        CREATE TYPE public.mood AS ENUM ('b');
        CREATE TABLE public.elsewhere (id int PRIMARY KEY);
        CREATE TABLE public.parent (id int PRIMARY KEY);
        CREATE UNLOGGED TABLE public.child (
            id int, parent int, mood public.mood, name text
        );
    """)
    target.execute("""
        ALTER TABLE public.child SET LOGGED;
        ALTER TABLE public.child ADD CONSTRAINT to_parent FOREIGN KEY (parent) REFERENCES public.parent,
            ADD CONSTRAINT to_elsewhere FOREIGN KEY (parent) REFERENCES public.elsewhere;
        ALTER TABLE public.child ENABLE ROW LEVEL SECURITY;
        CREATE FUNCTION public.noop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER audit AFTER INSERT ON public.child FOR EACH ROW EXECUTE FUNCTION public.noop();
    """)
    await set_up(target)
    target.execute(f"""
        GRANT USAGE ON SCHEMA cdc TO "{role}"; GRANT ALL ON ALL TABLES IN SCHEMA cdc, public TO "{role}";
    """)
    tables = await routed(source)
    before = await problems(target.dsn_as(role), tables)
    texts = "\n".join(finding.message for finding in before)
    for says in (
        "lacks 2 of the source's labels",
        "no unique index matches the key",
        "trigger audit fires",
        "to_elsewhere points to public.elsewhere, which is not replicated",
        "to_parent is checked row by row",
        "row security applies",
        "may not set it to replica",
    ):
        assert says in texts
    for finding in before:
        for statement in (finding.mend or "").splitlines():
            target.execute(statement)
    # Before PostgreSQL 15 nothing can be granted that would let the role disable triggers.
    after = await problems(target.dsn_as(role), tables)
    assert [finding for finding in after if finding.severity is not Severity.INFO] == []
    assert target.fetchval("SELECT enum_range(NULL::public.mood)::text") == "{a,b,c}"


async def test_an_unlogged_table_is_refused_because_a_crash_empties_it(
    source: Database, make_target: MakeDatabase
) -> None:
    target = make_target("datamart")
    source.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    target.execute("CREATE UNLOGGED TABLE public.t (id int PRIMARY KEY)")
    await set_up(target)
    (finding,) = await problems(target.dsn, await routed(source))
    assert finding.stops
    assert finding.mend is not None
    target.execute(finding.mend)
    assert await problems(target.dsn, await routed(source)) == []
