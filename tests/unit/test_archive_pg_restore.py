"""Which pg_restore reads an archive."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cdc.bootstrap.archive import pg_restore
from cdc.bootstrap.archive.pg_restore import PgRestore, choose_pg_restore, find_pg_restore, require_able
from cdc.bootstrap.archive.toc import Toc
from cdc.bootstrap.programs import embedded_binaries
from cdc.errors import SetupError

Install = Callable[..., Path]


def toc(version: tuple[int, int, int] = (1, 14, 0), dump_version: str = "15.4") -> Toc:
    return Toc(version, "zstd", None, "pix", dump_version, dump_version, "UTF8", ())


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs programs of our own that answer like pg_restore, and hides those of the machine."""
    systems: list[Path] = []
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(pg_restore, "installed_binaries", lambda: tuple(systems))
    monkeypatch.setattr(pg_restore, "embedded_binaries", lambda: None)

    def program(place: str, answer: str, complaint: str = "", status: int = 0) -> Path:
        path = tmp_path / place / "pg_restore"
        path.parent.mkdir()
        if place != "path":
            systems.append(path.parent)
        path.write_text(
            f"#!/bin/sh\ncase $1 in --version) echo '{answer}';; *) echo '{complaint}' >&2; exit {status};; esac\n"
        )
        path.chmod(0o755)
        return path

    return program


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("pg_restore (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", (15, 18)),
        ("pg_restore (PostgreSQL) 9.6.24", (9, 6, 24)),
        ("pg_restore (PostgreSQL) 18beta1", (18,)),
        ("pg_restore (PostgreSQL) 19devel", (19,)),
    ],
)
def test_a_version_is_read_whoever_built_it(install: Install, answer: str, version: tuple[int, ...]) -> None:
    path = install("path", answer)
    assert find_pg_restore(None) == PgRestore(path, version)


def test_the_newest_that_is_found_is_taken(install: Install) -> None:
    install("path", "pg_restore (PostgreSQL) 15.18")
    newest = install("17", "pg_restore (PostgreSQL) 17.9")
    install("17old", "pg_restore (PostgreSQL) 17.10").unlink()
    install("9", "pg_restore (PostgreSQL) 9.6.1")
    assert find_pg_restore(None) == PgRestore(newest, (17, 9))


def test_the_configured_one_is_taken_even_where_it_is_older(install: Install) -> None:
    install("17", "pg_restore (PostgreSQL) 17.9")
    older = install("15", "pg_restore (PostgreSQL) 15.1")
    assert find_pg_restore(older).version == (15, 1)


def test_a_program_that_cannot_be_run_or_is_another_one_is_named(install: Install, tmp_path: Path) -> None:
    other = install("path", "pg_dump (PostgreSQL) 15.1")
    with pytest.raises(SetupError, match=r"bootstrap\.pg_restore: .*/path/pg_restore cannot be run, or is no pg_rest"):
        find_pg_restore(other)
    with pytest.raises(SetupError, match=r"no pg_restore was found that can be run.*bootstrap\.pg_restore"):
        find_pg_restore(None)
    with pytest.raises(SetupError, match=r"there is no program .*/nowhere"):
        find_pg_restore(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("version", "dumped", "needed"),
    [((1, 14, 0), "15.4", 15), ((1, 16, 0), "17.1", 17), ((1, 16, 0), "18.0", 18), ((1, 15, 0), "", 16)],
)
def test_an_archive_that_is_newer_says_which_program_it_needs(
    version: tuple[int, int, int], dumped: str, needed: int
) -> None:
    require_able(PgRestore(Path("/x/pg_restore"), (needed, 0)), toc(version, dumped))
    with pytest.raises(
        SetupError,
        match=rf"needs a pg_restore of PostgreSQL {needed} or later, and the one that was found is "
        rf"pg_restore {needed - 1}\.9 \(/x/pg_restore\)\. Install PostgreSQL {needed}'s client",
    ):
        require_able(PgRestore(Path("/x/pg_restore"), (needed - 1, 9)), toc(version, dumped))


def test_one_that_was_built_with_the_archive_s_compression_is_preferred(install: Install, tmp_path: Path) -> None:
    complaint = "warning: archive is compressed, but this installation does not support compression"
    install("18", "pg_restore (PostgreSQL) 18.1", complaint)
    with pytest.raises(SetupError, match=r"compressed with zstd, which pg_restore 18\.1 .* was built without"):
        choose_pg_restore(None, toc(), tmp_path / "a.pgsql")
    install("17", "pg_restore (PostgreSQL) 17.1")
    assert choose_pg_restore(None, toc(), tmp_path / "a.pgsql").version == (17, 1)


def test_one_that_cannot_read_the_archive_is_not_taken(install: Install, tmp_path: Path) -> None:
    install("18", "pg_restore (PostgreSQL) 18.1", "fatal: secret", 1)
    with pytest.raises(SetupError, match=r"pg_restore 18\.1 .* cannot read the archive .*a\.pgsql") as caught:
        choose_pg_restore(None, toc(), tmp_path / "a.pgsql")
    assert "secret" not in str(caught.value)


def test_the_embedded_wheel_has_one_that_works() -> None:
    binaries = embedded_binaries()
    assert binaries is not None
    assert find_pg_restore(binaries / "pg_restore").version >= (18,)


def test_settings_of_libpq_do_not_reach_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c something=else")
    assert "PGOPTIONS" not in pg_restore.environment()
    assert pg_restore.environment()["PATH"] == os.environ["PATH"]
