"""Scalingo's API with its tokens and its addresses: `Scalingo` asks, and is answered with JSON.

What it promises: a token is renewed before it ends and once when it is refused; a failure that can pass is tried again
(`cdc.bootstrap.provider_http`); an answer that says no is one clear `SetupError`; no secret is in a log or an error.

Facts of Scalingo (its public documentation and its own clients, 2026). The API token of a collaborator is exchanged
(``POST /tokens/exchange``, basic authentication with an empty user) for a JWT of the user, and that (``POST
/apps/{app}/addons/{id}/token``) for a token of one addon; both live one hour. The database API takes the addon's token
at ``db-api.<region>``. It is moving to ``api.<region>``, where it takes the user's JWT: that is asked when the first
place is gone (404, 410, a redirect, or a name that does not resolve), and whichever has answered is asked first from
then on.
"""

from __future__ import annotations

import binascii
import json
import time
from base64 import b64encode, urlsafe_b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr

from cdc.bootstrap.provider_http import Answer, Requests, Unanswered, open_session, refusal
from cdc.config import BootstrapConfig
from cdc.errors import ConfigurationError, SetupError

TOKEN_LIFETIME_S = 3600.0
"""Of a token that does not say how long it lives."""

RENEW_BEFORE_S = 300.0
"""A token is renewed when less than this remains, so that none ends on its way; half its life, where that is less."""

_GONE = {301, 302, 307, 308, 404, 410}
"""Statuses of a place that an API has left."""


@dataclass(frozen=True, slots=True)
class _Token:
    """A token and, by this process's steady clock, when to have another. The machine's clock may be wrong."""

    value: SecretStr
    renew_at: float


@dataclass(frozen=True, slots=True)
class _Base:
    """A place of the database API, and whose token it takes."""

    url: str
    takes: str


@asynccontextmanager
async def connect(config: BootstrapConfig) -> AsyncIterator[Scalingo]:
    """Scalingo, for one application; nothing is asked yet.

    Raises `ConfigurationError` where the application or the token is not given.
    """
    if not config.scalingo_app:
        raise ConfigurationError(
            "a backup is asked of Scalingo for an application: give bootstrap.scalingo_app or SCALINGO_APP, or a file"
        )
    if config.scalingo_api_token is None or not config.scalingo_api_token.get_secret_value():
        raise ConfigurationError(
            "Scalingo wants an API token of a collaborator: give bootstrap.scalingo_api_token or SCALINGO_API_TOKEN"
        )
    async with open_session() as session:
        yield Scalingo(
            config, config.scalingo_app, config.scalingo_api_token, Requests(session, config.max_retry_count)
        )


