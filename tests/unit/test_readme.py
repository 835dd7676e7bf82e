"""The documentation says what the code does: every key, command, metric, alert and state is in it, and no other."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from cdc.cli import app
from cdc.config import (
    BootstrapConfig,
    Config,
    LogsConfig,
    NotificationConfig,
    RefreshConfig,
    SourceConfig,
    TableConfig,
    TargetConfig,
    WorkerConfig,
    load,
)
from cdc.config.units import parse_size
from cdc.observe import names
from cdc.observe.metrics import STATES, WAL_STATUSES
from cdc.observe.status import NOT_SET_UP, UNREACHABLE

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TEXT = {path: path.read_text(encoding="utf-8") for path in PAGES}

SECTIONS: dict[str, type[BaseModel]] = {
    "At the top": Config,
    "`[source]`": SourceConfig,
    "`[targets.<name>]`": TargetConfig,
    '`tables."schema.table"`': TableConfig,
    "`[worker]`": WorkerConfig,
    "`[bootstrap]`": BootstrapConfig,
    "`[refresh]`": RefreshConfig,
    "`[[notifications]]`": NotificationConfig,
    "`[logs]`": LogsConfig,
}
"""The headings of the README's tables of keys."""

NESTED = {"source", "targets", "worker", "bootstrap", "refresh", "notifications", "logs"}
"""Keys at the top that are sections of their own."""

CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading {heading}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the rows whose first cell is code."""
    lines = re.findall(r"^\| `.*\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def keys(model: type[BaseModel]) -> dict[str, Any]:
    """The keys of a section as they are written, with their fields."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    return {name: field for name, field in fields.items() if model is not Config or name not in NESTED}


def commands() -> dict[str, Any]:
    """Every command by the words it is called with; the empty one is what stands before all of them."""
    root = typer.main.get_command(app)
    found: dict[str, Any] = {"": root}

    def visit(group: Any, path: str) -> None:
        for name, command in group.commands.items():
            called = f"{path} {name}".strip()
            if hasattr(command, "commands"):
                visit(command, called)
            else:
                found[called] = command

    visit(root, "")
    return found


COMMANDS = commands()


def options(command: Any) -> set[str]:
    """All spellings of a command's options."""
    spelt = {text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)}
    return {text for text in spelt if text.startswith("-")} | {"--help"}


def shell_lines(text: str) -> list[str]:
    """Everything that somebody may copy into a shell: code blocks without another language, and code in sentences."""
    blocks = [line for language, block in CODE.findall(text) if language in ("sh", "") for line in block.splitlines()]
    return [line.strip() for line in [*blocks, *INLINE.findall(CODE.sub("", text))]]


def called(text: str, program: str) -> list[list[str]]:
    """The words behind ``program``, wherever it is called."""
    lines = [re.sub(r"^(\w+=\S+ )+", "", line) for line in shell_lines(text)]
    pattern = re.compile(rf"(?:\S*/)?{program}|python -m {program}")
    found = [(line, pattern.match(line)) for line in lines]
    return [
        shlex.split(line[match.end() :], comments=True)
        for line, match in found
        if match and (match.end() == len(line) or line[match.end()] == " ")
    ]


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_readme_has_every_key_and_no_other(heading: str) -> None:
    listed = [cells[0].strip("`") for cells in rows(section(README, heading))]
    assert listed == list(keys(SECTIONS[heading]))


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_readme_has_the_defaults(heading: str) -> None:
    fields = keys(SECTIONS[heading])
    for key, default, *_ in rows(section(README, heading)):
        field = fields[key.strip("`")]
        if field.is_required():
            assert default == "required", key
        elif default.startswith("`"):
            written = tomllib.loads(f"value = {default.split('`')[1]}")["value"]
            if field.default is PydanticUndefined:
                # A default that depends on other keys: the first one given is that of nothing else being set.
                ours = {"columns": "all", "tables": {}, "modes": {}}[key.strip("`")]
            elif isinstance(field.default, tuple):
                ours = list(field.default)
            else:
                ours = str(field.default) if isinstance(field.default, Path) else field.default
            assert ours in (written, parse_size(written) if key.endswith("_bytes`") else written), key


def test_every_variable_of_ours_that_is_named_exists() -> None:
    models: dict[str, type[BaseModel]] = {
        "SOURCE": SourceConfig,
        "WORKER": WorkerConfig,
        "BOOTSTRAP": BootstrapConfig,
        "REFRESH": RefreshConfig,
        "LOGS": LogsConfig,
    }
    for path, text in TEXT.items():
        for variable in re.findall(r"\bCDC_(\w+)", text):
            first, *rest = variable.split("__")
            if first == "TARGETS":
                assert rest[1].lower() in keys(TargetConfig), f"{relative(path)}: CDC_{variable}"
            elif rest:
                assert rest[0].lower() in keys(models[first]), f"{relative(path)}: CDC_{variable}"
            else:
                assert re.fullmatch(r"CONFIG|UNCOMPILED|TEST_(TARGET_)?PG_BIN(_\d\d)?", variable), (
                    f"{relative(path)}: CDC_{variable}"
                )


