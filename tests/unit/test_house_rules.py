"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted([*(ROOT / "cdc").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), ROOT / "setup.py"])
STATEMENTS = sorted((ROOT / "sql").rglob("*.sql"))
SETTINGS = sorted(
    path
    for pattern in (
        "requirements*.txt",
        "*.toml",
        "*.yml",
        "Makefile",
        "Procfile",
        "Dockerfile",
        ".ci/*",
        "ops/**/*.y*ml",
    )
    for path in ROOT.glob(pattern)
    if path.is_file()
)
LONGEST_MODULE = 450
LONGEST_TEST_MODULE = 500  # a list of sentences reads faster than code


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith(("#", "-r "))]
    assert all(len(pin) == 2 for pin in pins), f"{name}: every line is name==version"
    return {canonicalize_name(package): version for package, version in pins}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_is_short_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    is_test = relative(path).startswith("tests/")
    assert len(text.splitlines()) <= (LONGEST_TEST_MODULE if is_test else LONGEST_MODULE)
    assert ast.get_docstring(ast.parse(text)), "a module opens with a docstring"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_nothing_is_left_for_later(path: Path) -> None:
    # A test is skipped by `tests.servers` alone: on a server that is too old, or without what the test is about.
    if path == Path(__file__) or relative(path) == "tests/servers.py":
        return
    found = re.findall(
        r"\b(?:TODO|FIXME|HACK|XXX)\b|NotImplementedError|pragma: no cover|pytest\.(?:skip|mark\.skip|importorskip)\b",
        path.read_text(encoding="utf-8"),
    )
    assert found == []


def test_rooms_and_modules_have_names_of_the_field() -> None:
    names = {part.removesuffix(".py") for path in MODULES for part in path.relative_to(ROOT).parts}
    assert names & {"utils", "util", "helpers", "helper", "common", "types", "manager", "managers", "misc"} == set()


@pytest.mark.parametrize("path", STATEMENTS, ids=relative)
def test_a_statement_has_its_name_and_a_sentence(path: Path) -> None:
    name, sentence, *rest = path.read_text(encoding="utf-8").splitlines()
    assert name == f"-- name: {path.stem}"
    assert re.match(r"-- [A-Z].{10,}", sentence)
    assert any(line and not line.startswith("--") for line in rest)


@pytest.mark.parametrize("path", SETTINGS, ids=relative)
def test_no_address_of_a_package_index_is_written_down(path: Path) -> None:
    assert not re.search(
        r"index-url|find-links|trusted-host|pypi\.|/simple\b|--hash", path.read_text(encoding="utf-8", errors="replace")
    )


def test_every_requirement_is_pinned_and_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runtime = pinned("requirements.txt")
    everything = {**runtime, **pinned("requirements-dev.txt")}
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for lines, pins in ((project["dependencies"], runtime), (extras, everything)):
        for requirement in map(Requirement, lines):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement.name


def test_the_makefile_has_at_most_ten_verbs_and_each_says_what_it_does() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = next(line for line in text.splitlines() if line.startswith(".PHONY:")).removeprefix(".PHONY:").split()
    assert len(verbs) <= 10
    for verb in verbs:
        assert re.search(rf"^{verb}:.*## \S", text, re.MULTILINE), verb


def test_every_room_is_in_the_import_rule() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    layers = {layer.strip("()") for layer in contract["layers"]}
    rooms = {path.stem for path in (ROOT / "cdc").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} <= layers
