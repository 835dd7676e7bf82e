"""The table of contents of an archive: every version of the format, any name, and what is no archive."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from cdc.bootstrap.archive.copy_statement import copy_columns
from cdc.bootstrap.archive.toc import Toc, read_toc
from cdc.errors import SetupError
from tests.unit.archive_encoder import ENCODING, Entry, Format, archive

PIX_ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "pix-2020.pgsql"

VERSIONS = [(1, 12, 0), (1, 13, 0), (1, 14, 0), (1, 15, 0), (1, 16, 0)]

ANSWERS = Entry(
    "TABLE DATA",
    "answers",
    dump_id=3530,
    oid=16430,
    copy_statement="COPY public.answers (id) FROM stdin;\n",
    dependencies=(213, 7),
    offset=(2, 20),
)


def read(directory: Path, content: bytes) -> Toc:
    path = directory / "some.pgsql"
    path.write_bytes(content)
    return read_toc(path)


def test_the_archive_of_pix_is_read_field_by_field() -> None:
    toc = read_toc(PIX_ARCHIVE)
    assert toc.format_version == (1, 14, 0)
    assert toc.compression == "gzip"
    assert toc.created_at == datetime(2020, 10, 26, 14, 52, 56)
    assert (toc.database, toc.server_version, toc.dump_version) == ("replication_source", "12.4", "12.4")
    assert toc.encoding == "UTF8"
    assert len(toc.entries) == 386
    assert sum(entry.has_data for entry in toc.entries) == 40
    answers, table = toc.table_data("public", "answers"), toc.table("public", "answers")
    assert answers is not None
    assert table is not None
    assert answers.oid == table.oid == 16430
    assert (answers.table_oid, table.table_oid) == (0, 1259)
    assert answers.dependencies == (table.dump_id,)
    assert answers.data_offset == 139501
    assert table.definition.startswith("CREATE TABLE public.answers (")
    assert table.owner == "postgres"
    assert not table.has_data
    assert toc.table_data("public", "answer") is None
    assert toc.table("knex", "answers") is None
    assert copy_columns(answers) == (
        "id", "value", "result", "assessmentId", "challengeId", "createdAt", "updatedAt", "timeout", "elapsedTime",
        "resultDetails",
    )  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize(("int_size", "offset_size"), [(4, 8), (8, 8), (4, 4)])
def test_every_version_of_the_format_is_read(
    tmp_path: Path, version: tuple[int, int, int], int_size: int, offset_size: int
) -> None:
    form = Format(version, int_size, offset_size)
    toc = read(tmp_path, archive(ENCODING, ANSWERS, form=form))
    assert toc.format_version == version
    assert toc.compression == "gzip"
    entry = toc.table_data("public", "answers")
    assert entry is not None
    assert entry == toc.entries[1]
    assert (entry.dump_id, entry.schema, entry.owner, entry.oid) == (3530, "public", "postgres", 16430)
    assert (entry.dependencies, entry.has_data, entry.data_offset) == ((213, 7), True, 20)
    assert entry.copy_statement == "COPY public.answers (id) FROM stdin;\n"
    assert toc.entries[0].schema is None
    assert not toc.entries[0].has_data


@pytest.mark.parametrize(
    ("version", "byte", "name"),
    [
        ((1, 16, 0), 0, "none"),
        ((1, 16, 0), 2, "lz4"),
        ((1, 15, 0), 3, "zstd"),
        ((1, 14, 0), 0, "none"),
        ((1, 14, 0), 9, "gzip"),
        ((1, 14, 0), -1, "gzip"),
    ],
)
def test_the_compression_is_named(tmp_path: Path, version: tuple[int, int, int], byte: int, name: str) -> None:
    assert read(tmp_path, archive(form=Format(version), compression=byte)).compression == name


def test_a_name_never_takes_another_with_it(tmp_path: Path) -> None:
    names = [
        "answers",
        "element-answers",
        "answers-corrected",
        "Answers",
        'an"swers',
        "answers\nTABLE DATA",
        "réponses",
    ]
    entries = [replace(ANSWERS, name=name, dump_id=place) for place, name in enumerate(names, 1)]
    toc = read(tmp_path, archive(ENCODING, *entries))
    for place, name in enumerate(names, 1):
        found = toc.table_data("public", name)
        assert found is not None
        assert found.dump_id == place
    assert toc.table_data("public", "swers") is None


def test_an_archive_that_was_written_into_a_pipe_knows_that_there_are_data_and_not_where(tmp_path: Path) -> None:
    toc = read(tmp_path, archive(replace(ANSWERS, offset=(1, 0))))
    assert toc.entries[0].has_data
    assert toc.entries[0].data_offset is None


def test_names_are_in_the_encoding_that_the_archive_names(tmp_path: Path) -> None:
    encoding = replace(ENCODING, definition="SET client_encoding = 'LATIN1';\n")
    toc = read(tmp_path, archive(encoding, replace(ANSWERS, name="réponses"), form=Format(codec="latin-1")))
    assert toc.encoding == "LATIN1"
    assert toc.table_data("public", "réponses") is not None


def test_bytes_that_are_no_text_survive(tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    toc = read(tmp_path, archive(ENCODING, replace(ANSWERS, name=name)))
    assert toc.entries[1].name.encode("utf-8", "surrogateescape") == b"caf\xe9"


def test_extensions_are_named(tmp_path: Path) -> None:
    extensions = [Entry("EXTENSION", name, None) for name in ("pg_trgm", "uuid-ossp")]
    comment = Entry("COMMENT", "EXTENSION pg_trgm", None)
    assert read(tmp_path, archive(ENCODING, *extensions, comment)).extensions == ("pg_trgm", "uuid-ossp")


def test_a_clock_that_makes_no_sense_is_no_reason_to_refuse_an_archive(tmp_path: Path) -> None:
    assert read(tmp_path, archive(moment=(0, 0, 0, 0, 0, 0, 0))).created_at is None
    assert read(tmp_path, archive(moment=(60, 59, 23, 31, 11, 116, -1))).created_at == datetime(
        2016, 12, 31, 23, 59, 59
    )


def test_an_archive_cut_anywhere_in_its_table_of_contents_is_cut_short(tmp_path: Path) -> None:
    whole = archive(ENCODING, replace(ANSWERS, offset=(1, 0)), form=Format((1, 16, 0)))
    for length in range(5, len(whole)):
        with pytest.raises(SetupError, match=r"is cut short: it has .* Copy or download it again"):
            read(tmp_path, whole[:length])


def test_data_that_should_lie_behind_the_end_say_that_the_archive_is_cut_short(tmp_path: Path) -> None:
    with pytest.raises(
        SetupError, match=r"cut short: it has [0-9,]+ bytes, and data that should lie at byte 123,456,789"
    ):
        read(tmp_path, archive(replace(ANSWERS, offset=(2, 123_456_789))))


@pytest.mark.parametrize(
    "content",
    [
        archive()[:8] + b"\x00" + archive()[9:],
        archive()[:9] + b"\x09" + archive()[10:],
        archive(replace(ANSWERS, dump_id=0)),
        archive(replace(ANSWERS, offset=(4, 0))),
        archive(count=-1),
        archive(ANSWERS).replace(b"16430", b"16x30"),
        archive(replace(ANSWERS, dependencies=(-3,))),
        archive()[:11] + b"\x02" + archive()[12:],
    ],
)
def test_damage_is_named_as_such(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SetupError, match=r"damaged: its table of contents does not make sense at byte [0-9,]+"):
        read(tmp_path, content)


def test_a_string_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    form = Format()
    content = archive(ENCODING).replace(form.string("ENCODING"), form.integer(2**31 - 1) + b"ENCODING", 1)
    with pytest.raises(SetupError, match="cut short"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("version", "word"), [((1, 17, 0), "newer than"), ((2, 0, 0), "newer than"), ((1, 11, 0), "older than all")]
)
def test_a_format_that_nobody_here_knows_is_refused(tmp_path: Path, version: tuple[int, int, int], word: str) -> None:
    with pytest.raises(
        SetupError, match=rf"has version {version[0]}\.{version[1]}\.0 of pg_dump's format, which is {word}"
    ):
        read(tmp_path, archive(form=Format(version)))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "an empty file"),
        (b"PG", "something else"),
        (b"--\n-- PostgreSQL database dump\n--\n", "plain SQL"),
        (b"\n\n\\restrict abc\nSET x = 1;", "plain SQL"),
        (b"\x1f\x8b\x08\x00rest", "gzip has compressed"),
        (b"toc.dat".ljust(257, b"\0") + b"ustar\x00".ljust(300, b"\0"), "a tar file"),
        (b"<html>Retry later</html>", "something else"),
        (archive(form=Format(kind=3)), "another of pg_dump's formats"),
        (archive(form=Format(kind=5)), "another of pg_dump's formats"),
    ],
)
def test_what_is_no_archive_in_the_custom_format_is_said_to_be_none(tmp_path: Path, content: bytes, kind: str) -> None:
    with pytest.raises(SetupError, match=rf"some\.pgsql is no archive in pg_dump's custom format, but .*{kind}.*-Fc"):
        read(tmp_path, content)


def test_a_directory_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "toc.dat").write_bytes(b"PGDMP")
    with pytest.raises(SetupError, match=r"but a directory .pg_dump's directory format.*pg_dump -Fc"):
        read_toc(tmp_path)
    with pytest.raises(SetupError, match=r"none.pgsql cannot be read: No such file"):
        read_toc(tmp_path / "none.pgsql")


@pytest.mark.parametrize(
    ("statement", "columns"),
    [
        ("COPY public.answers (id) FROM stdin;\n", ("id",)),
        ("COPY answers (id, a2) FROM stdin;\n", ("id", "a2")),
        ('COPY "a.b"."c (d)" ("e, f", "g\nh", ") FROM stdin;") FROM stdin;\n', ("e, f", "g\nh", ") FROM stdin;")),
        ('COPY public."""" ("""", "a""b", """""") FROM stdin;\n', ('"', 'a"b', '""')),
        ("COPY public.été (né, _x$1) FROM stdin;\n", ("né", "_x$1")),
        ("COPY public.nothing  FROM stdin;\n", ()),
    ],
)
def test_columns_are_read_as_identifiers(tmp_path: Path, statement: str, columns: tuple[str, ...]) -> None:
    toc = read(tmp_path, archive(ENCODING, replace(ANSWERS, copy_statement=statement)))
    assert copy_columns(toc.entries[1]) == columns


@pytest.mark.parametrize(
    "statement",
    [
        None,
        "INSERT INTO answers",
        "COPY answers (id",
        'COPY answers ("id) FROM stdin;',
        "COPY answers (id,b) FROM stdin;",
    ],
)
def test_rows_that_are_not_copy_with_columns_are_refused(tmp_path: Path, statement: str | None) -> None:
    toc = read(tmp_path, archive(replace(ANSWERS, copy_statement=statement)))
    with pytest.raises(SetupError, match=r"rows of public.answers in a form that cannot be restored.*--inserts"):
        copy_columns(toc.entries[0])
