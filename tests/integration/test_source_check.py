"""What `cdc check` finds at a real source, and that what it offers mends it."""

from __future__ import annotations

from collections.abc import Collection
from uuid import uuid4

import pytest
from pydantic import SecretStr

from cdc.config import SourceConfig
from cdc.observe.finding import Finding, Severity
from cdc.source import heartbeat, publication
from cdc.source.catalog import read_tables
from cdc.source.check import check
from cdc.source.connection import connect
from cdc.source.replication import ReplicationConnection
from tests.conftest import MakeRole, MakeServer
from tests.database import Database
from tests.servers import needs

ROUTED = ["public.t"]


@pytest.fixture
def config(source: Database) -> SourceConfig:
    source.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    return SourceConfig(dsn=SecretStr(source.dsn), slot=f"slot_{uuid4().hex[:12]}")


async def find(config: SourceConfig, subject: str, routed: Collection[str] = ROUTED) -> Finding:
    """The one finding about ``subject``."""
    findings = await check(config, pipeline="cdc", routed=routed)
    (found,) = [finding for finding in findings if finding.subject == subject]
    assert found.where == "source"
    return found


async def set_up(config: SourceConfig, routed: Collection[str] = ROUTED) -> None:
    async with await connect(config.dsn.get_secret_value(), application_name="cdc") as connection:
        await heartbeat.ensure(connection, "cdc")
        await publication.ensure(connection, config.publication, await read_tables(connection, routed))


async def test_a_source_that_can_be_set_up_has_no_error(config: SourceConfig) -> None:
    findings = await check(config, pipeline="cdc", routed=ROUTED)
    assert not [finding for finding in findings if finding.stops]
    assert {"connection", "replication connection", "wal_level", "tables"} <= {
        finding.subject for finding in findings if finding.severity is Severity.OK
    }


async def test_a_source_that_is_set_up_is_in_order(source: Database, config: SourceConfig) -> None:
    await set_up(config)
    source.create_slot(config.slot)
    findings = {finding.subject: finding for finding in await check(config, pipeline="cdc", routed=ROUTED)}
    for subject in ("heartbeat", "publication cdc", f"slot {config.slot}", "wal_sender_timeout"):
        assert findings[subject].severity is Severity.OK
    assert "keeps" in findings[f"slot {config.slot}"].message


async def test_what_setup_makes_is_an_error_only_once_the_slot_exists(source: Database, config: SourceConfig) -> None:
    assert (await find(config, "publication cdc")).severity is Severity.WARNING
    source.create_slot(config.slot)
    assert (await find(config, "publication cdc")).severity is Severity.ERROR
    assert (await find(config, "heartbeat")).mend == "cdc setup"


async def test_a_source_that_cannot_be_reached_is_one_finding(config: SourceConfig, unused_tcp_port: int) -> None:
    away = config.model_copy(update={"dsn": SecretStr(f"postgresql://cdc:secret@127.0.0.1:{unused_tcp_port}/x")})
    (found,) = await check(away, pipeline="cdc", routed=ROUTED)
    assert found.stops
    assert "nothing listens there" in found.message
    assert "secret" not in found.message


async def test_a_role_without_rights_gets_the_sql_for_each(
    source: Database, config: SourceConfig, make_role: MakeRole
) -> None:
    role = make_role("LOGIN")
    source.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    config = config.model_copy(update={"dsn": SecretStr(source.dsn_as(role))})
    for subject in ("replication connection", "heartbeat", "table public.t", "publication cdc"):
        findings = await check(config, pipeline="cdc", routed=ROUTED)
        broken = [finding for finding in findings if finding.subject == subject and finding.stops]
        assert broken, subject
        assert broken[0].mend, subject
        source.execute(broken[0].mend)
    assert not [finding for finding in await check(config, pipeline="cdc", routed=ROUTED) if finding.stops]


async def test_wal_level_and_capacity_say_what_to_set(own_server: MakeServer) -> None:
    server = own_server(wal_level="replica", max_replication_slots=1, max_wal_senders=1)
    config = SourceConfig(dsn=SecretStr(server.dsn()))
    assert "ALTER SYSTEM SET wal_level = 'logical'" in ((await find(config, "wal_level", [])).mend or "")
    async with await connect(server.dsn(), application_name="cdc") as connection:
        await connection.execute("SELECT pg_create_physical_replication_slot('other')")
    async with await ReplicationConnection.open(server.dsn(), "other"):
        findings = {finding.subject: finding for finding in await check(config, pipeline="cdc", routed=[])}
    assert findings["max_replication_slots"].stops
    assert findings["replication connection"].stops
    assert "max_wal_senders" in findings["replication connection"].message


async def test_hazard_02_an_unprotected_disk_is_a_warning(own_server: MakeServer) -> None:
    server = own_server(max_slot_wal_keep_size=-1, wal_sender_timeout=0)
    config = SourceConfig(dsn=SecretStr(server.dsn()))
    for subject in ("max_slot_wal_keep_size", "wal_sender_timeout"):
        found = await find(config, subject, [])
        assert found.severity is Severity.WARNING
        async with await connect(server.dsn(), application_name="cdc") as connection:
            for statement in (found.mend or "").split(";"):
                await connection.execute(statement.encode())
    found = await find(config, "max_slot_wal_keep_size", [])
    assert (found.severity, "50GB" in found.message) == (Severity.OK, True)


