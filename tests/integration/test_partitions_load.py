"""A partitioned table before it streams: what is published, its copy from the live source, what `cdc check` says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cdc.bootstrap.backup import BackupChoice
from cdc.bootstrap.progress import Silence
from cdc.config import Config
from cdc.errors import SetupError
from cdc.observe.finding import Severity
from cdc.routing.route import Route
from cdc.service import checkup, loading, provision, resync_plan
from cdc.source import publication
from cdc.source.catalog import read_tables
from cdc.source.connection import connect
from tests.backup import backup_config, bootstrap_settings
from tests.bootstrap import OnBegin, follow, make_config, rows, set_up, states, until
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.resync import Replicated
from tests.scalingo import StandIn

ROOT = """
    CREATE TABLE orders (id int, region text, total numeric, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE orders_eu PARTITION OF orders FOR VALUES IN ('fr', 'de');
    CREATE TABLE orders_as (total numeric, region text NOT NULL, id int NOT NULL, PRIMARY KEY (id, region));
    ALTER TABLE orders ATTACH PARTITION orders_as FOR VALUES IN ('jp') ;
    CREATE TABLE orders_us PARTITION OF orders FOR VALUES IN ('us') PARTITION BY RANGE (id);
    CREATE TABLE orders_us_1 PARTITION OF orders_us FOR VALUES FROM (0) TO (500);
    CREATE TABLE orders_us_2 PARTITION OF orders_us DEFAULT;
    CREATE INDEX orders_total ON orders (total);
    ALTER TABLE orders ADD CONSTRAINT positive CHECK (total > 0);
    CREATE TABLE lines (id int PRIMARY KEY, order_id int, region text,
                        FOREIGN KEY (order_id, region) REFERENCES orders (id, region));
    INSERT INTO orders SELECT n, r, n + 1 FROM generate_series(1, 1000) n, unnest('{fr,de,jp,us}'::text[]) r;
    INSERT INTO lines SELECT n, n, 'jp' FROM generate_series(1, 10) n;
"""


async def load(config: Config, progress: Silence | None = None) -> None:
    await loading.bootstrap(config, jobs=2, progress=progress or Silence(), range_bytes=16 * 1024)


async def test_it_is_copied_into_one_table_of_each_target(source: Database, make_target: MakeDatabase) -> None:
    source.execute(ROOT)
    warehouse, listed, owned = make_target("warehouse"), make_target("listed"), make_target("owned")
    owned.execute(
        'CREATE TABLE "Bestellungen" (land text, nummer bigint) PARTITION BY HASH (nummer);'
        'CREATE TABLE b0 PARTITION OF "Bestellungen" FOR VALUES WITH (MODULUS 2, REMAINDER 0);'
        'CREATE TABLE b1 PARTITION OF "Bestellungen" FOR VALUES WITH (MODULUS 2, REMAINDER 1);'
    )
    named = {"to": "public.Bestellungen", "columns": {"id": "nummer", "region": "land"}}
    config = make_config(
        source,
        {
            "warehouse": follow(warehouse),
            "listed": {"dsn": listed.dsn, "columns": "listed", "tables": {"public.orders": ["id", "region"]}},
            "owned": {"dsn": owned.dsn, "schema": "owned", "tables": {"public.orders": named}},
        },
    )
    bootstrap = config.bootstrap.model_copy(update={"foreign_keys": True})
    config = config.model_copy(update={"bootstrap": bootstrap})
    await set_up(config)
    await load(config)
    assert set(states(warehouse)) == {"public.orders", "public.lines"}
    assert rows(warehouse, "orders") == rows(source, "orders")
    assert rows(listed, "orders") == rows(source, "orders", "id, region")
    assert rows(owned, '"Bestellungen"', "land, nummer") == rows(source, "orders", "region, id")
    defined = (
        "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype IN ('c', 'f', 'p') ORDER BY 1"
    )
    constraints = dict(warehouse.fetch(defined.replace("WHERE", "WHERE connamespace = 'public'::regnamespace AND")))
    assert {"positive", "orders_pkey", "lines_order_id_region_fkey"} <= constraints.keys()
    assert warehouse.fetchval("SELECT count(*) FROM pg_indexes WHERE indexname = 'orders_total'") == 1
    findings = [one for one in await checkup.check(config) if one.severity is Severity.ERROR]
    assert findings == []


async def test_a_bound_goes_nowhere_where_its_columns_do_not(source: Database, make_target: MakeDatabase) -> None:
    """Invariant 7: what a column that is not listed holds is in the bounds of its partitions, too."""
    source.execute(
        "CREATE TABLE t (id int, customer text, v text) PARTITION BY LIST (customer);"
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES IN ('ACME'); CREATE TABLE t_2 PARTITION OF t FOR VALUES IN ('b');"
        "ALTER TABLE t_1 REPLICA IDENTITY FULL; ALTER TABLE t_2 REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 'ACME')"
    )
    without, whole = make_target("without"), make_target("whole")
    listed = {"columns": "listed", "tables": {"public.t": ["id", "v"]}}
    config = make_config(source, {"without": {"dsn": without.dsn, **listed}, "whole": follow(whole)})
    await set_up(config)
    await load(config)
    recorded = "SELECT partitions::text FROM cdc.target_table"
    assert "t_1" in without.fetchval(recorded)
    assert "ACME" not in without.fetchval(recorded)
    assert "ACME" in whole.fetchval(recorded)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE orders_uk AS SELECT 1 AS id, 'uk'::text AS region, 2::numeric AS total;"
        "ALTER TABLE orders_uk ALTER id SET NOT NULL, ALTER region SET NOT NULL,"
        " ADD CONSTRAINT positive CHECK (total > 0);"
        "ALTER TABLE orders ATTACH PARTITION orders_uk FOR VALUES IN ('uk')",
        "ALTER TABLE orders DETACH PARTITION orders_eu; INSERT INTO orders_eu VALUES (5000, 'fr', 1)",
        "ALTER TABLE lines DROP CONSTRAINT lines_order_id_region_fkey; TRUNCATE orders_us_1",
        "ALTER TABLE orders ALTER COLUMN total TYPE numeric(20, 2)",
    ],
    ids=["attach", "detach", "truncate", "rewrite"],
)
async def test_partitions_that_change_after_the_snapshot_are_copied_from_another(
    source: Database, make_target: MakeDatabase, statement: str
) -> None:
    source.execute(ROOT)
    target = make_target()
    config = make_config(source, {"warehouse": follow(target, "public.orders")})
    await set_up(config)
    progress = OnBegin(lambda: source.execute(statement))
    await load(config, progress)
    assert any("its partitions are others" in said for said in progress.said)
    assert rows(target, "orders") == rows(source, "orders")


async def test_writers_while_it_is_copied_and_afterwards(source: Database, make_target: MakeDatabase) -> None:
    source.execute(ROOT)
    replicated = Replicated(source, make_target())
    replicated.settings["worker"]["partition_interval_s"] = 0.1
    writes = iter(
        f"UPDATE orders SET total = total + 1 WHERE id % 10 = {n % 10};"
        f"INSERT INTO orders VALUES ({2000 + n}, 'us', 1);"
        f"UPDATE orders SET region = 'de' WHERE region = 'jp' AND id BETWEEN 3000 AND {3000 + n};"
        f"INSERT INTO orders VALUES ({3000 + n}, 'jp', 1); DELETE FROM orders WHERE region = 'fr' AND id = {n}"
        for n in range(1, 1000)
    )

    async def write() -> None:
        while True:
            await asyncio.to_thread(source.execute, next(writes))

    await provision.setup(replicated.config, lambda _: None)
    writing = asyncio.create_task(write())
    await load(replicated.config)
    async with replicated.worker():
        await asyncio.sleep(0.5)
        writing.cancel()
        await asyncio.wait([writing])
        await replicated.assert_equal("orders")


async def test_a_partition_without_an_identity_never_makes_the_application_fail(source: Database) -> None:
    """Hazard 1, for partitions of today and of tomorrow."""
    source.execute(
        "CREATE TABLE safe (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE safe_1 PARTITION OF safe FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE mixed (id int) PARTITION BY RANGE (id);"
        "CREATE TABLE mixed_1 PARTITION OF mixed FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE mixed_2 PARTITION OF mixed FOR VALUES FROM (10) TO (20);"
        "ALTER TABLE mixed_1 REPLICA IDENTITY FULL;"
        "CREATE TABLE unlogged (id int) PARTITION BY RANGE (id);"
        "CREATE UNLOGGED TABLE unlogged_1 PARTITION OF unlogged FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE computed (id int, g int GENERATED ALWAYS AS (id / 10) STORED NOT NULL) PARTITION BY RANGE (id);"
        "CREATE TABLE computed_1 PARTITION OF computed FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE computed_2 PARTITION OF computed FOR VALUES FROM (10) TO (20);"
        # A key that is not sent identifies nothing; and PostgreSQL 18 publishes no updates of all columns but some.
        "ALTER TABLE computed_1 ADD PRIMARY KEY (id, g); ALTER TABLE computed_2 REPLICA IDENTITY FULL"
    )
    names = ["public.safe", "public.mixed", "public.unlogged", "public.computed"]

    async def ensure() -> list[str]:
        async with await connect(source.dsn, application_name="tests") as connection:
            return await publication.ensure(connection, "p", await read_tables(connection, names))

    await ensure()
    assert await ensure() == []
    members = source.fetch(
        "SELECT pubname, relname FROM pg_publication_rel JOIN pg_publication p ON p.oid = prpubid"
        " JOIN pg_class c ON c.oid = prrelid ORDER BY 1, 2"
    )
    is_whole = int(source.fetchval("SELECT current_setting('server_version_num')")) < 180000
    assert [name for name in members if name != ("p", "computed_2")] == [
        ("p", "mixed_1"),
        ("p", "safe"),
        ("p_insert_only", "computed"),
        ("p_insert_only", "mixed"),
    ]
    assert (("p", "computed_2") in members) == is_whole
    source.execute(
        "CREATE TABLE safe_2 PARTITION OF safe FOR VALUES FROM (10) TO (20);"
        "CREATE TABLE mixed_3 PARTITION OF mixed FOR VALUES FROM (20) TO (30)"
    )
    for table in ("safe", "mixed", "computed"):
        source.execute(f"INSERT INTO {table} VALUES (1), (11); UPDATE {table} SET id = id + 1; DELETE FROM {table}")
    source.execute("INSERT INTO mixed VALUES (21); UPDATE mixed SET id = 22; DELETE FROM mixed")
    published = dict(
        source.fetch("SELECT tablename, count(*) FROM pg_publication_tables WHERE tablename !~ 'computed' GROUP BY 1")
    )
    assert published == {"safe_1": 1, "safe_2": 1, "mixed_1": 2, "mixed_2": 1, "mixed_3": 1}


async def findings(config: Config) -> dict[str, tuple[str, str]]:
    return {one.message: (one.severity.value, one.subject) for one in await checkup.check(config)}


async def test_what_check_says_of_partitions(source: Database, make_target: MakeDatabase) -> None:
    source.execute(
        "CREATE TABLE t (id int, k int) PARTITION BY RANGE (k);"
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10); ALTER TABLE t_1 ADD PRIMARY KEY (id);"
        "CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (10) TO (20);"
        "CREATE TABLE u (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE UNLOGGED TABLE u_1 PARTITION OF u FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE w (id int) PARTITION BY RANGE (id);"
        "CREATE TABLE w_1 PARTITION OF w FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);"
        "CREATE TABLE w_11 PARTITION OF w_1 FOR VALUES FROM (0) TO (10); ALTER TABLE w_11 REPLICA IDENTITY FULL;"
        "CREATE TABLE x (id int, a int, b int) PARTITION BY RANGE ((a + b), a);"
        "CREATE TABLE x_1 PARTITION OF x (PRIMARY KEY (b, id, a)) DEFAULT;"
    )
    named: dict[str, dict[str, str]] = {"public.t": {}, "public.u": {}, "public.w": {}}
    config = make_config(source, {"warehouse": {"dsn": make_target().dsn, "tables": named}})
    said = await findings(config)

    def of(part: str) -> tuple[str, str]:
        return next(what for message, what in said.items() if part in message)

    assert of("its partition public.t_2 has no usable replica identity") == ("warning", "table public.t")
    assert of("the key of its partition public.t_1 (id) lacks columns") == ("error", "table public.t")
    assert of("in the WAL (unlogged or foreign: public.u_1); it cannot be replicated") == ("error", "table public.u")
    assert of("has no primary key that new partitions get") == ("warning", "table public.w")
    assert not any("w_1" in message for message in said)
    config = make_config(source, {"warehouse": {"dsn": make_target().dsn, "tables": {"public.t": {}}}})
    await set_up(config)
    with pytest.raises(
        SetupError, match=r"^public.t: the key of its partition public.t_1 \(id\) lacks columns"
    ) as refused:
        await load(config)
    assert refused.value.sql == 'ALTER TABLE "public"."t_1" REPLICA IDENTITY FULL;'
    async with await connect(source.dsn, application_name="tests") as connection:
        with pytest.raises(SetupError, match="a target cannot tell them apart"):  # of cdc resync
            await resync_plan.read_source(connection, config, "warehouse", Route("public", "t", "public", "t"))
        (by_expression,) = await read_tables(connection, ["public.x"])
    assert [leaf.parts for leaf in by_expression.leaves] == [("a", "b")]
    by_expression.refuse_alike()  # all columns of the expression are in the key
    config = make_config(source, {"warehouse": {"dsn": make_target().dsn, "tables": {"public.w_1": {}}}})
    assert any(
        "is a partition of public.w that has partitions itself; name public.w" in one for one in await findings(config)
    )


async def test_a_publication_of_somebody_else_that_sends_the_root(source: Database, make_target: MakeDatabase) -> None:
    source.execute(ROOT.replace("INSERT INTO lines", "DROP TABLE lines; -- "))
    source.execute("CREATE PUBLICATION theirs FOR TABLE orders WITH (publish_via_partition_root = true)")
    replicated = Replicated(source, make_target())
    replicated.settings["source"] |= {"manage_publications": False, "publications": ["theirs"]}
    replicated.settings["worker"]["partition_interval_s"] = 0.1
    await replicated.load()
    assert any("a TRUNCATE of a single partition reaches no target" in one for one in await findings(replicated.config))
    async with replicated.worker():
        source.execute(
            "UPDATE orders SET total = 1 WHERE id < 9;"
            "UPDATE orders SET region = 'de', id = id + 5000 WHERE region = 'us'"
        )
        source.execute(
            "BEGIN; TRUNCATE orders; INSERT INTO orders VALUES (1, 'us', 1), (2, 'jp', 1), (2, 'de', 2); COMMIT"
        )
        await replicated.assert_equal("orders")
        source.execute("ALTER TABLE orders DETACH PARTITION orders_as")
        await until(lambda: replicated.rows(replicated.target, "orders") == replicated.rows(source, "orders"))


async def test_beside_a_backup_it_is_copied_live(
    source: Database, make_target: MakeDatabase, scalingo: StandIn, tmp_path: Path
) -> None:
    source.execute(ROOT)
    target = make_target()
    scalingo.add_database(source.dsn)
    settings = bootstrap_settings(scalingo)
    config = backup_config(source, {"internal": follow(target)}, **settings, directory=str(tmp_path))
    await set_up(config)
    progress = OnBegin(lambda: source.execute("UPDATE orders SET total = total + 1 WHERE id < 9; TRUNCATE lines"))
    await loading.bootstrap(config, from_backup=BackupChoice(), progress=progress)
    assert any("public.orders is copied from the live source: it is partitioned" in said for said in progress.said)
    assert rows(target, "orders") == rows(source, "orders")
    assert {name: state for name, (state, _) in states(target).items()} == {
        "public.orders": "streaming",
        "public.lines": "streaming",
    }
    assert target.fetchval("SELECT count(*) FROM cdc.target_table, jsonb_object_keys(partitions)") == 4
