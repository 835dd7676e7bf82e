"""The compiled core and its specification in Python, on what a real walsender sent.

A random history of tables of all kinds is recorded once, with binary values and with text, in one piece and in parts
before its commits. Both cores read it: the same transactions, the same rows of COPY, the same outcomes of compaction.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cdc.changes import stream_records
from cdc.changes.accumulator import Accumulator
from cdc.changes.packed_accumulator import PackedAccumulator
from cdc.changes.relation import Relation
from cdc.changes.row_reader import row_reader
from cdc.changes.spool import SpoolSpace
from cdc.changes.transaction import Part, divided
from cdc.pgoutput.packed import Messages
from cdc.target.copy_encoding import packed_stream
from cdc.target.steps import Group, RoutedPart, split
from tests import twins
from tests.database import Database
from tests.streams import protocol_1, transactions

pytestmark = twins.needs_compiled_core

PUBLICATION = "recorded"
TRANSACTIONS = 120

TABLES = """
    CREATE TABLE wide (id bigint PRIMARY KEY, name text, body text, data jsonb, price numeric(20, 4), at timestamptz,
        raw bytea, numbers int[], token uuid, span interval, ratio float8, day date, flag boolean, mood mood);
    ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
    CREATE TABLE pairs (a int, b text, note text, PRIMARY KEY (a, b));
    CREATE TABLE log (line text, n int);
    CREATE TABLE whole (id int, name text);
    ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE none_but_key (id int PRIMARY KEY);
