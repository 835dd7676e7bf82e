"""How the columns of a source table travel: as they are, cast at the source, or as text; and which never do."""

from __future__ import annotations

import pytest

from cdc.bootstrap.copying import TargetAccess
from cdc.bootstrap.plan import Load, TableCopy, group_routes, plan_copy
from cdc.bootstrap.ranges import PageRange
from cdc.bootstrap.rounds import Work, order_by_references
from cdc.changes.relation import Column, DataType, Relation, ReplicaIdentity
from cdc.errors import TableStopped
from cdc.routing.route import Route
from cdc.source.catalog import SourceTable
from cdc.target.catalog import TargetColumn, TargetTable


def builtin(name: str, sql: str | None = None, *, has_binary: bool = True) -> DataType:
    return DataType(0, "pg_catalog", name, sql or name, has_binary=has_binary)


MOOD = DataType(0, "public", "mood", "public.mood", "e", labels=("sad", "so-so"))
POSITIVE = DataType(0, "public", "positive", "public.positive", "d", element=builtin("int4"))


def source_table(*columns: tuple[str, DataType]) -> SourceTable:
    relation = Relation(
        1,
        "public",
        "some-table",
        ReplicaIdentity.DEFAULT,
        (Column("id", builtin("int4"), is_key=True), *(Column(name, of) for name, of in columns)),
    )
    return SourceTable(
        relation=relation,
        not_null=frozenset({"id"}),
        generated=(),
        primary_key=("id",),
        primary_key_name="pk",
        identity_index="pk",
        candidate_indexes=("pk",),
        relkind="r",
        persistence="p",
        bytes=100_000,
        pages=10,
        is_readable=True,
        hides_rows=False,
        owner="somebody",
        is_owned=False,
    )


def target_table(*columns: tuple[str, DataType], generated: str = "") -> TargetTable:
    return TargetTable(
        schema="maddo",
        name="t",
        relkind="r",
        persistence="p",
        row_security=False,
        privileges=frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"}),
        columns=tuple(
            TargetColumn(name, of, not_null=False, has_default=False, generated=name == generated, identity="")
            for name, of in (("id", builtin("int4")), *columns)
        ),
    )


def plan(source: DataType, target: DataType, *, follows: bool = False) -> TableCopy:
    route = Route("public", "some-table", "maddo", "t", (("id", "id"), ("Value", "value")))
    return plan_copy(
        route,
        source_table(("secret", builtin("text")), ("Value", source)),
        target_table(("value", target)),
        target="datamart",
        follows=follows,
        triggers_disabled=True,
    )


@pytest.mark.parametrize(
    ("source", "target", "expression"),
    [
        (builtin("text"), builtin("text"), '"Value"'),
        (builtin("text"), builtin("varchar", "character varying(5)"), '"Value"'),
        (builtin("varchar", "character varying(9)"), builtin("text"), '"Value"'),
        (builtin("int8"), builtin("int2", "smallint"), '"Value"::"pg_catalog"."int2"'),
        # Without the precision: a cast to numeric(3,1) at the source would be one more way to round.
        (builtin("int4"), builtin("numeric", "numeric(3,1)"), '"Value"::"pg_catalog"."numeric"'),
        (builtin("bpchar", "character(5)"), builtin("text"), '"Value"::"pg_catalog"."text"'),
        (builtin("jsonb"), builtin("json"), '"Value"::"pg_catalog"."json"'),
        (MOOD, MOOD, '"Value"'),
        (MOOD, builtin("text"), '"Value"::pg_catalog.text'),
        (builtin("text"), MOOD, '"Value"::pg_catalog.text'),
        (POSITIVE, builtin("int4"), '"Value"'),
        (POSITIVE, builtin("int8"), '"Value"::"pg_catalog"."int8"'),
    ],
)
def test_a_column_is_cast_only_where_the_target_reads_other_bytes(
    source: DataType, target: DataType, expression: str
) -> None:
    copy = plan(source, target)
    assert copy.expressions == ('"id"', expression)
    assert copy.target_columns == ("id", "value")
    assert copy.format == "binary"


def test_only_columns_of_the_route_are_read_and_only_pages_of_the_range() -> None:
    copy = plan(builtin("text"), builtin("text"))
    assert copy.statement(PageRange(0, None)) == (
        'COPY (SELECT "id", "Value" FROM ONLY "public"."some-table") TO STDOUT (FORMAT binary)'
    )
    assert copy.statement(PageRange(0, 5)) == (
        'COPY (SELECT "id", "Value" FROM ONLY "public"."some-table" '
        "WHERE ctid < '(5,0)'::pg_catalog.tid) TO STDOUT (FORMAT binary)"
    )


def test_a_type_without_a_binary_form_makes_the_table_travel_as_text() -> None:
    odd = DataType(0, "public", "odd", "public.odd", has_binary=False)
    copy = plan(odd, odd)
    assert copy.format == "text"
    assert copy.expressions == ('"id"', '"Value"')


def test_what_the_stream_could_not_apply_is_not_copied_either() -> None:
    with pytest.raises(TableStopped, match="value"):
        plan(builtin("int8"), builtin("int4"), follows=True)
    with pytest.raises(TableStopped, match="value"):
        plan(builtin("text"), builtin("date"))


def test_a_generated_column_of_the_target_is_left_to_it() -> None:
    route = Route("public", "some-table", "maddo", "t", (("id", "id"), ("Value", "value")))
    copy = plan_copy(
        route,
        source_table(("Value", builtin("text"))),
        target_table(("value", builtin("text")), generated="value"),
        target="datamart",
        follows=False,
        triggers_disabled=True,
    )
    assert copy.target_columns == ("id",)


def test_routes_into_one_table_are_one_load() -> None:
    routes = [Route("public", name, "maddo", to) for name, to in (("a", "x"), ("b", "y"), ("c", "x"))]
    loads = group_routes(routes)
    assert [(load.name, [route.source_table for route in load.routes]) for load in loads] == [
        ("maddo.x", ["a", "c"]),
        ("maddo.y", ["b"]),
    ]


def work(table: str, *references: str) -> Work:
    route = Route("public", table, "public", table)
    pointed = frozenset(("public", name) for name in references)
    copy = TableCopy(route, ("1",), ("id",), "binary", pointed, 1, 1, table)
    return Work(TargetAccess("t", "", "cdc", 1), Load("public", table, (route,)), (copy,))


def test_a_table_waits_for_those_that_its_foreign_keys_point_to_and_cycles_are_cut() -> None:
    child, parent, lonely = work("child", "parent", "child", "elsewhere"), work("parent", "child"), work("lonely")
    order_by_references([child, parent, lonely])
    assert child.after == [parent]
    assert parent.after == []
    assert lonely.after == []
