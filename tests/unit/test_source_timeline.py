"""What a timeline history file says, and how much of an error may be repeated."""

from __future__ import annotations

from cdc.errors import ServerError, SetupError, SlotInUse, SourceUnavailable, TerminalError
from cdc.lsn import Lsn
from cdc.source.connection import explain
from cdc.source.replication import parse_timeline_history


def test_each_line_is_a_timeline_and_where_it_was_left() -> None:
    text = "1\t0/3000000\tno recovery target specified\n\n2\t1/A000\tbefore 2000-01-01 00:00:00+00\n"
    assert parse_timeline_history(text) == [(1, Lsn.parse("0/3000000")), (2, Lsn.parse("1/A000"))]


def test_an_empty_history_is_no_history() -> None:
    assert parse_timeline_history("") == []


def test_the_type_of_an_error_says_whether_trying_again_helps() -> None:
    kinds = {
        "55006": SlotInUse,
        "42501": SetupError,
        "42P01": SetupError,
        "53400": SetupError,
        "53300": SourceUnavailable,
        "57P01": SourceUnavailable,
        "57P03": SourceUnavailable,
        "40001": SourceUnavailable,
        "55P03": SourceUnavailable,
        "58030": SourceUnavailable,
        "23505": TerminalError,
    }
    assert {state: type(explain(ServerError(state), "answer")) for state in kinds} == kinds
    assert isinstance(explain(None, "answer"), SourceUnavailable)
