"""`cdc setup` makes what replication needs and nothing twice; `cdc teardown` removes exactly that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import SecretStr

from cdc.config import Config, SourceConfig, TargetConfig
from cdc.errors import ConfigurationError, SetupError, SlotInUse, TargetUnavailable
from cdc.service import provision
from cdc.source.replication import ReplicationConnection
from tests.database import Database

SCHEMA = """
CREATE TABLE public.campaigns (id int PRIMARY KEY, name text, "organizationId" int);
CREATE TABLE public."certification-subscriptions" ("certificationCandidateId" int NOT NULL);
CREATE TABLE public.secrets (id int PRIMARY KEY, value text);
CREATE UNLOGGED TABLE public.cache (id int PRIMARY KEY);
"""

CATALOG = """
SELECT 'schema', nspname::text, NULL FROM pg_namespace WHERE nspname !~ '^pg_'
UNION ALL SELECT 'relation', oid::regclass::text, relkind::text FROM pg_class
           WHERE relnamespace::regnamespace::text !~ '^pg_'
UNION ALL SELECT 'publication', pubname::text, prrelid::regclass::text
            FROM pg_publication LEFT JOIN pg_publication_rel ON prpubid = pg_publication.oid
UNION ALL SELECT 'slot', slot_name::text, NULL FROM pg_replication_slots WHERE database = current_database()
UNION ALL SELECT 'function', proname::text, NULL FROM pg_proc WHERE pronamespace::regnamespace::text = 'cdc'
ORDER BY 1, 2, 3
"""

Make = Callable[..., Database]


def configured(source: Database, pipeline: str = "cdc", *, slot: str | None = None, **targets: Database) -> Config:
    """A pipeline from ``source``; ``internal`` takes everything, every other target one table's listed columns."""
    wanted: dict[str, TargetConfig] = {}
    for name, target in targets.items():
        keys: dict[str, object] = {"include": ["public.*"]}
        if name != "internal":
            keys = {"columns": "listed", "tables": {"public.campaigns": ["id", "name"]}}
        wanted[name] = TargetConfig.model_validate({"dsn": SecretStr(target.dsn), **keys})
    return Config(
        pipeline=pipeline,
        source=SourceConfig(dsn=SecretStr(source.dsn), slot=slot or slot_of(source), publication=f"{pipeline}-pub"),
        targets=wanted,
    )


def slot_of(source: Database) -> str:
    """A slot's name that no other test uses: slots belong to the whole server."""
    return source.name.replace("-", "_").lower()


async def set_up(config: Config) -> list[str]:
    said: list[str] = []
    await provision.setup(config, said.append)
    return said


async def torn_down(config: Config) -> list[str]:
    said: list[str] = []
    await provision.teardown(config, said.append)
    return said


def published(source: Database, publication: str) -> list[str]:
    query = "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = %s ORDER BY 1"
    return [name for (name,) in source.fetch(query, publication)]


