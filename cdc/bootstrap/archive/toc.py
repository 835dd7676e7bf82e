"""The table of contents of an archive in ``pg_dump``'s custom format: what was dumped, by whom, and where its data lie.

It is read from the file itself, field by field, the way ``pg_restore`` reads it; nothing is guessed from text, so that
no name takes another with it. `parse_toc` promises a whole table of contents or a `SetupError` that says what is wrong
with the file; it never reads beyond the table of contents, however large the archive is.

The format is described by PostgreSQL's source alone: ``ReadHead``, ``ReadToc``, ``ReadInt``, ``ReadStr`` and
``ReadOffset`` in src/bin/pg_dump/pg_backup_archiver.c, ``_ReadExtraToc`` in pg_backup_custom.c, and the history of
versions in pg_backup_archiver.h: 1.12 since PostgreSQL 9.0, 1.13 since 10.3, 1.14 (table access methods) since 12, 1.15
(the compression's algorithm) since 16, 1.16 (the kind of a relation) since 17.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import BinaryIO

from cdc.errors import SetupError

MAGIC = b"PGDMP"

OLDEST, NEWEST = (1, 12, 0), (1, 16, 255)
"""The versions of the format whose fields are known here. A newer one may have more of them."""

_CUSTOM = 1
"""``archCustom`` of ``ArchiveFormat`` in pg_backup.h; the ``toc.dat`` of the directory and tar formats has another."""

_ALGORITHMS = {0: "none", 1: "gzip", 2: "lz4", 3: "zstd"}
"""``pg_compress_algorithm`` in src/include/common/compression.h."""

_OFFSET_SET, _OFFSET_NONE = 2, 3
"""``K_OFFSET_POS_SET`` and ``K_OFFSET_NO_DATA``. An archive that was written into a pipe has no offsets (1)."""

_CODECS = {
    "SQL_ASCII": "utf-8",
    "UTF8": "utf-8",
    "EUC_JIS_2004": "euc_jis_2004",
    "EUC_TW": "utf-8",
    "MULE_INTERNAL": "utf-8",
    "LATIN5": "iso8859-9",
    "LATIN6": "iso8859-10",
    "LATIN7": "iso8859-13",
    "LATIN8": "iso8859-14",
    "LATIN9": "iso8859-15",
    "LATIN10": "iso8859-16",
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
}
"""Python's names for encodings of PostgreSQL (its manual, "Character Set Support") where another rule does not give
them. What Python does not know is taken for UTF-8, with whatever bytes it holds kept."""


@dataclass(frozen=True, slots=True)
class TocEntry:
    """One object of an archive.

    ``description`` is its kind (``TABLE``, ``TABLE DATA``, ``EXTENSION``, …), ``name`` its tag. ``oid`` is that of the
    dumped object in the catalog table ``table_oid``; for ``TABLE DATA`` the table's, with a ``table_oid`` of 0.
    ``dependencies`` are dump ids. ``data_offset`` counts bytes in the file; `None` where there are no data, and where
    the archive does not say.
    """

    dump_id: int
    description: str
    schema: str | None
    name: str
    owner: str | None
    definition: str
    copy_statement: str | None
    dependencies: tuple[int, ...]
    has_data: bool
    data_offset: int | None
    table_oid: int
    oid: int

    @property
    def qualified_name(self) -> str:
        """``schema.name``, unquoted, for messages."""
        return self.name if self.schema is None else f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Toc:
    """What an archive says of itself.

    ``created_at`` is the wall clock of the machine that ran ``pg_dump``, whose time zone the archive does not say.
    ``encoding`` is PostgreSQL's name of the encoding that all text in it has, rows included.
    """

    format_version: tuple[int, int, int]
    compression: str
    created_at: datetime | None
    database: str
    server_version: str
    dump_version: str
    encoding: str
    entries: tuple[TocEntry, ...]

    def table(self, schema: str, name: str) -> TocEntry | None:
        """The entry that creates a table; tables that belong to an extension have none."""
        return self._find("TABLE", schema, name)

    def table_data(self, schema: str, name: str) -> TocEntry | None:
        """The entry with the rows of a table."""
        return self._find("TABLE DATA", schema, name)

    def _find(self, description: str, schema: str, name: str) -> TocEntry | None:
        wanted = (description, schema, name)
        return next((e for e in self.entries if (e.description, e.schema, e.name) == wanted), None)

    @property
    def extensions(self) -> tuple[str, ...]:
        """The extensions that were installed in the dumped database, except those that every database has."""
        return tuple(entry.name for entry in self.entries if entry.description == "EXTENSION")


def read_toc(path: Path) -> Toc:
    """Read the table of contents of an archive. Blocks, for a fraction of a second.

    Raises `SetupError` for a file that cannot be opened, is no archive in the custom format, is damaged, is cut short,
    or has a format that is not known here.
    """
    if path.is_dir():
        kind = "a directory" + (" (pg_dump's directory format)" if (path / "toc.dat").exists() else "")
        raise _no_archive(path, kind)
    try:
        with path.open("rb") as file:
            return parse_toc(file, path.stat().st_size, path)
    except OSError as error:
        raise SetupError(f"the archive {path} cannot be read: {error.strerror or type(error).__name__}") from None


@cache
def codec(encoding: str) -> str:
    """Python's name for an encoding of PostgreSQL's; whatever bytes it cannot read are kept by ``surrogateescape``."""
    number = encoding.removeprefix("WIN")
    name = f"cp{number}" if number != encoding else _CODECS.get(encoding, encoding)
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "utf-8"


def parse_toc(file: BinaryIO, size: int, path: Path) -> Toc:
    """Read a table of contents from the beginning of ``file``, which has ``size`` bytes; ``path`` is for messages."""
    reader = _Reader(file, size, path)
    head = reader.take(len(MAGIC)) if size >= len(MAGIC) else file.read()
    if head != MAGIC:
        raise _no_archive(path, _guess(head + file.read(512)))
    version = (reader.byte(), reader.byte(), reader.byte())
    if not OLDEST <= version <= NEWEST:
        age = "newer than" if version > NEWEST else "older than all"
        raise SetupError(
            f"the archive {path} has version {_dotted(version)} of pg_dump's format, which is {age} those that this "
            f"cdc knows ({_dotted(OLDEST)} to {_dotted(NEWEST[:2])}): make it with a pg_dump of PostgreSQL 9.0 to 18"
        )
    reader.int_size, reader.offset_size = reader.byte(), reader.byte()
    if not (1 <= reader.int_size <= 8 and 1 <= reader.offset_size <= 8):
        raise reader.damaged()
    if reader.byte() != _CUSTOM:
        raise _no_archive(path, "the table of contents of another of pg_dump's formats")
    if version >= (1, 15, 0):
        compression = _ALGORITHMS.get(reader.byte(), "unknown")
    else:
        compression = "none" if reader.integer() == 0 else "gzip"
    created_at = _moment([reader.integer() for _ in range(7)])
    database, server_version, dump_version = (reader.string() or b"" for _ in range(3))
    entries = tuple(_read_entry(reader, version) for _ in range(reader.count()))
    return Toc(
        format_version=version,
        compression=compression,
        created_at=created_at,
        database=database.decode(reader.codec, "surrogateescape"),
        server_version=server_version.decode("ascii", "replace"),
        dump_version=dump_version.decode("ascii", "replace"),
        encoding=reader.encoding,
        entries=entries,
    )


def _read_entry(reader: _Reader, version: tuple[int, int, int]) -> TocEntry:
    dump_id = reader.integer()
    if dump_id <= 0:
        raise reader.damaged()
    reader.integer()  # whether pg_dump had a function for its data; the offset below says what became of that
    table_oid, oid = reader.number(), reader.number()
    name, description = reader.text(), reader.text()
    reader.integer()  # the section
    definition = reader.text()
    reader.string()  # the statement that drops it
    copy_statement, schema = reader.text(), reader.text()
    reader.string()  # the tablespace
    if version >= (1, 14, 0):
        reader.string()  # the table access method
    if version >= (1, 16, 0):
        reader.integer()  # the kind of relation
    owner = reader.text()
    reader.string()  # WITH OIDS, as "true" or "false"
    dependencies = []
    while (dependency := reader.string()) is not None:
        if not dependency.isdigit():
            raise reader.damaged()
        dependencies.append(int(dependency))
    state, offset = reader.offset()
    if state == _OFFSET_SET and offset >= reader.size:
        raise reader.cut_short(f"data that should lie at byte {offset:,} are")
    if description == "ENCODING":
        reader.encoding = _encoding(definition)
    return TocEntry(
        dump_id=dump_id,
        description=description,
        schema=schema or None,
        name=name,
        owner=owner or None,
        definition=definition,
        copy_statement=copy_statement or None,
        dependencies=tuple(dependencies),
        has_data=state != _OFFSET_NONE,
        data_offset=offset if state == _OFFSET_SET else None,
        table_oid=table_oid,
        oid=oid,
    )


class _Reader:
    """Takes the archive's numbers and strings off a file, and knows when there cannot be any more."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self._file = file
        self._path = path
        self._position = 0
        self.size = size
        self.int_size = 4
        self.offset_size = 8
        self.encoding = "UTF8"

    @property
    def codec(self) -> str:
        return codec(self.encoding)

    def take(self, length: int) -> bytes:
        data = self._file.read(length) if length <= self.size - self._position else b""
        if len(data) != length:
            raise self.cut_short("its table of contents is")
        self._position += length
        return data

    def byte(self) -> int:
        return self.take(1)[0]

    def integer(self) -> int:
        """A sign (0 or 1), then the absolute value, least significant byte first."""
        data = self.take(1 + self.int_size)
        if data[0] > 1:
            raise self.damaged()
        value = int.from_bytes(data[1:], "little")
        return -value if data[0] else value

    def count(self) -> int:
        value = self.integer()
        if value < 0:
            raise self.damaged()
        return value

    def string(self) -> bytes | None:
        length = self.integer()
        return None if length < 0 else self.take(length)

    def text(self) -> str:
        return (self.string() or b"").decode(self.codec, "surrogateescape")

    def number(self) -> int:
        """A number that is written as text."""
        text = self.string() or b""
        if not text.isdigit():
            raise self.damaged()
        return int(text)

    def offset(self) -> tuple[int, int]:
        """What is known of the place of an entry's data, and the place."""
        state, place = self.byte(), int.from_bytes(self.take(self.offset_size), "little")
        if not 1 <= state <= _OFFSET_NONE:
            raise self.damaged()
        return state, place

    def damaged(self) -> SetupError:
        return SetupError(
            f"the archive {self._path} is damaged: its table of contents does not make sense at byte "
            f"{self._position:,}. Copy or download it again, or take another backup"
        )

    def cut_short(self, what: str) -> SetupError:
        return SetupError(
            f"the archive {self._path} is cut short: it has {self.size:,} bytes, and {what} missing. Copy or download "
            f"it again, or take another backup"
        )


