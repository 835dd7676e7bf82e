"""What an operator writes, and what he is told when he writes it wrong."""

from __future__ import annotations

import itertools
import json
import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from cdc.config import Config, SourceConfig, TableConfig, TargetConfig, WorkerConfig, as_toml, load
from cdc.errors import ConfigurationError

ISSUE = """
[source]
dsn = "${SOURCE_DATABASE_URL}"
slot = "cdc"
publication = "cdc"

[targets.internal]
dsn = "${INTERNAL_DATABASE_URL}"
schema = "follow"
include = ["public.*", "learningcontent.*"]
exclude = ["public.knex_migrations*", "pgboss.*"]

[targets.external]
dsn = "${EXTERNAL_DATABASE_URL}"
schema = "follow"
columns = "listed"
tables."public.campaigns" = ["id", "name", "code", "organizationId", "createdAt"]
tables."public.organizations" = ["id", "name", "type"]

[targets.datamart]
dsn = "${DATAMART_DATABASE_URL}"
schema = "owned"

[targets.datamart.tables."public.pole-emploi-sendings"]
to = "maddo.pole_emploi_sendings"
columns = { id = "id", payload = "payload", createdAt = "created_at" }
"""

ENVIRON = {
    "SOURCE_DATABASE_URL": "postgresql://cdc:source-secret@source.example/pix",
    "INTERNAL_DATABASE_URL": "postgresql://cdc:internal-secret@internal.example/warehouse",
    "EXTERNAL_DATABASE_URL": "postgresql://cdc:external-secret@external.example/warehouse",
    "DATAMART_DATABASE_URL": "host=datamart.example dbname=maddo user=cdc password='a secret with spaces'",
}


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "cdc.toml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(written(tmp_path, text), environ or {})
    return str(caught.value)


def test_the_example_of_the_issue_is_read_as_it_stands(tmp_path: Path) -> None:
    config = load(written(tmp_path, ISSUE), ENVIRON)

    assert config.source.dsn.get_secret_value() == ENVIRON["SOURCE_DATABASE_URL"]
    assert config.source.application_name == "cdc"
    assert config.source.publication_names == ("cdc", "cdc_insert_only")
    assert list(config.targets) == ["internal", "external", "datamart"]
    assert config.targets["internal"].columns == "all"
    assert config.targets["internal"].exclude == ("public.knex_migrations*", "pgboss.*")
    assert config.targets["external"].tables["public.organizations"].columns == {
        "id": "id",
        "name": "name",
        "type": "type",
    }
    datamart = config.targets["datamart"]
    assert datamart.is_owned
    assert datamart.columns == "listed"
    assert datamart.tables["public.pole-emploi-sendings"].to == "maddo.pole_emploi_sendings"
    assert list((datamart.tables["public.pole-emploi-sendings"].columns or {}).items()) == [
        ("id", "id"),
        ("payload", "payload"),
        ("createdAt", "created_at"),
    ]


def test_the_example_file_of_the_repository_is_valid() -> None:
    example = Path(__file__).parents[2] / "cdc.example.toml"
    environ = dict(ENVIRON, METRICS_PASSWORD="x")
    assert set(load(example, environ).targets) == {"internal", "external", "datamart"}


def test_a_table_on_one_line_is_the_same_as_a_section(tmp_path: Path) -> None:
    section = load(written(tmp_path, ISSUE), ENVIRON)
    one_line = ISSUE.partition("[targets.datamart.tables.")[0] + (
        'tables."public.pole-emploi-sendings" = { to = "maddo.pole_emploi_sendings", '
        'columns = { id = "id", payload = "payload", createdAt = "created_at" } }'
    )
    assert load(written(tmp_path, one_line), ENVIRON) == section


