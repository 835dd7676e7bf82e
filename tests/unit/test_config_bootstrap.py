"""What an operator says of the initial load, of refreshes and of notifications; and the old tool's variables."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from cdc.config import BootstrapConfig, Config, NotificationConfig, RefreshConfig, as_toml, load
from cdc.errors import ConfigurationError
from cdc.routing.router import build_all_routes, route_of

BASE = {
    "SOURCE_DATABASE_URL": "postgresql:///source",
    "DATABASE_URL": "postgresql:///target",
    "CDC_TARGETS__INTERNAL__INCLUDE": "public.*",
}
TABLES = dict.fromkeys(
    ("public.answers", "public.knowledge-elements", "public.users", "public.element-answers", "learn.skills"),
    ("id", "value"),
)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is there: the environment alone speaks, as in a deployment of the old tool."""
    monkeypatch.chdir(tmp_path)


def said(**variables: str) -> Config:
    return load(None, {**BASE, **variables})


def refusal(**variables: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        said(**variables)
    return str(caught.value)


def tables_of(config: Config) -> list[str]:
    routes = build_all_routes(config, TABLES)["internal"]
    return [f"{route.source_schema}.{route.source_table}" for route in routes]


def test_every_old_variable_keeps_its_meaning() -> None:
    config = said(
        SCALINGO_APP="pix-api-production",
        SCALINGO_API_TOKEN="tk-us-secret",
        SCHEDULE="30 4 * * 1-5",
        MAX_RETRY_COUNT="3",
        PG_RESTORE_JOBS="8",
        RESTORE_FK_CONSTRAINTS="true",
        BACKUP_MODE='{"knowledge-elements": "incremental", "answers": "none"}',
        NOTIFICATIONS='[{"url": "https://hook.example/a", "token": "tk-secret"}, {"url": "https://other.example"}]',
    )
    assert config.bootstrap.scalingo_app == "pix-api-production"
    assert config.bootstrap.scalingo_api_token is not None
    assert config.bootstrap.scalingo_api_token.get_secret_value() == "tk-us-secret"
    assert config.refresh.schedule == "30 4 * * 1-5"
    assert config.bootstrap.max_retry_count == 3
    assert config.bootstrap.restore_jobs == 8
    assert config.bootstrap.foreign_keys is True
    assert config.bootstrap.modes == {"public.knowledge-elements": "incremental", "public.answers": "none"}
    first, second = config.notifications
    assert first.url.get_secret_value() == "https://hook.example/a"
    assert first.token is not None
    assert first.token.get_secret_value() == "tk-secret"
    assert second.token is None


def test_without_them_the_old_defaults_hold() -> None:
    config = said()
    assert config.refresh.schedule == "10 5 * * *"
    assert config.bootstrap.max_retry_count == 10
    assert config.bootstrap.restore_jobs == 4
    assert config.bootstrap.foreign_keys is False
    assert config.bootstrap.modes == {}
    assert config.notifications == ()


@pytest.mark.parametrize(("value", "meant"), [("true", True), ("True", True), ("false", False), ("yes", False)])
def test_foreign_keys_are_restored_for_true_and_nothing_else(value: str, meant: bool) -> None:
    assert said(RESTORE_FK_CONSTRAINTS=value).bootstrap.foreign_keys is meant


@pytest.mark.parametrize(
    ("variables", "modes"),
    [
        ({"RESTORE_ANSWERS_AND_KES": "true"}, {}),
        ({"RESTORE_ANSWERS_AND_KES": "false"}, dict.fromkeys(("answers", "knowledge-elements"), "none")),
        ({"RESTORE_ANSWERS_AND_KES": ""}, dict.fromkeys(("answers", "knowledge-elements"), "none")),
        (
            {"RESTORE_ANSWERS_AND_KES_INCREMENTALLY": "true"},
            dict.fromkeys(("answers", "knowledge-elements"), "incremental"),
        ),
        (
            {"RESTORE_ANSWERS_AND_KES": "false", "RESTORE_ANSWERS_AND_KES_INCREMENTALLY": "true"},
            dict.fromkeys(("answers", "knowledge-elements"), "incremental"),
        ),
        (
            {"RESTORE_ANSWERS_AND_KES": "false", "BACKUP_MODE": '{"answers": "incremental", "users": "none"}'},
            {"answers": "incremental", "knowledge-elements": "none", "users": "none"},
        ),
    ],
)
def test_the_older_two_variables_name_two_tables_and_their_successor_wins(
    variables: dict[str, str], modes: dict[str, str]
) -> None:
    assert said(**variables).bootstrap.modes == {f"public.{table}": mode for table, mode in modes.items()}


def test_none_takes_a_table_out_of_every_target_and_takes_no_other_with_it() -> None:
    assert tables_of(said(BACKUP_MODE='{"answers": "none"}')) == [
        "public.element-answers",
        "public.knowledge-elements",
        "public.users",
    ]
    assert len(tables_of(said(BACKUP_MODE='{"answers": "incremental"}'))) == 4


def test_none_takes_a_table_out_of_the_stream() -> None:
    internal = said(BACKUP_MODE='{"answers": "none"}').targets["internal"]
    assert route_of(internal, "public", "answers") is None
    assert route_of(internal, "public", "element-answers") is not None


def test_none_takes_a_table_out_that_a_target_names(tmp_path: Path) -> None:
    file = tmp_path / "cdc.toml"
    file.write_text(
        '[targets.internal]\ncolumns = "listed"\ntables."public.answers" = ["id"]\ntables."public.users" = ["id"]\n'
        '[bootstrap.modes]\nanswers = "none"\n'
    )
    assert tables_of(load(file, BASE | {"CDC_TARGETS__INTERNAL__INCLUDE": ""})) == ["public.users"]


def test_a_target_that_is_left_without_a_table_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cdc.toml"
    file.write_text('[targets.internal]\ntables."public.answers" = ["id"]\n[bootstrap.modes]\nanswers = "none"\n')
    with pytest.raises(ConfigurationError, match="leaves the target internal without any table: bootstrap"):
        load(file, BASE | {"CDC_TARGETS__INTERNAL__INCLUDE": ""})


def test_a_mistyped_mode_names_the_valid_ones_the_nearest_and_the_variable() -> None:
    assert refusal(BACKUP_MODE='{"answers": "incremental", "users": "non"}').endswith(
        "bootstrap.modes.users (environment variable BACKUP_MODE) should be 'incremental' or 'none'; did you mean none?"
    )
    assert "should be 'incremental' or 'none'" in refusal(BACKUP_MODE='{"answers": 5}')


def test_a_mistyped_table_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_all_routes(said(BACKUP_MODE='{"anwsers": "none"}'), TABLES)
    assert str(caught.value) == (
        'bootstrap.modes."public.anwsers" (or BACKUP_MODE): the source has no table public.anwsers; '
        'did you mean "public.answers"?'
    )


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ({"": "none"}, '"" is no table'),
        ({"public.": "none"}, '"public." is no table'),
        ({"answers": "none", "public.answers": "incremental"}, 'gives two modes to "public.answers"'),
    ],
)
def test_what_names_no_table_or_one_twice_is_refused(modes: dict[str, str], expected: str) -> None:
    assert expected in refusal(BACKUP_MODE=json.dumps(modes))


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("BACKUP_MODE", "{answers: none}", "environment variable BACKUP_MODE is not an object"),
        ("BACKUP_MODE", '["answers"]', "environment variable BACKUP_MODE is not an object"),
        ("NOTIFICATIONS", '{"url": "https://x"}', "environment variable NOTIFICATIONS is not a list of objects"),
        ("NOTIFICATIONS", '["https://x"]', "(environment variable NOTIFICATIONS) should be a table of keys"),
        ("NOTIFICATIONS", '[{"token": "x"}]', "notifications.url (environment variable NOTIFICATIONS) is missing"),
        ("NOTIFICATIONS", '[{"url": "ftp://x"}]', "(environment variable NOTIFICATIONS) is no address"),
        ("MAX_RETRY_COUNT", "many", "(environment variable MAX_RETRY_COUNT) should be a valid integer"),
        ("MAX_RETRY_COUNT", "0", "(environment variable MAX_RETRY_COUNT) should be greater than or equal to 1"),
        ("PG_RESTORE_JOBS", "1000", "(environment variable PG_RESTORE_JOBS) should be less than or equal to 64"),
        ("SCALINGO_APP", "Pix API", "(environment variable SCALINGO_APP) does not match the pattern"),
        ("SCHEDULE", "at noon", "(environment variable SCHEDULE) is no cron expression of five fields"),
        ("SCHEDULE", "0 0 31 2 *", "(environment variable SCHEDULE) is no cron expression of five fields"),
        ("SOURCE_DATABASE_URL", "nonsense", "source.dsn (environment variable SOURCE_DATABASE_URL) is no connection"),
        ("CDC_BOOTSTRAP__RESTORE_JOBS", "x", "(environment variable CDC_BOOTSTRAP__RESTORE_JOBS) should be a valid"),
        ("CDC_BOOTSTRAP__PG_RESTOR", "x", "bootstrap.pg_restor (environment variable CDC_BOOTSTRAP__PG_RESTOR) is no"),
        ("CDC_BOOTSTRP__RESTORE_JOBS", "4", "did you mean CDC_BOOTSTRAP__RESTORE_JOBS?"),
        ("RESTORE_ANSWERS_AND_KE", "true", "RESTORE_ANSWERS_AND_KE is no variable of cdc; did you mean RESTORE_ANSW"),
        ("BACKUP_MODES", "{}", "BACKUP_MODES is no variable of cdc; did you mean BACKUP_MODE?"),
        ("CDC_BOOTSTRAP__SCALINGO_API_URL", "https://x/v1?a=b", "SCALINGO_API_URL) is no address of an API"),
        ("CDC_BOOTSTRAP__SCALINGO_API_URL", "https://u:p@x/v1", "SCALINGO_API_URL) holds a user or a password"),
        ("CDC_BOOTSTRAP__MISSING_EXTENSIONS", "skipp", "should be 'refuse' or 'skip'; did you mean skip?"),
    ],
)
def test_a_problem_says_which_variable_it_comes_from(variable: str, value: str, expected: str) -> None:
    assert expected in refusal(**{variable: value})


