"""What an operator sees of a bootstrap: bars, sentences, sizes."""

from io import StringIO

import pytest
from rich.console import Console
from structlog.testing import capture_logs

from cdc.bootstrap.progress import LogLines, ProgressBars, Summary, TargetSummary, human_bytes
from cdc.lsn import Lsn


def test_a_summary_ends_with_a_sentence_per_target() -> None:
    of_target = TargetSummary("internal", 2, 2003, 1_500_000, 12.34, Lsn.parse("0/16B3748"))
    assert str(Summary({"internal": of_target}, ("look at this",))).splitlines() == [
        "warning: look at this",
        "internal: 2 tables, 2,003 rows, 1.5 MB copied in 12.3 s; consistent from 0/16B3748 on.",
    ]


def test_a_summary_says_what_was_there_already_and_what_nobody_compared() -> None:
    of_target = TargetSummary(
        "internal", 1, 3, 20, 1.0, Lsn.parse("0/10"), of_tables=11, kept=("public.answers", "public.b")
    )
    assert str(of_target) == (
        "internal: 1 of 11 tables (the others were there), 3 rows, 20 B copied in 1.0 s; consistent from 0/10 on. "
        "Except rows that public.answers, public.b had before: `cdc resync public.answers --target internal` compares "
        "them."
    )


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (2_500, "2.5 kB"), (5e12, "5.0 TB")])
def test_sizes_are_what_people_read(size: float, text: str) -> None:
    assert human_bytes(size) == text


def test_bars_show_targets_and_the_tables_that_take_long() -> None:
    out = StringIO()
    with ProgressBars(Console(file=out, force_terminal=True, width=120)) as bars:
        for table, ranges in (("public.small", 1), ("public.large", 3)):
            bars.begin("internal", table, ranges)
        bars.copied("internal", "public.small", 5, 100)
        bars.finish("internal", "public.small")
        bars.copied("internal", "public.large", 1000, 2_000_000)
        bars.say("public.large is copied again from a newer snapshot")
        bars.begin("internal", "public.large", 1)
        bars.copied("internal", "public.large", 3000, 6_000_000)
        bars.finish("internal", "public.large")
    assert "internal" in out.getvalue()
    assert "public.large is copied again" in out.getvalue()
    assert "4,005 rows" in out.getvalue()
    assert "public.small" not in out.getvalue()


def test_a_bar_shows_how_far_a_download_is_also_where_the_whole_is_not_known() -> None:
    out = StringIO()
    with ProgressBars(Console(file=out, force_terminal=True, width=120)) as bars:
        bars.download(1_000_000, None)
        bars.download(2_000_000, 4_000_000)
    assert "download" in out.getvalue()
    assert "2.0 MB of 4.0 MB" in out.getvalue()


def test_without_a_terminal_a_download_is_logged_once_a_minute_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("cdc.bootstrap.progress.time.monotonic", lambda: now)
    with capture_logs() as logs:
        lines = LogLines()
        for step in range(1, 11):
            now += 20.0
            lines.download(step * 100, 1000)
    assert [(line["bytes"], line["of_bytes"]) for line in logs] == [(300, 1000), (600, 1000), (900, 1000), (1000, 1000)]


def test_without_a_terminal_the_counts_are_logged_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("cdc.bootstrap.progress.time.monotonic", lambda: now)
    with capture_logs() as logs:
        lines = LogLines()
        lines.begin("internal", "public.a", 10)
        for _ in range(10):
            now += 20.0
            lines.copied("internal", "public.a", 100, 5000)
        lines.finish("internal", "public.a")
    assert [(line["rows"], line["tables_begun"]) for line in logs] == [(300, 1), (600, 1), (900, 1)]