def test_a_table_whose_deleted_rows_stay_has_all_columns_unless_it_lists_some(tmp_path: Path) -> None:
    environ = {"CDC_SOURCE__DSN": "postgresql:///s", "CDC_TARGETS__T__DSN": "postgresql:///t"}
    environ["CDC_TARGETS__T__INCLUDE"] = "public.*"
    environ["CDC_TARGETS__T__TABLES"] = json.dumps(
        {
            "public.a": {"deletes": "keep", "deleted_at": "deletedAt"},
            "public.b": {"columns": ["id"], "deletes": "keep"},
            "public.c": ["id"],
        }
    )
    config = load(written(tmp_path, ""), environ)
    tables = config.targets["t"].tables
    assert [(table.deletes, table.deleted_at, table.columns) for table in tables.values()] == [
        ("keep", "deletedAt", None),
        ("keep", None, {"id": "id"}),
        ("apply", None, {"id": "id"}),
    ]
    shown = as_toml(config).replace("postgresql:///", "postgresql://x/")
    assert load(written(tmp_path, shown), {}).targets["t"].tables == tables


def test_everything_can_come_from_the_environment_without_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(
        None,
        {
            "SOURCE_DATABASE_URL": "postgresql://source/pix",
            "DATABASE_URL": "postgresql://internal/warehouse",
            "CDC_PIPELINE": "warehouse",
            "CDC_SOURCE__SLOT": "warehouse",
            "CDC_TARGETS__INTERNAL__INCLUDE": "public.*, learningcontent.*",
            "CDC_TARGETS__INTERNAL__EXCLUDE": '["public.knex_migrations*"]',
            "CDC_TARGETS__INTERNAL__TABLES": '{"public.Users": ["id", "createdAt"]}',
            "CDC_WORKER__MAX_BATCH_BYTES": "1MB",
            "CDC_LOGS__LEVEL": "debug",
        },
    )
    internal = config.targets["internal"]
    assert config.pipeline == "warehouse"
    assert config.source.application_name == "warehouse"
    assert internal.dsn.get_secret_value() == "postgresql://internal/warehouse"
    assert internal.include == ("public.*", "learningcontent.*")
    assert internal.exclude == ("public.knex_migrations*",)
    assert internal.tables["public.Users"].columns == {"id": "id", "createdAt": "createdAt"}
    assert config.worker.max_batch_bytes == 1024**2
    assert config.logs.level == "debug"


def test_a_variable_wins_over_the_file_and_the_file_over_the_old_names(tmp_path: Path) -> None:
    environ = ENVIRON | {
        "CDC_SOURCE__SLOT": "other",
        "CDC_TARGETS__INTERNAL__DSN": "postgresql://moved/warehouse",
        "DATABASE_URL": "postgresql://never/used",
        "CDC_WORKER__METRICS_ADDRESS": "",
    }
    config = load(written(tmp_path, ISSUE), environ)
    assert config.source.slot == "other"
    assert config.targets["internal"].dsn.get_secret_value() == "postgresql://moved/warehouse"
    assert config.targets["internal"].include == ("public.*", "learningcontent.*")
    assert config.worker.metrics_address == "0.0.0.0:9187"


def test_cdc_config_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.toml"
    file.write_text(ISSUE, encoding="utf-8")
    assert "datamart" in load(None, ENVIRON | {"CDC_CONFIG": str(file)}).targets


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: there is no such file"):
        load(tmp_path / "nowhere.toml", {})


def test_a_default_file_that_is_not_there_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        load(None, {"SOURCE_DATABASE_URL": "postgresql:///s"})
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("there is no file cdc.toml here, and neither --config nor CDC_CONFIG names another")
    assert rest == ["targets is missing: give at least one target, as in [targets.internal]"]
    environ = {"SOURCE_DATABASE_URL": "postgresql:///s", "DATABASE_URL": "postgresql:///t"}
    assert load(None, environ | {"CDC_TARGETS__T__INCLUDE": "public.*"}).targets["t"].include == ("public.*",)


def test_a_file_that_is_not_toml_is_refused_with_the_line(tmp_path: Path) -> None:
    assert "is not valid TOML" in refusal(tmp_path, "[source]\ndsn = postgresql://u:tell-nobody@h/d\n")
    assert "line 2" in refusal(tmp_path, "[source]\ndsn = postgresql://u:tell-nobody@h/d\n")
    assert "tell-nobody" not in refusal(tmp_path, "[source]\ndsn = postgresql://u:tell-nobody@h/d\n")


