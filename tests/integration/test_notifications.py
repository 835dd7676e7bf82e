"""Whoever wants to know is told when a bootstrap or a refresh is done, and nobody else suffers from it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from cdc.config import Config, NotificationConfig, SourceConfig, TargetConfig
from cdc.service import notifications
from cdc.service.notifications import notify
from tests.scalingo import StandIn

EVENT = {"target": "internal", "event": "bootstrap", "outcome": "done", "lsn": "0/16B3748"}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "FIRST_WAIT_S", 0.01)


def telling(*receivers: NotificationConfig) -> Config:
    return Config(
        pipeline="warehouse",
        source=SourceConfig(dsn=SecretStr("postgresql:///s")),
        targets={"internal": TargetConfig(dsn=SecretStr("postgresql:///t"), include=("public.*",))},
        notifications=receivers,
    )


def receiver(url: str, token: str | None = None) -> NotificationConfig:
    return NotificationConfig.model_validate({"url": url, "token": token})


async def test_each_receiver_gets_one_post_with_its_token(scalingo: StandIn) -> None:
    before = datetime.now(UTC)
    await notify(telling(receiver(f"{scalingo.url}/hooks/a", "s3cret"), receiver(f"{scalingo.url}/hooks/b")), EVENT)
    (told,), (other,) = scalingo.hooks("a"), scalingo.hooks("b")
    assert told.headers["authorization"] == "Bearer s3cret"
    assert "authorization" not in other.headers
    assert told.headers["content-type"] == "application/json"
    said = told.json
    at = datetime.fromisoformat(said.pop("at"))
    assert said == {"pipeline": "warehouse", **EVENT}
    assert before.replace(microsecond=0) <= at <= datetime.now(UTC)
    assert other.json["outcome"] == "done"


async def test_the_address_is_called_exactly_as_it_is_written(scalingo: StandIn) -> None:
    await notify(telling(receiver(f"{scalingo.url}/hooks/a/?key=x%2Fy")), EVENT)
    (request,) = scalingo.requests
    assert (request.path, request.query) == ("/hooks/a/", "key=x%2Fy")


async def test_a_receiver_that_is_down_for_a_moment_is_told_all_the_same(scalingo: StandIn) -> None:
    scalingo.hook_statuses = [503, 429, 500]
    with capture_logs() as lines:
        await notify(telling(receiver(f"{scalingo.url}/hooks/a")), EVENT)
    assert len(scalingo.hooks("a")) == 4
    assert [(line["event"], line["log_level"]) for line in lines] == [("notified", "info")]


async def test_a_refusal_is_a_warning_and_is_not_repeated(scalingo: StandIn) -> None:
    scalingo.hook_statuses = [404]
    with capture_logs() as lines:
        await notify(telling(receiver(f"{scalingo.url}/hooks/a")), EVENT)
    assert len(scalingo.hooks("a")) == 1
    assert [(line["event"], line["status"]) for line in lines] == [("a notification is refused", 404)]


async def test_a_redirect_is_not_followed(scalingo: StandIn) -> None:
    scalingo.faults.answer("POST", "/hooks/a", 302, headers={"location": f"{scalingo.url}/hooks/b"})
    await notify(telling(receiver(f"{scalingo.url}/hooks/a", "s3cret")), EVENT)
    assert [request.path for request in scalingo.requests] == ["/hooks/a"]


async def test_nobody_there_is_a_warning_without_the_address_and_the_others_are_told(scalingo: StandIn) -> None:
    dead = receiver("http://127.0.0.1:9/hooks/T0K3N?key=s3cret", "s3cret")
    nowhere = receiver("http://no-such-host.invalid/hooks/T0K3N")
    with capture_logs() as lines:
        await notify(telling(dead, nowhere, receiver(f"{scalingo.url}/hooks/a")), EVENT)
    assert len(scalingo.hooks("a")) == 1
    warnings = [line for line in lines if line["log_level"] == "warning"]
    assert {line["receiver"] for line in warnings} == {"127.0.0.1", "no-such-host.invalid"}
    assert {line["event"] for line in warnings} == {"a notification cannot be delivered"}
    assert not [line for line in lines if "s3cret" in str(line) or "T0K3N" in str(line)]


async def test_without_receivers_nothing_happens() -> None:
    await notify(telling(), EVENT)
