"""The door: commands, no logic.

Each command reads the configuration, calls one function and prints what it returns. What a room imports is imported by
the command that needs it, so that ``cdc --help`` is quick. `main` turns every expected error into one clear line on
standard error, with the SQL that mends it where there is any; nobody sees a traceback of one.

Exit status: 0 done; 1 it could not be done; 2 the configuration or the command line is wrong; 130 interrupted.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from cdc import __version__
from cdc.config import Config, as_toml, load
from cdc.errors import CdcError, ConfigurationError

if TYPE_CHECKING:
    from cdc.bootstrap.progress import Progress

T = TypeVar("T")

FAILED = 1
MISUSED = 2
INTERRUPTED = 130
"""What a shell says of a process that SIGINT ended."""

app = typer.Typer(
    name="cdc",
    help="Change data capture from one PostgreSQL to several: every transaction, exactly once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(no_args_is_help=True, help="What is configured.")
app.add_typer(config_app, name="config")


@dataclass(frozen=True, slots=True)
class Options:
    """What stands before the command."""

    file: Path | None
    verbose: bool

    def load(self) -> Config:
        """The configuration in force, with logs set up as it says."""
        from cdc.observe import logs

        config = load(self.file)
        logs.configure(level="debug" if self.verbose else config.logs.level, format=config.logs.format)
        return config


class Origin(StrEnum):
    """Where a bootstrap takes the rows from."""

    BACKUP = "backup"
    LIVE = "live"
    NONE = "none"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cdc {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The configuration file. Default: CDC_CONFIG, then cdc.toml."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log debug lines, too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read what stands before the command."""
    context.obj = Options(file, verbose)


def _load(context: typer.Context) -> Config:
    chosen: Options = context.obj
    return chosen.load()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, on uvloop where it exists."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        from uvloop import new_event_loop as loop_factory
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(work)