class Scalingo:
    """The API, for one application. Made by `connect`; one task at a time."""

    def __init__(self, config: BootstrapConfig, app: str, api_token: SecretStr, requests: Requests) -> None:
        self.app = app
        self.config = config
        self.requests = requests
        self._api_token = api_token
        self._auth_url = config.scalingo_auth_url
        self._api_url = config.scalingo_api_url or f"https://api.{config.scalingo_region}.scalingo.com/v1"
        self._bases = _bases(config, self._api_url)
        self._is_found = False
        self._tokens: dict[str, _Token] = {}

    async def ask(self, path: str, what: str, *, hint: str = "", method: str = "GET") -> Any:
        """The JSON that ``{api}{path}`` answers. ``what`` was asked, and ``hint`` what to do, are for the error.

        Raises `SetupError` when it is refused, `BackupUnavailable` when nobody answers.
        """
        answer = await self._authorized(method, f"{self._api_url}{path}", "user", self._user_token)
        if not answer.is_good:
            raise refusal(answer, what, hint=hint)
        return answer.content

    async def ask_database(
        self, addon: str, path: str, what: str, *, method: str = "GET", is_repeatable: bool = True
    ) -> Any:
        """The JSON that the database API answers, wherever it is.

        Raises as `ask` does, and `Unanswered` at once for what is not repeatable and may have been seen.
        """

        async def addon_token() -> SecretStr:
            return await self._addon_token(addon)

        refused: Answer | None = None
        unresolved: Unanswered | None = None
        for number, base in enumerate(tuple(self._bases), 1):
            give, owner = (addon_token, addon) if base.takes == "addon" else (self._user_token, "user")
            try:
                answer = await self._authorized(
                    method,
                    f"{base.url}{path}",
                    owner,
                    give,
                    is_last_host=number == len(self._bases),
                    is_repeatable=is_repeatable,
                )
            except Unanswered as error:
                if not error.is_unresolved:
                    raise
                unresolved = error
                continue
            if answer.is_good:
                self._prefer(base)
                return answer.content
            if not self._has_left(base, answer):
                raise refusal(answer, what)
            # What names a resource is the better answer of the two.
            refused = answer if refused is None or _names_a_resource(answer) else refused
        if unresolved is not None and (refused is None or not _names_a_resource(refused)):
            raise unresolved
        if refused is None:
            raise Unanswered("no place of Scalingo's database API is known")
        raise refusal(refused, what, hint="bootstrap.scalingo_database_api_url can say where the database API is")

    def _has_left(self, base: _Base, answer: Answer) -> bool:
        """Whether this answer means that the API is elsewhere.

        Where it has answered before, a 404 that names a resource means that resource.
        """
        is_proven = self._is_found and base == self._bases[0]
        return answer.status in _GONE and not (is_proven and _names_a_resource(answer))

    def _prefer(self, base: _Base) -> None:
        self._is_found = True
        self._bases = [base, *(other for other in self._bases if other != base)]

    async def _authorized(
        self,
        method: str,
        url: str,
        owner: str,
        give: Callable[[], Awaitable[SecretStr]],
        *,
        is_last_host: bool = True,
        is_repeatable: bool = True,
    ) -> Answer:
        """The answer to a request with a bearer token: with a new one, where the first is refused."""
        for is_second in (False, True):
            was_kept = owner in self._tokens
            token = await give()
            answer = await self.requests.send(
                method,
                url,
                headers={"Authorization": f"Bearer {token.get_secret_value()}"},
                body={} if method == "POST" else None,
                is_last_host=is_last_host,
                is_repeatable=is_repeatable,
            )
            if answer.status != 401 or is_second or not was_kept:
                break
            del self._tokens[owner]
        return answer

    async def _user_token(self) -> SecretStr:
        kept = self._tokens.get("user")
        if kept is None or time.monotonic() >= kept.renew_at:
            credentials = b64encode(f":{self._api_token.get_secret_value()}".encode()).decode()
            answer = await self.requests.send(
                "POST",
                f"{self._auth_url}/tokens/exchange",
                headers={"Authorization": f"Basic {credentials}"},
                body={},
            )
            if not answer.is_good:
                raise refusal(
                    answer,
                    "the API token",
                    hint="give a valid one as bootstrap.scalingo_api_token or SCALINGO_API_TOKEN"
                    if answer.status in (401, 403)
                    else "",
                )
            kept = self._tokens["user"] = _kept(field(answer.content, "token"))
        return kept.value

    async def _addon_token(self, addon: str) -> SecretStr:
        kept = self._tokens.get(addon)
        if kept is None or time.monotonic() >= kept.renew_at:
            path = f"/apps/{quote(self.app, safe='')}/addons/{quote(addon, safe='')}/token"
            content = await self.ask(path, f"a token for the database {addon}", method="POST")
            kept = self._tokens[addon] = _kept(field(content, "addon", "token"))
        return kept.value


def field(content: Any, *path: str) -> Any:
    """What stands at a path of an answer. Raises `SetupError`, which quotes nothing, where it is not there."""
    for name in path:
        if not isinstance(content, dict) or name not in content:
            raise SetupError(
                f"Scalingo's answer has no {'.'.join(path)}: is what bootstrap.scalingo_… names really its API?"
            )
        content = content[name]
    return content


def token_lifetime_s(token: str) -> float:
    """Seconds that a new token lives: ``exp - iat`` of a JWT (not verified, RFC 7519), else by this machine's clock.

    A token that is no JWT, says nothing, or says something that cannot be is given `TOKEN_LIFETIME_S`: the 401 will
    tell.
    """
    claims: Any = None
    parts = token.split(".")
    if len(parts) == 3:
        try:
            claims = json.loads(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        except (ValueError, binascii.Error):
            claims = None
    if not isinstance(claims, dict) or not isinstance(claims.get("exp"), int | float):
        return TOKEN_LIFETIME_S
    begin = claims.get("iat")
    lifetime = float(claims["exp"]) - (float(begin) if isinstance(begin, int | float) else time.time())
    return lifetime if lifetime > 0 else TOKEN_LIFETIME_S


def _kept(token: Any) -> _Token:
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
        raise SetupError("Scalingo's answer holds something else where a token should be")
    lifetime = token_lifetime_s(token)
    return _Token(SecretStr(token), time.monotonic() + lifetime - min(RENEW_BEFORE_S, lifetime / 2))


def _bases(config: BootstrapConfig, api_url: str) -> list[_Base]:
    """The place where the database API is, and the one that it is moving to."""
    new = f"{api_url.removesuffix('/v1')}/api"
    if config.scalingo_database_token == "user":
        return [_Base(config.scalingo_database_api_url or new, "user")]
    old = config.scalingo_database_api_url or f"https://db-api.{config.scalingo_region}.scalingo.com/api"
    return [_Base(old, "addon"), _Base(new, "user")]


def _names_a_resource(answer: Answer) -> bool:
    return isinstance(answer.content, dict) and bool(answer.content.get("resource"))
