"""From what a target asks for to routes; nothing that was not asked for leaves (invariant 7)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from cdc.config import Config, SourceConfig, TableConfig, TargetConfig
from cdc.errors import ConfigurationError
from cdc.routing.patterns import matches, nearest
from cdc.routing.route import Route
from cdc.routing.router import build_all_routes, build_routes, route_of

SOURCE = {
    "public.answers": ("id", "value"),
    "public.answers-corrected": ("id",),
    "public.element-answers": ("id", "value"),
    "public.users": ("id", "email", "lastName"),
    "public.Users": ("id",),
    "public.knex_migrations": ("id",),
    "public.knex_migrations_lock": ("index",),
    "learningcontent.skills": ("id",),
    "pgboss.job": ("id",),
    "cdc.heartbeat": ("count",),
    "pg_catalog.pg_class": ("oid",),
}


def follow(**keys: object) -> TargetConfig:
    return TargetConfig.model_validate({"dsn": SecretStr("postgresql:///t"), **keys})


def taken(**keys: object) -> list[str]:
    return [route.source_name for route in build_routes("t", follow(**keys), SOURCE)]


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("public.answers", "public.answers", True),
        ("public.answers", "public.element-answers", False),
        ("public.answers", "public.answers-corrected", False),
        ("public.answers*", "public.answers-corrected", True),
        ("public.*", "publicity.answers", False),
        ("*.answers", "public.answers", True),
        ("*.answers", "public.element.answers", False),
        ("public.*", "public.element.answers", True),
        ("public.a?swers", "public.answers", True),
        ("public.a?nswers", "public.answers", False),
        ("public.Answers", "public.answers", False),
        ("public.[a]nswers", "public.answers", False),
        ("public.[a]nswers", "public.[a]nswers", True),
        ("public.a+", "public.aa", False),
        ("public.*", "public.two\nlines", True),
    ],
)
def test_a_pattern_covers_whole_names(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_included_tables_are_taken_without_the_excluded_ones() -> None:
    assert taken(include=["public.*", "learningcontent.*"], exclude=["public.knex_migrations*", "pgboss.*"]) == [
        "learningcontent.skills",
        "public.Users",
        "public.answers",
        "public.answers-corrected",
        "public.element-answers",
        "public.users",
    ]


def test_excluding_answers_excludes_nothing_else() -> None:
    assert taken(include=["public.*answers*"], exclude=["public.answers"]) == [
        "public.answers-corrected",
        "public.element-answers",
    ]


def test_a_table_that_is_named_is_taken_with_its_columns_only_whatever_is_excluded() -> None:
    target = follow(include=["public.u*"], exclude=["public.*"], tables={"public.users": ["lastName", "id"]})
    assert build_routes("t", target, SOURCE) == (
        Route("public", "users", "public", "users", (("lastName", "lastName"), ("id", "id"))),
    )


def test_an_included_table_takes_columns_that_come_later() -> None:
    assert build_routes("t", follow(include=["public.users"]), SOURCE) == (
        Route("public", "users", "public", "users", None),
    )


def test_an_owned_table_is_renamed_with_its_columns() -> None:
    target = follow(schema="owned", tables={"public.users": {"to": "maddo.people", "columns": {"lastName": "name"}}})
    assert build_routes("t", target, SOURCE) == (Route("public", "users", "maddo", "people", (("lastName", "name"),)),)


def test_two_tables_may_go_into_one_owned_table() -> None:
    wanted = {"to": "maddo.answers", "columns": ["id", "value"]}
    target = follow(schema="owned", tables={"public.answers": wanted, "public.element-answers": wanted})
    assert [route.target_name for route in build_routes("t", target, SOURCE)] == ["maddo.answers", "maddo.answers"]


def test_our_own_schema_and_the_systems_are_never_taken() -> None:
    assert not {"cdc.heartbeat", "pg_catalog.pg_class"} & set(taken(include=["*.*"]))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"tables": {"public.anwsers": ["id"]}}, 'has no table public.anwsers; did you mean "public.answers"?'),
        ({"tables": {"public.skills": ["id"]}}, 'did you mean "learningcontent.skills"?'),
        ({"tables": {"public.USERS": ["id"]}}, 'did you mean "public.Users"?'),
        ({"tables": {"public.users": ["id", "lastname"]}}, 'has no column "lastname"; did you mean "lastName"?'),
        ({"tables": {"public.users": ["zzzzzz"]}}, 'has no column "zzzzzz"; it has id, email, lastName'),
        ({"include": ["public.anwsers"]}, 'the pattern "public.anwsers" matches no table of the source; did you mean'),
        ({"include": ["cdc.*"]}, 'the pattern "cdc.*" matches no table'),
        ({"tables": {"cdc.heartbeat": ["count"]}}, "tables of the schema cdc are never replicated"),
        (
            {"schema": "owned", "tables": {"public.users": {"to": "cdc.target", "columns": ["id"]}}},
            "nothing can be routed into the schema cdc",
        ),
    ],
)
def test_what_the_source_lacks_is_named_with_the_nearest_that_it_has(keys: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_routes("external", follow(**keys), SOURCE)
    assert expected in str(caught.value)
    assert "targets.external" in str(caught.value)


def test_everything_that_is_missing_is_named_at_once() -> None:
    target = follow(include=["nope.*"], tables={"public.x": ["id"], "public.users": ["nope"]})
    with pytest.raises(ConfigurationError) as caught:
        build_routes("t", target, SOURCE)
    assert len(str(caught.value).splitlines()) == 3


def test_the_nearest_name_is_none_where_nothing_is_like_it() -> None:
    assert nearest("public.zzz", ["learningcontent.skills"]) is None


names = st.sampled_from(["id", "email", "lastName", "group", "a-b", "ß"])


@given(
    listed=st.lists(names, min_size=1, unique=True),
    extra=st.lists(names, unique=True),
    mode=st.sampled_from(["follow", "owned"]),
)
def test_invariant_07_no_column_outside_the_list_ever_appears(listed: list[str], extra: list[str], mode: str) -> None:
    source = {"public.users": tuple(dict.fromkeys(extra + listed)), "public.other": ("id",)}
    target = TargetConfig.model_validate(
        {
            "dsn": SecretStr("postgresql:///t"),
            "schema": mode,
            "columns": "listed",
            "tables": {"public.users": TableConfig.model_validate(listed)},
        }
    )
    (route,) = build_routes("t", target, source)
    assert route.source_name == "public.users"
    assert route.columns is not None
    assert [column for column, _ in route.columns] == listed


@pytest.mark.parametrize(
    "keys",
    [
        {"include": ["public.*"], "exclude": ["public.knex*"], "tables": {"public.users": ["id"]}},
        {"columns": "listed", "tables": {"public.users": ["id", "email"]}},
        {"schema": "owned", "tables": {"public.users": {"to": "a.b", "columns": {"id": "x"}}}},
    ],
)
def test_the_stream_is_routed_as_the_catalog_was(keys: dict[str, object]) -> None:
    target = follow(**keys)
    met = [route_of(target, *name.split(".")) for name in sorted(SOURCE)]
    assert tuple(route for route in met if route is not None) == build_routes("t", target, SOURCE)


def test_mistakes_of_several_targets_are_named_at_once() -> None:
    config = Config(
        source=SourceConfig(dsn=SecretStr("postgresql:///s")),
        targets={
            "a": follow(include=["x.*"]),
            "b": follow(tables={"public.user": ["id"]}),
            "c": follow(include=["*.*"]),
        },
    )
    with pytest.raises(ConfigurationError) as caught:
        build_all_routes(config, SOURCE)
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "targets.a.include",
        'targets.b.tables."public.user"',
    ]


def test_deleted_rows_stay_where_a_table_says_so() -> None:
    config = follow(include=["public.*"], tables={"public.users": {"deletes": "keep", "deleted_at": "deletedAt"}})
    kept = Route("public", "users", "public", "users", keeps_deleted=True, deleted_at="deletedAt")
    assert kept in build_routes("t", config, SOURCE)
    assert route_of(config, "public", "users") == kept
    assert route_of(config, "public", "Users") == Route("public", "Users", "public", "Users")


def test_a_column_of_the_source_cannot_note_deletions() -> None:
    config = follow(include=["public.*"], tables={"public.users": {"deletes": "keep", "deleted_at": "email"}})
    with pytest.raises(ConfigurationError, match='deleted_at = "email" is a column of the source\'s table'):
        build_routes("t", config, SOURCE)


PARTITIONED = {
    **SOURCE,
    "public.events": ("id", "at"),
    "public.events_1": ("at", "id"),
    "public.events_2": ("id", "at"),
    "public.events_2_a": ("id", "at"),
}
PARTITIONS = {
    "public.events_1": ("public.events",),
    "public.events_2": ("public.events",),
    "public.events_2_a": ("public.events_2", "public.events"),
}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"include": ["public.events*"]}, ["public.events"]),
        ({"tables": {"public.events": ["id"]}}, ["public.events"]),
        ({"include": ["public.events_1", "public.events_2_*"]}, ["public.events_1", "public.events_2_a"]),
        ({"include": ["public.events*"], "exclude": ["public.events"]}, ["public.events_1", "public.events_2"]),
        (
            {"include": ["public.events_1"], "tables": {"public.events_2_a": {}}},
            ["public.events_1", "public.events_2_a"],
        ),
        ({"include": ["public.a*"], "exclude": ["public.*"], "tables": {"public.events": {}}}, ["public.events"]),
    ],
)
def test_a_partitioned_table_is_taken_as_a_whole_or_some_of_its_partitions_are(
    keys: dict[str, object], expected: list[str]
) -> None:
    routes = build_routes("t", follow(**keys), PARTITIONED, PARTITIONS)
    assert [route.source_name for route in routes] == expected


def test_a_partition_cannot_be_taken_beside_its_root_nor_left_out_of_it() -> None:
    with pytest.raises(ConfigurationError, match=r'events_1": it is a partition of public.events, which'):
        build_routes("t", follow(include=["public.events"], tables={"public.events_1": {}}), PARTITIONED, PARTITIONS)
    with pytest.raises(ConfigurationError, match=r'"public.e\*_2\*" covers public.events_2_a, a partition'):
        build_routes("t", follow(include=["public.*"], exclude=["public.e*_2*"]), PARTITIONED, PARTITIONS)