def test_a_dollar_sign_is_written_twice(tmp_path: Path) -> None:
    text = ISSUE.replace("${SOURCE_DATABASE_URL}", "postgresql://u:a$$b$c${WORD}@h/d")
    config = load(written(tmp_path, text), ENVIRON | {"WORD": "d$$e"})
    assert config.source.dsn.get_secret_value() == "postgresql://u:a$b$cd$$e@h/d"


def test_a_missing_variable_is_named_with_its_key(tmp_path: Path) -> None:
    environ = {name: value for name, value in ENVIRON.items() if name != "EXTERNAL_DATABASE_URL"}
    message = refusal(tmp_path, ISSUE, environ)
    assert message.endswith(
        "cdc.toml: targets.external.dsn needs the environment variable EXTERNAL_DATABASE_URL, which is not set"
    )


def test_an_open_brace_without_a_name_is_refused(tmp_path: Path) -> None:
    assert "a dollar sign itself is written $$" in refusal(tmp_path, ISSUE.replace("${SOURCE_", "${ SOURCE_"), ENVIRON)


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ('slot = "cdc"', 'slott = "cdc"', "cdc.toml: source.slott is no key of the configuration; did you mean slot?"),
        ("[source]", "[sorce]", "cdc.toml: sorce is no key of the configuration; did you mean source?"),
        ('schema = "owned"', 'shema = "owned"', "targets.datamart.shema is no key of the configuration; did you mean"),
        (
            "to = ",
            "too = ",
            'tables."public.pole-emploi-sendings".too is no key of the configuration; did you mean to?',
        ),
        ('slot = "cdc"', 'zzz = "cdc"', "valid here: dsn, slot, publication"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(
    tmp_path: Path, right: str, wrong: str, expected: str
) -> None:
    assert expected in refusal(tmp_path, ISSUE.replace(right, wrong), ENVIRON)


def test_an_unknown_variable_is_named_with_the_nearest_valid_one(tmp_path: Path) -> None:
    message = refusal(tmp_path, ISSUE, ENVIRON | {"CDC_SORCE__SLOT": "x"})
    assert message == "environment variable CDC_SORCE__SLOT is no variable of cdc; did you mean CDC_SOURCE__SLOT?"
    message = refusal(tmp_path, ISSUE, ENVIRON | {"CDC_SOURCE__SLOTT": "x"})
    assert message.startswith("source.slott (environment variable CDC_SOURCE__SLOTT) is no key")


def test_a_target_that_only_a_variable_knows_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    message = refusal(tmp_path, ISSUE, ENVIRON | {"CDC_TARGETS__EXTERNL__DSN": "postgresql:///x"})
    assert "has no target externl; did you mean external?" in message


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = ISSUE.replace('slot = "cdc"', 'slot = "CDC"').replace('"follow"', '"folow"').replace("exclude", "excldue")
    message = refusal(tmp_path, text, ENVIRON)
    assert message.startswith("4 problems:\n")
    assert "source.slot does not match the pattern ^[a-z0-9_]{1,63}$" in message
    assert "targets.internal.schema should be 'follow' or 'owned'" in message
    assert "targets.external.schema should be 'follow' or 'owned'" in message
    assert "targets.internal.excldue is no key of the configuration; did you mean exclude?" in message


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "mysql://u:tell-nobody@h/d",
        "postgresql+asyncpg://u:tell-nobody@h/d",
        "postgresql://u:tell-no/body@h/d",
        "postgresql://u:12/tell-nobody@h/d",
        "postgresql://u:tell@nobody@h/d",
        "password=tell-nobody hots=h",
        "password='tell-nobody",
        "tell-nobody",
    ],
)
def test_a_connection_string_that_cannot_be_read_is_refused_without_repeating_it(tmp_path: Path, dsn: str) -> None:
    environ = ENVIRON | {"SOURCE_DATABASE_URL": dsn}
    message = refusal(tmp_path, ISSUE, environ)
    assert "cdc.toml: source.dsn " in message
    assert "tell" not in message
    assert "nobody" not in message


def test_no_error_repeats_a_secret_of_another_key(tmp_path: Path) -> None:
    message = refusal(tmp_path, ISSUE.replace('slot = "cdc"', 'slot = "CDC"').replace("include", "inclood"), ENVIRON)
    assert "problems" in message
    assert not [value for value in ENVIRON.values() if value in message]
    assert "-secret" not in message


