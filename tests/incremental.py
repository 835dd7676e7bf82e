"""What the tests of ``incremental`` share: a table that an older tool filled, and how it is asked for and compared."""

from __future__ import annotations

from typing import Any

from cdc.bootstrap.progress import Silence
from cdc.service import loading, provision
from tests.database import Database
from tests.pipeline import Pipeline

COUNT = 30_000
STALE, DELETED = 777, 2_000_000
LATE = (5, 4_321, 20_001)
"""Rows that were committed late: `id > max(id)` never finds them."""


def modes(pipeline: Pipeline, **more: Any) -> None:
    """Set ``bootstrap`` of a pipeline's configuration: ``answers`` is incremental unless said otherwise."""
    pipeline.settings["bootstrap"] = {"modes": {"answers": "incremental"}, **more}
    pipeline.configure()


def fill(source: Database, target: Database) -> None:
    """A source, and a target that an older tool filled: with the columns in another order, and a part of the rows."""
    source.execute("CREATE TABLE answers (id bigint PRIMARY KEY, value text, n int, filler text)")
    source.execute(
        "INSERT INTO answers SELECT g, 'value ' || g, g, repeat('x', 100) FROM generate_series(1, %s) g", COUNT
    )
    source.execute(
        "CREATE TABLE others (id int PRIMARY KEY, n int); INSERT INTO others SELECT g, g FROM generate_series(1, 50) g"
    )
    target.execute("CREATE TABLE answers (n int, filler text, value text, id bigint PRIMARY KEY)")
    with target.connection().cursor().copy("COPY answers (id, value, n, filler) FROM STDIN") as copy:
        for row in source.fetch("SELECT * FROM answers WHERE id NOT BETWEEN 10001 AND 11000 AND id <= %s", COUNT - 700):
            if row[0] not in LATE:
                copy.write_row(row)
    target.execute("UPDATE answers SET value = 'stale', n = -1 WHERE id = %s", STALE)
    target.execute("INSERT INTO answers VALUES (0, '', 'deleted at the source', %s)", DELETED)


def missing() -> int:
    return 1000 + 700 + len(LATE)


def kept(target: Database) -> list[tuple[Any, ...]]:
    return target.fetch("SELECT id, value, n FROM answers WHERE id IN (%s, %s) ORDER BY id", STALE, DELETED)


def differing(source: Database, target: Database, table: str = "answers", columns: str = "id, value, n, filler") -> int:
    """Rows that are not the same on both sides, except the two that the old tool left wrong."""
    wrong = f" AND id NOT IN ({STALE}, {DELETED})" if columns.startswith("id, value, n") else ""
    query = f"SELECT {columns} FROM {table} WHERE true{wrong}"
    return len(set(source.fetch(query)) ^ set(target.fetch(query)))


def leftovers(target: Database) -> list[str]:
    return [name for (name,) in target.fetch("SELECT relname FROM pg_class WHERE relname ~ '^incremental_'")]


async def bootstrap(pipeline: Pipeline, **options: Any) -> Any:
    await provision.setup(pipeline.config, lambda _: None)
    return await loading.bootstrap(pipeline.config, **{"progress": Silence(), **options})


async def assert_streams(pipeline: Pipeline, source: Database, target: Database) -> None:
    """Updates and deletes reach rows that stayed, rows that were copied, and new ones."""
    await pipeline.start()
    source.execute("UPDATE answers SET value = 'changed' WHERE id IN (1, 10500, 20001)")
    source.execute("DELETE FROM answers WHERE id IN (2, 10501, 4321); INSERT INTO answers VALUES (40000, 'new', 0, '')")
    source.execute("UPDATE answers SET value = 'mended' WHERE id = %s", STALE)
    await pipeline.caught_up()
    assert await _stopped(pipeline) == []
    assert differing(source, target) == 0
    assert kept(target) == [(STALE, "mended", STALE), (DELETED, "deleted at the source", 0)]


async def _stopped(pipeline: Pipeline) -> list[str]:
    return [
        table.source_name for table in (await pipeline.target_status("internal")).tables if table.state != "streaming"
    ]
