"""Random transactions, cut into random batches, applied to real targets: after every batch a state that the source had.

This is the model without time: no worker, no lane, no faults, so that hypothesis can repeat an example and make it
small (``CDC_TEST_MODEL_EXAMPLES`` asks for more of them). What crashes and cut connections add is in `test_faults`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import psycopg
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.replica import Replica, open_replica
from tests.model import workload
from tests.model.workload import COLUMNS, TOTAL, View, Workload

EXAMPLES = int(os.environ.get("CDC_TEST_MODEL_EXAMPLES", "20"))

OWNED_DDL = """
CREATE TABLE accounts (note text, id int PRIMARY KEY, extra text DEFAULT 'ours', balance int CHECK (id IS NOT NULL));
CREATE TABLE ledger (amount numeric, entry int);
CREATE TABLE "ledger-copy" (amount numeric, entry int UNIQUE, n int GENERATED ALWAYS AS IDENTITY);
CREATE TABLE pairs (value timestamptz, a int, "Key" text, UNIQUE (a, "Key"));
CREATE TABLE documents (title text, body text, extra text, id int UNIQUE,
    size int GENERATED ALWAYS AS (length(body)) STORED);
CREATE TABLE bag (word text, a int, payload json);
CREATE TABLE log (n int GENERATED ALWAYS AS IDENTITY, line text);
CREATE TABLE parents (name text, id int PRIMARY KEY);
CREATE TABLE children (id int PRIMARY KEY, parent int NOT NULL REFERENCES parents, name text);
CREATE TABLE slugs (id int PRIMARY KEY, slug text NOT NULL);
CREATE UNIQUE INDEX ON slugs (lower(slug)) WHERE id > 0;
CREATE TABLE fingerprints (hash text, "table" text PRIMARY KEY);
"""
"""Other orders, columns of its own, tables without a key, constraints that are checked at once."""

TARGETS = {
    "the same tables": (None, False),
    "tables of somebody else, constraints checked at once": (OWNED_DDL, True),
}


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
    ddl, triggers_fire = TARGETS[request.param]
    with asyncio.Runner() as runner:
        replica = runner.run(open_replica(source, target, workload.DDL, ddl, triggers_fire=triggers_fire))
        yield Bench(runner, replica, source, target)
        runner.run(replica.session.close())


@pytest.mark.timeout(600)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(random=st.randoms(use_true_random=False), batches=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_invariant_02_after_every_batch_a_target_shows_a_state_that_the_source_had(
    bench: Bench, random: Random, batches: list[int]
) -> None:
    for database in (bench.source, bench.target):
        database.execute(workload.EMPTY + workload.FILL)
    bench.source.execute(workload.STAMP)
    bench.runner.run(bench.replica.record())
    bench.target.executemany('INSERT INTO fingerprints ("table", hash) VALUES (%s, %s)', _fingerprints(bench.source))

    drawn = Workload(random, large=300)
    for _ in range(sum(batches)):
        write(bench.source, drawn)
    parts = bench.runner.run(bench.replica.record())
    for size in batches:
        batch, parts = parts[:size], parts[size:]
        if batch:
            bench.runner.run(bench.replica.apply(batch))
            assert_whole(bench.target)
    if parts:
        bench.runner.run(bench.replica.apply(parts))
    assert_whole(bench.target)
    assert sorted(_fingerprints(bench.source)) == sorted(_fingerprints(bench.target))


def write(source: Database, drawn: Workload) -> None:
    """Run one transaction at the source; the statements are shown when the example fails."""
    transaction = drawn.transaction()
    note("; ".join([*transaction.statements[:-1], "COMMIT" if transaction.commits else "ROLLBACK"]))
    with source.transaction():
        for statement in transaction.statements:
            source.execute(statement)
        if not transaction.commits:
            raise psycopg.Rollback


def assert_whole(target: Database) -> None:
    [(total, differing, _)] = target.fetch(View.same().query())
    assert (total, differing) == (TOTAL, None)


def _fingerprints(database: Database) -> list[tuple[str, str]]:
    found = database.fetch('SELECT "table", hash FROM fingerprints')
    assert len(found) == len(COLUMNS)
    return found
