"""What stops a table or rejects a batch: one sentence, the transaction, and never a value of a row."""

from __future__ import annotations

from typing import Any

import pytest

from cdc.errors import BatchRejected, CdcError, TableStopped, TargetUnavailable, TerminalError
from cdc.routing.route import Route
from tests.conftest import MakeRole
from tests.database import Database
from tests.integration.replica import MakeReplica, Replica, make_replica

__all__ = ["make_replica"]

SECRET = "s3cret-value"
"""A value that must not turn up anywhere."""

PEOPLE = "CREATE TABLE people (id int PRIMARY KEY, name text);"


async def refusal(replica: Replica, kind: type[CdcError]) -> Any:
    """What delivering raises; it names no value."""
    with pytest.raises(kind) as caught:
        await replica.deliver()
    error = caught.value
    assert SECRET not in f"{error}{error.sql}{error.server}"
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    return error


@pytest.mark.parametrize(
    ("here", "there", "sentence"),
    [
        ("UPDATE people SET name = 's3cret-value' WHERE id = 2", "DELETE FROM people WHERE id = 2", "an update of"),
        ("DELETE FROM people WHERE id = 2", "DELETE FROM people WHERE id = 2", "a delete of"),
        ("UPDATE people SET id = 22 WHERE id = 2", "DELETE FROM people WHERE id = 2", "finds no row"),
        ("INSERT INTO people VALUES (9, 's3cret-value')", "INSERT INTO people VALUES (9)", "already there"),
        (
            "UPDATE people SET id = 9 WHERE id = 2",
            "INSERT INTO people VALUES (9)",
            "already there",
        ),
    ],
)
async def test_a_target_that_differs_stops_its_table_at_that_transaction(
    make_replica: MakeReplica, source: Database, here: str, there: str, sentence: str
) -> None:
    replica = await make_replica(PEOPLE)
    source.execute("INSERT INTO people VALUES (1), (2), (3)")
    await replica.deliver()
    replica.target.execute(there)
    source.execute("UPDATE people SET name = 'before' WHERE id = 1")
    source.execute(here)
    source.execute("UPDATE people SET name = 'after' WHERE id = 3")
    parts = await replica.record()
    with pytest.raises(TerminalError) as caught:
        await replica.apply(parts)
    error = caught.value
    assert isinstance(error, TableStopped | BatchRejected)
    assert (error.source_table, error.commit_lsn, error.xid) == ("public.people", parts[1].commit_lsn, parts[1].xid)
    assert sentence in str(error)
    assert str(parts[1].commit_lsn) in str(error)
    assert SECRET not in str(error)
    # The caller takes what comes before, and leaves that table alone from there on.
    await replica.apply(parts, holds=lambda _, part: part.commit_lsn >= (error.commit_lsn or 0))
    assert replica.target.fetchval("SELECT name FROM people WHERE id = 1") == "before"


async def test_a_constraint_of_the_target_rejects_the_batch(make_replica: MakeReplica, source: Database) -> None:
    check = "ALTER TABLE people ADD CONSTRAINT short CHECK (length(name) < 5);"
    replica = await make_replica(PEOPLE, PEOPLE + check)
    source.execute(f"INSERT INTO people VALUES (1, 'ok'); INSERT INTO people VALUES (2, '{SECRET}')")
    error = await refusal(replica, BatchRejected)
    assert error.source_table == "public.people"
    assert error.server.constraint == "short"


async def test_a_foreign_key_of_the_target_rejects_the_batch_also_when_deferred(
    make_replica: MakeReplica, source: Database
) -> None:
    there = "CREATE TABLE own (id int PRIMARY KEY);" + PEOPLE
    there += "ALTER TABLE people ADD CONSTRAINT known FOREIGN KEY (id) REFERENCES own DEFERRABLE INITIALLY DEFERRED;"
    replica = await make_replica(PEOPLE, there, triggers_fire=True)
    source.execute("INSERT INTO people VALUES (1, 'x')")
    error = await refusal(replica, BatchRejected)
    assert (error.server.constraint, error.source_table) == ("known", "public.people")