def test_no_problem_of_a_variable_repeats_its_value() -> None:
    message = refusal(
        NOTIFICATIONS='[{"url": "https://u:s3cret@x", "token": "s3cret", "tokn": 1}]', SCALINGO_API_TOKEN="s3cret"
    )
    assert "notifications.tokn" in message
    assert "s3cret" not in message


def test_the_file_and_our_own_variables_win_over_the_old_ones(tmp_path: Path) -> None:
    file = tmp_path / "cdc.toml"
    file.write_text(
        '[bootstrap]\nscalingo_app = "mine"\nmodes = { users = "none" }\n[refresh]\nschedule = "0 1 * * *"\n'
        '[[notifications]]\nurl = "https://mine.example"\n'
    )
    old = {
        "SCALINGO_APP": "theirs",
        "BACKUP_MODE": '{"answers": "none"}',
        "SCHEDULE": "0 2 * * *",
        "NOTIFICATIONS": '[{"url": "https://theirs.example"}]',
        "MAX_RETRY_COUNT": "7",
        "CDC_BOOTSTRAP__MAX_RETRY_COUNT": "5",
    }
    config = load(file, BASE | old)
    assert config.bootstrap.scalingo_app == "mine"
    assert config.bootstrap.modes == {"public.users": "none"}
    assert config.bootstrap.max_retry_count == 5
    assert config.refresh.schedule == "0 1 * * *"
    assert [told.url.get_secret_value() for told in config.notifications] == ["https://mine.example"]


