"""The door as somebody sees it who types at it: what is printed where, and the exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cdc import cli
from cdc.errors import ServerError, SetupError, SourceUnavailable

CONFIG = """
[source]
dsn = "postgresql://cdc:a-secret@source.example/pix"

[targets.internal]
dsn = "${INTERNAL}"
include = ["public.*"]
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "cdc.toml"
    file.write_text(CONFIG, encoding="utf-8")
    monkeypatch.setenv("INTERNAL", "postgresql://cdc:another-secret@internal.example/warehouse")
    for name in list(os.environ):
        if name.startswith("CDC_") or name in ("DATABASE_URL", "SOURCE_DATABASE_URL"):
            monkeypatch.delenv(name)
    return file


def status_of(*arguments: str) -> int:
    """The exit status of a command; what it prints is captured by pytest."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return int(caught.value.code or 0)


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(_options: cli.Options) -> None:
        raise error

    monkeypatch.setattr(cli.Options, "load", load)


COMMANDS = ["check", "setup", "teardown", "bootstrap", "run", "status", "demo", "config"]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    shown = capsys.readouterr().out
    assert [command for command in COMMANDS if command not in shown] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(command, "--help") == 0
    assert "Usage: " in capsys.readouterr().out


def test_an_unknown_command_is_a_usage_error_that_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("chek") == 2
    assert "check" in capsys.readouterr().err


def test_an_unknown_origin_of_a_bootstrap_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("bootstrap", "--from", "nowhere") == 2
    assert "'live'" in capsys.readouterr().err


def test_config_show_prints_what_is_in_force_without_secrets(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--config", str(config), "config", "show") == 0
    shown = capsys.readouterr().out
    assert "secret" not in shown
    data = tomllib.loads(shown)
    assert data["targets"]["internal"]["dsn"] == "postgresql://cdc@internal.example/warehouse"
    assert data["source"]["slot"] == "cdc"


def test_config_show_prints_json_too(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--config", str(config), "config", "show", "--json") == 0
    shown = capsys.readouterr().out
    assert "secret" not in shown
    assert json.loads(shown)["targets"]["internal"]["schema"] == "follow"


def test_a_wrong_configuration_is_one_clear_line_and_exit_status_2(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("INTERNAL")
    assert status_of("--config", str(config), "run") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"cdc: {config}: targets.internal.dsn needs the environment variable INTERNAL, which is not set\n"
    )


def test_an_expected_error_is_its_sentence_and_the_sql_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, SetupError("The role may not do that.", sql="ALTER ROLE cdc REPLICATION;"))
    assert status_of("check") == 1
    assert capsys.readouterr().err == "cdc: The role may not do that.\nALTER ROLE cdc REPLICATION;\n"


def test_errors_of_several_targets_are_each_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = SourceUnavailable("No source.", server=ServerError("57P01"))
    failing(monkeypatch, ExceptionGroup("tasks", [lost, ExceptionGroup("more", [lost, SetupError("No schema.")])]))
    assert status_of("check") == 1
    assert capsys.readouterr().err == "cdc: No source.\ncdc: No schema.\n"


def test_invariant_08_an_unexpected_error_says_where_but_not_what(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ValueError('invalid input value for enum mood: "a-value"'))
    assert status_of("check") == 1
    shown = capsys.readouterr().err
    assert "unexpected builtins.ValueError" in shown
    assert "test_cli.py" in shown
    assert "a-value" not in shown


def test_teardown_asks_first_and_does_nothing_without_a_yes(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("typer.confirm", _decline)
    assert status_of("--config", str(config), "teardown") == 1
    assert "Aborted" in capsys.readouterr().err


def _decline(question: str, abort: bool) -> bool:
    import typer

    assert "internal" in question
    assert abort
    raise typer.Abort


def test_python_dash_m_cdc_is_the_same_door() -> None:
    done = subprocess.run([sys.executable, "-m", "cdc", "--help"], capture_output=True, text=True, check=True)
    assert "bootstrap" in done.stdout
