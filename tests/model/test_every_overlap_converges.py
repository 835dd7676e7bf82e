"""Random histories streamed over a copy that holds a part of them already: at the end the copy equals the source.

The target starts as the source was after some transaction, the stream begins at or before it, in overlap, and is cut
into random batches (``CDC_TEST_MODEL_EXAMPLES`` asks for more examples). Then the target is cut over, and a last
transaction must find everything as the source had it. What the rows cannot tell (cdc.target.overlap) must stop its
table; only a row that gets another key without sending all its values may do that, and never in the tables where all
values are small.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import pytest
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from cdc.changes.relation import Relation
from cdc.changes.transaction import Part
from cdc.errors import TableStopped
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.replica import Replica, open_replica

EXAMPLES = int(os.environ.get("CDC_TEST_MODEL_EXAMPLES", "40"))

TABLES = {"docs": "id, name, body, extra", "users": "id, email", "pairs": 'a, "B", value'}
DDL = """
CREATE TABLE docs (id int PRIMARY KEY, name text, body text, extra text);
ALTER TABLE docs ALTER body SET STORAGE EXTERNAL, ALTER extra SET STORAGE EXTERNAL;
CREATE TABLE users (id numeric PRIMARY KEY, email text NOT NULL);
CREATE TABLE pairs (a int, "B" text, value text, PRIMARY KEY ("B", a));
"""
UNIQUE = "CREATE UNIQUE INDEX ON users (email);"
"""At the source only: a target gets such an index after its cut-over."""

OWNED_DDL = """
CREATE TABLE docs (size int GENERATED ALWAYS AS (length(body)) STORED, extra text, body text, name text,
    ours text DEFAULT 'ours', id bigint UNIQUE);
CREATE TABLE users (email text, id numeric);
CREATE TABLE pairs (value text, a int, "B" text, n int GENERATED ALWAYS AS IDENTITY, UNIQUE (a, "B"));
"""
TARGETS = {"the same tables": DDL, "tables of somebody else, one without any index": OWNED_DDL}

FILL = """
TRUNCATE docs, users, pairs;
INSERT INTO docs SELECT g, 'name ' || g, repeat(md5(g::text), 80), repeat(md5('x' || g), 80)
  FROM generate_series(1, 8) g;
INSERT INTO users SELECT g, 'mail ' || g FROM generate_series(1, 6) g;
INSERT INTO pairs SELECT g % 3, 'k' || g / 3, 'value ' || g FROM generate_series(1, 7) g;
"""


@dataclass
class Bench:
    """A replica and the loop that its connections belong to."""

    runner: asyncio.Runner
    replica: Replica
    source: Database
    target: Database


@pytest.fixture(params=TARGETS)
def bench(request: pytest.FixtureRequest, source: Database, make_target: MakeDatabase) -> Iterator[Bench]:
    target = make_target()
    with asyncio.Runner() as runner:
        replica = runner.run(open_replica(source, target, DDL + UNIQUE, TARGETS[request.param], follows=False))
        yield Bench(runner, replica, source, target)
        runner.run(replica.session.close())


class History:
    """Draws transactions over few keys, so that they meet often."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._count = 0
        self._operations: Sequence[Callable[[], list[str]]] = (
            *[self._doc_comes, self._doc_goes, self._doc_changes, self._doc_changes, self._doc_moves, self._doc_moves],
            *[
                self._docs_exchange,
                self._user_comes,
                self._user_moves,
                self._emails_exchange,
                self._pair,
                self._pair_moves,
            ],
            self._truncate,
        )

    def transaction(self) -> list[str]:
        """Its statements."""
        count = self._random.choice((1, 1, 2, 4))
        return [statement for _ in range(count) for statement in self._random.choice(self._operations)()]

    def _id(self) -> int:
        return self._random.randint(1, 10)

    def _new(self) -> str:
        self._count += 1
        return f"repeat(md5('{self._count}'), {self._random.choice((1, 80))})"

    def _doc_comes(self) -> list[str]:
        values = ", ".join(self._new() for _ in range(3))
        return [f"INSERT INTO docs VALUES ({self._id()}, {values}) ON CONFLICT DO NOTHING"]

    def _doc_goes(self) -> list[str]:
        return [f"DELETE FROM docs WHERE id = {self._id()}"]

    def _doc_changes(self) -> list[str]:
        change = self._random.choice(("name = {}", "body = {}", "extra = {}, name = NULL", "body = extra, extra = {}"))
        return [f"UPDATE docs SET {change.format(self._new())} WHERE id = {self._id()}"]

    def _doc_moves(self) -> list[str]:
        old, new = self._id(), self._random.choice((self._id(), self._id() + 10))
        also = self._random.choice(("", "", f", name = {self._new()}", f", body = {self._new()}, extra = NULL"))
        free = f"NOT EXISTS (SELECT FROM docs WHERE id = {new})"
        heir = f"INSERT INTO docs VALUES ({old}, {self._new()}, {self._new()}, {self._new()}) ON CONFLICT DO NOTHING"
        moves = f"UPDATE docs SET id = {new}{also} WHERE id = {old} AND {free}"
        return self._random.choice(([moves], [moves, heir]))

    def _docs_exchange(self) -> list[str]:
        one, other = self._id(), self._id()
        if self._random.random() < 0.8:
            return self._doc_changes()
        return [f"UPDATE docs SET id = {new} WHERE id = {old}" for old, new in ((one, -1), (other, one), (-1, other))]

    def _user_comes(self) -> list[str]:
        user = f"{self._id()}.{'0' * self._random.randint(0, 2)}"
        return [
            self._random.choice(
                (
                    f"INSERT INTO users VALUES ({user}, 'mail {self._id()}') ON CONFLICT DO NOTHING",
                    f"DELETE FROM users WHERE id = {user}",
                )
            )
        ]

    def _user_moves(self) -> list[str]:
        old, new = self._id(), f"{self._id()}.{'0' * self._random.randint(0, 2)}"
        taken = f"EXISTS (SELECT FROM users WHERE id = {new} AND id <> {old})"
        return [f"UPDATE users SET id = {new} WHERE id = {old} AND NOT {taken}"]

    def _emails_exchange(self) -> list[str]:
        one, other = self._id(), self._id()
        email = "(SELECT email FROM users WHERE id = {})"
        both = f"(SELECT count(*) FROM users WHERE id IN ({one}, {other})) = 2"
        return [
            f"UPDATE users SET email = email || '|' || {email.format(other)} WHERE id = {one} AND {both}",
            f"UPDATE users SET email = split_part({email.format(one)}, '|', 1) WHERE id = {other} AND {both}",
            f"UPDATE users SET email = split_part(email, '|', 2) WHERE id = {one} AND {both}",
        ]

    def _pair(self) -> list[str]:
        a, b = self._random.randint(0, 2), f"k{self._random.randint(0, 3)}"
        return [
            self._random.choice(
                (
                    f"INSERT INTO pairs VALUES ({a}, '{b}', {self._new()})"
                    ' ON CONFLICT (a, "B") DO UPDATE SET value = excluded.value',
                    f"DELETE FROM pairs WHERE a = {a}",
                )
            )
        ]

    def _pair_moves(self) -> list[str]:
        a, b, to = self._random.randint(0, 2), f"k{self._random.randint(0, 3)}", f"k{self._random.randint(0, 3)}"
        return [
            f"""UPDATE pairs SET "B" = '{to}' WHERE a = {a} AND "B" = '{b}'"""
            f""" AND NOT EXISTS (SELECT FROM pairs WHERE a = {a} AND "B" = '{to}')"""
        ]

    def _truncate(self) -> list[str]:
        if self._random.random() < 0.7:
            return self._user_comes()
        return [f"TRUNCATE {self._random.choice(('docs', 'users', 'pairs', 'docs, users'))}"]


