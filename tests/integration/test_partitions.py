"""A partitioned table of the source, leaf by leaf into one table of a target: rows, keys, TRUNCATE."""

from __future__ import annotations

import contextlib

import psycopg
import pytest

from cdc.errors import BatchRejected, ReadAgain
from cdc.routing.route import Route
from cdc.source.connection import connect
from cdc.source.partitions import read_leaves
from tests.database import Database
from tests.integration.replica import MakeReplica, Replica, make_replica  # noqa: F401  (a fixture)

ROOT = """
    CREATE TABLE events (id int8, "at" date, kind text, payload text, PRIMARY KEY (id, "at", kind))
        PARTITION BY RANGE ("at");
    CREATE TABLE events_2023 PARTITION OF events FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
    -- Its columns stand in another order, behind one that was dropped.
    CREATE TABLE events_2024 (gone int, payload text, kind text, "at" date NOT NULL, id int8 NOT NULL,
                              PRIMARY KEY (id, "at", kind));
    ALTER TABLE events_2024 DROP COLUMN gone;
    ALTER TABLE events ATTACH PARTITION events_2024 FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
    CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')
        PARTITION BY LIST (kind);
    CREATE TABLE events_2025_a PARTITION OF events_2025 FOR VALUES IN ('a');
    CREATE TABLE events_2025_b PARTITION OF events_2025 FOR VALUES IN ('b', 'c');
    CREATE TABLE events_rest PARTITION OF events DEFAULT;
"""
PLAIN = 'CREATE TABLE events (id int8, "at" date, kind text, payload text, PRIMARY KEY (id, "at", kind));'
BY_HASH = (
    'CREATE TABLE events (payload text, id int8, "at" date, kind text, PRIMARY KEY (id, "at", kind)) '
    "PARTITION BY HASH (id);"
    "CREATE TABLE events_0 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
    "CREATE TABLE events_1 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
)
OTHER_NAMES = (
    'CREATE TABLE "event log" (number int8, "on" date, kind text, "at" text DEFAULT \'ours\', '
    'PRIMARY KEY (number, "on", kind));'
)
RENAMED = Route("public", "events", "public", "event log", (("id", "number"), ("at", "on"), ("kind", "kind")))
FILL = """
    INSERT INTO events
    SELECT n, d, k, repeat(k, 10)
      FROM generate_series(1, 3) n,
           unnest('{2022-05-05,2023-02-03,2024-02-29,2025-07-01}'::date[]) d,
           unnest('{a,b,c}'::text[]) k
"""


@pytest.fixture(params=["plain", "partitioned alike", "by hash", "other names"])
async def replica(request: pytest.FixtureRequest, make_replica: MakeReplica) -> Replica:  # noqa: F811
    """A filled root at the source, and a target's table of another shape each time, with the same rows."""
    there = {"plain": PLAIN, "partitioned alike": ROOT, "by hash": BY_HASH, "other names": OTHER_NAMES}
    routes = [RENAMED] if request.param == "other names" else []
    made: Replica = await make_replica(ROOT, there[request.param], routes=routes, follows=not routes)
    made.source.execute(FILL)
    await made.deliver()
    return made


async def test_rows_of_all_leaves_reach_one_table_and_move_between_leaves(replica: Replica) -> None:
    source = replica.source
    source.execute("UPDATE events SET payload = 'new' WHERE id = 1")
    # From leaf to leaf, there and back, in one transaction with other changes of the same rows.
    source.execute(
        "BEGIN; UPDATE events SET \"at\" = '2023-12-31' WHERE id = 2 AND \"at\" = '2024-02-29';"
        "UPDATE events SET kind = 'z' WHERE id = 2 AND \"at\" = '2023-12-31' AND kind = 'a';"
        "UPDATE events SET \"at\" = '2024-02-29' WHERE id = 2 AND \"at\" = '2023-12-31' AND kind = 'b';"
        "DELETE FROM events WHERE id = 3 AND kind = 'c'; INSERT INTO events VALUES (3, '2025-07-01', 'c', 'again');"
        "UPDATE events SET kind = 'b' WHERE id = 1 AND \"at\" = '2025-07-01' AND kind = 'c' AND false; COMMIT"
    )
    source.execute(
        "UPDATE events SET kind = 'd', \"at\" = '2030-01-01' WHERE id = 3 AND kind = 'b' AND \"at\" = '2025-07-01'"
    )
    applied = await replica.deliver()
    assert set(applied.tables) == {"public.events"}
    assert not applied.was_strict