def test_an_error_of_the_models_themselves_holds_no_secret() -> None:
    with pytest.raises(ValidationError) as caught:
        SourceConfig.model_validate({"dsn": "postgresql://u:tell-no/body@h/d"})
    assert "tell" not in str(caught.value)


def test_a_missing_connection_string_says_where_it_can_be_given(tmp_path: Path) -> None:
    message = refusal(tmp_path, '[targets.a]\ninclude = ["public.*"]')
    assert "source.dsn is missing: give it in the file or as CDC_SOURCE__DSN or SOURCE_DATABASE_URL" in message
    assert "targets.a.dsn is missing: give it in the file or as CDC_TARGETS__A__DSN or DATABASE_URL" in message


def test_a_pipeline_needs_a_target(tmp_path: Path) -> None:
    message = refusal(tmp_path, '[source]\ndsn = "postgresql:///x"')
    assert message.endswith("targets is missing: give at least one target, as in [targets.internal]")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"schema": "owned", "columns": "all", "tables": {"public.a": ["id"]}}, 'columns = "all" needs schema'),
        ({"schema": "owned", "include": ["public.*"]}, "include names no columns"),
        ({"schema": "owned", "sequences": "sync", "tables": {"public.a": ["id"]}}, 'sequences = "sync" needs schema'),
        ({"columns": "listed", "include": ["public.*"]}, "include names no columns"),
        ({"columns": "listed", "tables": {"public.a": {}}}, 'tables."public.a" lists no columns'),
        ({}, "asks for no table"),
        ({"include": ["answers"]}, '"answers" is no pattern of the form schema.table: write for example "public.answ'),
        ({"tables": {"answers": ["id"]}}, 'write for example tables."public.answers"'),
        ({"tables": {"public.a": []}}, "columns is empty"),
        ({"tables": {"public.a": ["id", "id"]}}, "names a column twice: id"),
        ({"schema": "owned", "tables": {"public.a": {"columns": {"a": "x", "b": "x"}}}}, "two source columns into one"),
        ({"schema": "owned", "tables": {"public.a": {"to": "a", "columns": ["id"]}}}, 'for example "public.a"'),
        ({"tables": {"public.a": {"to": "public.b", "columns": ["id"]}}}, "has the source's names"),
        ({"tables": {"public.a": {"columns": {"a": "b"}}}}, "has the source's names"),
        ({"tables": {"public.a": {"deletes": "stay"}}}, "'apply' or 'keep'"),
        ({"tables": {"public.a": {"deleted_at": "gone"}}}, 'it needs deletes = "keep"'),
        ({"tables": {"public.a": {"columns": ["gone"], "deletes": "keep", "deleted_at": "gone"}}}, "the source fills"),
        ({"columns": "listed", "tables": {"public.a": {"deletes": "keep"}}}, "lists no columns"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, target: dict[str, object], expected: str) -> None:
    environ = {"CDC_SOURCE__DSN": "postgresql:///s", "CDC_TARGETS__T__DSN": "postgresql:///t"}
    environ["CDC_TARGETS"] = json.dumps({"t": target})
    assert expected in refusal(tmp_path, "", environ)


@pytest.mark.parametrize(
    ("one", "other"),
    list(itertools.permutations(["", ', deletes = "keep"', ', deletes = "keep", deleted_at = "gone"'], 2)),
)
def test_tables_that_go_into_one_agree_on_what_becomes_of_deleted_rows(tmp_path: Path, one: str, other: str) -> None:
    message = refusal(
        tmp_path,
        '[source]\ndsn = "postgresql:///s"\n[targets.t]\ndsn = "postgresql:///t"\nschema = "owned"\n'
        f'tables."public.a" = {{ columns = ["id"]{one} }}\n'
        f'tables."public.b" = {{ columns = ["id"], to = "public.a"{other} }}',
    )
    assert 'tables."public.a" and tables."public.b" go into one table, public.a' in message


