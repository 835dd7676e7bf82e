"""`cdc check` says what would stop replication, with what mends it; what it has nothing to say about can run."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from uuid import UUID

import psycopg
import pytest
from pydantic import SecretStr

from cdc import cli
from cdc.config import BootstrapConfig, Config, SourceConfig, TargetConfig, for_asyncpg
from cdc.lsn import Lsn
from cdc.observe.finding import Finding, Severity
from cdc.service import checkup, provision
from cdc.target import position
from cdc.target.history import History
from cdc.target.session import connect
from tests.database import Database

Make = Callable[..., Database]

SCHEMA = 'CREATE TABLE public.campaigns (id int PRIMARY KEY, name text, "organizationId" int)'


def configured(source: Database, **targets: tuple[Database, dict[str, object]]) -> Config:
    return Config(
        source=SourceConfig(dsn=SecretStr(source.dsn), slot=source.name.replace("-", "_").lower()),
        targets={
            name: TargetConfig.model_validate({"dsn": SecretStr(target.dsn), **keys})
            for name, (target, keys) in targets.items()
        },
    )


def everything(target: Database) -> tuple[Database, dict[str, object]]:
    return target, {"include": ["public.*"]}


async def loaded(config: Config, source: Database, *, at: Lsn | None = None) -> None:
    """Set up, with a slot, and targets that stand where the slot does (or ``at``): as after a bootstrap."""
    await provision.setup(config, lambda _line: None)
    start = source.create_slot(config.source.slot)
    system = source.fetchval("SELECT system_identifier::text FROM pg_control_system()")
    timeline = source.fetchval("SELECT timeline_id FROM pg_control_checkpoint()")
    incarnation = UUID(str(source.fetchval("SELECT incarnation FROM cdc.heartbeat")))
    for target in config.targets.values():
        session = await connect(for_asyncpg(target.dsn.get_secret_value()), application_name="test")
        owned = await position.take(session, config.pipeline)
        history = History(system, timeline, config.source.slot, incarnation)
        await position.record_history(session, config.pipeline, owned.fence, history, at or start, state="streaming")
        await session.close()


def errors(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.where, finding.subject) for finding in findings if finding.stops]


async def test_a_pipeline_that_is_set_up_and_loaded_can_run(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    target = make_target("internal")
    target.execute(SCHEMA)
    config = configured(source, internal=everything(target))
    await loaded(config, source)
    findings = await checkup.check(config)
    assert errors(findings) == []
    assert {finding.where for finding in findings} == {"source", "internal"}


async def test_before_setup_the_findings_say_what_to_run(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    findings = await checkup.check(configured(source, internal=everything(make_target("internal"))))
    assert {finding.where for finding in findings if finding.mend == "cdc setup"} == {"source", "internal"}
    lines = [line.plain for line in checkup.render(findings)]
    assert "0 errors, " in lines[-1]
    assert not any("cdc setup" in line for line, next_ in pairwise(lines) if next_.strip() == "cdc setup")
    assert not any("vanished" in line for line in lines), "nothing was there that could have"
    starts = {finding.message[0] for finding in findings}
    assert not any(start.isupper() for start in starts - {"P"}), "all findings begin alike"
    assert not any(finding.message.endswith(".") for finding in findings)


def test_one_error_is_no_errors() -> None:
    one = Finding(Severity.ERROR, "source", "x", "wrong")
    assert [line.plain for line in checkup.render([one])][-1].startswith("1 error, 0 warnings: ")


async def test_what_the_configuration_misspells_is_named_with_the_nearest(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    target = make_target("external")
    keys: dict[str, object] = {"columns": "listed", "tables": {"public.campaigns": ["id", "nome"]}}
    findings = await checkup.check(configured(source, external=(target, keys)))
    (wrong,) = [finding for finding in findings if finding.subject == "configuration"]
    assert wrong.where == "external"
    assert wrong.message.endswith('has no column "nome"; did you mean "name"?')


async def test_a_mistyped_table_of_the_modes_is_an_error(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    config = configured(source, internal=everything(make_target()))
    modes = BootstrapConfig.model_validate({"modes": {"campaign": "none"}})
    findings = await checkup.check(config.model_copy(update={"bootstrap": modes}))
    (found,) = [finding for finding in findings if finding.subject == "configuration"]
    assert found.stops
    assert 'the source has no table public.campaign; did you mean "public.campaigns"?' in found.message


async def test_an_owned_target_that_lacks_a_column_is_told_the_sql(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    target = make_target("datamart")
    target.execute("CREATE SCHEMA maddo; CREATE TABLE maddo.campaigns (id int PRIMARY KEY)")
    wanted = {"to": "maddo.campaigns", "columns": {"id": "id", "name": "label"}}
    config = configured(source, datamart=(target, {"schema": "owned", "tables": {"public.campaigns": wanted}}))
    await loaded(config, source)
    findings = await checkup.check(config)
    assert errors(findings) == [("datamart", "maddo.campaigns")]
    (wrong,) = [finding for finding in findings if finding.stops]
    assert wrong.mend is not None
    target.execute(wrong.mend)
    assert errors(await checkup.check(config)) == []


async def test_a_database_that_cannot_be_reached_is_a_finding_and_the_others_are_checked(
    source: Database, make_target: Make
) -> None:
    source.execute(SCHEMA)
    config = configured(source, internal=everything(make_target("internal")), external=everything(make_target("e")))
    dead = config.targets["external"].model_copy(update={"dsn": SecretStr("postgresql://u:secret@127.0.0.1:1/x")})
    findings = await checkup.check(config.model_copy(update={"targets": config.targets | {"external": dead}}))
    assert ("external", "connection") in errors(findings)
    assert "internal" in {finding.where for finding in findings}

    no_source = config.source.model_copy(update={"dsn": SecretStr("postgresql://u:secret@127.0.0.1:1/x")})
    findings = await checkup.check(config.model_copy(update={"source": no_source}))
    assert ("source", "connection") in errors(findings)
    assert "internal" in {finding.where for finding in findings}
    assert "secret" not in checkup.to_json(findings)


async def test_a_database_that_takes_no_connections_is_said_in_a_sentence(
    source: Database, make_target: Make, make_database: Make
) -> None:
    source.execute(SCHEMA)
    closed = make_database("closed")
    closed.close()
    source.execute(f'ALTER DATABASE "{closed.name}" WITH ALLOW_CONNECTIONS false')
    config = configured(source, internal=everything(make_target("internal")))
    of_target = config.targets["internal"].model_copy(update={"dsn": SecretStr(closed.dsn)})
    of_source = config.source.model_copy(update={"dsn": SecretStr(closed.dsn)})
    for update in ({"targets": {"internal": of_target}}, {"source": of_source}):
        (found,) = [
            one for one in await checkup.check(config.model_copy(update=update)) if one.stops and "conn" in one.subject
        ]
        assert found.subject == "connection"
        assert "the database takes no connections" in found.message
        assert "ALLOW_CONNECTIONS true" in found.message
    source.execute(f'ALTER DATABASE "{closed.name}" WITH ALLOW_CONNECTIONS true')


async def test_tables_that_a_pattern_takes_and_nobody_can_replicate_stop_nothing(
    source: Database, make_target: Make
) -> None:
    source.execute(SCHEMA)
    source.execute("CREATE UNLOGGED TABLE public.cache (id int PRIMARY KEY)")
    source.execute("CREATE TABLE public.events (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    source.execute("CREATE UNLOGGED TABLE public.events_1 PARTITION OF public.events FOR VALUES FROM (0) TO (10)")
    target = make_target("internal")
    config = configured(source, internal=everything(target))
    await loaded(config, source)
    findings = await checkup.check(config)
    assert errors(findings) == []
    about = {finding.subject: finding.severity for finding in findings if finding.where == "source"}
    assert about["table public.cache"] is Severity.INFO
    assert about["table public.events"] is Severity.INFO

    named = configured(source, internal=(target, {"include": ["public.*"], "tables": {"public.cache": ["id"]}}))
    assert ("source", "table public.cache") in errors(await checkup.check(named))


async def test_a_slot_ahead_of_a_targets_position_is_an_error(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    target = make_target("internal")
    target.execute(SCHEMA)
    config = configured(source, internal=everything(target))
    await loaded(config, source, at=Lsn(0x1000))
    findings = await checkup.check(config)
    (ahead,) = [finding for finding in findings if finding.stops]
    assert (ahead.where, ahead.subject) == ("internal", "position")
    assert "ahead of the target's position" in ahead.message


async def test_a_slot_that_vanished_is_an_error_of_the_target_that_needs_it(
    source: Database, make_target: Make
) -> None:
    source.execute(SCHEMA)
    target = make_target("internal")
    target.execute(SCHEMA)
    config = configured(source, internal=everything(target))
    await loaded(config, source)
    source.execute("SELECT pg_drop_replication_slot(%s)", config.source.slot)
    findings = await checkup.check(config)
    assert ("internal", "position") in errors(findings)


async def test_a_slot_of_a_lane_that_no_target_explains_is_reported(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    config = configured(source, internal=everything(make_target("internal")))
    retired = f"{config.source.slot}__retired"
    source.create_slot(retired)
    (found,) = [finding for finding in await checkup.check(config) if finding.subject == f"slot {retired}"]
    assert found.severity is Severity.WARNING
    assert found.mend == f"SELECT pg_drop_replication_slot('{retired}');"


async def test_check_changes_nothing(source: Database, make_target: Make) -> None:
    source.execute(SCHEMA)
    target = make_target("internal")
    everything_there = "SELECT count(*) FROM pg_class"
    before = source.fetchval(everything_there), target.fetchval(everything_there)
    await checkup.check(configured(source, internal=everything(target)))
    assert (source.fetchval(everything_there), target.fetchval(everything_there)) == before
    assert source.fetchval("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == 0


def test_the_command_exits_with_1_and_prints_each_finding_with_what_mends_it(
    source: Database, make_target: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source.execute(SCHEMA)
    for name, value in {
        "CDC_SOURCE__DSN": source.dsn,
        "CDC_SOURCE__SLOT": source.name.replace("-", "_").lower(),
        "CDC_TARGETS__INTERNAL__DSN": make_target("internal").dsn,
        "CDC_TARGETS__INTERNAL__TABLES": '{"public.campaign": ["id"]}',
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        cli.main(["check"])
    shown = capsys.readouterr().out
    assert caught.value.code == 1
    assert 'did you mean "public.campaigns"?' in shown
    assert "          cdc setup\n" in shown
    assert "replication cannot run until the errors are mended" in shown

    with pytest.raises(SystemExit):
        cli.main(["check", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["can_run"] is False
    assert {"severity", "where", "subject", "message", "mend"} == set(report["findings"][0])


def test_setup_and_teardown_from_the_command_line(
    source: Database, make_target: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source.execute(SCHEMA)
    target = make_target("internal")
    monkeypatch.setenv("SOURCE_DATABASE_URL", source.dsn)
    monkeypatch.setenv("DATABASE_URL", target.dsn)
    monkeypatch.setenv("CDC_SOURCE__SLOT", source.name.replace("-", "_").lower())
    monkeypatch.setenv("CDC_TARGETS__INTERNAL__INCLUDE", "public.*")
    for command in (["setup"], ["teardown", "--yes"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(command)
        assert caught.value.code == 0, capsys.readouterr().err
    assert "the schema cdc is removed" in capsys.readouterr().out
    with psycopg.connect(target.dsn) as connection:
        assert connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'cdc'").fetchone() is None
