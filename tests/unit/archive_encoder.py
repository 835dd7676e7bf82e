"""Tables of contents as ``pg_dump -Fc`` writes them, of any version of the format, for tests.

Written after ``WriteHead`` and ``WriteToc`` in src/bin/pg_dump/pg_backup_archiver.c, independently of the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    description: str
    name: str
    schema: str | None = "public"
    dump_id: int = 1
    oid: int = 0
    table_oid: int = 0
    owner: str = "postgres"
    definition: str = ""
    copy_statement: str | None = None
    dependencies: Sequence[int] = ()
    offset: tuple[int, int] = (3, 0)


ENCODING = Entry("ENCODING", "ENCODING", None, definition="SET client_encoding = 'UTF8';\n")


@dataclass(frozen=True)
class Format:
    version: tuple[int, int, int] = (1, 14, 0)
    int_size: int = 4
    offset_size: int = 8
    kind: int = 1
    codec: str = "utf-8"

    def integer(self, value: int) -> bytes:
        return bytes([value < 0]) + abs(value).to_bytes(self.int_size, "little")

    def string(self, value: str | None) -> bytes:
        if value is None:
            return self.integer(-1)
        data = value.encode(self.codec, "surrogateescape")
        return self.integer(len(data)) + data

    def entry(self, entry: Entry) -> bytes:
        parts = [
            self.integer(entry.dump_id),
            self.integer(entry.offset[0] != 3),
            self.string(str(entry.table_oid)),
            self.string(str(entry.oid)),
            self.string(entry.name),
            self.string(entry.description),
            self.integer(2),
            self.string(entry.definition),
            self.string(""),
            self.string(entry.copy_statement),
            self.string(entry.schema),
            self.string(""),
        ]
        if self.version >= (1, 14, 0):
            parts.append(self.string("heap"))
        if self.version >= (1, 16, 0):
            parts.append(self.integer(ord("r")))
        parts += [self.string(entry.owner), self.string("false")]
        parts += [self.string(str(dependency)) for dependency in entry.dependencies]
        parts += [self.string(None), bytes([entry.offset[0]]), entry.offset[1].to_bytes(self.offset_size, "little")]
        return b"".join(parts)


def archive(
    *entries: Entry,
    form: Format | None = None,
    compression: int = 1,
    dump_version: str = "12.4",
    moment: Sequence[int] = (56, 52, 14, 26, 9, 120, 0),
    count: int | None = None,
) -> bytes:
    """A whole table of contents; ``compression`` is the level before 1.15, and the algorithm since."""
    form = form or Format()
    head = b"PGDMP" + bytes([*form.version, form.int_size, form.offset_size, form.kind])
    head += bytes([compression]) if form.version >= (1, 15, 0) else form.integer(compression)
    head += b"".join(form.integer(value) for value in moment)
    head += form.string("pix") + form.string("12.4") + form.string(dump_version)
    return head + form.integer(len(entries) if count is None else count) + b"".join(map(form.entry, entries))
