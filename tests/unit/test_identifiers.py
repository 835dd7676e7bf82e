"""Quoting: what PostgreSQL reads back is what was quoted, whatever it holds (hazard 7)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.identifiers import quote, quote_list, quote_literal, quote_qualified
from tests.database import Database

NAMES = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=15)


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("id", '"id"'),
        ("organizationId", '"organizationId"'),
        ("user", '"user"'),
        ("element-answers", '"element-answers"'),
        ('a"b', '"a""b"'),
        ('"', '""""'),
    ],
)
def test_a_name_is_always_delimited(name: str, quoted: str) -> None:
    assert quote(name) == quoted


def test_a_qualified_name_is_quoted_in_two_parts() -> None:
    assert quote_qualified("pg boss", "a.b") == '"pg boss"."a.b"'


def test_a_list_of_names_is_separated_by_commas() -> None:
    assert quote_list(["a", 'b"', "C"]) == '"a", "b""", "C"'
    assert quote_list([]) == ""


@pytest.mark.parametrize(
    ("text", "quoted"),
    [("plain", "'plain'"), ("it's", "'it''s'"), ("", "''"), ("a\\b", "E'a\\\\b'"), ("\\'", "E'\\\\'''")],
)
def test_a_literal_means_the_same_whatever_standard_conforming_strings_says(text: str, quoted: str) -> None:
    assert quote_literal(text) == quoted


@given(NAMES)
def test_a_quoted_name_has_no_lonely_quote_inside(name: str) -> None:
    inside = quote(name)[1:-1]
    assert '"' not in inside.replace('""', "")
    assert inside.replace('""', '"') == name


def test_hazard_07_postgresql_reads_back_every_name_and_literal(source: Database) -> None:
    awkward = ["a'b", 'a"b', "a\\b", "\\'; --", "$1", "%s", "é-ñ", "select", "Two Words", "\n", 'x"."y', "E'"]
    for text in awkward:
        source.execute(f"CREATE TABLE {quote_qualified('public', text)} ({quote(text)} int)")
    found = source.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")
    assert sorted(name for (name,) in found) == sorted(awkward)
    for setting in ("on", "off"):
        source.execute(f"SET standard_conforming_strings = {setting}; SET escape_string_warning = off")
        assert [source.fetchval(f"SELECT {quote_literal(text)}") for text in awkward] == awkward
