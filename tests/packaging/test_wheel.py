"""What is built is what runs: the wheel carries the SQL, the marker of types, and the command."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(command: Sequence[str | Path], cwd: Path) -> str:
    result = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what goes into it, so that the checkout stays clean."""
    scratch = tmp_path_factory.mktemp("wheel")
    tree = scratch / "tree"
    tree.mkdir()
    names = [name for name in ("pyproject.toml", "setup.py", "README.md", "cdc", "sql") if (ROOT / name).exists()]
    run(["cp", "-R", *(ROOT / name for name in names), tree], scratch)
    pip: list[str | Path] = ["env", "CFLAGS=-O0", sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch, tree], scratch)
    return next(scratch.glob("cdc-*.whl"))


def test_the_wheel_carries_every_module_and_statement(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "cdc").rglob("*.py")}
    # The enrichment is a deployment's own: read from its working directory, never from the wheel.
    statements = {f"cdc/{path.relative_to(ROOT)}" for path in (ROOT / "sql").glob("*/*.sql")}
    assert statements
    assert modules | statements | {"cdc/py.typed"} <= inside
    assert not {name for name in inside if name.startswith(("tests/", "sql/", "cdc/sql/enrich"))}


def test_an_installed_wheel_loads_its_statements(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel], tmp_path)
    statement = next((ROOT / "sql").glob("source/*.sql"))
    program = f"from cdc import statements; print(statements.load('source', {statement.stem!r}), end='')"
    assert run([python, "-I", "-c", program], tmp_path) == statement.read_text(encoding="utf-8")
    assert run(
        [python, "-I", "-c", "from cdc import statements; print(statements.directory())"], tmp_path
    ).strip() == str(next((tmp_path / "venv").rglob("site-packages")) / "cdc" / "sql")
    assert (tmp_path / "venv" / "bin" / "cdc").is_file()


def test_without_a_c_compiler_it_is_built_and_works_uncompiled(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    run(["cp", "-R", *(ROOT / name for name in ("pyproject.toml", "setup.py", "README.md", "cdc", "sql")), tree], ROOT)
    for built in tree.rglob("*.so"):
        built.unlink()
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, tree]
    run(["env", "CC=false", *build], tmp_path)
    with zipfile.ZipFile(next(tmp_path.glob("cdc-*.whl"))) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path / "installed")
    program = (
        "from cdc.pgoutput.compiled import is_compiled; from cdc.changes.packed_accumulator import accumulator_for; "
        "print(is_compiled(), type(accumulator_for(part_bytes=1)).__name__)"
    )
    said = run(["env", f"PYTHONPATH={tmp_path / 'installed'}", sys.executable, "-c", program], tmp_path)
    assert said.split() == ["False", "Accumulator"]
