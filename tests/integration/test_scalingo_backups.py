"""Asking Scalingo for backups: tokens, addresses, refusals, and all that can go wrong on the way."""

from __future__ import annotations

import asyncio
import time
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cdc.bootstrap import provider_http
from cdc.bootstrap.backups import Backup, open_backups
from cdc.bootstrap.scalingo import connect
from cdc.config import BootstrapConfig, load
from cdc.errors import BackupUnavailable, CdcError, ConfigurationError, SetupError
from tests.database import Database
from tests.scalingo import StandIn

NOW = datetime(2026, 5, 12, 9, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_http, "RETRY_WAIT_S", (0.01, 0.05))
    monkeypatch.setattr(provider_http, "BUSY_WAIT_S", (0.01, 0.02))


@pytest.fixture
def database(scalingo: StandIn) -> str:
    """A database without a server behind it, for what needs no dump."""
    return scalingo.add_database("postgresql:///nowhere")


async def refusal(config: BootstrapConfig) -> str:
    with pytest.raises(SetupError) as caught:
        async with open_backups(config) as backups:
            await backups.list()
    return str(caught.value)


def ignore(_message: str) -> None:
    """Say nothing."""


async def test_a_new_backup_is_made_and_waited_for(scalingo: StandIn, source: Database) -> None:
    source.execute("CREATE TABLE answers (id int PRIMARY KEY)")
    scalingo.add_database(source.dsn)
    scalingo.looks = ["scheduled", "pending", "pending", "running"]
    said: list[str] = []
    async with open_backups(scalingo.bootstrap()) as backups:
        began = await backups.new_backup()
        assert (began.status, began.size, began.is_done) == ("scheduled", None, False)
        done = await backups.wait_until_done(began, said.append)
    assert done.is_done
    archive = scalingo.backups[0].archive
    assert archive is not None
    assert done.size == archive.stat().st_size
    statuses = [sentence.split(" is ")[1].split(" ")[0] for sentence in said]
    assert statuses[:4] == ["scheduled", "pending", "running", "done"]
    assert said[0] == f"backup {done.id} of {backups.database} is scheduled"


async def test_the_archive_is_a_dump_in_a_tar_gz_with_an_absolute_path(scalingo: StandIn, source: Database) -> None:
    import tarfile

    scalingo.add_database(source.dsn)
    async with open_backups(scalingo.bootstrap()) as backups:
        await backups.wait_until_done(await backups.new_backup(), ignore)
    archive = scalingo.backups[0].archive
    assert archive is not None
    with tarfile.open(archive, "r:gz") as tar:
        (member,) = tar.getmembers()
        assert member.name.startswith("/")
        assert member.name.endswith(".pgsql")
        content = tar.extractfile(member)
        assert content is not None
        assert content.read(5) == b"PGDMP"


async def test_a_status_that_nobody_knows_is_waited_for_and_said(scalingo: StandIn, source: Database) -> None:
    scalingo.add_database(source.dsn)
    scalingo.looks = ["scheduled", "uploading", "verifying"]
    said: list[str] = []
    async with open_backups(scalingo.bootstrap()) as backups:
        assert (await backups.wait_until_done(await backups.new_backup(), said.append)).is_done
    assert [sentence for sentence in said if "uploading" in sentence]


