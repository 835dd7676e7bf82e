"""Columns are named for what a server refuses only where its SQLSTATE says that they may be the cause."""

from __future__ import annotations

import pytest

from cdc.changes.relation import Column, DataType, Relation, ReplicaIdentity
from cdc.target.suspects import suspects

INTEGER = DataType(23, "pg_catalog", "int4", "integer")
REGCLASS = DataType(2205, "pg_catalog", "regclass", "regclass")
XML = DataType(142, "pg_catalog", "xml", "xml")
XMLS = DataType(143, "pg_catalog", "_xml", "xml[]", kind="a", element=XML)
RELATION = Relation(
    1,
    "public",
    "t",
    ReplicaIdentity.DEFAULT,
    tuple(Column(name, one) for name, one in (("id", INTEGER), ("o", REGCLASS), ("x", XML), ("xs", XMLS), ("no", XML))),
)


@pytest.mark.parametrize(
    ("sqlstate", "told"),
    [
        ("42P01", "whose values in o name objects"),
        ("42883", "whose values in o name objects"),
        ("0A000", "whose values in x, xs are xml"),
        ("23514", ""),
        (None, ""),
    ],
)
def test_columns_are_named_for_what_they_may_be_the_cause_of(sqlstate: str | None, told: str) -> None:
    found = suspects(RELATION, ["id", "o", "x", "xs"]).told(sqlstate)
    assert told in found
    assert bool(found) == bool(told)
