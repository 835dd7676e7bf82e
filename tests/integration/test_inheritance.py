"""Inheritance without partitions: parent and child are two tables, and what is done to one does not touch the other."""

from __future__ import annotations

import pytest

from tests.integration.replica import MakeReplica, make_replica  # noqa: F401  (a fixture)

FAMILY = """
    CREATE TABLE parent (id int PRIMARY KEY, v text);
    CREATE TABLE child (extra int, PRIMARY KEY (id)) INHERITS (parent);
"""
WITHOUT_KEYS = """
    CREATE TABLE parent (id int, v text);
    CREATE TABLE child (extra int) INHERITS (parent);
    ALTER TABLE parent REPLICA IDENTITY FULL;
    ALTER TABLE child REPLICA IDENTITY FULL;
"""


@pytest.mark.parametrize("ddl", [FAMILY, WITHOUT_KEYS], ids=["with keys", "without keys"])
async def test_rows_of_the_same_key_in_parent_and_child_stay_apart(make_replica: MakeReplica, ddl: str) -> None:  # noqa: F811
    replica = await make_replica(ddl)
    source, target = replica.source, replica.target

    async def deliver() -> None:
        await replica.deliver(compare=False)
        for table in ("parent", "child"):
            query = f"SELECT t::text FROM ONLY {table} t ORDER BY 1"
            assert target.fetch(query) == source.fetch(query)

    source.execute(
        "INSERT INTO parent VALUES (1, 'p'), (2, 'p'), (3, 'p'); INSERT INTO child VALUES (1, 'p', 1), (2, 'p', 2)"
    )
    await deliver()
    source.execute("UPDATE ONLY parent SET v = 'new' WHERE id = 1; DELETE FROM ONLY parent WHERE id = 2")
    await deliver()
    source.execute("UPDATE parent SET v = 'both', id = id + 10")
    await deliver()
    source.execute("BEGIN; INSERT INTO parent VALUES (20, 'x'); TRUNCATE ONLY parent; COMMIT")
    await deliver()
    assert target.fetchval("SELECT count(*) FROM child") == 2
    source.execute("INSERT INTO parent VALUES (1, 'p'); TRUNCATE parent")
    await deliver()


async def test_an_overlap_keeps_them_apart_too(make_replica: MakeReplica) -> None:  # noqa: F811
    replica = await make_replica(FAMILY)
    replica.overlap = True
    source, target = replica.source, replica.target
    source.execute("INSERT INTO parent VALUES (1, 'p'), (2, 'p'); INSERT INTO child VALUES (1, 'c', 1), (2, 'c', 2)")
    target.execute("INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (1, 'c', 1)")
    source.execute("UPDATE ONLY parent SET v = 'new', id = 7 WHERE id = 1; DELETE FROM ONLY parent WHERE id = 2")
    await replica.deliver(compare=False)
    assert target.fetch("SELECT t::text FROM ONLY parent t") == [("(7,new)",)]
    assert sorted(target.fetch("SELECT t::text FROM child t")) == [("(1,c,1)",), ("(2,c,2)",)]