async def test_a_backup_that_takes_long_is_said_every_minute(
    scalingo: StandIn, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc.bootstrap.backups.SAY_INTERVAL_S", 0.2)
    running = scalingo.add_backup(database, tmp_path, began_at=NOW, status="running")
    said: list[str] = []
    async with open_backups(scalingo.bootstrap(backup_poll_s=0.02)) as backups:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(backups.wait_until_done((await backups.list())[0], said.append))
            await asyncio.sleep(1.0)
            running.is_made.set()
        assert waiting.result().is_done
    assert 3 <= len(said) <= 7


@pytest.mark.parametrize("status", ["error", "cancelled"])
async def test_a_backup_that_fails_is_one_clear_error(scalingo: StandIn, source: Database, status: str) -> None:
    scalingo.add_database(source.dsn)
    scalingo.looks = ["scheduled", "running", "cancelling", status]
    async with open_backups(scalingo.bootstrap()) as backups:
        new = await backups.new_backup()
        with pytest.raises(SetupError, match=f"backup {new.id} of {backups.database} ended as {status}: look at"):
            await backups.wait_until_done(new, ignore)


async def test_a_backup_that_takes_too_long_is_given_up(scalingo: StandIn, database: str, tmp_path: Path) -> None:
    scalingo.add_backup(database, tmp_path, began_at=NOW, status="running")
    async with open_backups(scalingo.bootstrap(backup_timeout_s=0.2)) as backups:
        with pytest.raises(SetupError, match=r"is still running after 0 s: .*bootstrap\.backup_timeout_s"):
            await backups.wait_until_done((await backups.list())[0], ignore)


async def test_a_backup_that_was_evicted_is_one_clear_error(scalingo: StandIn, database: str, tmp_path: Path) -> None:
    scalingo.add_backup(database, tmp_path, began_at=NOW, status="running")
    async with open_backups(scalingo.bootstrap()) as backups:
        (backup,) = await backups.list()
        scalingo.backups.clear()
        with pytest.raises(SetupError, match="not in Scalingo's list any more: a newer one may have evicted it"):
            await backups.wait_until_done(backup, ignore)
        assert await backups.get(backup.id) is None


async def test_a_backup_that_may_not_begin_yet_waits(scalingo: StandIn, source: Database) -> None:
    scalingo.add_database(source.dsn)
    scalingo.may_begin.clear()
    async with open_backups(scalingo.bootstrap()) as backups:
        new = await backups.new_backup()
        await asyncio.sleep(0.3)
        seen = await backups.get(new.id)
        assert seen is not None
        assert (seen.status, seen.started_at) == ("scheduled", None)
        let_go = datetime.now(UTC)
        scalingo.may_begin.set()
        done = await backups.wait_until_done(seen, ignore)
    assert done.created_at < let_go <= done.began_at + timedelta(milliseconds=1)


async def test_the_newest_backup_is_the_one_that_began_last_and_did_not_fail(
    scalingo: StandIn, database: str, tmp_path: Path
) -> None:
    hour = timedelta(hours=1)
    for hours, status in ((2, "done"), (4, "running"), (1, "done"), (5, "error"), (3, "done")):
        scalingo.add_backup(database, tmp_path, began_at=NOW + hours * hour, status=status)
    async with open_backups(scalingo.bootstrap()) as backups:
        assert [(backup.began_at - NOW) // hour for backup in await backups.list()] == [5, 4, 3, 2, 1]

        async def newest(after: datetime) -> Backup | None:
            return await backups.newest_backup_after(after)

        running = await newest(NOW + 3.5 * hour)
        assert running is not None
        assert (running.began_at, running.status) == (NOW + 4 * hour, "running")
        assert await newest(NOW + 4 * hour) is None


@pytest.mark.parametrize(
    ("started_at", "began_at"),
    [
        ("2026-05-12T11:31:00.000+02:00", NOW + timedelta(minutes=1)),
        ("2026-05-12T09:31:00Z", NOW + timedelta(minutes=1)),
        ("2026-05-12T09:31:00", NOW + timedelta(minutes=1)),
        ("0001-01-01T00:00:00Z", NOW),
        (None, NOW),
    ],
)
async def test_when_a_backup_began_is_read_in_every_notation(
    scalingo: StandIn, database: str, started_at: str | None, began_at: datetime
) -> None:
    described = {"id": "a", "created_at": "2026-05-12T09:30:00Z", "started_at": started_at, "status": "running"}
    scalingo.faults.answer("GET", "/backups", 200, {"database_backups": [described]})
    async with open_backups(scalingo.bootstrap()) as backups:
        (backup,) = await backups.list()
    assert backup.began_at == began_at


async def test_a_cdc_of_its_own_process_finds_the_stand_in_by_its_environment(
    scalingo: StandIn, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {
        "SOURCE_DATABASE_URL": "postgresql:///s",
        "DATABASE_URL": "postgresql:///t",
        "CDC_TARGETS__INTERNAL__INCLUDE": "public.*",
    }
    config = load(None, environ | scalingo.environ())
    assert config.bootstrap == scalingo.bootstrap()
    async with open_backups(config.bootstrap) as backups:
        assert backups.database == database


async def test_every_request_says_who_asks_and_no_token_goes_where_it_does_not_belong(
    scalingo: StandIn, source: Database
) -> None:
    addon = scalingo.add_database(source.dsn)
    async with open_backups(scalingo.bootstrap()) as backups:
        done = await backups.wait_until_done(await backups.new_backup(), ignore)
        await backups.archive_url(done)
    (exchange,) = scalingo.asked("POST", "/tokens/exchange")
    assert exchange.headers["authorization"].startswith("Basic ")
    assert exchange.json == {}
    (token,) = scalingo.asked("POST", f"/addons/{addon}/token")
    (addons,) = scalingo.asked("GET", "/addons")
    assert token.credentials == addons.credentials
    (asked,) = scalingo.asked("POST", "/backups")
    assert asked.credentials != token.credentials
    for request in scalingo.requests:
        assert request.headers["user-agent"].startswith("cdc/")
        assert request.headers["accept"] == "application/json"
        assert request.method == "GET" or request.headers["content-type"] == "application/json"


async def test_a_token_that_ends_is_renewed_in_time(scalingo: StandIn, database: str) -> None:
    scalingo.token_lifetime_s = scalingo.addon_token_lifetime_s = 2.0
    async with open_backups(scalingo.bootstrap()) as backups:
        await backups.list()
        before = len(scalingo.asked("POST", f"/addons/{database}/token"))
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            await backups.list()
            await asyncio.sleep(0.2)
    assert len(scalingo.asked("POST", f"/addons/{database}/token")) > before
    assert len(scalingo.asked("POST", "/tokens/exchange")) > 1


async def test_a_token_that_is_refused_is_renewed_once(scalingo: StandIn, database: str) -> None:
    async with open_backups(scalingo.bootstrap()) as backups:
        await backups.list()
        scalingo.revoke()
        assert await backups.list() == ()
        assert len(scalingo.asked("POST", "/tokens/exchange")) == 2
        scalingo.faults.answer("GET", "/backups", 401, {"error": "unauthorized"}, times=3)
        with pytest.raises(SetupError, match=rf"the backups of {database}: unauthorized \(HTTP 401, request id 3f1c"):
            await backups.list()
    assert len(scalingo.faults.waiting) == 1


async def test_a_wrong_api_token_is_one_clear_error(scalingo: StandIn, database: str) -> None:
    message = await refusal(scalingo.bootstrap(scalingo_api_token="tk-us-wrong"))
    assert message.startswith("Scalingo refuses the API token: invalid API token (HTTP 401")
    assert "SCALINGO_API_TOKEN" in message
    assert "tk-us" not in message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"scalingo_app": None}, "SCALINGO_APP"), ({"scalingo_api_token": None}, "SCALINGO_API_TOKEN")],
)
async def test_what_is_not_configured_is_said(scalingo: StandIn, settings: dict[str, None], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        async with connect(scalingo.bootstrap(**settings)):
            pass


async def test_an_unknown_application_is_one_clear_error(scalingo: StandIn, database: str) -> None:
    message = await refusal(scalingo.bootstrap(scalingo_app="pix-ap"))
    assert "the addons of the application pix-ap: App, not found (HTTP 404" in message
    assert "bootstrap.scalingo_app (SCALINGO_APP)" in message


async def test_a_dedicated_database_is_refused_with_what_to_do_instead(scalingo: StandIn) -> None:
    addon = scalingo.add_database("postgresql:///x", provider="postgresql-ng")
    message = await refusal(scalingo.bootstrap())
    assert addon in message
    assert "use cdc bootstrap --from live" in message


async def test_of_several_databases_one_has_to_be_named(scalingo: StandIn) -> None:
    first, second = (scalingo.add_database("postgresql:///x") for _ in range(2))
    scalingo.add_database("redis://x", provider="redis")
    message = await refusal(scalingo.bootstrap())
    assert first in message
    assert second in message
    assert "bootstrap.scalingo_addon" in message
    assert "redis" not in message
    async with open_backups(scalingo.bootstrap(scalingo_addon=second)) as backups:
        assert backups.database == second
    assert "has no PostgreSQL database ad-other" in await refusal(scalingo.bootstrap(scalingo_addon="ad-other"))


async def test_no_database_and_a_stopped_one_are_clear_errors(scalingo: StandIn) -> None:
    assert "has no PostgreSQL database at Scalingo" in await refusal(scalingo.bootstrap())
    scalingo.add_database("postgresql:///x", status="suspended")
    assert "is suspended, not running" in await refusal(scalingo.bootstrap())


@pytest.mark.parametrize("old_place", [404, 410, 308])
async def test_the_new_place_is_asked_when_the_old_one_is_gone_and_remembered(
    scalingo: StandIn, database: str, old_place: int
) -> None:
    scalingo.old_place, scalingo.new_place = old_place, 200
    async with open_backups(scalingo.bootstrap()) as backups:
        await backups.list()
        await backups.list()
    places = [request.path.split("/")[1] for request in scalingo.asked("GET", "/backups")]
    assert places == ["db-api", "api", "api"]
    users_token = scalingo.asked("GET", "/addons")[0].credentials
    assert scalingo.asked("GET", "/backups")[-1].credentials == users_token


async def test_the_new_place_is_asked_when_the_old_ones_name_leads_nowhere(scalingo: StandIn, database: str) -> None:
    scalingo.new_place = 200
    config = scalingo.bootstrap(scalingo_database_api_url="http://db-api.no-such-region.invalid/api")
    async with open_backups(config) as backups:
        assert await backups.list() == ()


async def test_the_place_and_whose_token_it_takes_are_settings(scalingo: StandIn, database: str) -> None:
    scalingo.new_place = 200
    config = scalingo.bootstrap(scalingo_database_token="user", scalingo_database_api_url=None)
    async with open_backups(config) as backups:
        await backups.list()
    assert [request.path.split("/")[1] for request in scalingo.asked("GET", "/backups")] == ["api"]
    assert scalingo.asked("POST", f"/addons/{database}/token") == []


async def test_when_both_places_are_gone_it_is_said(scalingo: StandIn, database: str) -> None:
    scalingo.old_place = 410
    message = await refusal(scalingo.bootstrap())
    assert "HTTP 410" in message
    assert "bootstrap.scalingo_database_api_url" in message


async def test_what_is_not_there_in_a_place_that_works_is_not_looked_for_elsewhere(
    scalingo: StandIn, database: str, tmp_path: Path
) -> None:
    scalingo.add_backup(database, tmp_path, began_at=NOW)
    async with open_backups(scalingo.bootstrap()) as backups:
        (backup,) = await backups.list()
        scalingo.backups.clear()
        with pytest.raises(SetupError, match=r"DatabaseBackup, not found \(HTTP 404"):
            await backups.archive_url(backup)
    assert len(scalingo.asked("GET", "/archive")) == 1


async def test_retry_later_is_waited_for_and_is_no_failure(scalingo: StandIn, database: str) -> None:
    scalingo.faults.too_many("/backups", times=5)
    async with open_backups(scalingo.bootstrap(max_retry_count=2)) as backups:
        assert await backups.list() == ()
        scalingo.faults.waiting.clear()
        scalingo.faults.answer("GET", "/backups", 429, "Retry later", headers={"retry-after": "1"})
        begin = time.monotonic()
        await backups.list()
        assert time.monotonic() - begin >= 1.0


async def test_we_ask_no_faster_than_scalingo_allows(
    scalingo: StandIn, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_http, "REQUESTS_PER_MINUTE", 5)
    monkeypatch.setattr(provider_http, "MINUTE_S", 0.6)
    begin = time.monotonic()
    async with open_backups(scalingo.bootstrap()) as backups:
        while len(scalingo.requests) < 11:
            await backups.list()
    assert 1.2 <= time.monotonic() - begin < 3.0


@pytest.mark.parametrize("status", [500, 502, 503, 0])
async def test_what_can_pass_is_tried_again(scalingo: StandIn, database: str, status: int) -> None:
    for method, path in (("POST", "/tokens/exchange"), ("GET", "/addons"), ("POST", "/token"), ("GET", "/backups")):
        scalingo.faults.answer(method, path, status, "<html>Bad gateway</html>", times=2)
    async with open_backups(scalingo.bootstrap()) as backups:
        assert await backups.list() == ()


async def test_what_does_not_pass_is_given_up_after_the_tries_that_are_configured(
    scalingo: StandIn, database: str
) -> None:
    scalingo.faults.answer("GET", "/addons", 503, times=10)
    with pytest.raises(BackupUnavailable, match=r"127\.0\.0\.1:\d+ answers HTTP 503 \(request id 3f1c9c2e\)"):
        async with open_backups(scalingo.bootstrap(max_retry_count=3)):
            pass
    assert len(scalingo.asked("GET", "/addons")) == 3


async def test_nobody_there_is_one_clear_error(scalingo: StandIn) -> None:
    for url, expected in (
        ("http://127.0.0.1:9/v1", "no connection to 127.0.0.1:9"),
        ("http://no-such-host.invalid/v1", "the name no-such-host.invalid cannot be resolved"),
    ):
        with pytest.raises(BackupUnavailable, match=expected):
            async with open_backups(scalingo.bootstrap(scalingo_auth_url=url, max_retry_count=2)):
                pass


async def test_a_wait_outlives_an_api_that_is_down(scalingo: StandIn, source: Database) -> None:
    scalingo.add_database(source.dsn)
    async with open_backups(scalingo.bootstrap(max_retry_count=2)) as backups:
        new = await backups.new_backup()
        scalingo.faults.answer("GET", "/backups", 503, times=7)
        assert (await backups.wait_until_done(new, ignore)).is_done


@pytest.mark.parametrize("is_done_first", [True, False])
async def test_an_answer_that_was_lost_does_not_make_a_second_backup(
    scalingo: StandIn, source: Database, is_done_first: bool
) -> None:
    scalingo.add_database(source.dsn)
    scalingo.faults.answer("POST", "/backups", 0, is_done_first=is_done_first)
    async with open_backups(scalingo.bootstrap()) as backups:
        new = await backups.new_backup()
        assert [backup.id for backup in await backups.list()] == [new.id]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": "backups are disabled", "code": "forbidden_plan"}, "backups are disabled, forbidden_plan"),
        (403, {"error": "no collaborator"}, "no collaborator"),
        (409, {"error": "a backup is running"}, "a backup is running"),
        (422, {"errors": {"name": ["is taken", "is bad"], "plan": "none"}}, "name is taken, is bad, plan none"),
        (418, "short and stout", "short and stout"),
        (400, "<html>nginx</html>", "HTTP 400 (no reason given"),
    ],
)
async def test_a_refusal_is_said_in_scalingos_words(
    scalingo: StandIn, database: str, status: int, body: object, expected: str
) -> None:
    scalingo.faults.answer("POST", "/backups", status, body)
    async with open_backups(scalingo.bootstrap()) as backups:
        with pytest.raises(SetupError) as caught:
            await backups.new_backup()
    assert str(caught.value).startswith(f"Scalingo refuses a new backup of {database}: {expected}")
    assert "request id 3f1c9c2e" in str(caught.value)