async def test_setup_publishes_what_is_asked_for_and_nothing_else(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    await set_up(configured(source, external=make_target("external")))
    assert published(source, "cdc-pub") == ["public.campaigns"]
    assert published(source, "cdc-pub_insert_only") == []


async def test_hazard_01_tables_without_an_identity_are_published_for_inserts_only(
    source: Database, make_target: Make
) -> None:
    source.execute(SCHEMA)
    await set_up(configured(source, internal=make_target("internal")))
    assert published(source, "cdc-pub") == ["public.campaigns", "public.secrets"]
    assert published(source, "cdc-pub_insert_only") == ["public.certification-subscriptions"]
    source.execute('INSERT INTO "certification-subscriptions" VALUES (1)')
    assert source.execute('UPDATE "certification-subscriptions" SET "certificationCandidateId" = 2') == 1


async def test_setup_twice_changes_nothing(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    target = make_target("internal")
    config = configured(source, internal=target)
    await set_up(config)
    incarnation = source.fetch("SELECT pipeline, incarnation FROM cdc.heartbeat")
    before = source.fetch(CATALOG), target.fetch(CATALOG)
    said = await set_up(config)
    assert (source.fetch(CATALOG), target.fetch(CATALOG)) == before
    assert source.fetch("SELECT pipeline, incarnation FROM cdc.heartbeat") == incarnation
    assert "internal: the schema cdc was up to date" in said


async def test_setup_again_follows_the_configuration(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    internal, external = make_target("internal"), make_target("external")
    config = configured(source, internal=internal, external=external)
    await set_up(config)
    oid = source.fetchval("SELECT oid FROM pg_publication WHERE pubname = 'cdc-pub'")
    await set_up(configured(source, external=external))
    assert published(source, "cdc-pub") == ["public.campaigns"]
    source.execute("ALTER TABLE public.campaigns DROP CONSTRAINT campaigns_pkey")
    await set_up(configured(source, external=external))
    assert published(source, "cdc-pub_insert_only") == ["public.campaigns"]
    # Hazard 24: altered, never dropped and created again.
    assert source.fetchval("SELECT oid FROM pg_publication WHERE pubname = 'cdc-pub'") == oid


async def test_teardown_removes_exactly_what_setup_and_the_bootstrap_made(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    source.execute("CREATE PUBLICATION theirs FOR TABLE public.secrets")
    target = make_target("internal")
    target.execute("CREATE TABLE public.campaigns (id int PRIMARY KEY); INSERT INTO public.campaigns VALUES (1)")
    source.create_slot(f"{slot_of(source)}_theirs")
    config = configured(source, internal=target)
    before = source.fetch(CATALOG), target.fetch(CATALOG)

    await set_up(config)
    source.create_slot(config.source.slot)
    source.create_slot(f"{config.source.slot}__internal")
    assert (source.fetch(CATALOG), target.fetch(CATALOG)) != before

    await torn_down(config)
    assert (source.fetch(CATALOG), target.fetch(CATALOG)) == before
    assert target.fetchval("SELECT count(*) FROM public.campaigns") == 1


async def test_teardown_of_one_target_leaves_the_source_and_the_other_targets_as_they_are(
    source: Database, make_target: Make
) -> None:
    source.execute(SCHEMA)
    internal, external = make_target("internal"), make_target("external")
    config = configured(source, internal=internal, external=external)
    untouched = internal.fetch(CATALOG)
    await set_up(config)
    source.create_slot(config.source.slot)
    others = source.fetch(CATALOG), external.fetch(CATALOG)
    with pytest.raises(ConfigurationError, match="no target internl; did you mean internal"):
        await provision.teardown(config, lambda _: None, target="internl")
    async with await ReplicationConnection.open(source.dsn, "worker") as worker:
        await worker.start(config.source.slot, config.source.publication_names)
        with pytest.raises(SlotInUse, match="nothing was removed"):
            await provision.teardown(config, lambda _: None, target="internal")
    assert internal.fetch(CATALOG) != untouched

    await provision.teardown(config, lambda _: None, target="internal")

    assert internal.fetch(CATALOG) == untouched
    assert (source.fetch(CATALOG), external.fetch(CATALOG)) == others


async def test_the_only_target_of_a_pipeline_goes_together_with_the_pipeline(
    source: Database, make_target: Make
) -> None:
    source.execute(SCHEMA)
    before = source.fetch(CATALOG)
    config = configured(source, internal=make_target("internal"))
    await set_up(config)
    source.create_slot(config.source.slot)
    await provision.teardown(config, lambda _: None, target="internal")
    assert source.fetch(CATALOG) == before


async def test_teardown_twice_says_that_nothing_was_there(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    config = configured(source, internal=make_target("internal"))
    await set_up(config)
    await torn_down(config)
    assert await torn_down(config) == [
        "internal: nothing of pipeline cdc was there",
        "source: nothing of pipeline cdc was there",
    ]


async def test_a_slot_of_a_lane_that_no_configuration_knows_is_named_and_stays(
    source: Database, make_target: Make
) -> None:
    source.execute(SCHEMA)
    config = configured(source, internal=make_target("internal"))
    await set_up(config)
    unknown = f"{config.source.slot}__retired"
    source.create_slot(unknown)
    said = await torn_down(config)
    assert [line for line in said if f"the slot {unknown} stays" in line]
    assert source.fetch("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", unknown) == [(1,)]


async def test_teardown_refuses_while_a_worker_streams_and_removes_nothing(source: Database, make_target: Make) -> None:
    from cdc.source.replication import ReplicationConnection

    source.execute(SCHEMA)
    target = make_target("internal")
    config = configured(source, internal=target)
    await set_up(config)
    source.create_slot(config.source.slot)
    before = source.fetch(CATALOG), target.fetch(CATALOG)
    async with await ReplicationConnection.open(source.dsn, "worker") as stream:
        await stream.start(config.source.slot, list(config.source.publication_names))
        with pytest.raises(SlotInUse, match="stop the worker"):
            await torn_down(config)
    assert (source.fetch(CATALOG), target.fetch(CATALOG)) == before


async def test_two_pipelines_share_a_target_and_a_source(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    target = make_target("internal")
    first = configured(source, "first", internal=target)
    second = configured(source, "second", slot=f"{slot_of(source)}_2", internal=target)
    await set_up(first)
    await set_up(second)
    await torn_down(first)
    assert target.fetch("SELECT pipeline FROM cdc.target") == [("second",)]
    assert source.fetch("SELECT pipeline FROM cdc.heartbeat") == [("second",)]
    assert published(source, "second-pub") == ["public.campaigns", "public.secrets"]
    await torn_down(second)
    assert target.fetch("SELECT 1 FROM pg_namespace WHERE nspname = 'cdc'") == []


async def test_source_and_target_in_one_database_share_the_schema_cdc(source: Database) -> None:
    source.execute("CREATE SCHEMA kept; CREATE TABLE public.campaigns (id int PRIMARY KEY, name text)")
    before = source.fetch(CATALOG)
    config = Config(
        source=SourceConfig(dsn=SecretStr(source.dsn), slot=slot_of(source)),
        targets={
            "copy": TargetConfig.model_validate(
                {
                    "dsn": SecretStr(source.dsn),
                    "schema": "owned",
                    "tables": {"public.campaigns": {"to": "kept.campaigns", "columns": ["id"]}},
                }
            )
        },
    )
    await set_up(config)
    await set_up(config)
    assert source.fetchval("SELECT count(*) FROM cdc.heartbeat, cdc.target") == 1
    await torn_down(config)
    assert source.fetch(CATALOG) == before


async def test_publications_of_somebody_else_are_followed_and_never_touched(
    source: Database, make_target: Make
) -> None:
    source.execute(SCHEMA)
    source.execute("CREATE PUBLICATION theirs FOR TABLE public.secrets")
    ours = configured(source, internal=make_target("internal"))
    theirs = ours.source.model_copy(update={"manage_publications": False, "publications": ("theirs",)})
    config = ours.model_copy(update={"source": theirs})
    await set_up(config)
    assert source.fetch("SELECT pubname FROM pg_publication") == [("theirs",)]
    await torn_down(config)
    assert published(source, "theirs") == ["public.secrets"]

    missing = theirs.model_copy(update={"publications": ("theirs", "gone")})
    with pytest.raises(SetupError, match="no publication gone"):
        await set_up(config.model_copy(update={"source": missing}))


async def test_a_publication_that_setup_did_not_create_loses_no_table(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    source.execute('CREATE PUBLICATION "cdc-pub" FOR TABLE public.secrets')
    config = configured(source, external=make_target("external"))
    with pytest.raises(SetupError, match=r"did not create, with tables that no target asks for \(public.secrets\)"):
        await set_up(config)
    assert published(source, "cdc-pub") == ["public.secrets"]
    await torn_down(config)
    assert published(source, "cdc-pub") == ["public.secrets"]


async def test_a_mistake_in_the_configuration_changes_nothing_anywhere(source: Database, make_target: Make) -> None:
    source.execute("CREATE TABLE public.campaign (id int PRIMARY KEY)")
    target = make_target("external")
    before = source.fetch(CATALOG), target.fetch(CATALOG)
    with pytest.raises(ConfigurationError, match=r'no table public.campaigns; did you mean "public.campaign"\?'):
        await set_up(configured(source, external=target))
    assert (source.fetch(CATALOG), target.fetch(CATALOG)) == before


async def test_a_target_that_is_down_does_not_keep_the_others_from_being_set_up(
    source: Database, make_target: Make
) -> None:
    source.execute(SCHEMA)
    internal, external = make_target("internal"), make_target("external")
    config = configured(source, internal=internal, external=external)
    dead = config.targets["internal"].model_copy(update={"dsn": SecretStr("postgresql://127.0.0.1:1/nothing")})
    with pytest.raises(TargetUnavailable, match="internal"):
        await set_up(config.model_copy(update={"targets": config.targets | {"internal": dead}}))
    assert external.fetch("SELECT target FROM cdc.target") == [("external",)]
    assert internal.fetch("SELECT 1 FROM pg_namespace WHERE nspname = 'cdc'") == []


async def test_setup_needs_no_superuser(source: Database, make_target: Make, make_role: Callable[..., str]) -> None:
    role = make_role("LOGIN REPLICATION")
    target = make_target("internal")
    for database in (source, target):
        database.execute(f'GRANT CREATE ON DATABASE "{database.name}" TO "{role}"')
    source.execute(f'CREATE SCHEMA app AUTHORIZATION "{role}"')
    async with source.session() as session:
        await session.execute(f'SET ROLE "{role}"'.encode())
        await session.execute("CREATE TABLE app.campaigns (id int PRIMARY KEY)")
    config = Config(
        source=SourceConfig(dsn=SecretStr(source.dsn_as(role)), slot=slot_of(source)),
        targets={
            "internal": TargetConfig.model_validate({"dsn": SecretStr(target.dsn_as(role)), "include": ["app.*"]})
        },
    )
    await set_up(config)
    await torn_down(config)