async def test_what_a_truncate_of_leaves_emptied_is_gone_and_nothing_else(replica: Replica) -> None:
    source = replica.source
    source.execute("BEGIN; INSERT INTO events VALUES (9, '2024-01-01', 'a', 'x'); TRUNCATE events_2024; COMMIT")
    source.execute("INSERT INTO events VALUES (9, '2024-01-02', 'a', 'x')")
    await replica.deliver()
    source.execute("TRUNCATE events_2025_b, events_2023")
    await replica.deliver()
    assert replica.target.fetchval(f"SELECT count(*) FROM {_table(replica)}") == 3 * 3 + 1 + 3
    source.execute(FILL + " ON CONFLICT DO NOTHING")
    await replica.deliver()
    source.execute("TRUNCATE events_2025")
    await replica.deliver()
    assert replica.target.fetchval(f"SELECT count(*) FROM {_table(replica)}") == 3 * 9 + 1


async def test_a_truncate_of_the_root_empties_the_table(replica: Replica) -> None:
    replica.target.execute(f"ALTER TABLE {_table(replica)} ADD COLUMN IF NOT EXISTS truncated int")
    replica.source.execute("BEGIN; TRUNCATE events; INSERT INTO events VALUES (1, '2024-01-01', 'a', 'x'); COMMIT")
    await replica.deliver()
    assert replica.target.fetchval(f"SELECT count(*) FROM {_table(replica)}") == 1


async def test_a_leaf_whose_rows_no_condition_tells_is_read_again(replica: Replica) -> None:
    # What a default partition holds depends on which other partitions there are at the time.
    replica.source.execute("TRUNCATE events_rest")
    with pytest.raises(ReadAgain) as stopped:
        await replica.deliver()
    assert stopped.value.source_table == "public.events"
    assert "2022" not in str(stopped.value)


def _table(replica: Replica) -> str:
    return '"event log"' if replica.routes else "events"


async def test_a_truncate_of_a_leaf_of_before_later_partitions_spares_their_rows(make_replica: MakeReplica) -> None:  # noqa: F811
    """The stream is behind the catalog: the leaf was truncated before its sibling was there (hazard 15)."""
    replica = await make_replica(ROOT, PLAIN)
    source = replica.source
    source.execute(FILL)
    source.execute("TRUNCATE events_2023, events_2024, events_2025, events_rest")
    source.execute("CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')")
    source.execute("INSERT INTO events VALUES (1, '2026-05-05', 'a', 'stays')")
    with pytest.raises(ReadAgain):
        await replica.deliver()