async def test_hazard_13_an_unknown_enum_label_stops_the_table(make_replica: MakeReplica, source: Database) -> None:
    ddl = "CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE t (id int PRIMARY KEY, m mood);"
    replica = await make_replica(ddl)
    source.execute("INSERT INTO t VALUES (1, 'sad')")
    source.execute("ALTER TYPE mood ADD VALUE 's3cret-value'")
    source.execute("INSERT INTO t VALUES (2, 's3cret-value')")
    error = await refusal(replica, TableStopped)
    assert error.sql == "ALTER TYPE public.mood ADD VALUE '<label>'"


async def test_a_value_that_does_not_fit_stops_the_table(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(
        "CREATE TABLE t (id int PRIMARY KEY, n int)", "CREATE TABLE t (id int PRIMARY KEY, n smallint)", follows=False
    )
    source.execute("INSERT INTO t VALUES (1, 1)")
    await replica.deliver()
    source.execute("INSERT INTO t VALUES (2, 100000)")
    error = await refusal(replica, TableStopped)
    assert error.server.sqlstate == "22003"


async def test_a_missing_right_stops_the_table_with_the_grant(
    make_replica: MakeReplica, source: Database, make_role: MakeRole
) -> None:
    role = make_role()
    replica = await make_replica(PEOPLE, role=role)
    source.execute("INSERT INTO people VALUES (1)")
    error = await refusal(replica, TableStopped)
    grant = f'GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON "public"."people" TO "{role}"'
    assert error.sql == grant
    assert (error.relation.qualified_name, error.server.sqlstate) == ("public.people", "42501")
    assert error.commit_lsn is not None
    # The relation says that the catalog can be asked: no until the right is there, and then yes.
    plan = replica.plans[error.relation]
    replica.applier.forget(plan.route)
    with pytest.raises(TableStopped, match="may not write to it") as still:
        await replica.applier.plan(plan.relation, plan.route)
    assert (str(still.value), still.value.sql, still.value.relation) == (str(error), grant, plan.relation)
    replica.target.execute(grant)
    replica.applier.forget(plan.route)
    replica.plans[plan.relation] = await replica.applier.plan(plan.relation, plan.route)
    source.execute("INSERT INTO people VALUES (2)")
    await replica.apply(await replica.record())
    assert replica.target.fetch("SELECT id FROM people") == [(2,)]


async def test_a_right_that_the_tables_catalog_does_not_lack_is_only_found_by_trying(
    make_replica: MakeReplica, source: Database, make_role: MakeRole
) -> None:
    role = make_role()
    own = f"""
        CREATE TABLE own (id int);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO public.own VALUES (NEW.id); RETURN NEW; END';
        CREATE TRIGGER note BEFORE INSERT ON people FOR EACH ROW EXECUTE FUNCTION note();
        GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON people TO "{role}";
    """
    replica = await make_replica(PEOPLE, PEOPLE + own, role=role)
    source.execute("INSERT INTO people VALUES (1)")
    error = await refusal(replica, TableStopped)
    assert "has every right on it" in str(error)
    assert (error.relation, error.sql, error.source_table) == (None, None, "public.people")


async def test_a_role_without_superuser_rights_can_apply(
    make_replica: MakeReplica, source: Database, make_role: MakeRole
) -> None:
    role = make_role()
    replica = await make_replica(PEOPLE, role=role)
    replica.target.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON people TO "{role}"')
    assert not replica.session.triggers_disabled
    source.execute("INSERT INTO people VALUES (1), (2); UPDATE people SET name = 'x'; DELETE FROM people WHERE id = 2")
    await replica.deliver()


async def test_a_lock_that_is_not_granted_is_tried_again_later(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(PEOPLE)
    await replica.session.connection.execute("SET lock_timeout = '50ms'")
    source.execute("INSERT INTO people VALUES (1); TRUNCATE people")
    with replica.target.transaction():
        replica.target.fetch("SELECT * FROM people")
        await refusal(replica, TargetUnavailable)


async def test_an_owner_who_alters_the_table_meanwhile_is_followed(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(PEOPLE, follows=False)
    source.execute("INSERT INTO people VALUES (1, 'a')")
    await replica.deliver()
    replica.target.execute("ALTER TABLE people ALTER COLUMN id TYPE bigint; ALTER TABLE people ADD own int")
    source.execute("INSERT INTO people VALUES (2, 'b'); UPDATE people SET name = 'c' WHERE id = 1")
    await replica.deliver()
    # Both have eight bytes: nothing in the protocol would notice.
    replica.target.execute("ALTER TABLE people ALTER COLUMN id TYPE float8; ALTER TABLE people DROP COLUMN own")
    source.execute("ALTER TABLE people ALTER COLUMN id TYPE bigint")
    source.execute("INSERT INTO people VALUES (4, 'd')")
    await replica.apply(await replica.record())
    replica.target.execute("ALTER TABLE people ALTER COLUMN id TYPE bigint")
    source.execute("INSERT INTO people VALUES (5, 'e')")
    await replica.deliver()
    replica.target.execute("ALTER TABLE people DROP COLUMN name")
    source.execute("INSERT INTO people VALUES (3, 'b')")
    await replica.apply(await replica.record())
    assert replica.target.fetchval("SELECT count(*) FROM people") == 5


async def test_a_table_that_vanishes_stops(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(PEOPLE)
    source.execute("INSERT INTO people VALUES (1, 'a')")
    await replica.deliver()
    replica.target.execute("DROP TABLE people")
    source.execute("INSERT INTO people VALUES (2, 'b')")
    error = await refusal(replica, TableStopped)
    assert "does not exist" in str(error)
    assert error.commit_lsn is not None
    assert error.relation.qualified_name == "public.people", "its shape does not fit: no row was refused"


async def test_a_column_that_vanishes_stops_the_table_by_its_shape(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(PEOPLE)
    source.execute("INSERT INTO people VALUES (1, 'a')")
    await replica.deliver()
    replica.target.execute("ALTER TABLE people DROP COLUMN name")
    source.execute("INSERT INTO people VALUES (2, 'b')")
    error = await refusal(replica, TableStopped)
    told = error.explained(None)
    for stopped in (error, told):
        assert (stopped.relation.qualified_name, stopped.commit_lsn) == ("public.people", error.commit_lsn)
        assert stopped.xid is not None


async def test_truncating_one_of_several_tables_that_share_a_target_stops_it(
    make_replica: MakeReplica, source: Database
) -> None:
    routes = [Route("public", name, "public", "merged") for name in ("a", "b")]
    table = "CREATE TABLE {} (id int PRIMARY KEY);"
    replica = await make_replica(table.format("a") + table.format("b"), table.format("merged"), routes=routes)
    source.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (2); TRUNCATE a")
    with pytest.raises(TableStopped, match="other tables are routed"):
        await replica.apply(await replica.record())


@pytest.mark.parametrize(
    ("here", "there", "sentence", "sql"),
    [
        ("a int, b text", "a int", "lacks columns: b", 'ADD COLUMN "b" text'),
        ("a int", "a int, b int NOT NULL", "column b is NOT NULL", 'ALTER COLUMN "b" DROP NOT NULL'),
        ("a bigint", "a int", "is of type integer, and of type bigint", 'ALTER COLUMN "a" TYPE bigint'),
        ("a numeric(9,4)", "a numeric(9,2)", "numeric", 'ALTER COLUMN "a" TYPE numeric(9,4)'),
        ("a numeric(9,2)", "a numeric(12,2)", "", None),
        ("a varchar(9)", "a varchar(4)", "", None),
        ("a timestamp(3)", "a timestamp", "", None),
        ("a int", "x int, a int, b int DEFAULT 3", "", None),
    ],
)
async def test_a_following_target_whose_shape_differs_stops_before_any_row(
    make_replica: MakeReplica, source: Database, here: str, there: str, sentence: str, sql: str | None
) -> None:
    key = "id int PRIMARY KEY"
    replica = await make_replica(f"CREATE TABLE t ({key}, {here})", f"CREATE TABLE t ({key}, {there})")
    source.execute("INSERT INTO t VALUES (1)")
    if not sentence:
        await replica.deliver()
        return
    error = await refusal(replica, TableStopped)
    assert sentence in str(error)
    assert error.sql == f'ALTER TABLE "public"."t" {sql}'


async def test_a_column_that_a_route_lists_and_the_source_dropped_stops_the_table(
    make_replica: MakeReplica, source: Database
) -> None:
    routes = [Route("public", "people", "public", "people", (("id", "id"), ("name", "name")))]
    replica = await make_replica(PEOPLE, routes=routes)
    source.execute("ALTER TABLE people DROP COLUMN name; INSERT INTO people VALUES (1)")
    error = await refusal(replica, TableStopped)
    assert "name" in str(error)


async def test_a_shape_that_changes_in_the_middle_of_a_batch_is_applied(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(PEOPLE)
    source.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    source.execute("ALTER TABLE people DROP COLUMN name; UPDATE people SET id = 30 WHERE id = 3")
    source.execute("ALTER TABLE people ADD COLUMN name text; UPDATE people SET name = 'new' WHERE id = 1")
    source.execute("DELETE FROM people WHERE id = 2; INSERT INTO people VALUES (2, 'again')")
    await replica.apply(await replica.record())
    assert replica.target.fetch("SELECT * FROM people ORDER BY id") == [(1, "new"), (2, "again"), (30, "c")]


async def test_a_key_that_is_not_routed_stops_the_table(make_replica: MakeReplica, source: Database) -> None:
    routes = [Route("public", "people", "public", "people", (("name", "name"),))]
    replica = await make_replica(PEOPLE, "CREATE TABLE people (name text)", routes=routes)
    source.execute("INSERT INTO people VALUES (1)")
    error = await refusal(replica, TableStopped)
    assert "part of the source's key" in str(error)


async def test_no_statement_that_reaches_a_target_holds_a_row_value(
    make_replica: MakeReplica, source: Database
) -> None:
    ddl = PEOPLE + "CREATE TABLE log (a text); ALTER TABLE log REPLICA IDENTITY FULL;"
    there = PEOPLE + "CREATE TABLE log (a text); ALTER TABLE people ADD UNIQUE (name);"
    replica = await make_replica(ddl, there)
    marker = "s3cret-in-a-statement"
    await replica.session.connection.execute("SET log_statement = 'all'; SET application_name = 'watched'")
    source.execute(f"INSERT INTO people SELECT n, '{marker}' || n FROM generate_series(1, 5) n")
    await replica.deliver()
    with source.transaction():
        source.execute(f"INSERT INTO log VALUES ('{marker}'), ('{marker}')")
        source.execute(f"UPDATE people SET name = 'x' WHERE id = 1; UPDATE people SET name = '{marker}1' WHERE id = 2")
        source.execute(
            f"UPDATE people SET name = '{marker}2' WHERE id = 1; DELETE FROM people WHERE name = '{marker}3'"
        )
        source.execute(f"UPDATE people SET id = 50 WHERE name = '{marker}4'; DELETE FROM log")
    applied = await replica.deliver()
    await replica.session.connection.execute("SET log_statement = 'none'")
    ours = [line for line in replica.target.server.log_text().splitlines() if " watched " in line]
    statements = [line for line in ours if "statement: " in line and "STATEMENT: " not in line]
    assert applied.was_strict
    assert any("COPY" in line for line in statements)
    assert any("UPDATE" in line for line in statements)
    assert not [line for line in statements if marker in line]