@pytest.mark.parametrize(
    ("ddl", "mend"),
    [
        ("CREATE TABLE public.k (id int NOT NULL UNIQUE)", "REPLICA IDENTITY USING INDEX"),
        ("CREATE TABLE public.k (id int)", "REPLICA IDENTITY FULL"),
        ("CREATE TABLE public.k (id int PRIMARY KEY DEFERRABLE)", "REPLICA IDENTITY FULL"),
        (
            "CREATE TABLE public.k (id int PRIMARY KEY); ALTER TABLE public.k REPLICA IDENTITY NOTHING",
            "REPLICA IDENTITY DEFAULT",
        ),
    ],
)
async def test_hazard_01_a_table_without_identity_gets_the_sql_that_gives_it_one(
    source: Database, config: SourceConfig, ddl: str, mend: str
) -> None:
    source.execute(ddl)
    found = await find(config, "table public.k", ["public.k"])
    assert found.severity is Severity.WARNING
    assert "updates and deletes do not reach any target" in found.message
    assert mend in (found.mend or "")
    source.execute(found.mend or "")
    assert (await find(config, "tables", ["public.k"])).severity is Severity.OK


@pytest.mark.parametrize("key", ["", ", PRIMARY KEY (id) DEFERRABLE"])
async def test_a_table_that_is_full_already_is_not_told_to_become_it(
    source: Database, config: SourceConfig, key: str
) -> None:
    needs(source, 18, "the refusal to publish updates of FULL with generated columns")
    columns = f"(id int, twice int GENERATED ALWAYS AS (id * 2) STORED{key})"
    source.execute(f"CREATE TABLE public.g {columns}; CREATE TABLE public.p {columns} PARTITION BY RANGE (id)")
    source.execute("CREATE TABLE public.l PARTITION OF public.p FOR VALUES FROM (0) TO (9)")

    async def warnings(table: str) -> list[Finding]:
        findings = await check(config, pipeline="cdc", routed=[f"public.{table}"])
        return [one for one in findings if one.subject == f"table public.{table}" and one.severity is Severity.WARNING]

    if not key:
        (found,) = await warnings("g")
        assert (found.mend or "").startswith(
            'ALTER TABLE "public"."g" ADD PRIMARY KEY (…);  -- or, before PostgreSQL 18'
        )
    source.execute("ALTER TABLE g REPLICA IDENTITY FULL; ALTER TABLE l REPLICA IDENTITY FULL")
    for table in ("g", "p"):
        found, *_ = await warnings(table)
        assert "updates and deletes do not reach any target" in found.message
        assert "REPLICA IDENTITY FULL" not in (found.mend or "")
        if key:
            assert "make the primary key not deferrable" in (found.mend or "")
            source.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey, ADD PRIMARY KEY (id)")
        source.execute((found.mend or "").replace("(…)", "(id)"))
        assert await warnings(table) == []


async def test_columns_that_the_source_computes_itself_are_named(source: Database, config: SourceConfig) -> None:
    source.execute("CREATE TABLE computed (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)")
    found = await find(config, "table public.computed", ["public.computed"])
    assert found.severity is Severity.INFO
    assert "twice" in found.message


async def test_tables_that_cannot_be_replicated_are_errors(source: Database, config: SourceConfig) -> None:
    source.execute(
        "CREATE UNLOGGED TABLE public.u (id int); CREATE TABLE public.p (id int) PARTITION BY RANGE (id);"
        "CREATE UNLOGGED TABLE public.p_1 PARTITION OF public.p FOR VALUES FROM (0) TO (9)"
    )
    assert (await find(config, "table public.u", ["public.u"])).mend == 'ALTER TABLE "public"."u" SET LOGGED;'
    assert (await find(config, "table public.p", ["public.p"])).stops
    assert "does not exist" in (await find(config, "table public.missing", ["public.missing"])).message


async def test_a_slot_that_is_in_use_or_of_another_kind_says_so(source: Database, config: SourceConfig) -> None:
    await set_up(config)
    assert (await find(config, f"slot {config.slot}")).mend == "cdc bootstrap --from live"
    source.execute("SELECT pg_create_physical_replication_slot(%s)", config.slot)
    try:
        assert "not ours" in (await find(config, f"slot {config.slot}")).message
    finally:
        source.execute("SELECT pg_drop_replication_slot(%s)", config.slot)
    source.create_slot(config.slot)
    async with await ReplicationConnection.open(source.dsn, config.slot) as walsender:
        await walsender.start(config.slot, config.publication_names)
        assert "in use by process" in (await find(config, f"slot {config.slot}")).message


async def test_publications_of_somebody_else_are_judged_not_changed(source: Database, config: SourceConfig) -> None:
    config = SourceConfig(dsn=config.dsn, slot=config.slot, manage_publications=False, publications=("theirs",))
    source.execute("CREATE TABLE public.keyless (id int); CREATE TABLE public.missing (id int PRIMARY KEY)")
    routed = ["public.t", "public.keyless", "public.missing"]
    assert (await find(config, "publication theirs", routed)).stops
    source.execute("CREATE PUBLICATION theirs FOR TABLE public.t, public.keyless WITH (publish = 'insert, update')")
    findings = await check(config, pipeline="cdc", routed=routed)
    about = {(finding.subject, finding.severity): finding for finding in findings}
    assert "delete, truncate" in about["table public.t", Severity.WARNING].message
    assert "UPDATE and DELETE of it fail" in about["table public.keyless", Severity.ERROR].message
    assert (
        about["table public.missing", Severity.ERROR].mend == 'ALTER PUBLICATION "theirs" ADD TABLE "public"."missing";'
    )
