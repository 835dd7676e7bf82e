"""One target at a time, and again, while the worker streams to the others and people read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from cdc.bootstrap.backup import BackupChoice
from cdc.bootstrap.run import Scope
from cdc.errors import SetupError
from cdc.service import loading
from tests.backup import Connection, Steps, Writer, bootstrap_settings
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database
from tests.pipeline import Pipeline, follow, listed, owned
from tests.scalingo import StandIn

ROWS = 300


def fill(source: Database) -> None:
    source.execute(
        "CREATE TABLE item (id int PRIMARY KEY, label text UNIQUE, n int, long text);"
        "CREATE TABLE log (what text);"
        f"INSERT INTO item SELECT n, 'label ' || n, 0, md5(n::text) FROM generate_series(1, {ROWS}) n;"
        "INSERT INTO log SELECT 'first' FROM generate_series(1, 10)"
    )


def swap_labels(source: Connection, n: int) -> None:
    one, other = n % ROWS + 1, (n * 7 + 3) % ROWS + 1
    found = source.execute("SELECT id, label FROM item WHERE id IN (%s, %s)", (one, other))
    labels: dict[int, str] = dict(found.fetchall())
    for key, label in ((one, None), (other, labels[one]), (one, labels[other])) if one != other else ():
        source.execute("UPDATE item SET label = %s, n = %s WHERE id = %s", (label, n, key))


def replace_row(source: Connection, n: int) -> None:
    source.execute("INSERT INTO item VALUES (%s, %s, %s, 'new')", (1000 + n, f"new {n}", n))
    source.execute("DELETE FROM item WHERE id = %s", (1000 + n - 20,))
    source.execute("INSERT INTO log VALUES (%s)", (f"line {n}",))


TRANSACTIONS: list[Callable[[Connection, int], object]] = [swap_labels, replace_row]


@contextmanager
def reading(target: Database, *queries: str) -> Iterator[None]:
    """Somebody who asks these queries all the time, in one session, and gets something other than zero each time."""
    stop, errors, answers = threading.Event(), list[str](), 0

    def read() -> None:
        nonlocal answers
        try:
            with psycopg.connect(target.dsn, autocommit=True) as connection:
                while not stop.is_set():
                    for query in queries:
                        if not (connection.execute(query.encode()).fetchone() or [0])[0]:
                            errors.append(f"nothing: {query}")
                    answers += 1
        except psycopg.Error as error:
            errors.append(str(error))

    thread = threading.Thread(target=read, name="reader")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert answers > 10


def slots(source: Database) -> set[str]:
    return {
        name
        for (name,) in source.fetch("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
    }


@pytest.mark.timeout(240)
async def test_targets_are_loaded_one_by_one_and_again_while_the_worker_streams_to_the_others(
    own_server: MakeServer, make_database: MakeDatabase, make_target: MakeDatabase, scalingo: StandIn, tmp_path: Path
) -> None:
    # A server of its own: a slot's creation counts whatever is under way on its server, at the targets, too.
    source = make_database("source", server=own_server())
    fill(source)
    internal, external, extra = make_target("internal"), make_target("external"), make_target("extra")
    scalingo.add_database(source.dsn)
    targets = {
        "internal": follow(internal),
        "external": listed(external, {"public.item": ["id", "label", "n"], "public.log": ["what"]}),
        "extra": follow(extra, "public.item"),
    }
    async with Pipeline(source, targets) as pipeline:
        pipeline.settings["bootstrap"] = bootstrap_settings(scalingo, directory=str(tmp_path))
        pipeline.configure()

        async def load(*names: str, backup: bool, anew: bool = False) -> Steps:
            steps = Steps()
            scope = Scope(targets=names or None, anew=anew)
            choice = BackupChoice() if backup else None
            await loading.bootstrap(pipeline.config, scope=scope, from_backup=choice, progress=steps)
            return steps

        async def one_lane() -> None:
            await pipeline.until(lambda: slots(source) == {pipeline.slot}, "every target is in the shared lane")

        await pipeline.setup()
        await load("internal", backup=False)
        await pipeline.start(ready=False)
        await pipeline.until(pipeline.slot_is_active, "the worker streams")
        with Writer(source, TRANSACTIONS, per_second=20):
            # Targets that hold nothing, beside one that is streamed to.
            await load("external", backup=True)
            await one_lane()
            await load("extra", backup=False)
            await one_lane()
            await pipeline.caught_up()

            # A healthy one again, while people read its tables and a view over them.
            internal.execute("CREATE VIEW newest AS SELECT id, label FROM item ORDER BY n DESC LIMIT 5")
            internal.execute("GRANT SELECT ON item TO PUBLIC")
            before = internal.fetchval("SELECT 'item'::regclass::oid")
            with reading(
                internal, "SELECT count(*) FROM item", "SELECT count(*) FROM newest", "SELECT count(*) FROM log"
            ):
                await load("internal", backup=True, anew=True)
            assert internal.fetchval("SELECT 'item'::regclass::oid") != before
            assert internal.fetchval("SELECT has_table_privilege('public', 'item', 'SELECT')")
            await one_lane()
            await pipeline.caught_up()

            # One that has lost the stream.
            extra.execute("UPDATE cdc.target SET position = '0/1' WHERE pipeline = 'cdc'")
            extra.execute("SELECT pg_terminate_backend(backend_pid) FROM cdc.target WHERE pipeline = 'cdc'")

            async def is_lost() -> bool:
                return (await pipeline.target_status("extra")).state == "needs resync"

            await pipeline.until(is_lost, "the target needs a resync")
            with reading(extra, "SELECT count(*) FROM item"):
                await load("extra", backup=False, anew=True)
            await one_lane()
            await pipeline.caught_up()

            # All of them.
            asked = len(scalingo.backups)
            with reading(internal, "SELECT count(*) FROM item", "SELECT count(*) FROM newest"):
                await load(backup=True, anew=True)
            assert len(scalingo.backups) == asked + 1
            await one_lane()
            await pipeline.caught_up()
        await pipeline.assert_caught_up_and_equal()
        # What the worker was applying when tables were swapped was refused by tables that were not its own any more.
        assert pipeline.worker.events("table stopped") == []
        assert internal.fetchval("SELECT count(*) FROM newest") == 5
        for target in pipeline.targets.values():
            assert target.fetch("SELECT pipeline, state FROM cdc.target") == [("cdc", "streaming")]
            assert target.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^cdc_(new|old)'") == []


async def test_tables_of_somebody_else_are_not_loaded_beside_themselves(
    source: Database, make_target: MakeDatabase, scalingo: StandIn
) -> None:
    fill(source)
    datamart = make_target("datamart")
    datamart.execute("CREATE TABLE item (id int PRIMARY KEY, label text)")
    scalingo.add_database(source.dsn)
    async with Pipeline(source, {"datamart": owned(datamart, {"public.item": ["id", "label"]})}) as pipeline:
        pipeline.settings["bootstrap"] = bootstrap_settings(scalingo)
        pipeline.configure()
        await pipeline.setup()
        await loading.bootstrap(pipeline.config, from_backup=BackupChoice(), progress=Steps())
        with pytest.raises(SetupError, match=r"belong to somebody else.*cdc resync TABLE --target datamart"):
            await loading.bootstrap(
                pipeline.config, scope=Scope(anew=True), from_backup=BackupChoice(), progress=Steps()
            )
        assert datamart.fetchval("SELECT count(*) FROM item") == ROWS
        assert slots(source) == {pipeline.slot}