async def test_lists_that_another_server_reads_otherwise_tell_no_rows(source: Database) -> None:
    """By an expression, whose function need not be there, or by a collation that has other texts equal."""
    source.execute(
        "CREATE TABLE plain (k text) PARTITION BY LIST (k);"
        "CREATE TABLE plain_a PARTITION OF plain FOR VALUES IN ('a');"
        "CREATE TABLE computed (k text) PARTITION BY LIST (lower(k));"
        "CREATE TABLE computed_a PARTITION OF computed FOR VALUES IN ('a');"
    )
    roots = ["plain", "computed"]
    with contextlib.suppress(psycopg.errors.FeatureNotSupported):  # a server without ICU
        source.execute("CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
        roots.append("loose")
        source.execute(
            "CREATE TABLE loose (k text COLLATE ci) PARTITION BY LIST (k);"
            "CREATE TABLE loose_a PARTITION OF loose FOR VALUES IN ('a')"
        )
    oids = {source.fetchval("SELECT %s::regclass::oid::int", name): name for name in roots}
    async with await connect(source.dsn, application_name="tests") as connection:
        found = await read_leaves(connection, oids)
    told = {oids[root]: leaf.bound is not None for root, (leaf,) in found.items()}
    assert told == {name: name == "plain" for name in roots}


async def test_hash_partitions(make_replica: MakeReplica) -> None:  # noqa: F811
    ddl = (
        "CREATE TABLE h (id int PRIMARY KEY, v text) PARTITION BY HASH (id);"
        "CREATE TABLE h0 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE h1 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        "CREATE TABLE g (id int PRIMARY KEY) PARTITION BY HASH (id);"
        "CREATE TABLE g0 PARTITION OF g FOR VALUES WITH (MODULUS 1, REMAINDER 0);"
    )
    replica = await make_replica(
        ddl, "CREATE TABLE h (id int PRIMARY KEY, v text); CREATE TABLE g (id int PRIMARY KEY)"
    )
    replica.source.execute("INSERT INTO h SELECT n, n FROM generate_series(1, 20) n; INSERT INTO g VALUES (1), (2)")
    replica.source.execute("UPDATE h SET id = id + 100 WHERE id > 10")
    await replica.deliver()
    replica.source.execute("TRUNCATE h, g RESTART IDENTITY; INSERT INTO h VALUES (1, 'x')")
    await replica.deliver()
    replica.source.execute("TRUNCATE h1")
    with pytest.raises(ReadAgain):
        await replica.deliver()


async def test_leaves_identify_their_rows_each_in_its_own_way(make_replica: MakeReplica) -> None:  # noqa: F811
    ddl = """
        CREATE TABLE e (id int NOT NULL, k int NOT NULL, v text, UNIQUE (id, k)) PARTITION BY LIST (k);
        CREATE TABLE e1 PARTITION OF e FOR VALUES IN (1);
        CREATE TABLE e2 PARTITION OF e FOR VALUES IN (2);
        CREATE TABLE e3 PARTITION OF e FOR VALUES IN (3);
        ALTER TABLE e1 REPLICA IDENTITY FULL;
        ALTER TABLE e2 REPLICA IDENTITY USING INDEX e2_id_k_key;
        ALTER TABLE e3 ADD PRIMARY KEY (id, k);
    """
    for there in (
        "CREATE TABLE e (id int, k int, v text, PRIMARY KEY (id, k))",
        "CREATE TABLE e (id int, k int, v text)",
        "CREATE TABLE e (id int, k int, v text) PARTITION BY LIST (k); CREATE TABLE e13 PARTITION OF e FOR VALUES IN "
        "(1, 3); CREATE TABLE e2 PARTITION OF e FOR VALUES IN (2)",
    ):
        replica = await make_replica(ddl, there)
        source = replica.source
        source.execute("INSERT INTO e SELECT n, k, 'v' FROM generate_series(1, 9) n, generate_series(1, 3) k")
        await replica.deliver()
        source.execute("UPDATE e SET v = v || id WHERE id < 5; DELETE FROM e WHERE id = 6")
        source.execute("UPDATE e SET k = k % 3 + 1, id = id + 100 WHERE id = 7; UPDATE e SET id = 20 WHERE id = 8")
        await replica.deliver()
        source.execute("DROP PUBLICATION everything; DROP TABLE e; SELECT pg_drop_replication_slot('recorded')")


async def test_a_partition_is_known_to_be_born_or_attached_on_every_version(make_replica: MakeReplica) -> None:  # noqa: F811
    replica = await make_replica("CREATE TABLE r (k int) PARTITION BY RANGE (k)", "CREATE TABLE r (k int)")
    source = replica.source
    attach = "ALTER TABLE r ATTACH PARTITION {0} FOR VALUES FROM ({1}0) TO ({1}9)"
    source.execute("CREATE TABLE born PARTITION OF r FOR VALUES FROM (0) TO (9)")
    source.execute(
        "BEGIN; CREATE TABLE born_filled PARTITION OF r FOR VALUES FROM (90) TO (99);INSERT INTO r VALUES (91); COMMIT"
    )
    source.execute("CREATE TABLE later (k int)")
    source.execute(attach.format("later", 1))
    source.execute(f"BEGIN; CREATE TABLE at_once AS SELECT 21 AS k; {attach.format('at_once', 2)}; COMMIT")
    source.execute(
        f"BEGIN; CREATE TABLE loaded (LIKE r); INSERT INTO loaded VALUES (31); {attach.format('loaded', 3)};COMMIT"
    )
    source.execute(
        "BEGIN; CREATE TABLE sub (k int) PARTITION BY LIST (k);"
        "CREATE TABLE below PARTITION OF sub FOR VALUES IN (41); INSERT INTO sub VALUES (41);"
        f"{attach.format('sub', 4)}; COMMIT"
    )
    source.execute("CREATE TABLE again PARTITION OF r FOR VALUES FROM (50) TO (59)")
    source.execute(f"ALTER TABLE r DETACH PARTITION again; {attach.format('again', 5)}")
    async with await connect(source.dsn, application_name="tests") as connection:
        (leaves,) = (await read_leaves(connection, [source.fetchval("SELECT 'r'::regclass::oid::int")])).values()
    assert {one.leaf.name for one in leaves if one.leaf.is_born} == {"born", "born_filled"}
    assert len(leaves) == 7


async def test_a_target_whose_key_is_wider_or_that_lacks_a_partition(make_replica: MakeReplica) -> None:  # noqa: F811
    replica = await make_replica(
        "CREATE TABLE t (id int PRIMARY KEY, k int, v text)",
        "CREATE TABLE t (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);"
        "CREATE TABLE t_0 PARTITION OF t FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (10) TO (20);",
    )
    source = replica.source
    source.execute("INSERT INTO t SELECT n, n, 'v' FROM generate_series(1, 15) n")
    await replica.deliver()
    source.execute("UPDATE t SET v = 'new' WHERE id < 9; DELETE FROM t WHERE id = 4; UPDATE t SET k = 19 WHERE id = 5")
    source.execute("UPDATE t SET id = id + 100, k = 20 - k WHERE id IN (6, 12); INSERT INTO t VALUES (4, 14, 'again')")
    await replica.deliver()
    source.execute("INSERT INTO t VALUES (50, 50, 'nowhere to go')")
    with pytest.raises(BatchRejected, match="has no partition of the target's table to go into"):
        await replica.deliver()