@app.command()
def check(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what would stop or endanger replication, and what mends it. Exit status 0 when it can run, 1 when not."""
    config = _load(context)
    from cdc.service import checkup

    findings = _run(checkup.check(config))
    if as_json:
        typer.echo(checkup.to_json(findings))
    else:
        console = Console(highlight=False)
        for line in checkup.render(findings):
            console.print(line, soft_wrap=True)
    if any(finding.stops for finding in findings):
        raise typer.Exit(FAILED)


@app.command()
def setup(context: typer.Context) -> None:
    """Create what replication needs: publications and heartbeat at the source, the schema cdc in the targets."""
    config = _load(context)
    from cdc.service import provision

    _run(provision.setup(config, typer.echo))


@app.command()
def teardown(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Only this target; the source and the other targets stay as they are."),
    ] = None,
    load: Annotated[
        bool, typer.Option("--load", help="With --target: only what is being loaded beside it. The worker may run.")
    ] = False,
) -> None:
    """Remove exactly what setup and bootstrap created, slots included. The rows of the targets stay."""
    if load and target is None:
        raise typer.BadParameter("name the target that it is loaded beside: use it with --target", param_hint="--load")
    config = _load(context)
    from cdc.service import provision

    scope = provision.teardown_scope(config, target, load_only=load)
    if not yes:
        then = "That load begins anew." if load else "Whoever loses its position can only be loaded again."
        typer.confirm(f"Remove {scope}? {then}", abort=True)
    if load and target is not None:
        _run(provision.give_up_load(config, typer.echo, target))
    else:
        _run(provision.teardown(config, typer.echo, target=target))


@app.command()
def bootstrap(
    context: typer.Context,
    origin: Annotated[
        Origin,
        typer.Option(
            "--from",
            help="backup: restore the provider's backup and join it to the stream. live: copy the source's rows. "
            "none: the targets already hold everything.",
        ),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="Only this target; can be repeated. The worker may run for the others."),
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Load targets that are loaded already, beside their tables; then swap them.")
    ] = False,
    latest: Annotated[
        bool, typer.Option("--latest", help="With --from backup: the newest one that can serve, not a new one.")
    ] = False,
    file: Annotated[
        Path | None, typer.Option("--file", help="With --from backup: a local .pgsql or .tar.gz, not the provider's.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", min=1, max=64, help="Tables or ranges copied at once. Default: 4, or as configured."
        ),
    ] = None,
    again: Annotated[
        list[str] | None,
        typer.Option("--again", help="A table (schema.table at the source) to empty and load again; can be repeated."),
    ] = None,
) -> None:
    """Load targets and create the slot. Killed at any step, it goes on there when it is run again."""
    if again and origin is not Origin.LIVE:
        raise typer.BadParameter("it copies rows of the source: use it with --from live", param_hint="--again")
    if again and anew:
        raise typer.BadParameter("--again empties tables, --anew loads beside them: choose one", param_hint="--again")
    if again and target and len(target) > 1:
        raise typer.BadParameter("with --again, name one target or none", param_hint="--target")
    if (latest or file) and origin is not Origin.BACKUP:
        raise typer.BadParameter(
            "it chooses a backup: use it with --from backup", param_hint="--latest" if latest else "--file"
        )
    if latest and file:
        raise typer.BadParameter("choose one of --latest and --file", param_hint="--latest")
    if origin is Origin.NONE and (target or anew):
        raise typer.BadParameter("it concerns all targets, as they are", param_hint="--target" if target else "--anew")
    config = _load(context)
    if origin is Origin.NONE:
        from cdc.bootstrap import assumed

        typer.echo(str(_run(assumed.bootstrap(config))))
        return
    from cdc.bootstrap.again import Again
    from cdc.bootstrap.run import Scope
    from cdc.service import loading

    choice = None
    if origin is Origin.BACKUP:
        # What talks to the provider takes a third of a second to import.
        from cdc.bootstrap.backup import BackupChoice

        choice = BackupChoice(file, latest)
    if again:
        scope = Scope(again=Again(tuple(again), target[0] if target else None))
    else:
        scope = Scope(targets=tuple(dict.fromkeys(target)) if target else None, anew=anew)
    with _progress() as progress:
        summary = _run(loading.bootstrap(config, scope=scope, from_backup=choice, jobs=jobs, progress=progress))
    typer.echo(str(summary))


@app.command()
def resync(
    context: typer.Context,
    table: Annotated[str, typer.Argument(help="The table, as schema.table at the source.")],
    target: Annotated[
        str | None, typer.Option("--target", help="Only this target; all that have it unless given.")
    ] = None,
    max_rows_per_second: Annotated[
        int | None, typer.Option("--max-rows-per-second", min=1, help="How fast it may be read at most.")
    ] = None,
) -> None:
    """Bring one table to what the source has, while everything streams. The worker does it; this shows its progress."""
    config = _load(context)
    from cdc.service import loading
    from cdc.service import resync as requests

    with _progress() as progress:
        outcomes = _run(
            requests.resync(
                config,
                table,
                target=target,
                max_rows_per_second=max_rows_per_second,
                follower=progress,
                rebuild=loading.rebuild_with(config, progress, max_rows_per_second=max_rows_per_second),
            )
        )
    for outcome in outcomes:
        typer.echo(str(outcome))


@app.command()
def enrich(
    context: typer.Context,
    target: Annotated[list[str] | None, typer.Option("--target", help="Only this target; can be repeated.")] = None,
) -> None:
    """Run what was not run yet of the targets' own SQL files (sql/enrich/<target>/*.sql); the worker may run."""
    config = _load(context)
    from cdc.bootstrap.enrichment import enrich_all
    from cdc.bootstrap.run import Scope

    names = Scope(targets=tuple(target) if target else None).names(config)
    warnings = _run(enrich_all(config, names, typer.echo))
    for warning in warnings:
        typer.echo(f"warning: {warning}")
    if warnings:
        raise typer.Exit(1)


@app.command()
def report(
    context: typer.Context,
    target: Annotated[str | None, typer.Option("--target", help="Only this target.")] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="How many of the last runs.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show how long each step of the last bootstraps took, and the three slowest things of each kind."""
    config = _load(context)
    from cdc.service import report as reports

    found = _run(reports.read(config, target, runs))
    if as_json:
        typer.echo(found.to_json())
    else:
        found.show(Console())


@contextmanager
def _progress() -> Iterator[Progress]:
    """Bars on a terminal, log lines elsewhere."""
    from cdc.bootstrap.progress import LogLines, ProgressBars

    if sys.stderr.isatty():
        with ProgressBars() as bars:
            yield bars
    else:
        yield LogLines()


@app.command()
def run(context: typer.Context) -> None:
    """Replicate until SIGTERM or SIGINT, which end it cleanly."""
    config = _load(context)
    from cdc.service import worker

    _run(worker.run(config))


@app.command()
def status(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON; with --watch one object a line.")] = False,
) -> None:
    """Show every target, table and slot as the databases hold them; works while the worker is down."""
    config = _load(context)
    from cdc.service import state

    if watch:
        _run(state.watch(config, as_json=as_json))
        return
    seen = _run(state.read(config))
    if as_json:
        typer.echo(seen.to_json())
    else:
        seen.show(Console())


@app.command()
def demo(
    seconds: Annotated[float, typer.Option("--seconds", min=5, help="How long the workload runs.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict only, as JSON.")] = False,
) -> None:
    """Replicate a live workload between four servers of its own, kill the worker half way, and compare every table."""
    from cdc.demo import show

    raise typer.Exit(show.run(seconds=seconds, json=as_json))


@config_app.command("show")
def config_show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Print what is in force, without secrets; as TOML, so that it can be a file."""
    config = _load(context)
    typer.echo(config.model_dump_json(by_alias=True, indent=2) if as_json else as_toml(config), nl=as_json)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit; the entry point of ``cdc`` and of ``python -m cdc``."""
    try:
        app(arguments)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(_report(error))


def _report(error: Exception) -> int:
    """Say on standard error what went wrong; returns the exit status."""
    leaves = list(_leaves(error))
    said = set()
    for leaf in leaves:
        text = str(leaf) if isinstance(leaf, CdcError) else _unexpected(leaf)
        if text not in said:
            said.add(text)
            typer.echo(f"cdc: {text}", err=True)
            if isinstance(leaf, CdcError) and leaf.sql:
                typer.echo(leaf.sql, err=True)
    return MISUSED if all(isinstance(leaf, ConfigurationError) for leaf in leaves) else FAILED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors of a TaskGroup, one by one."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def _unexpected(error: BaseException) -> str:
    """Where a bug is, without the error's text: that of a driver's error quotes values (invariant 8)."""
    frames = "".join(
        traceback.format_list(
            frame for frame in traceback.extract_tb(error.__traceback__) if "typer" not in Path(frame.filename).parts
        )
    )
    return (
        f"unexpected {type(error).__module__}.{type(error).__qualname__}, which is a bug in cdc; it came by\n{frames}"
    )
