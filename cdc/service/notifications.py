"""Telling others that a bootstrap or a refresh is done, or failed: a POST to each address of ``[[notifications]]``.

The body is one JSON object: ``pipeline``, ``target``, ``event`` (``bootstrap`` or ``refresh``), ``outcome`` (``done``
or ``failed``), ``at`` (ISO 8601, UTC), and what else the event says. Nobody who does not answer stops or delays the
work that is told of beyond `PATIENCE_S`: a notification that cannot be delivered is a warning in the log. Neither the
token nor the address, which often is a secret itself, is logged: only its host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

import aiohttp
import tenacity
from yarl import URL

import cdc
from cdc.config import Config, NotificationConfig
from cdc.observe import logs

TRIES = 4
"""Of one notification: a receiver that restarts is back by then."""

FIRST_WAIT_S = 0.5
"""Longest wait before the second try; doubled before each further one. The wait itself is random."""

REQUEST_TIMEOUT_S = 10.0
"""For one try."""

PATIENCE_S = 60.0
"""For one notification in all."""


async def notify(config: Config, event: Mapping[str, object]) -> None:
    """Tell everybody who is configured, at the same time, and return when all were told or given up.

    Args:
        config: Whom to tell.
        event: ``target``, ``event`` and ``outcome``, and whatever else a receiver may know: JSON values, no row value
            and no secret. ``pipeline`` and ``at`` are added.

    Raises nothing of its own: who cannot be told is a warning in the log.
    """
    if not config.notifications:
        return
    body = {"pipeline": config.pipeline, **event, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    async with (
        aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"cdc/{cdc.__version__}"},
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
        ) as session,
        asyncio.TaskGroup() as telling,
    ):
        for receiver in config.notifications:
            telling.create_task(_tell(session, receiver, body))


async def _tell(session: aiohttp.ClientSession, receiver: NotificationConfig, body: Mapping[str, object]) -> None:
    address = receiver.url.get_secret_value()
    url = URL(address, encoded=address.isascii())
    log = logs.get(component="notifications", receiver=url.host, event_told=body.get("event"))
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(_may_pass),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=10.0),
        stop=tenacity.stop_after_attempt(TRIES),
        reraise=True,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            status: int = await retrying(_post, session, url, receiver, body)
    except aiohttp.ClientResponseError as error:
        log.warning("a notification is refused", status=error.status)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        # The error's own words can hold the address.
        log.warning("a notification cannot be delivered", failure=type(error).__name__)
    else:
        log.info("notified", status=status)


async def _post(
    session: aiohttp.ClientSession, url: URL, receiver: NotificationConfig, body: Mapping[str, object]
) -> int:
    token = receiver.token.get_secret_value() if receiver.token is not None else ""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # A redirect would turn the POST into a GET, elsewhere.
    async with session.post(url, json=body, headers=headers, allow_redirects=False) as response:
        if response.status >= 300:
            raise aiohttp.ClientResponseError(response.request_info, (), status=response.status)
        return response.status


def _may_pass(error: BaseException) -> bool:
    """Whether another try may help: nobody answered, or the receiver is overloaded or broken for now."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status == 429 or error.status >= 500
    return isinstance(error, aiohttp.ClientError | TimeoutError | OSError) and not isinstance(error, aiohttp.InvalidURL)