"""
KEYS = {"wide": ("id",), "pairs": ("a", "b"), "log": (), "whole": (), "none_but_key": ("id",)}

STATEMENTS = (
    "INSERT INTO wide SELECT g, 'n' || g, repeat('b', {n} % 3 * 2000), jsonb_build_object('n', g), g / 7.0, now(),"
    " decode(md5(g::text), 'hex'), ARRAY[g, NULL, -g], md5(g::text)::uuid, make_interval(secs => g), g / 3.0::float8,"
    " 'epoch'::date + g::int, NULL, 'glad' FROM generate_series({n} * 20, {n} * 20 + {k}) g ON CONFLICT DO NOTHING",
    "UPDATE wide SET name = NULL, ratio = 'NaN' WHERE id % 20 < {k} AND id < {n} * 10",
    "UPDATE wide SET body = repeat('c', 3000), mood = NULL, raw = '' WHERE id % 9 = {k} % 9",
    "UPDATE wide SET id = -id WHERE id = {n} * 20",
    "DELETE FROM wide WHERE id BETWEEN {n} * 10 AND {n} * 10 + {k}",
    "INSERT INTO pairs SELECT {n}, 'k' || g, g::text FROM generate_series(1, {k}) g ON CONFLICT DO NOTHING",
    "UPDATE pairs SET note = note || '!' WHERE a % 5 = {k} % 5",
    "UPDATE pairs SET b = b || '*' WHERE a = {n} - 1",
    "DELETE FROM pairs WHERE a < {n} - 15",
    "INSERT INTO log SELECT 'line', g FROM generate_series(1, {k}) g",
    "INSERT INTO whole SELECT g, NULLIF('w' || g, 'w3') FROM generate_series(1, {k}) g",
    "UPDATE whole SET name = 'changed' WHERE id = {k}",
    "DELETE FROM whole WHERE id > 12",
    "INSERT INTO none_but_key SELECT g FROM generate_series({n} * 9, {n} * 9 + {k} % 9) g ON CONFLICT DO NOTHING",
    "DELETE FROM none_but_key WHERE id % 4 = {k} % 4",
    "SELECT pg_logical_emit_message(true, 'theirs', repeat('m', {k}))",
    "SAVEPOINT s; DELETE FROM pairs; INSERT INTO log VALUES ('never', 0); ROLLBACK TO s",
)
RARE = (
    "TRUNCATE log",
    "TRUNCATE pairs, none_but_key",
    "ALTER TABLE whole ADD more int DEFAULT 7",
    "ALTER TABLE whole DROP more",
    "INSERT INTO log SELECT repeat('large', 20), g FROM generate_series(1, 3000) g",
    "UPDATE wide SET flag = NOT coalesce(flag, false)",
)


@pytest.fixture
def recorded(source: Database) -> Database:
    """A history, in three slots."""
    source.execute("CREATE TYPE mood AS ENUM ('glad', 'sad')")
    source.execute(TABLES)
    source.execute(f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")
    for slot in ("whole", "text", "streamed"):
        source.create_slot(slot)
    chance = random.Random(20)
    for number in range(1, TRANSACTIONS):
        some = chance.choices(STATEMENTS, k=chance.randint(1, 6))
        if number % 20 == 0:
            some.insert(chance.randrange(len(some)), RARE[number // 20 - 1])
        sql = "; ".join(one.format(n=number, k=chance.choice((1, 3, 17))) for one in some)
        source.execute(f"BEGIN; {sql}; COMMIT")
    source.execute(f"BEGIN; {RARE[-1]}; {RARE[-2]}; COMMIT")
    return source


def read(accumulator: Accumulator | PackedAccumulator, messages: Sequence[bytes]) -> list[Part]:
    """In receives of different sizes."""
    cuts = sorted(random.Random(3).sample(range(len(messages)), 40))
    return twins.fed(accumulator, messages, cuts)


def groups(parts: Sequence[Part], *, binary: bool) -> list[tuple[Group, tuple[int, ...], tuple[int, ...]]]:
    """The changes on their way into their tables, each with the columns and the key of its table."""
    shapes: dict[tuple[str, int], twins.Shape] = {}
    indices_of: dict[Any, tuple[int, ...]] = {}
    plans: dict[Relation, Any] = {}
    for part in parts:
        for relation in part.relations:
            columns = [column.name for column in relation.columns]
            indices = tuple(range(len(columns)))
            key = tuple(columns.index(name) for name in KEYS[relation.name])
            shape = shapes.setdefault((relation.name, len(columns)), twins.Shape(key, relation.name))
            indices_of[shape] = indices
            wire = (b"b" if binary else b"t") * len(columns)
            plans.setdefault(relation, twins.Plan(shape, row_reader(relation, wire, indices, key)))
    return [
        (group, indices_of[group.shape], group.shape.key)
        for step in split([RoutedPart(part, plans) for part in parts])
        for together in step.tables.values()
        for group in together
    ]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "text"])
def test_a_recorded_stream_comes_to_the_same_transactions_rows_and_outcomes(recorded: Database, binary: bool) -> None:
    messages = recorded.changes("whole" if binary else "text", [PUBLICATION], binary=binary)
    assert set(b"BRIUDTMC") <= {message[0] for message in messages}
    plain = read(Accumulator(part_bytes=1 << 30), messages)
    packed = read(PackedAccumulator(part_bytes=1 << 30), Messages(messages))
    assert list(map(twins.content, divided(packed))) == list(map(twins.content, plain))
    small = read(PackedAccumulator(part_bytes=10_000), Messages(messages))
    assert twins.whole(divided(small)) == twins.whole(plain)

    results: Counter[str] = Counter()
    for parts, at_once in ((packed, 1), (packed, 5), (small, 1), (small, len(small))):
        for first in range(0, len(parts), at_once):
            for group, indices, key in groups(parts[first : first + at_once], binary=binary):
                if group.packed is None:
                    continue  # a batch with a truncation, or the like, is unpacked
                if group.has_only_inserts:
                    copied = asyncio.run(twins.collected(packed_stream(group.packed, len(indices))))
                    assert copied == twins.encoded_plainly(group, len(indices))
                    results["copied"] += 1
                if key:
                    for keeps_rows in (True, False):
                        results[twins.compare_outcomes(group, indices, key, keeps_rows=keeps_rows)] += 1
    assert results["copied"] > 100
    assert results["folded"] > 100
    assert results["not covered, result"] > 10  # keys that change


def test_a_recorded_stream_of_parts_before_their_commit_comes_to_the_same_messages(
    recorded: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.execute("SET logical_decoding_work_mem = '64kB'")
    messages = recorded.changes("streamed", [PUBLICATION], proto_version="2", streaming="on")
    assert set(b"SEcTM") <= {message[0] for message in messages}
    packed = protocol_1(messages, SpoolSpace(1 << 30, tmp_path), pack=Messages)
    monkeypatch.setattr(stream_records, "given_out", stream_records.plain_given_out)
    plain = protocol_1(messages, SpoolSpace(1 << 30, tmp_path))
    assert [bytes(message) for message in packed] == plain
    assert transactions(plain) == transactions(recorded.changes("whole", [PUBLICATION]))
