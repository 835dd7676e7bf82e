"""Every kind of change, applied to a real target as one batch."""

from __future__ import annotations

import pytest

from cdc.errors import ProtocolError
from cdc.routing.route import Route
from tests.database import Database
from tests.integration.replica import MakeReplica, make_replica

__all__ = ["make_replica"]

BIG = "repeat(md5(random()::text), 2000)"
"""A text of 64 kB; with STORAGE EXTERNAL it is stored out of line, uncompressed."""


PEOPLE = """
    CREATE TABLE people (id int PRIMARY KEY, name text, score numeric, born date);
"""


async def test_inserts_updates_and_deletes_arrive(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(PEOPLE)
    source.execute(
        "INSERT INTO people SELECT n, 'name ' || n, n / 7.0, date '2020-01-01' + n FROM generate_series(1, 50) n"
    )
    first = await replica.deliver()
    source.execute("UPDATE people SET name = 'changed', score = NULL WHERE id % 3 = 0")
    source.execute("DELETE FROM people WHERE id % 5 = 0")
    source.execute("INSERT INTO people VALUES (100, NULL, 'NaN', 'infinity')")
    second = await replica.deliver()
    assert (first.tables["public.people"].inserted, first.was_strict) == (50, False)
    counts = second.tables["public.people"]
    assert (counts.inserted, counts.updated, counts.deleted, second.was_strict) == (1, 16, 10, False)


async def test_many_changes_of_one_row_in_one_batch_come_to_its_last_state(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(PEOPLE)
    source.execute("INSERT INTO people VALUES (1, 'kept', 1, NULL), (2, 'gone', 2, NULL), (3, 'replaced', 3, NULL)")
    await replica.deliver()
    for number in range(20):
        source.execute("UPDATE people SET score = %s WHERE id = 1", number)
    source.execute("INSERT INTO people VALUES (4, 'comes', 4, NULL); DELETE FROM people WHERE id = 4")
    source.execute("UPDATE people SET name = 'x' WHERE id = 2; DELETE FROM people WHERE id = 2")
    source.execute("DELETE FROM people WHERE id = 3; INSERT INTO people VALUES (3, 'new', 0, NULL)")
    source.execute("INSERT INTO people VALUES (5, 'a', 0, NULL); UPDATE people SET name = 'b' WHERE id = 5")
    applied = await replica.deliver()
    assert not applied.was_strict


async def test_key_changes_arrive_also_along_a_chain(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(PEOPLE)
    source.execute("INSERT INTO people SELECT n, 'name ' || n FROM generate_series(1, 5) n")
    await replica.deliver()
    source.execute("UPDATE people SET id = 6 WHERE id = 5; UPDATE people SET id = 5 WHERE id = 4")
    source.execute("UPDATE people SET id = 40 WHERE id = 1; UPDATE people SET id = 1 WHERE id = 40")
    source.execute("DELETE FROM people WHERE id = 2; UPDATE people SET id = 2, name = 'two' WHERE id = 3")
    applied = await replica.deliver()
    assert not applied.was_strict


async def test_hazard_06_unchanged_toast_values_stay(make_replica: MakeReplica, source: Database) -> None:
    ddl = "CREATE TABLE docs (id int PRIMARY KEY, a text, b text, n int);" + "".join(
        f"ALTER TABLE docs ALTER COLUMN {column} SET STORAGE EXTERNAL;" for column in "ab"
    )
    replica = await make_replica(ddl)
    source.execute(f"INSERT INTO docs SELECT n, {BIG}, {BIG}, 0 FROM generate_series(1, 6) n")
    await replica.deliver()
    source.execute("UPDATE docs SET n = 1 WHERE id = 1")  # neither is sent
    source.execute(f"UPDATE docs SET n = 2, a = {BIG} WHERE id = 2")  # one is
    source.execute(f"UPDATE docs SET a = {BIG} WHERE id = 3; UPDATE docs SET n = 3 WHERE id = 3")  # merged in the batch
    source.execute(f"UPDATE docs SET n = 5 WHERE id = 4; UPDATE docs SET b = {BIG} WHERE id = 4")
    source.execute(f"INSERT INTO docs VALUES (7, {BIG}, 'x', 0); UPDATE docs SET n = 7 WHERE id = 7")
    applied = await replica.deliver()
    assert not applied.was_strict


async def test_hazard_06_a_key_change_with_unchanged_toast_stays_an_update(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(
        "CREATE TABLE docs (id int PRIMARY KEY, a text, n int); ALTER TABLE docs ALTER COLUMN a SET STORAGE EXTERNAL;"
    )
    source.execute(f"INSERT INTO docs SELECT n, {BIG}, 0 FROM generate_series(1, 4) n")
    await replica.deliver()
    source.execute("UPDATE docs SET n = 1 WHERE id = 1; UPDATE docs SET id = 11 WHERE id = 1")
    source.execute(
        "UPDATE docs SET n = 2 WHERE id = 11; UPDATE docs SET id = 1 WHERE id = 2; DELETE FROM docs WHERE id = 3"
    )
    source.execute(f"UPDATE docs SET a = {BIG} WHERE id = 4; UPDATE docs SET id = 40 WHERE id = 4")
    applied = await replica.deliver()
    assert not applied.was_strict


async def test_a_toasted_key_is_found(make_replica: MakeReplica, source: Database) -> None:
    ddl = "CREATE TABLE docs (id text PRIMARY KEY, n int); ALTER TABLE docs ALTER COLUMN id SET STORAGE EXTERNAL;"
    replica = await make_replica(ddl)
    source.execute("INSERT INTO docs SELECT repeat(n::text, 2200), 0 FROM generate_series(1, 3) n")
    await replica.deliver()
    source.execute("UPDATE docs SET n = 1 WHERE id LIKE '1%'")
    source.execute("DELETE FROM docs WHERE id LIKE '2%'")
    source.execute("UPDATE docs SET n = n + 1; UPDATE docs SET n = n + 1")
    await replica.deliver()


async def test_truncate_empties_several_tables_and_restarts_identities(
    make_replica: MakeReplica, source: Database
) -> None:
    ddl = """
        CREATE TABLE parents (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, x int);
        CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents);
    """
    replica = await make_replica(ddl, triggers_fire=True)
    source.execute("INSERT INTO parents (x) SELECT 1 FROM generate_series(1, 3); INSERT INTO children VALUES (1, 1)")
    await replica.deliver()
    replica.target.execute("SELECT setval('parents_id_seq', 50)")
    source.execute("INSERT INTO parents (x) VALUES (9); TRUNCATE parents, children RESTART IDENTITY")
    source.execute("INSERT INTO parents (x) VALUES (2); INSERT INTO children VALUES (7, 1)")
    applied = await replica.deliver()
    assert (applied.tables["public.parents"].truncated, applied.was_strict) == (1, False)
    assert replica.target.fetchval("SELECT nextval('parents_id_seq')") == 1


async def test_truncate_deletes_where_a_table_of_the_targets_own_refers(
    make_replica: MakeReplica, source: Database
) -> None:
    ddl = "CREATE TABLE parents (id int PRIMARY KEY); CREATE TABLE children (id int PRIMARY KEY REFERENCES parents);"
    own = "CREATE TABLE own (parent int REFERENCES parents ON DELETE SET NULL);"
    replica = await make_replica(ddl, ddl + own, triggers_fire=True)
    source.execute("INSERT INTO parents VALUES (1), (2); INSERT INTO children VALUES (1)")
    await replica.deliver()
    replica.target.execute("INSERT INTO own VALUES (2)")
    source.execute("TRUNCATE parents CASCADE")
    applied = await replica.deliver()
    assert replica.target.fetch("SELECT parent FROM own") == [(None,)]
    assert not applied.was_strict


async def test_truncate_deletes_rows_whose_deferred_constraints_have_not_been_checked(
    make_replica: MakeReplica, source: Database
) -> None:
    ddl = "CREATE TABLE parents (id int PRIMARY KEY); CREATE TABLE children (id int PRIMARY KEY, parent int);"
    key = "ALTER TABLE children ADD FOREIGN KEY (parent) REFERENCES parents DEFERRABLE INITIALLY DEFERRED;"
    replica = await make_replica(ddl + key, triggers_fire=True)
    source.execute("INSERT INTO parents VALUES (1); INSERT INTO children VALUES (1, 1)")
    await replica.deliver()
    source.execute("INSERT INTO children VALUES (2, 1)")
    source.execute("TRUNCATE children")
    source.execute("INSERT INTO children VALUES (3, 1)")
    applied = await replica.deliver()
    assert (applied.tables["public.children"].truncated, applied.was_strict) == (1, False)


async def test_a_table_known_by_whole_rows_keeps_its_duplicates(make_replica: MakeReplica, source: Database) -> None:
    ddl = "CREATE TABLE log (a int, b json, c numeric, d text); ALTER TABLE log REPLICA IDENTITY FULL;"
    replica = await make_replica(ddl)
    source.execute("INSERT INTO log SELECT 1, '{\"x\": 1}', 1.0, NULL FROM generate_series(1, 3)")
    source.execute(
        "INSERT INTO log VALUES (1, '{\"x\":1}', 1.00, NULL), (2, 'null', 'NaN', 'x'), (NULL, NULL, NULL, NULL)"
    )
    await replica.deliver()
    source.execute("DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log WHERE a = 1)")
    source.execute("UPDATE log SET d = 'one of two' WHERE ctid = (SELECT min(ctid) FROM log WHERE a = 1)")
    source.execute("UPDATE log SET c = 1.000 WHERE c::text = '1.00'")
    source.execute("DELETE FROM log WHERE a IS NULL; UPDATE log SET b = '[]' WHERE a = 2")
    source.execute(
        "INSERT INTO log SELECT 5, '5', 5, 'five' FROM generate_series(1, 4); UPDATE log SET a = 6 WHERE a = 5"
    )
    source.execute("UPDATE log SET a = a + 1; UPDATE log SET a = a + 1; DELETE FROM log WHERE a = 8 AND d = 'five'")
    await replica.deliver()


async def test_identity_full_uses_a_key_of_the_target(make_replica: MakeReplica, source: Database) -> None:
    ddl = "CREATE TABLE t (id int PRIMARY KEY, v json); ALTER TABLE t REPLICA IDENTITY FULL;"
    replica = await make_replica(ddl)
    source.execute("INSERT INTO t SELECT n, '1' FROM generate_series(1, 9) n")
    source.execute("UPDATE t SET v = '2' WHERE id < 5; DELETE FROM t WHERE id = 9; UPDATE t SET id = 90 WHERE id = 8")
    await replica.deliver()
    [plan] = replica.plans.values()
    assert plan.shape.key == (0,)


async def test_a_table_without_identity_takes_inserts(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica("CREATE TABLE log (a int, b text)", follows=True)
    source.execute("ALTER TABLE log REPLICA IDENTITY NOTHING")
    source.execute("INSERT INTO log VALUES (1, 'x'), (1, 'x')")
    source.execute("TRUNCATE log; INSERT INTO log VALUES (2, NULL)")
    await replica.deliver()


async def test_hazard_07_column_order_and_names_do_not_matter(make_replica: MakeReplica, source: Database) -> None:
    here = """
        CREATE SCHEMA "Learning-content";
        CREATE TABLE "Learning-content"."knowledge-elements" (
            "group" text, "createdAt" timestamptz, "a""b" int, "time" time, "user" int, "id" bigint,
            PRIMARY KEY ("user", "id"));
    """
    there = """
        CREATE SCHEMA "Learning-content";
        CREATE TABLE "Learning-content"."knowledge-elements" (
            "id" bigint, "time" time, "user" int, "createdAt" timestamptz, "group" text, "a""b" int,
            PRIMARY KEY ("id", "user"));
    """
    replica = await make_replica(here, there)
    name = '"Learning-content"."knowledge-elements"'
    source.execute(f"INSERT INTO {name} SELECT 'g', now(), n, '12:00', n, n * 2 FROM generate_series(1, 9) n")
    await replica.deliver()
    source.execute(f'UPDATE {name} SET "group" = \'h\' WHERE "user" < 4; DELETE FROM {name} WHERE "user" = 5')
    source.execute(f'UPDATE {name} SET "id" = 100 WHERE "user" = 6')
    applied = await replica.deliver()
    assert not applied.was_strict


async def test_hazard_09_values_that_compare_strangely_arrive_unchanged(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica("""
        CREATE TABLE odd (id char(5) PRIMARY KEY, j json, jb jsonb, n numeric, f float8, d date, ts timestamptz,
                          i interval, a text[], aa int[], b bytea, r int4range, bits bit(3), u uuid, ip inet);
    """)
    source.execute("""
        INSERT INTO odd VALUES
            ('a', '{"k": 1,  "k": 2}', 'null', 'NaN', 'NaN', 'infinity', '-infinity', '1 mon 1 day -01:00',
             '{}', '{{1,2},{3,NULL}}', '\\x00ff', '[1,5)', '101', gen_random_uuid(), '10.0.0.0/8'),
            ('b ', 'null', NULL, 1.000, '-0', '0001-01-01 BC', '1970-01-01', '0', '{NULL,"",x}', '[0:1]={7,8}', '',
             'empty', '000', NULL, '::1')
    """)
    await replica.deliver()
    source.execute("UPDATE odd SET n = 1.0 WHERE id = 'b'; UPDATE odd SET id = 'c' WHERE id = 'a'")
    await replica.deliver()


async def test_hazard_17_generated_and_identity_columns_are_respected(
    make_replica: MakeReplica, source: Database
) -> None:
    here = "CREATE TABLE t (id int PRIMARY KEY, n int, doubled int, number int)"
    there = """
        CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int,
                        doubled int GENERATED ALWAYS AS (n * 2) STORED, number int GENERATED ALWAYS AS IDENTITY,
                        own text DEFAULT 'ours');
    """
    replica = await make_replica(here, there, follows=False)
    source.execute("INSERT INTO t SELECT n, n, n * 2, n + 100 FROM generate_series(1, 6) n")
    await replica.deliver()
    source.execute("UPDATE t SET n = 50, doubled = 100 WHERE id = 1")
    source.execute("INSERT INTO t VALUES (7, 7, 14, 7)")
    assert not (await replica.deliver()).was_strict
    replica.target.execute("UPDATE t SET own = 'precious' WHERE id IN (2, 3)")
    source.execute("UPDATE t SET number = 9, n = 8, doubled = 16 WHERE id = 2; UPDATE t SET id = 30 WHERE id = 3")
    source.execute("DELETE FROM t WHERE id = 4")
    await replica.deliver()
    assert replica.target.fetch("SELECT own FROM t ORDER BY id") == [
        (own,) for own in ("ours", "precious", "ours", "ours", "ours", "precious")
    ]


async def test_extra_target_columns_keep_their_values(make_replica: MakeReplica, source: Database) -> None:
    here = "CREATE TABLE t (id int PRIMARY KEY, n int)"
    there = "CREATE TABLE t (own text DEFAULT 'default', id int PRIMARY KEY, n int)"
    replica = await make_replica(here, there)
    source.execute("INSERT INTO t SELECT n, n FROM generate_series(1, 4) n")
    await replica.deliver()
    replica.target.execute("UPDATE t SET own = 'note'")
    source.execute("UPDATE t SET n = 0 WHERE id = 1; UPDATE t SET id = 9 WHERE id = 2; INSERT INTO t VALUES (10, 10)")
    await replica.deliver()
    assert replica.target.fetch("SELECT id, own FROM t ORDER BY id") == [
        (1, "note"), (3, "note"), (4, "note"), (9, "note"), (10, "default")
    ]  # fmt: skip


async def test_an_owned_target_without_unique_index_and_with_other_types_is_kept_equal(
    make_replica: MakeReplica, source: Database
) -> None:
    here = """
        CREATE TYPE mood AS ENUM ('sad', 'happy');
        CREATE TABLE sendings (id bigint PRIMARY KEY, payload json, "createdAt" timestamptz, level numeric, m mood,
                               name varchar(20), secret text);
    """
    there = """
        CREATE SCHEMA maddo;
        CREATE TABLE maddo.sendings (created_at timestamptz, id int, payload jsonb, level smallint, mood text, name
        char(9));
    """
    columns = (
        ("id", "id"), ("payload", "payload"), ("createdAt", "created_at"), ("level", "level"), ("m", "mood"), ("name",
        "name")
    )  # fmt: skip
    route = Route("public", "sendings", "maddo", "sendings", columns)
    replica = await make_replica(here, there, routes=[route], follows=False)
    source.execute(
        "INSERT INTO sendings SELECT n, '{\"a\":1}', now(), n, 'sad', 'x', 'hidden' FROM generate_series(1, 9) n"
    )
    await replica.deliver(compare=False)
    source.execute("UPDATE sendings SET level = 77, m = 'happy' WHERE id <= 3; DELETE FROM sendings WHERE id = 4")
    source.execute(
        "UPDATE sendings SET id = 50 WHERE id = 5; INSERT INTO sendings VALUES (51, 'null', NULL, NULL, NULL)"
    )
    applied = await replica.deliver(compare=False)
    assert not applied.was_strict
    query = "SELECT id, payload::text, level::int, {mood}::text, trim(name) FROM {table} ORDER BY id"
    expected = source.fetch(query.format(mood="m", table="sendings").replace("payload::text", "payload::jsonb::text"))
    assert replica.target.fetch(query.format(mood="mood", table="maddo.sendings")) == expected


async def test_a_stream_of_text_values_is_applied(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica("CREATE TABLE t (id int PRIMARY KEY, n numeric, b bytea, a int[])", binary=False)
    source.execute("INSERT INTO t VALUES (1, 1.50, '\\x01', '{1,2}'), (2, NULL, NULL, NULL)")
    await replica.deliver()
    source.execute("UPDATE t SET n = 2 WHERE id = 2; UPDATE t SET id = 3 WHERE id = 1; INSERT INTO t VALUES (4, 4)")
    await replica.deliver()


async def test_a_table_that_is_looked_at_again_keeps_the_format_of_its_values(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica("CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE u (id int)", binary=False)
    source.execute("INSERT INTO t VALUES (1, 1); INSERT INTO u VALUES (1)")
    await replica.deliver()
    for change in ("INSERT INTO t VALUES (2, 2)", "UPDATE t SET n = 3 WHERE id = 2"):
        replica.applier.forget(Route("public", "t", "public", "t"))
        source.execute(change)
        await replica.deliver()


async def test_a_column_that_flips_back_asks_for_a_restart(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica("CREATE TABLE t (id int PRIMARY KEY)", binary=False)
    source.execute("INSERT INTO t VALUES (1)")
    await replica.deliver()
    replica.binary = True
    source.execute("INSERT INTO t VALUES (2)")
    with pytest.raises(ProtocolError, match="comes as text and as binary"):
        await replica.deliver()


async def test_only_the_forgotten_route_is_planned_again(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int)")
    source.execute("INSERT INTO t VALUES (1); INSERT INTO u VALUES (1)")
    await replica.deliver()
    t, u = replica.plans.values()
    replica.applier.forget(t.route)
    assert await replica.applier.plan(u.relation, u.route) is u
    assert await replica.applier.plan(t.relation, t.route) is not t


async def test_a_type_without_a_send_function_travels_as_text(make_replica: MakeReplica, source: Database) -> None:
    # aclitem has no send function on any version.
    replica = await make_replica("CREATE TABLE t (id int PRIMARY KEY, acl aclitem, n int)")
    source.execute("INSERT INTO t VALUES (1, '=r/postgres', 1), (2, NULL, 2)")
    await replica.deliver()
    source.execute("UPDATE t SET acl = '=w/postgres' WHERE id = 2; DELETE FROM t WHERE id = 1")
    await replica.deliver()


async def test_several_relations_fill_one_table(make_replica: MakeReplica, source: Database) -> None:
    here = """
        CREATE TABLE events (id int, day int, note text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (1) TO (2);
        CREATE TABLE events_2 (note text, day int NOT NULL, id int NOT NULL, PRIMARY KEY (id, day));
        ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM (2) TO (3);
    """
    there = "CREATE TABLE events (id int, day int, note text, PRIMARY KEY (id, day))"
    routes = [Route("public", leaf, "public", "events") for leaf in ("events_1", "events_2")]
    replica = await make_replica(here, there, routes=routes)
    source.execute("INSERT INTO events SELECT n, n % 2 + 1, 'n' FROM generate_series(1, 10) n")
    source.execute("UPDATE events SET day = 2 WHERE id = 2; UPDATE events SET note = 'moved' WHERE id IN (2, 3)")
    source.execute("UPDATE events SET day = 1 WHERE id = 2; DELETE FROM events WHERE id = 4")
    applied = await replica.deliver(compare=False)
    query = "SELECT id, day, note FROM events ORDER BY id"
    assert replica.target.fetch(query) == source.fetch(query)
    assert not applied.was_strict


async def test_parts_that_a_table_holds_already_are_skipped(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(PEOPLE + "CREATE TABLE others (id int PRIMARY KEY)")
    source.execute("INSERT INTO people VALUES (1)")
    source.execute("INSERT INTO people VALUES (2); INSERT INTO others VALUES (2)")
    first, second = await replica.record()
    applied = await replica.apply(
        [first, second], holds=lambda relation, part: relation.name == "people" and part is second
    )
    assert replica.target.fetch("SELECT id FROM people") == [(1,)]
    assert replica.target.fetch("SELECT id FROM others") == [(2,)]
    assert applied.tables["public.people"].inserted == 1


async def test_a_rolled_back_batch_is_applied_again_on_the_same_session(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(PEOPLE)
    source.execute("INSERT INTO people VALUES (1), (2); UPDATE people SET name = 'x' WHERE id = 1")
    parts = await replica.record()
    [relation] = parts[0].relations
    plans = {relation: await replica.applier.plan(relation, Route("public", "people", "public", "people"))}
    connection = replica.session.connection
    for end in ("ROLLBACK", "ROLLBACK", "COMMIT"):
        await connection.execute("BEGIN")
        await replica.applier.apply(parts, plans)
        await connection.execute(end)
    replica.assert_equal(relation)


async def test_a_large_transaction_arrives_in_parts(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(PEOPLE)
    replica.accumulator = type(replica.accumulator)(part_bytes=4000)
    source.execute(
        "BEGIN; INSERT INTO people SELECT n, 'name' FROM generate_series(1, 500) n;"
        "UPDATE people SET name = 'x' WHERE id < 99; DELETE FROM people WHERE id > 400; COMMIT"
    )
    parts = await replica.record()
    assert len(parts) > 3
    for relation in parts[0].relations:
        replica.plans[relation] = await replica.applier.plan(relation, Route("public", "people", "public", "people"))
    async with replica.session.connection.transaction():
        for part in parts:
            await replica.applier.apply([part], replica.plans)
    replica.assert_equal(next(iter(parts[0].relations)))


async def test_staging_tables_do_not_grow_for_ever(make_replica: MakeReplica, source: Database) -> None:
    replica = await make_replica(PEOPLE)
    source.execute("INSERT INTO people SELECT n, 'x' FROM generate_series(1, 2000) n")
    await replica.deliver()
    for _ in range(12):
        source.execute("UPDATE people SET name = repeat('y', 50)")
        await replica.deliver()
    size = await replica.session.connection.fetchval("SELECT pg_relation_size('pg_temp.cdc_stage_1')")
    assert 0 < size < 2 * 1024 * 1024