def test_everything_can_come_from_our_own_variables() -> None:
    config = said(
        CDC_BOOTSTRAP__SCALINGO_APP="app",
        CDC_BOOTSTRAP__SCALINGO_DATABASE_TOKEN="user",
        CDC_BOOTSTRAP__MODES='{"learn.skills": "incremental"}',
        CDC_BOOTSTRAP__FOREIGN_KEYS="true",
        CDC_BOOTSTRAP__DIRECTORY="backups",
        CDC_BOOTSTRAP__BACKUP_POLL_S="0.5",
        CDC_REFRESH__SCHEDULE="0 3 * * *",
        CDC_NOTIFICATIONS='[{"url": "https://hook.example/a/"}]',
    )
    bootstrap = config.bootstrap
    assert (bootstrap.scalingo_app, bootstrap.scalingo_database_token, bootstrap.foreign_keys) == ("app", "user", True)
    assert (bootstrap.modes, bootstrap.directory, bootstrap.backup_poll_s) == (
        {"learn.skills": "incremental"},
        Path("backups"),
        0.5,
    )
    assert config.refresh.schedule == "0 3 * * *"
    assert config.notifications[0].url.get_secret_value() == "https://hook.example/a/"


def test_an_address_of_an_api_has_no_slash_at_its_end_and_a_hook_is_kept_as_it_is() -> None:
    assert BootstrapConfig(scalingo_auth_url="https://auth.example/v1/").scalingo_auth_url == "https://auth.example/v1"
    hook = NotificationConfig.model_validate({"url": "https://hook.example/s3cret/?key=s3cret"})
    assert hook.url.get_secret_value() == "https://hook.example/s3cret/?key=s3cret"
    assert "s3cret" not in repr(hook) + hook.model_dump_json()
    assert hook.model_dump()["url"] == "https://hook.example/…"


