"""``make test-matrix``: which pairs of versions run, on which servers, and what is said of them (`tests.matrix`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.matrix import __main__ as matrix
from tests.matrix import installations
from tests.matrix.installations import InstallationError, binaries_of

REPORT = """<testsuites><testsuite>
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure message="no">x</failure></testcase>
<testcase classname="a" name="torn down badly"/>
<testcase classname="a" name="torn down badly"><error message="no">x</error></testcase>
<testcase classname="a" name="too old"><skipped message="row filters: PostgreSQL 15"/></testcase>
</testsuite></testsuites>"""


def installation(directory: Path, version: str, *leave_out: str) -> Path:
    directory.mkdir(parents=True)
    for name in ("initdb", "postgres", "pg_dump", "pg_restore", "pg_basebackup"):
        if name not in leave_out:
            (directory / name).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
            (directory / name).chmod(0o755)
    return directory


def outcome(pair: str, **more: object) -> matrix.Outcome:
    fields: dict[str, object] = {"status": 0, "passed": 3, "failed": (), "skipped": Counter(), "seconds": 1.0}
    return matrix.Outcome(pair, **{**fields, **more})  # type: ignore[arg-type]  # as given


def test_without_a_choice_every_version_meets_itself_and_the_ends_meet_each_other() -> None:
    assert matrix.PAIRS == ((14, 14), (15, 15), (16, 16), (17, 17), (18, 18), (14, 18), (18, 14))


def test_a_pair_that_fails_is_named_and_does_not_keep_the_next_from_running(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {
        "14:18": outcome("14:18", status=1, failed=("tests.x::test_y",)),
        "18:14": outcome("18:14", skipped=Counter({"row filters: PostgreSQL 15": 2})),
        "15:15": outcome("15:15", status=5, passed=0),
    }
    given = []

    def run(pair: str, source: Path, target: Path, arguments: list[str]) -> matrix.Outcome:
        given.append((pair, source.name, target.name, arguments))
        return outcomes[pair]

    monkeypatch.setattr(matrix, "binaries_of", lambda major, cache: Path(str(major)))
    monkeypatch.setattr(matrix, "_run", run)
    assert matrix.main(["14:18", "18:14", "--", "-n", "3"]) == 1
    assert given == [("14:18", "14", "18", ["-n", "3"]), ("18:14", "18", "14", ["-n", "3"])]
    said = capsys.readouterr().out
    assert "tests.x::test_y" in said
    assert "skipped, row filters: PostgreSQL 15: 18:14 2" in said
    assert matrix.main(["18:14"]) == 0
    assert matrix.main(["15:15"]) == 1, "a pair of which nothing ran is not good"


@pytest.mark.parametrize("word", ["13:18", "18", "14:19", "a:b"])
def test_a_pair_that_is_none_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        matrix.main([word])
    assert ended.value.code == 2
    assert "is not a pair of versions 14 to 18" in capsys.readouterr().err


def test_the_report_of_a_run_is_counted(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    passed, failed, skipped = matrix._read(tmp_path / "report.xml")
    assert failed == ("a::bad", "a::torn down badly")
    assert skipped == {"row filters: PostgreSQL 15": 1}
    assert passed == 2, "as pytest counts: one passed, and then its teardown failed"
    assert matrix._read(tmp_path / "none.xml") == (0, (), {})


def test_servers_are_those_that_are_named_then_those_that_were_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [f"CDC_TEST_PG_BIN_{major}" for major in installations.MAJORS]:
        monkeypatch.delenv(variable, raising=False)
    cached = installation(tmp_path / "cache" / "15" / "bin", "15.19")
    assert binaries_of(15, tmp_path / "cache") == cached
    named = installation(tmp_path / "named", "15.18 (Debian 15.18-0+deb12u1)")
    monkeypatch.setenv("CDC_TEST_PG_BIN_15", str(named))
    assert binaries_of(15, tmp_path / "cache") == named
    monkeypatch.setenv("CDC_TEST_PG_BIN_16", str(named))
    with pytest.raises(InstallationError, match=r"CDC_TEST_PG_BIN_16 names .*, which is PostgreSQL 15.18, not 16"):
        binaries_of(16, tmp_path / "cache")
    monkeypatch.setenv("CDC_TEST_PG_BIN_17", str(installation(tmp_path / "client", "17.1", "initdb", "postgres")))
    with pytest.raises(InstallationError, match="where there is no initdb, postgres"):
        binaries_of(17, tmp_path / "cache")