def test_the_readmes_configuration_is_valid_and_that_of_the_example_file(tmp_path: Path) -> None:
    (block,) = [block for language, block in CODE.findall(README) if language == "toml"]
    file = tmp_path / "cdc.toml"
    file.write_text(block, encoding="utf-8")
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)\}", block), "postgresql://host/name")
    assert load(file, environ).targets == load(ROOT / "cdc.example.toml", environ).targets


def test_every_command_and_every_option_is_in_the_readme() -> None:
    for name, command in COMMANDS.items():
        if name:
            assert f"| `cdc {name}` |" in README, f"cdc {name}"
        for parameter in command.params:
            for long in (text for text in parameter.opts if text.startswith("--")):
                assert f"`{long}" in README, f"cdc {name} {long}"


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_every_call_of_cdc_can_be_typed(path: Path) -> None:
    for words in called(TEXT[path], "cdc"):
        path_of_command = next(
            (" ".join(words[:n]) for n in (2, 1, 0) if " ".join(words[:n]) in COMMANDS and (n or not words)), None
        )
        is_options_only = bool(words) and words[0].startswith("-")
        assert path_of_command is not None or is_options_only, f"there is no cdc {' '.join(words)}"
        known = options(COMMANDS[path_of_command or ""])
        given = {word.split("=")[0] for word in words if word.startswith("-")}
        assert given <= known, f"cdc {' '.join(words)}: there is no {', '.join(given - known)}"


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_every_call_of_make_names_a_verb(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE))
    for words in called(TEXT[path], "make"):
        assert {word for word in words if "=" not in word} <= verbs, f"make {' '.join(words)}"


def test_the_two_commands_come_first() -> None:
    assert called(README, "make")[:2] == [["demo"], ["test"]]


def test_calls_of_programs_are_found() -> None:
    text = "Run `cdc check --json`, `X=1 .venv/bin/cdc setup`, `python -m cdc run`, not `cdc.target`.\n"
    text += '```sh\ncdc status   # shows\nmake demo ARGS="--seconds 60"\n```\n'
    assert called(text, "cdc") == [["status"], ["check", "--json"], ["setup"], ["run"]]
    assert called(text, "make") == [["demo", "ARGS=--seconds 60"]]


def test_the_readme_lists_every_metric_and_no_other() -> None:
    assert names.markdown_table() in README, "print the table with: python -m cdc.observe.names"
    assert re.findall(r"^\| `(cdc_\w+)` \|", README, re.MULTILINE) == [metric.name for metric in names.METRICS]


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_every_metric_that_is_named_exists(path: Path) -> None:
    series = {name for metric in names.METRICS for name in (metric.name, *metric.series)}
    named = set(re.findall(r"`(cdc_[a-z0-9_]+)", TEXT[path]))
    assert named <= series


def test_operations_has_every_alert_with_its_severity() -> None:
    rules = (ROOT / "ops" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    alerts = re.findall(r"alert: (\w+)\n.*?severity: (\w+)", rules, re.DOTALL)
    listed = [(cells[0].strip("`"), cells[1]) for cells in rows(section(OPERATIONS, "Alerts"))]
    assert listed == alerts


def test_operations_explains_every_state() -> None:
    explained = {cells[0].strip("`") for cells in rows(section(OPERATIONS, "What each state means"))}
    versions = ("0001_schema.sql", "0003_bootstrap.sql")
    schema = "".join((ROOT / "sql" / "target" / name).read_text(encoding="utf-8") for name in versions)
    stored = {state for states in re.findall(r"state IN \((.*?)\)", schema) for state in re.findall(r"'(.*?)'", states)}
    assert explained == {*stored, *STATES, NOT_SET_UP, UNREACHABLE}
    wal = {cells[0].strip("`") for cells in rows(section(OPERATIONS, "The slot and the WAL it keeps"))}
    assert wal == set(WAL_STATUSES)


def test_operations_explains_every_reason_of_a_stopped_table() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "cdc" / "service").glob("*.py"))
    arguments = re.findall(r"\.table_stopped\([^,]+, (.*)\)", code)
    reasons = {word for argument in arguments for word in re.findall(r'"(\w+)"', argument)}
    assert reasons == {cells[0].strip("`") for cells in rows(section(OPERATIONS, "A stopped table"))}


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[path]):
        assert not target.startswith("http"), "the pages name no other site"
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_no_machine_and_no_package_index_is_named(path: Path) -> None:
    assert not re.search(r"/(?:work|tmp|home|root|opt|usr)/|index-url|find-links|pypi|https?://", TEXT[path])


def test_the_place_of_the_figures_is_marked() -> None:
    assert re.search(r"<!-- bench:begin .*?-->\n.*?<!-- bench:end -->", section(README, "Performance"), re.DOTALL)
