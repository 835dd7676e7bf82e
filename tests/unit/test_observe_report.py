"""How a report of loads reads: sums, the slowest of each kind, runs without an end."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta

from rich.console import Console

from cdc.observe.report import Report, RunReport, StepReport, TargetReport

BEGAN = datetime(2026, 5, 4, 3, 0, 0, tzinfo=UTC)


def step(
    kind: str, name: str | None, begins: float, ends: float | None, rows: int | None = None, size: int | None = None
) -> StepReport:
    """A step by seconds since the run began."""
    end = None if ends is None else BEGAN + timedelta(seconds=ends)
    return StepReport(kind, name, BEGAN + timedelta(seconds=begins), end, rows, size)


STEPS = (
    step("backup", None, 0, 5220, size=8 * 1024**3),
    step("download", None, 5220, 5820, size=6 * 1024**3),
    step("restore", "public.answers", 5820, 6820, 4_000_000, 1024**3),
    step("restore", "public.users", 5820, 6020, 1_000_000, 1024**2),
    step("primary key", "public.answers", 6820, 6920),
    step("unique index", "one", 7000, 7001),
    step("index", "knowledge-elements_userid_index", 7000, 7300),
    step("index", "two", 7000, 7020),
    step("index", "three", 7020, 7050),
    step("index", "four", 7050, 7060),
    step("foreign key", "answers_assessmentid_foreign", 7300, 7400),
    step("enrichment", "010-indexes.sql", 7400, 7460),
    step("enrichment", "020-views.sql", 7460, None),
    step("polish", "something new", 7460, 7461),
)
RUN = RunReport(7, "backup", BEGAN, BEGAN + timedelta(seconds=7500), "done", STEPS)
KILLED = RunReport(6, "live", BEGAN, None, None, (step("copy", "public.users", 1, 3, 10), step("copy", "x", 3, None)))
EMPTY = RunReport(5, "resync", BEGAN, BEGAN + timedelta(seconds=1), "the source was away", ())
REPORT = Report(
    "cdc",
    (
        TargetReport("internal", (RUN, KILLED, EMPTY)),
        TargetReport("external"),
        TargetReport("datamart", error="target datamart: nothing listens there"),
    ),
)


def shown(report: Report, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    report.show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_phase_runs_from_its_first_beginning_to_its_last_end_and_sums_what_ran_in_parallel() -> None:
    phases = {phase.name: phase for phase in RUN.phases}
    assert list(phases) == [
        "backup",
        "download",
        "restore",
        "indexes",
        "constraints",
        "enrichment",
        "polish",
    ]
    restore = phases["restore"]
    assert (restore.elapsed_s, restore.summed_s, restore.rows) == (1100, 1300, 5_000_000)
    assert restore.rows_per_s == 5_000_000 / 1100
    assert phases["download"].bytes_per_s == 6 * 1024**3 / 600
    assert (phases["indexes"].elapsed_s, phases["indexes"].summed_s, phases["indexes"].count) == (300, 361, 5)
    assert (phases["enrichment"].elapsed_s, phases["enrichment"].unfinished) == (60, 1)


def test_of_each_kind_the_three_slowest_are_named() -> None:
    kinds = {kind.name: (kind, slowest) for kind, slowest in RUN.kinds}
    index, slowest = kinds["index"]
    assert (index.count, index.summed_s) == (4, 360)
    assert [one.object for one in slowest] == ["knowledge-elements_userid_index", "three", "two"]
    assert next(iter(kinds)) == "restore", "what took longest comes first"
    assert "backup" not in kinds, "it concerns no object"


def test_a_run_without_an_end_is_said_to_be_unfinished_and_lasts_to_its_last_step() -> None:
    assert KILLED.seconds == 3
    (copy,) = KILLED.phases
    assert (copy.elapsed_s, copy.count, copy.unfinished, copy.rows) == (2, 2, 1, 10)
    assert "unfinished: it runs, or was killed" in shown(REPORT)
    assert RunReport(1, "live", BEGAN, None, None, ()).seconds is None


def test_a_phase_of_which_nothing_was_finished_has_no_duration() -> None:
    (phase,) = RunReport(1, "live", BEGAN, None, None, (step("copy", "t", 0, None),)).phases
    assert (phase.elapsed_s, phase.summed_s, phase.rows_per_s) == (None, 0, None)


def test_a_step_that_took_no_time_has_no_rate() -> None:
    (phase,) = RunReport(1, "live", BEGAN, None, None, (step("copy", "t", 0, 0, 5),)).phases
    assert phase.rows_per_s is None


def test_the_tables_tell_what_the_old_log_parser_told() -> None:
    text = shown(REPORT)
    assert max(map(len, text.splitlines())) <= 100
    for words in (
        "internal   run 7 from backup, 2026-05-04 03:00:00 UTC, 2 h 05 min   done",
        "1 h 27 min",
        "10 min 00 s",
        "18 min 20 s",
        "4,545",
        "10.2 MB/s",
        "knowledge-elements_userid_index",
        "answers_assessmentid_foreign",
        "1/2",
        "the source was away",
        "external  no bootstrap or resync is recorded here",
        "nothing listens there",
    ):
        assert words in text, words


def test_names_are_never_cut_and_never_read_as_markup() -> None:
    name = "public." + "very-long-" * 9 + "[red]"
    report = Report(
        "cdc", (TargetReport("internal", (RunReport(1, "live", BEGAN, None, None, (step("copy", name, 0, 1),)),)),)
    )
    assert name in "".join(shown(report, width=80).split())
    assert "…" not in shown(report, width=80)


def test_the_json_holds_every_step() -> None:
    told = json.loads(REPORT.to_json())
    internal, external, datamart = told["targets"]
    run = internal["runs"][0]
    assert (run["seconds"], run["outcome"], len(run["steps"])) == (7500, "done", len(STEPS))
    assert run["phases"][0]["name"] == "backup"
    assert run["kinds"][1]["slowest"][0] == {
        "object": "knowledge-elements_userid_index",
        "seconds": 300,
        "rows": None,
        "size_bytes": None,
    }
    assert internal["runs"][1]["finished_at"] is None
    assert internal["runs"][1]["steps"][1]["seconds"] is None
    assert external["runs"] == []
    assert datamart["error"] == "target datamart: nothing listens there"