def test_what_is_shown_can_be_read_again_and_holds_no_secret(tmp_path: Path) -> None:
    config = said(
        SCALINGO_APP="app",
        SCALINGO_API_TOKEN="tk-us-s3cret",
        BACKUP_MODE='{"answers": "none", "users": "incremental"}',
        NOTIFICATIONS='[{"url": "https://hook.example/s3cret?key=s3cret", "token": "s3cret"}, {"url": "https://b.example"}]',
        CDC_BOOTSTRAP__DIRECTORY="backups",
    )
    shown = as_toml(config)
    assert "s3cret" not in shown + repr(config) + config.model_dump_json()
    assert shown.count("[[notifications]]") == 2
    assert tomllib.loads(shown)["notifications"] == [
        {"url": "https://hook.example/…"},
        {"url": "https://b.example/…"},
    ]
    file = tmp_path / "cdc.toml"
    file.write_text(shown, encoding="utf-8")
    again = load(file, {})
    assert as_toml(again) == shown
    assert again.bootstrap.modes == config.bootstrap.modes
    assert again.bootstrap.directory == Path("backups")
    assert again.targets["internal"].exclude == ("public.answers",)


@pytest.mark.parametrize("value", ["5", '"x"', "[]"])
def test_a_section_that_is_no_table_is_refused(tmp_path: Path, value: str) -> None:
    file = tmp_path / "cdc.toml"
    for section in ("bootstrap", "refresh", "targets"):
        file.write_text(f"{section} = {value}\n")
        variables = {"BACKUP_MODE": '{"answers": "none"}', "SCHEDULE": "0 1 * * *"}
        environ = {name: text for name, text in BASE.items() if "TARGETS" not in name} | variables
        with pytest.raises(ConfigurationError, match=rf"{section} should be a table"):
            load(file, environ)


def test_what_is_wrong_with_the_whole_is_said_without_a_key(tmp_path: Path) -> None:
    assert "the configuration source.slot and the target internal are too long together" in refusal(
        CDC_SOURCE__SLOT="s" * 60
    )


def test_every_key_is_described() -> None:
    for model in (BootstrapConfig, RefreshConfig, NotificationConfig):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