@pytest.mark.parametrize("name", ["Internal", "1st", "a__b", "a-b", "", "_a"])
def test_a_targets_name_must_fit_into_a_slots_name(tmp_path: Path, name: str) -> None:
    message = refusal(
        tmp_path,
        f'[source]\ndsn = "postgresql:///s"\n[targets."{name}"]\ndsn = "postgresql:///t"\ninclude = ["a.*"]',
    )
    assert "does not match the pattern" in message


def test_a_lanes_slot_must_have_room_for_its_name() -> None:
    with pytest.raises(ValidationError, match="too long together"):
        Config(
            source=SourceConfig(dsn=SecretStr("postgresql:///s"), slot="s" * 60),
            targets={"internal": TargetConfig(dsn=SecretStr("postgresql:///t"), include=("public.*",))},
        )


def test_publications_of_somebody_else_are_followed_and_ours_are_named() -> None:
    foreign = SourceConfig(dsn=SecretStr("postgresql:///s"), manage_publications=False, publications=("a", "b"))
    assert foreign.publication_names == ("a", "b")
    single = SourceConfig(dsn=SecretStr("postgresql:///s"), manage_publications=False, publication="theirs")
    assert single.publication_names == ("theirs",)
    with pytest.raises(ValidationError, match="set manage_publications = false"):
        SourceConfig(dsn=SecretStr("postgresql:///s"), publications=("a",))
    with pytest.raises(ValidationError, match="more than 51 bytes"):
        SourceConfig(dsn=SecretStr("postgresql:///s"), publication="p" * 52)


@pytest.mark.parametrize(
    ("text", "size"), [("64MB", 64 * 1024**2), ("1.5 GB", 3 * 1024**3 // 2), ("512kB", 512 * 1024), ("70000", 70000)]
)
def test_sizes_are_written_as_in_postgresql(text: str, size: int) -> None:
    assert WorkerConfig.model_validate({"max_batch_bytes": text}).max_batch_bytes == size


@pytest.mark.parametrize("text", ["many", "64 parsecs", "-1", "1MB2", "10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        WorkerConfig.model_validate({"max_batch_bytes": text})


@pytest.mark.parametrize(
    ("address", "expected"),
    [("0.0.0.0:9187", ("0.0.0.0", 9187)), ("[::1]:80", ("::1", 80)), ("localhost:0", ("localhost", 0))],
)
def test_an_address_is_host_and_port(address: str, expected: tuple[str, int]) -> None:
    assert WorkerConfig(metrics_address=address).metrics_host_and_port == expected


@pytest.mark.parametrize("address", ["9187", ":9187", "::1:9187", "localhost:http", "localhost:99999"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="is no address"):
        WorkerConfig(metrics_address=address)


def test_what_is_in_force_can_be_shown_and_read_again_without_secrets(tmp_path: Path) -> None:
    config = load(written(tmp_path, ISSUE), ENVIRON | {"CDC_WORKER__METRICS_PASSWORD": "another-secret"})
    shown = as_toml(config)
    assert "secret" not in shown
    assert 'dsn = "postgresql://cdc@source.example/pix"' in shown
    again = load(written(tmp_path, shown), {})
    assert as_toml(again) == shown
    assert again.targets["datamart"].tables == config.targets["datamart"].tables
    assert tomllib.loads(shown)["targets"]["external"]["tables"]["public.organizations"] == ["id", "name", "type"]


def test_a_dump_or_a_repr_holds_no_secret(tmp_path: Path) -> None:
    config = load(written(tmp_path, ISSUE), ENVIRON | {"CDC_WORKER__METRICS_PASSWORD": "another-secret"})
    assert "secret" not in repr(config).replace("SecretStr", "")
    assert "secret" not in config.model_dump_json()


def test_a_configuration_does_not_change() -> None:
    table = TableConfig(to="a.b")
    with pytest.raises(ValidationError, match="frozen"):
        table.to = "c.d"


def test_every_key_is_described() -> None:
    for model in (Config, SourceConfig, TargetConfig, TableConfig, WorkerConfig):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


def test_no_target_has_the_name_that_stands_for_all_of_them(tmp_path: Path) -> None:
    text = '[source]\ndsn = "postgresql:///s"\n[targets.all]\ndsn = "postgresql:///t"\ninclude = ["a.*"]'
    assert 'targets holds a target named "all", which is the label of the metrics' in refusal(tmp_path, text)
