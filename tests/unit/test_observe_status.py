"""How a picture of a pipeline reads, as JSON and on a terminal of 100 columns."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from cdc.lsn import Lsn
from cdc.observe.resync_status import ResyncStatus
from cdc.observe.status import (
    UNREACHABLE,
    PipelineStatus,
    SlotStatus,
    SourceStatus,
    TableStatus,
    TargetStatus,
    duration,
    size,
)

AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
USERS = TableStatus("public.users", "public.users", "streaming", Lsn(0x2000), 100, 1_000_000, 20, 3, 0)
SENDINGS = TableStatus(
    "public.pole-emploi-sendings",
    "maddo.pole_emploi_sendings",
    "stopped",
    Lsn(0x1000),
    4196,
    7,
    0,
    0,
    0,
    reason="the target lacks the column [note] of public.pole-emploi-sendings",
    mend='ALTER TABLE maddo.pole_emploi_sendings ADD COLUMN "note" text',
    sqlstate="42703",
    stopped_at=AT,
)
INTERNAL = TargetStatus("internal", "streaming", Lsn(0x2000), 0.42, 100, 12_345, tables=(USERS,))
DATAMART = TargetStatus("datamart", "streaming", Lsn(0x2000), 0.42, 100, 12_345, tables=(USERS, SENDINGS))
EXTERNAL = TargetStatus("external", UNREACHABLE, last_error="no connection to target external: nothing listens there")
SLOT = SlotStatus("cdc", True, "reserved", 3 * 1024**2, 8 * 1024**3, Lsn(0x1000), Lsn(0x2000))
SOURCE = SourceStatus(True, None, AT, Lsn(0x2064), 0.3, (SLOT,))
STATUS = PipelineStatus("cdc", AT, "cdc", SOURCE, (INTERNAL, EXTERNAL, DATAMART))


def shown(
    status: PipelineStatus, previous: PipelineStatus | None = None, *, all_tables: bool = True, width: int = 100
) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(status.render(previous, all_tables=all_tables, width=width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_json_holds_everything_in_postgresqls_notation() -> None:
    told = json.loads(STATUS.to_json())
    assert told["pipeline"] == "cdc"
    assert told["healthy"] is False
    assert told["at"] == "2026-05-04T03:02:01+00:00"
    assert told["source"]["slots"][0] == {
        "name": "cdc",
        "active": True,
        "wal_status": "reserved",
        "retained_bytes": 3145728,
        "headroom_bytes": 8589934592,
        "restart_lsn": "0/1000",
        "confirmed_flush_lsn": "0/2000",
        "loss": None,
    }
    internal, external, datamart = told["targets"]
    assert internal["position"] == "0/2000"
    assert internal["lag_s"] == 0.42
    assert internal["rows_applied"] == 1_000_023
    assert external["state"] == "unreachable"
    assert external["position"] is None
    assert datamart["tables"][1]["mend"].startswith("ALTER TABLE")
    assert datamart["tables"][1]["rows_applied"] == 7


def test_the_tables_fit_a_terminal_of_100_columns() -> None:
    text = shown(STATUS)
    assert max(len(line) for line in text.splitlines()) <= 100
    for words in ("internal", "streaming", "0.42 s", "1,000,023", "3.0 MB", "8.0 GB", "0/2000", "unreachable"):
        assert words in text
    assert "…" not in text


def test_names_keep_their_width_on_a_terminal_of_80_columns() -> None:
    target = replace(INTERNAL, position=Lsn(0x16_B374_D848), lag_s=185.0)
    status = replace(STATUS, targets=(target, EXTERNAL, DATAMART))
    for text in (shown(status, width=80), shown(status, status, width=80)):
        assert max(map(len, text.splitlines())) <= 80
        for name in ("internal", "external", "datamart", "public.users"):
            assert any(line.startswith(f" {name} ") for line in text.splitlines()), name
        for words in ("1,000,023", "3 min 05 s", "16/B374D848", " 1/2 "):
            assert words in text
        assert "…" not in text


def test_what_is_no_terminal_gets_its_full_width() -> None:
    console = Console(file=io.StringIO(), width=80)
    STATUS.show(console)
    assert isinstance(console.file, io.StringIO)
    assert "transactions" in console.file.getvalue()
    assert max(map(len, console.file.getvalue().splitlines())) > 80


def test_the_headline_says_when_no_worker_runs() -> None:
    sentence = "no worker is running (the slot is not in use)"
    assert sentence not in shown(STATUS)
    idle = replace(STATUS, source=replace(SOURCE, slots=(replace(SLOT, active=False),)))
    assert sentence in shown(idle).splitlines()[0]
    assert max(map(len, shown(idle).splitlines()[:1])) <= 100


def test_a_line_of_json_is_the_whole_picture() -> None:
    assert "\n" not in STATUS.to_line()
    assert json.loads(STATUS.to_line()) == STATUS.to_dict()


def test_a_stopped_table_is_shown_with_its_reason_and_the_sql() -> None:
    text = shown(STATUS)
    assert "public.pole-emploi-sendings stopped: the target lacks the column [note]" in text
    assert 'ALTER TABLE maddo.pole_emploi_sendings ADD COLUMN "note" text' in text
    assert "1/2" in text


def test_a_table_that_is_read_again_is_shown_with_its_way_and_how_far_it_is() -> None:
    asked = ResyncStatus("public.lines", "asked", None, 0, None, AT, "asked for; waiting for the worker")
    read = replace(asked, table="public.users", state="reading", way="in place", rows=1200, estimated_rows=5000)
    status = replace(STATUS, targets=(replace(INTERNAL, resyncs=(asked, read)),))
    lines = " ".join(shown(status).split())
    assert "internal public.lines is read again: 0 rows since 2026-05-04 03:02:01 UTC; asked for" in lines
    assert "internal public.users is read again (in place): 1,200 of about 5,000 rows since 2026" in lines
    told = json.loads(status.to_json())["targets"][0]["resyncs"]
    assert told[1] == {
        "table": "public.users",
        "state": "reading",
        "way": "in place",
        "rows": 1200,
        "estimated_rows": 5000,
        "asked_at": "2026-05-04T03:02:01+00:00",
        "says": "asked for; waiting for the worker",
    }


def test_only_tables_that_do_not_stream_are_listed_when_asked_for_the_short_form() -> None:
    text = shown(STATUS, all_tables=False)
    assert "public.users" not in text
    assert "public.pole-emploi-sendings" in text


def test_rows_per_second_are_counted_between_two_pictures() -> None:
    earlier = replace(
        STATUS, at=AT - timedelta(seconds=2), targets=(replace(INTERNAL, tables=(replace(USERS, inserts=998_976),)),)
    )
    text = shown(STATUS, earlier, all_tables=False)
    assert "rows/s" in text
    assert "512" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "rows/s" not in shown(STATUS, all_tables=False)


def test_long_names_and_large_numbers_are_not_cut() -> None:
    target = replace(
        INTERNAL,
        position=Lsn(0x16_B374_D848),
        lag_s=185.0,
        transactions=12_345_678,
        tables=(replace(USERS, source_name="public." + "x" * 63, inserts=5_000_000_000, position=Lsn(0x16_B374_D848)),),
    )
    status = replace(STATUS, targets=(target, replace(EXTERNAL, state="needs resync")))
    text = shown(status, status)
    for words in ("16/B374D848", "3 min 05 s", "12,345,678", "5,000,000,023", "needs resync"):
        assert words in text
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_an_unreachable_source_is_a_part_of_the_picture() -> None:
    status = replace(STATUS, source=SourceStatus(False, "no connection to the source db:5432/pix"), targets=(INTERNAL,))
    assert "source unreachable" in shown(status)
    assert "no connection to the source db:5432/pix" in shown(status)
    assert not status.healthy


def test_a_missing_slot_is_said() -> None:
    status = replace(STATUS, source=replace(SOURCE, slots=()))
    assert "has no slot cdc: the targets can only be loaded again" in shown(status)
    fresh = replace(status, targets=(TargetStatus("internal", "new"),))
    assert "has no slot cdc: cdc bootstrap --from live creates it" in shown(fresh)
    assert not status.healthy


@pytest.mark.parametrize(
    ("change", "healthy"),
    [
        ({}, True),
        ({"targets": (INTERNAL, DATAMART)}, False),
        ({"targets": (replace(INTERNAL, state="needs resync"),)}, False),
        ({"source": replace(SOURCE, slots=(replace(SLOT, active=False),))}, False),
        ({"source": SourceStatus(False, "down")}, False),
    ],
)
def test_healthy_means_that_everything_streams(change: dict[str, object], healthy: bool) -> None:
    status = replace(replace(STATUS, targets=(INTERNAL,)), **change)  # type: ignore[arg-type]
    assert status.healthy is healthy


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 kB"), (150 * 1024**2, "150 MB"), (2**45, "32.0 TB")],
)
def test_sizes_read_like_postgresqls(count: int | None, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (-0.5, "0.00 s"), (0.421, "0.42 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (59.999, "60.00 s")],
)
def test_durations_read_like_speech(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
