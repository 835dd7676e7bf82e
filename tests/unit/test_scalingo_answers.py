"""What is read out of Scalingo's answers, without a socket."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode

import pytest
from yarl import URL

from cdc.bootstrap.provider_http import Answer, backoff_s, refusal, retry_after_s
from cdc.bootstrap.scalingo import TOKEN_LIFETIME_S, field, token_lifetime_s
from cdc.errors import SetupError


def jwt(**claims: object) -> str:
    payload = urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJIUzUxMiJ9.{payload}.c2lnbmVk"


def test_a_token_lives_as_long_as_it_says_whatever_our_clock_says() -> None:
    assert token_lifetime_s(jwt(iat=1000, exp=4600)) == 3600
    assert token_lifetime_s(jwt(exp=time.time() + 120)) == pytest.approx(120, abs=5)


@pytest.mark.parametrize(
    "token",
    [
        "opaque",
        "a.b.c",
        "a.!!!.c",
        "a.W10.c",
        jwt(),
        jwt(exp="soon"),
        jwt(exp=12),
        jwt(iat=50, exp=40),
        "..",
        "a.e30.c",
    ],
)
def test_a_token_that_says_nothing_sensible_is_taken_to_live_an_hour(token: str) -> None:
    assert token_lifetime_s(token) == TOKEN_LIFETIME_S


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), (" 7 ", 7.0), ("100000", 300.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("", None)],
)
def test_retry_after_is_seconds_or_nothing(value: str, seconds: float | None) -> None:
    assert retry_after_s({"Retry-After": value}) == seconds
    assert retry_after_s({}) is None


def test_waits_grow_and_are_bounded() -> None:
    assert 0.25 <= backoff_s(0) <= 0.5
    assert 1.0 <= backoff_s(2) <= 2.0
    assert 15.0 <= backoff_s(1000) <= 30.0


def test_a_refusal_repeats_no_token_even_when_scalingo_does() -> None:
    secrets = (jwt(exp=5), "tk-us-aBc_123", "Bearer abcdef", "https://x/y?token=abcdef&a=b")
    for secret in secrets:
        for body in ({"error": f"what is {secret}"}, f"what is {secret}"):
            text = body if isinstance(body, str) else ""
            message = str(refusal(Answer(400, None if text else body, text, None), "something"))
            assert secret not in message
            assert "abcdef" not in message
            assert message.startswith("Scalingo refuses something: what is ")


def test_a_refusal_is_short_and_says_what_to_do() -> None:
    answer = Answer(422, {"errors": {"name": ["x" * 1000]}}, "", "r1")
    message = str(refusal(answer, "it", hint="ask them"))
    assert len(message) < 400
    assert message.endswith("(HTTP 422, request id r1); ask them")


def test_what_an_answer_lacks_is_named_and_nothing_of_it_quoted() -> None:
    assert field({"addon": {"token": "x"}}, "addon", "token") == "x"
    contents: list[object] = [{"addon": {"secret": 1}}, {"addon": "secret"}, None, []]
    for content in contents:
        with pytest.raises(SetupError, match=r"has no addon\.token") as caught:
            field(content, "addon", "token")
        assert "secret" not in str(caught.value)


def test_the_address_of_a_host_needs_no_default_port() -> None:
    from cdc.bootstrap.provider_http import unanswered

    assert (
        str(unanswered(TimeoutError(), URL("https://api.example/x?token=y"))) == "api.example does not answer in time"
    )
    assert "api.example:81 was lost" in str(unanswered(OSError("y"), URL("http://api.example:81/x")))
