"""Which partitions a session knows, against what it has written of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pytest

from cdc.changes.relation import Column, DataType, Leaf, Place, Relation, ReplicaIdentity
from cdc.service.held_partitions import HeldPartitions
from cdc.source.catalog import with_types_of_now
from cdc.source.connection import Connection
from cdc.target import partition_record
from cdc.target.partition_record import HeldLeaf
from cdc.target.session import Session


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """What would be written into the target: the way, and the oids of the leaves."""
    done: list[tuple[str, list[int]]] = []

    def keep(way: str) -> Any:
        async def write(session: Session, key: str, table: tuple[str, str], leaves: Iterable[HeldLeaf]) -> None:
            assert table == ("public", "events")
            done.append((way, sorted(leaf.oid for leaf in leaves)))

        return write

    monkeypatch.setattr(partition_record, "add", keep("add"))
    monkeypatch.setattr(partition_record, "write", keep("write"))
    return done


def leaf(oid: int, *, is_born: bool = True) -> Leaf:
    return Leaf(oid, "public", f"events_{oid}", f"{oid}/", is_born)


def relation(oid: int, *, is_born: bool = True) -> Relation:
    column = Column("id", DataType(23, "pg_catalog", "int4", "integer"), True)
    alone = Relation(oid, "public", f"events_{oid}", ReplicaIdentity.DEFAULT, (column,))
    return alone.at(Place(leaf(oid, is_born=is_born), 1, "public", "events"))


def held(oid: int) -> HeldLeaf:
    return partition_record.held(leaf(oid), f"k = {oid}")


def partitions() -> HeldPartitions:
    return HeldPartitions(cast(Session, None), "cdc", {"public.events": {2: held(2)}})


async def test_a_leaf_that_joins_is_written_down_in_the_transaction_of_its_rows(
    written: list[tuple[str, list[int]]],
) -> None:
    these = partitions()
    assert these.join(relation(2))
    assert these.join(relation(3))
    assert not these.join(relation(4, is_born=False))
    assert written == [], "no transaction is open yet"
    await these.record()
    await these.record()
    assert written == [("add", [3])]
    assert these.rolled_back() == {"public.events"}
    assert these.oids == {2}, "it has to join again"
    assert these.join(relation(3))
    assert these.rolled_back() == {"public.events"}, "before the transaction began"
    assert these.join(relation(3))
    await these.record()
    these.committed()
    assert these.rolled_back() == set()
    assert these.oids == {2, 3}


async def test_a_leaf_that_joined_since_the_source_was_asked_is_not_forgotten(
    written: list[tuple[str, list[int]]],
) -> None:
    these = partitions()
    assert these.join(relation(3))
    await these.record()
    these.committed()
    for expected in ([2, 3], [2]):  # the second answer was asked for after it came: it is gone
        await these.write("public.events", [held(2)])
        these.follow("public.events", [held(2)])
        assert written[-1] == ("write", expected)
        assert these.oids == set(expected)
    assert these.join(relation(5))
    await these.write("public.events", [held(2), held(5)])
    these.follow("public.events", [held(2), held(5)])
    assert these.held["public.events"][5].bound == "k = 5", "what the source says of it"


async def test_a_relation_stays_a_part_of_its_root_when_its_types_are_read_anew() -> None:
    asked = relation(3)
    assert (await with_types_of_now(cast(Connection, None), asked)).leaf == asked.leaf
