"""`cdc report` on real targets: what was recorded is read back, newest first, whoever does not answer is named."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from cdc.config import Config
from cdc.errors import ConfigurationError
from cdc.service import report
from cdc.target import migrations, position
from cdc.target.run_record import begin_run
from cdc.target.session import Session, connect
from tests.conftest import MakeDatabase
from tests.database import Database


def config(source: Database, **targets: str) -> Config:
    return Config.model_validate(
        {
            "source": {"dsn": SecretStr(source.dsn)},
            "targets": {name: {"dsn": SecretStr(dsn), "include": ["public.*"]} for name, dsn in targets.items()},
        }
    )


async def test_runs_and_steps_come_back_as_they_were_recorded(source: Database, make_target: MakeDatabase) -> None:
    internal, external = make_target("internal"), make_target("external")
    session = await connect(internal.dsn, application_name="cdc test", target="internal")

    async def ready() -> Session:
        return session

    try:
        await migrations.migrate(session)
        await position.register(session, "cdc", "internal")
        for number in range(3):
            record = await begin_run(ready, "cdc", "internal", "backup")
            async with record.step("restore", "public.users") as step:
                step.rows, step.size = 10 * number, 1024
            await record.end("done")
        await begin_run(ready, "cdc", "internal", "live")
        await begin_run(ready, "another", "internal", "live")
    finally:
        await session.close()
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    asked = config(source, internal=internal.dsn, external=external.dsn, datamart=nowhere)

    told = await report.read(asked, runs=3)

    first, second, third = told.targets
    assert [(run.origin, run.outcome) for run in first.runs] == [("live", None), ("backup", "done"), ("backup", "done")]
    (step_read,) = first.runs[1].steps
    assert (step_read.kind, step_read.object, step_read.rows) == ("restore", "public.users", 20)
    assert step_read.seconds is not None
    assert "run cdc setup" in (second.error or "")
    assert "nothing listens there" in (third.error or "")
    assert [target.name for target in (await report.read(asked, "internal")).targets] == ["internal"]
    with pytest.raises(ConfigurationError, match="did you mean internal"):
        await report.read(asked, "interna")


async def test_a_forgotten_pipeline_takes_its_runs_along(make_target: MakeDatabase) -> None:
    target = make_target()
    session = await connect(target.dsn, application_name="cdc test")

    async def ready() -> Session:
        return session

    try:
        await migrations.migrate(session)
        for pipeline in ("cdc", "another"):
            await position.register(session, pipeline, "internal")
            record = await begin_run(ready, pipeline, "internal", "live")
            async with record.step("copy", "t"):
                pass
        target.execute(
            "INSERT INTO cdc.backup_load (pipeline, slot, first_heartbeat, asked_at) VALUES ('cdc', 's', 1, now())"
        )
        assert not await position.forget(session, "cdc")
        assert target.fetch("SELECT pipeline FROM cdc.bootstrap_run") == [("another",)]
        assert target.fetchval("SELECT count(*) FROM cdc.bootstrap_step") == 1
        assert target.fetchval("SELECT count(*) FROM cdc.backup_load") == 0
        assert await position.forget(session, "another")
        await migrations.remove(session)
        assert target.fetchval("SELECT to_regnamespace('cdc')") is None
    finally:
        await session.close()


async def test_a_pipeline_is_forgotten_in_a_schema_that_an_older_version_made(make_target: MakeDatabase) -> None:
    target = make_target()
    session = await connect(target.dsn, application_name="cdc test")
    try:
        await migrations.migrate(session, migrations.known()[:2])
        target.execute("INSERT INTO cdc.target (pipeline, target) VALUES ('cdc', 'internal')")
        assert await position.forget(session, "cdc")
        await migrations.remove(session)
        assert target.fetchval("SELECT to_regnamespace('cdc')") is None
    finally:
        await session.close()
