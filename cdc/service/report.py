"""Reads what the targets recorded of their loads, for `cdc report` (`cdc.observe.report`).

The targets are asked side by side; one that does not answer is shown as such, with our sentence for why, and the others
are shown all the same. Nothing is written, and no worker has to run.
"""

from __future__ import annotations

import asyncio

from cdc import statements
from cdc.config import Config, for_asyncpg
from cdc.errors import CdcError, ConfigurationError, SetupError, TargetUnavailable
from cdc.observe.report import Report, RunReport, StepReport, TargetReport
from cdc.routing.patterns import nearest
from cdc.target.session import Session, connect, target_errors

ANSWER_TIMEOUT_S = 30.0
"""How long one target may take, connecting included; it is asked two small questions."""

RUNS = 5
"""How many runs of each target are shown unless the operator asks for more: a load and what followed it."""


async def read(config: Config, target: str | None = None, runs: int = RUNS) -> Report:
    """The newest ``runs`` runs of every target, or of one. Raises `ConfigurationError` for a target that is none."""
    if target is not None and target not in config.targets:
        guess = nearest(target, config.targets)
        raise ConfigurationError(
            f"--target: there is no target {target}{f'; did you mean {guess}?' if guess else ''}; "
            f"the configuration has {', '.join(config.targets)}"
        )
    names = [name for name in config.targets if target in (None, name)]
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(_ask(config, name, runs)) for name in names]
    return Report(config.pipeline, tuple(task.result() for task in asked))


async def _ask(config: Config, name: str, runs: int) -> TargetReport:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            session = await connect(
                for_asyncpg(config.targets[name].dsn.get_secret_value()),
                application_name=f"cdc {config.pipeline} report",
                target=name,
            )
            try:
                return TargetReport(name, await _read(session, config.pipeline, runs))
            finally:
                await session.close()
    except TimeoutError:
        error: CdcError = TargetUnavailable(f"it does not answer within {ANSWER_TIMEOUT_S:.0f} seconds")
    except CdcError as refusal:
        error = refusal
    return TargetReport(name, error=str(error))


async def _read(session: Session, pipeline: str, runs: int) -> tuple[RunReport, ...]:
    with target_errors("reading the runs", session.where):
        if not await session.connection.fetchval("SELECT pg_catalog.to_regclass('cdc.bootstrap_run') IS NOT NULL"):
            raise SetupError(f"{session.where}: it is not set up, or for an older version of cdc; run cdc setup.")
        rows = await session.connection.fetch(statements.load("target", "report_runs"), pipeline, runs)
        steps: dict[int, list[StepReport]] = {row["run"]: [] for row in rows}
        for step in await session.connection.fetch(statements.load("target", "report_steps"), list(steps)):
            steps[step["run"]].append(
                StepReport(
                    step["kind"],
                    step["object"],
                    step["started_at"],
                    step["finished_at"],
                    step["row_count"],
                    step["size_bytes"],
                )
            )
    return tuple(
        RunReport(
            row["run"],
            row["origin"],
            row["started_at"],
            row["finished_at"],
            row["outcome"],
            tuple(steps[row["run"]]),
        )
        for row in rows
    )