def _no_archive(path: Path, kind: str) -> SetupError:
    return SetupError(
        f"{path} is no archive in pg_dump's custom format, but {kind}: make one with `pg_dump -Fc` "
        f"(`--format=custom`), or take the provider's `.tar.gz`"
    )


def _guess(start: bytes) -> str:
    """What the beginning of a file that is no archive looks like."""
    if not start:
        return "an empty file"
    if start.startswith(b"\x1f\x8b"):
        return "something that gzip has compressed"
    if start[257:262] == b"ustar":
        return "a tar file (maybe pg_dump's tar format)"
    if start.lstrip().startswith((b"--", b"SET ", b"/*", b"\\restrict")):
        return "something like plain SQL (pg_dump's plain format)"
    return "something else"


def _moment(fields: list[int]) -> datetime | None:
    """A ``struct tm``: seconds first, months from 0, years from 1900."""
    second, minute, hour, day, month, year, _ = fields
    try:
        return datetime(year + 1900, month + 1, day, hour, minute, min(second, 59))
    except ValueError:
        return None


def _encoding(definition: str) -> str:
    """From ``SET client_encoding = 'UTF8';``. The entry is the first of all (``dumpEncoding`` in pg_dump.c)."""
    parts = definition.split("'")
    return parts[1] if len(parts) == 3 else "UTF8"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