@pytest.mark.parametrize("body", [{}, {"database_backups": [{"id": "x"}]}, "no JSON", [1], {"database_backups": [3]}])
async def test_an_answer_of_another_shape_is_one_clear_error(scalingo: StandIn, database: str, body: object) -> None:
    scalingo.faults.answer("GET", "/backups", 200, body)
    assert "Scalingo" in await refusal(scalingo.bootstrap())


async def test_invariant_08_no_secret_is_in_a_log_or_an_error_or_what_is_behind_it(
    scalingo: StandIn, database: str, tmp_path: Path
) -> None:
    scalingo.add_backup(database, tmp_path, began_at=NOW)
    told: list[str] = []
    with capture_logs() as lines:
        async with open_backups(scalingo.bootstrap(max_retry_count=2)) as backups:
            (backup,) = await backups.list()
            secrets = {scalingo.api_token, *(request.credentials for request in scalingo.requests)}
            token = scalingo.asked("GET", "/backups")[0].credentials
            told += [repr(backups), repr(backups.scalingo), repr(vars(backups.scalingo)), repr(backups.config)]
            for status in (400, 401, 500, 0):
                scalingo.faults.answer("GET", "/archive", status, {"error": f"bad token {token} of {token}"}, times=2)
                try:
                    await backups.archive_url(backup)
                except CdcError as error:
                    told += ["".join(traceback.format_exception(error)), repr(error)]
                scalingo.faults.waiting.clear()
            address = await backups.archive_url(backup)
            secrets.add(address.get_secret_value())
            told.append(repr(address))
    told += map(str, lines)
    assert len(told) > 12
    assert len(secrets) > 4
    assert not [secret for secret in secrets for text in told if secret in text]