@pytest.mark.timeout(600)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    random=st.randoms(use_true_random=False),
    before=st.integers(0, 6),
    held=st.integers(0, 12),
    after=st.integers(0, 6),
    borders=st.lists(st.integers(1, 8), min_size=1, max_size=8),
)
def test_streaming_over_what_is_there_gives_the_source_or_stops_the_table(
    bench: Bench, random: Random, before: int, held: int, after: int, borders: list[int]
) -> None:
    replica, history = bench.replica, History(random)
    bench.source.execute(FILL)
    bench.target.execute("TRUNCATE docs, users, pairs")
    write(bench, history, before)
    bench.runner.run(replica.record())  # the stream begins behind it
    write(bench, history, held)
    replica.restore(**TABLES)
    write(bench, history, after)
    parts = bench.runner.run(replica.record())

    replica.plans.clear()
    replica.overlap = True
    stops: dict[str, str] = {}
    stream(bench, parts, borders, stops)
    event(f"stopped: {', '.join(stops) or 'nothing'}")
    assert stops.keys() <= {"docs"}
    assert all("without sending all its values" in reason for reason in stops.values())
    assert_equal(bench, stops)

    replica.cut_over()
    bench.source.execute("UPDATE docs SET name = 'end'; DELETE FROM users WHERE id < 3; UPDATE pairs SET value = 'end'")
    before_the_end = dict(stops)
    stream(bench, bench.runner.run(replica.record()), [1], stops)
    assert stops == before_the_end
    assert_equal(bench, stops)


def write(bench: Bench, history: History, count: int) -> None:
    for _ in range(count):
        statements = history.transaction()
        note("; ".join(statements))
        with bench.source.transaction():
            for statement in statements:
                bench.source.execute(statement)


def stream(bench: Bench, parts: list[Part], borders: list[int], stops: dict[str, str]) -> None:
    """Apply parts in batches, without the tables that are stopped. Adds those that stop, with the reason."""
    number = 0
    while parts:
        size = borders[number % len(borders)]
        stopped = frozenset(stops)
        try:
            bench.runner.run(bench.replica.apply(parts[:size], holds=partial(_is_one_of, stopped)))
        except TableStopped as error:
            stops[str(error.source_table).removeprefix("public.")] = str(error)
            continue
        parts, number = parts[size:], number + 1


def _is_one_of(stopped: Collection[str], relation: Relation, _: Part) -> bool:
    return relation.name in stopped


def assert_equal(bench: Bench, stops: Collection[str]) -> None:
    for table in TABLES.keys() - stops:
        names = ", ".join(f"{name}::text" for name in TABLES[table].split(", "))
        query = f"SELECT {names} FROM {table} ORDER BY 1, 2"
        assert bench.target.fetch(query) == bench.source.fetch(query), table
