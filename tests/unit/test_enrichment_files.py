"""What is read out of a file of the enrichment before it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc.bootstrap.enrichment_files import parse, read
from cdc.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


def test_the_head_says_what_a_file_needs_and_what_is_refreshed() -> None:
    file = parse(
        "a.sql",
        "-- Why it is there.\n-- needs: public.knowledge-elements, users\n--needs:learning.skills\n\n"
        "-- refresh: public.by day\n-- refresh: totals\nSELECT 1;\n-- needs: too.late\n",
    )
    assert file.needs == ("public.knowledge-elements", "public.users", "learning.skills")
    assert file.refreshes == ("public.by day", "public.totals")
    assert not file.is_transaction
    assert parse("a.sql", "-- cdc: transaction\nSELECT 1").is_transaction
    with pytest.raises(ConfigurationError, match='"-- cdc: transactoin" means nothing'):
        parse("a.sql", "-- cdc: transactoin\nSELECT 1")


def test_a_file_is_split_at_its_statements_and_nowhere_else() -> None:
    text = """
    -- first; not the end
    CREATE TABLE "a;b" (c text DEFAULT ';'); /* ; */
    DO $body$ BEGIN PERFORM 1; PERFORM 2; END $body$;
    CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END;
    SELECT 'it''s; over' -- no end
    """
    file = parse("a.sql", text)
    assert [statement.plain.split("(")[0].strip() for statement in file.statements] == [
        'CREATE TABLE "a;b"',
        "DO $body$ BEGIN PERFORM 1; PERFORM 2; END $body$",
        "CREATE FUNCTION f",
        "SELECT 'it''s; over'",
    ]
    assert parse("a.sql", "-- nothing\n;\n").statements == ()


@pytest.mark.parametrize("word", ["BEGIN", "start transaction", "Commit", "ROLLBACK", "end"])
def test_a_file_leaves_transactions_to_cdc(word: str) -> None:
    with pytest.raises(ConfigurationError, match="is left to cdc"):
        parse("a.sql", f"SELECT 1; /* so */ {word};")


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (
            'CREATE INDEX CONCURRENTLY "A b" ON public."knowledge-elements" (id)',
            ("public", "knowledge-elements", "A b"),
        ),
        ("create unique index concurrently if not exists Ab on only Users using btree (x)", ("public", "users", "ab")),
        ('CREATE INDEX /* why */ CONCURRENTLY "a""b"\n ON "S".t(a)', ("S", "t", 'a"b')),
        ("CREATE INDEX a ON t (id)", None),
        ("CREATE INDEX CONCURRENTLY ON t (id)", None),
        ("SELECT 'CREATE INDEX CONCURRENTLY a ON t (id)'", None),
    ],
)
def test_an_index_that_is_built_concurrently_is_known_by_name(sql: str, index: tuple[str, str, str] | None) -> None:
    (statement,) = parse("a.sql", sql).statements
    assert statement.concurrent_index == index


def test_what_sets_something_for_the_session_is_known() -> None:
    file = parse("a.sql", "SET work_mem = '1GB'; set local x.y = 1; SELECT 1; SET TRANSACTION READ ONLY; SETTLE")
    assert [statement.is_setting for statement in file.statements] == [True, False, False, False, False]


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    assert read(tmp_path, "internal") == []
    (tmp_path / "internal").mkdir()
    for name in ("20.sql", "10.sql", "notes.md"):
        (tmp_path / "internal" / name).write_text(f"SELECT '{name}'")
    assert read(tmp_path, "internal") == [("10.sql", "SELECT '10.sql'"), ("20.sql", "SELECT '20.sql'")]
    (tmp_path / "internal" / "30.sql").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="it is not UTF-8"):
        read(tmp_path, "internal")


def test_the_shipped_files_say_what_they_need() -> None:
    files = read(ROOT / "sql" / "enrich", "internal")
    assert len(files) == 4
    assert all(parse(name, text).needs for name, text in files)
