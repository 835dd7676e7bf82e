"""Which types read the text that others write."""

from __future__ import annotations

import pytest

from cdc.bootstrap.text_forms import reads_text
from cdc.changes.relation import Attribute, DataType


def builtin(name: str) -> DataType:
    return DataType(0, "pg_catalog", name, name)


def array(element: DataType) -> DataType:
    return DataType(0, element.schema, f"_{element.name}", f"{element.sql}[]", "a", element)


def pair(*names: str, of: str = "int4") -> DataType:
    attributes = tuple(Attribute(name, builtin(of)) for name in names)
    return DataType(0, "public", "pair", "public.pair", "c", attributes=attributes)


MOOD = DataType(0, "public", "mood", "public.mood", "e", labels=("a",))
OTHER_MOOD = DataType(0, "maddo", "mood", "maddo.mood", "e", labels=("a",))
POSITIVE = DataType(0, "public", "positive", "public.positive", "d", builtin("int4"))
POINT = DataType(0, "public", "geometry", "public.geometry")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (builtin("timestamptz"), builtin("timestamptz")),
        (builtin("bpchar"), builtin("bpchar")),
        (POINT, POINT),
        (builtin("int4"), builtin("int8")),
        (builtin("int8"), builtin("int2")),
        (builtin("numeric"), builtin("float8")),
        (builtin("varchar"), builtin("text")),
        (builtin("text"), builtin("int4")),
        (builtin("text"), builtin("uuid")),
        (builtin("regclass"), builtin("regclass")),
        (array(pair("a", "b")), array(pair("a", "b"))),
        (builtin("jsonb"), builtin("json")),
        (MOOD, builtin("text")),
        (builtin("varchar"), MOOD),
        (MOOD, OTHER_MOOD),
        (POSITIVE, builtin("int8")),
        (builtin("int2"), POSITIVE),
        (array(builtin("int4")), array(builtin("int8"))),
        (array(MOOD), array(OTHER_MOOD)),
    ],
    ids=lambda one: one.sql,
)
def test_texts_that_mean_the_same_are_read(source: DataType, target: DataType) -> None:
    assert reads_text(source, target)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (builtin("numeric"), builtin("int4")),
        (builtin("float8"), builtin("numeric")),
        (builtin("float4"), builtin("float8")),
        (builtin("timestamptz"), builtin("timestamp")),
        (builtin("timestamptz"), builtin("text")),
        (builtin("timestamp"), builtin("date")),
        (builtin("bool"), builtin("text")),
        (builtin("money"), builtin("money")),
        (array(builtin("money")), array(builtin("money"))),
        (builtin("bpchar"), builtin("text")),
        (builtin("text"), builtin("bpchar")),
        (builtin("inet"), builtin("text")),
        (builtin("text"), builtin("date")),
        (builtin("regproc"), builtin("regproc")),
        (pair("a", "b"), pair("b", "a")),
        (array(pair("a", "b")), array(pair("b", "a"))),
        (pair("a", "b", of="money"), pair("a", "b", of="money")),
        (MOOD, builtin("int4")),
        (array(builtin("bool")), array(builtin("text"))),
        (array(builtin("int4")), builtin("text")),
        (POINT, builtin("text")),
    ],
    ids=lambda one: one.sql,
)
def test_texts_that_may_mean_something_else_are_not(source: DataType, target: DataType) -> None:
    assert not reads_text(source, target)
