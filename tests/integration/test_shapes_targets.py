"""What a target's table may do to rows that it is given: hide, lose, suppress them. Nothing of it is silent."""

from __future__ import annotations

import pytest

from cdc.errors import TableStopped
from cdc.routing.route import Route
from tests.conftest import MakeRole
from tests.database import Database
from tests.integration.replica import MakeReplica, make_replica

__all__ = ["make_replica"]

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text);"
ROUTE = Route("public", "t", "public", "t")


async def test_an_unlogged_table_of_a_target_is_refused_because_a_crash_empties_it(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(TABLE, TABLE.replace("TABLE", "UNLOGGED TABLE"), follows=False)
    source.execute("INSERT INTO t VALUES (1)")
    parts = await replica.record()
    with pytest.raises(TableStopped, match="it is UNLOGGED: a crash of the server empties it") as caught:
        await replica.apply(parts)
    assert caught.value.sql == 'ALTER TABLE "public"."t" SET LOGGED'
    replica.target.execute(caught.value.sql)
    replica.applier.forget(ROUTE)
    await replica.apply(parts)
    assert replica.target.fetch("SELECT id FROM t") == [(1,)]


@pytest.mark.parametrize("force", [False, True], ids=["of another's table", "forced on the owner"])
async def test_row_security_that_applies_to_our_role_stops_the_table(
    make_replica: MakeReplica, source: Database, make_role: MakeRole, force: bool
) -> None:
    role = make_role()
    security = (
        f'ALTER TABLE t ENABLE ROW LEVEL SECURITY; GRANT ALL ON t TO "{role}"; CREATE POLICY p ON t USING (id < 5);'
    )
    if force:
        security += f'ALTER TABLE t OWNER TO "{role}"; ALTER TABLE t FORCE ROW LEVEL SECURITY;'
    replica = await make_replica(TABLE, TABLE + security, follows=False, role=role)
    source.execute("INSERT INTO t VALUES (1, 'x'), (7, 'y'); UPDATE t SET v = 'z'")
    parts = await replica.record()
    with pytest.raises(TableStopped, match=f"row security applies to the role {role}") as caught:
        await replica.apply(parts)
    assert caught.value.sql == f'ALTER ROLE "{role}" BYPASSRLS'
    replica.target.execute(caught.value.sql)
    replica.applier.forget(ROUTE)
    await replica.apply(parts)
    assert replica.target.fetch("SELECT id, v FROM t ORDER BY id") == [(1, "z"), (7, "z")]


async def test_row_security_that_comes_while_we_write_hides_nothing_silently(
    make_replica: MakeReplica, source: Database, make_role: MakeRole
) -> None:
    role = make_role()
    replica = await make_replica(TABLE, TABLE + f'GRANT ALL ON t TO "{role}"', follows=False, role=role)
    source.execute("INSERT INTO t VALUES (1, 'x'), (7, 'y')")
    await replica.deliver()
    replica.target.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (id < 5)")
    source.execute("DELETE FROM t WHERE id = 7")
    with pytest.raises(TableStopped, match=r"row security applies to the role|may not write to it"):
        await replica.deliver()


SUPPRESS = """
    CREATE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN IF TG_OP <> ''DELETE'' AND NEW.id = 1 OR TG_OP = ''DELETE'' AND OLD.id = 1 THEN RETURN NULL; END IF;
               RETURN coalesce(NEW, OLD); END';
    CREATE TRIGGER quiet BEFORE {} ON t FOR EACH ROW EXECUTE FUNCTION suppress();
"""
CHANGES = {
    "INSERT": "INSERT INTO t VALUES (1, 'x'), (9, 'x')",
    "UPDATE": "UPDATE t SET v = 'y'",
    "DELETE": "DELETE FROM t",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("enabled", ["", "ENABLE ALWAYS TRIGGER quiet", "ENABLE REPLICA TRIGGER quiet"])
async def test_a_trigger_that_suppresses_rows_does_not_fire_or_is_noticed(
    make_replica: MakeReplica, source: Database, change: str, enabled: str
) -> None:
    trigger = SUPPRESS.format(change) + (f"ALTER TABLE t {enabled};" if enabled else "")
    replica = await make_replica(TABLE, TABLE + trigger, follows=False)
    source.execute("INSERT INTO t VALUES (2, 'x')")
    await replica.deliver()
    if change != "INSERT":
        source.execute("INSERT INTO t VALUES (1, 'x')")
        await replica.deliver()
    source.execute(CHANGES[change])
    if not enabled:
        await replica.deliver()
        return
    with pytest.raises(TableStopped, match="what fires for replicated rows here, trigger quiet: disable it"):
        await replica.deliver()


async def test_triggers_that_our_role_cannot_keep_from_firing_are_noticed_too(
    make_replica: MakeReplica, source: Database, make_role: MakeRole
) -> None:
    role = make_role()
    replica = await make_replica(
        TABLE, TABLE + SUPPRESS.format("INSERT") + f'GRANT ALL ON t TO "{role}"', follows=False, role=role
    )
    assert not replica.session.triggers_disabled
    source.execute("INSERT INTO t VALUES (1, 'x')")
    with pytest.raises(TableStopped, match="trigger quiet: disable it"):
        await replica.deliver()


RULES = {
    "nothing instead of an insert": "CREATE RULE quiet AS ON INSERT TO t DO INSTEAD NOTHING;",
    "nothing instead of an update": "CREATE RULE quiet AS ON UPDATE TO t DO INSTEAD NOTHING;",
    "nothing instead of a delete": "CREATE RULE quiet AS ON DELETE TO t DO INSTEAD NOTHING;",
    "another change": "CREATE RULE quiet AS ON DELETE TO t DO INSTEAD UPDATE t SET v = 'gone' WHERE id = OLD.id;",
}


@pytest.mark.parametrize("case", RULES)
async def test_a_rule_does_not_fire_or_is_noticed(make_replica: MakeReplica, source: Database, case: str) -> None:
    replica = await make_replica(TABLE, TABLE + RULES[case], follows=False)

    def work(key: int) -> None:
        source.execute(f"INSERT INTO t VALUES ({key}, 'x'), ({key + 1}, 'x')")
        source.execute(f"UPDATE t SET v = 'y' WHERE id = {key}; DELETE FROM t WHERE id = {key}")

    source.execute("INSERT INTO t VALUES (1, 'x')")
    await replica.deliver()
    work(10)
    await replica.deliver()
    replica.target.execute("ALTER TABLE t ENABLE ALWAYS RULE quiet")
    replica.applier.forget(ROUTE)
    replica.plans.clear()
    if "INSERT" in RULES[case]:
        work(20)  # COPY, which new rows go by, knows no rules.
        await replica.deliver()
        return
    source.execute("UPDATE t SET v = 'z' WHERE id = 1" if "UPDATE TO" in RULES[case] else "DELETE FROM t WHERE id = 1")
    with pytest.raises(TableStopped, match=r"rule quiet: disable it|refuses to write to it"):
        await replica.deliver()
