"""Requests to the provider of the backups: paced, patient, and silent about secrets.

`Requests.send` promises: never more than `REQUESTS_PER_MINUTE`; what can pass is waited for (no connection, no answer,
5xx, and 429, which Scalingo sends as the plain text ``Retry later``); every other answer is handed back, whatever its
status. `refusal` makes one sentence of an answer that says no, in each of the shapes that Scalingo documents. No
token, no header and no address of a download gets into a log, an error, or the chain of errors behind one.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import tenacity
from yarl import URL

import cdc
from cdc.errors import BackupUnavailable, SetupError
from cdc.observe import logs

REQUESTS_PER_MINUTE = 60
MINUTE_S = 60.0
"""What Scalingo allows, in any minute."""

REQUEST_TIMEOUT_S = 60.0
"""For one request and its answer: the answers are small, but the list of backups of a large application is slow."""

RETRY_WAIT_S = (0.5, 30.0)
"""First and longest wait after a failure."""

BUSY_WAIT_S = (5.0, 20.0)
"""Shortest and longest wait after a 429: the minute that is full is over within three of them."""

BUSY_PATIENCE_S = 900.0
"""How long 429 is borne. It is no failure and not counted as a try: others may use the same account all day."""

_LONGEST_TEXT = 300
_SECRETS = re.compile(r"eyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?|\btk-[\w-]+|(?<=[?&])[^\s&=]+=[^\s&]+")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. ``content`` is the JSON value, `None` where it is none; ``text`` the body."""

    status: int
    content: Any
    text: str
    request_id: str | None

    @property
    def is_good(self) -> bool:
        """Whether it is what was asked for."""
        return 200 <= self.status < 300


class Unanswered(BackupUnavailable):
    """A request that got no answer that says anything.

    ``is_sent`` tells whether the server may have seen it, ``is_busy`` that it said 429, ``is_unresolved`` that its
    name leads nowhere, ``wait_s`` when to come again, where it said so.
    """

    def __init__(
        self,
        message: str,
        *,
        is_sent: bool = True,
        is_busy: bool = False,
        is_unresolved: bool = False,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.is_sent = is_sent
        self.is_busy = is_busy
        self.is_unresolved = is_unresolved
        self.wait_s = wait_s


@asynccontextmanager
async def open_session() -> AsyncIterator[aiohttp.ClientSession]:
    """A session without cookies and without the settings of the environment: a ``.netrc`` would add a password.

    It hands bodies over as they are: a server may call a tar.gz a gzipped tar, which aiohttp would then unpack.
    """
    async with aiohttp.ClientSession(
        # The resolver of the operating system, in a thread: its errors tell a name that leads nowhere.
        connector=aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver()),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"cdc/{cdc.__version__}"},
        auto_decompress=False,
        trust_env=False,
    ) as session:
        yield session


class Requests:
    """Sends requests, one after the other. ``tries`` is for each of them."""

    def __init__(self, session: aiohttp.ClientSession, tries: int) -> None:
        self.session = session
        self.tries = tries
        self._log = logs.get(component="scalingo")
        self._sent_at: deque[float] = deque(maxlen=REQUESTS_PER_MINUTE)
        self._turn = asyncio.Lock()

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: object = None,
        is_last_host: bool = True,
        is_repeatable: bool = True,
    ) -> Answer:
        """One answer below 500 that is not 429.

        Args:
            method: ``GET`` or ``POST``.
            url: Holds no secret.
            headers: May hold secrets.
            body: Sent as JSON unless `None`.
            is_last_host: `False` where another host can be asked instead: a name that leads nowhere then ends it at
                once.
            is_repeatable: `False` for what must not happen twice: it ends as soon as the server may have seen it.

        Raises:
            Unanswered: after all tries.
        """
        failures = 0
        busy_since: float | None = None

        def is_enough(state: tenacity.RetryCallState) -> bool:
            nonlocal failures, busy_since
            error = _error_of(state)
            if error.is_busy:
                busy_since = time.monotonic() if busy_since is None else busy_since
                return time.monotonic() - busy_since > BUSY_PATIENCE_S
            failures += 1
            in_vain = error.is_unresolved and not is_last_host
            return in_vain or (error.is_sent and not is_repeatable) or failures >= self.tries

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unanswered),
            wait=lambda state: _wait_s(_error_of(state), failures),
            stop=is_enough,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                await self._await_turn()
                return await self._once(method, URL(url, encoded=True), headers, body)
        raise AssertionError("tenacity either returns or raises")

    async def _once(self, method: str, url: URL, headers: Mapping[str, str], body: object) -> Answer:
        try:
            async with self.session.request(
                method,
                url,
                headers={"Accept": "application/json", "Accept-Encoding": "identity", **headers},
                json=body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
            ) as response:
                text = await response.text(errors="replace")
                status, answered = response.status, response.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = unanswered(error, url)
        else:
            request_id = answered.get("X-Request-Id")
            log = self._log.debug if status < 400 else self._log.warning
            log("answer", method=method, host=url.host, path=url.path, status=status, request_id=request_id)
            if status < 500 and status != 429:
                return Answer(status, _json(text), text, request_id)
            failure = Unanswered(
                f"{_place(url)} answers HTTP {status}" + (f" (request id {request_id})" if request_id else ""),
                is_busy=status == 429,
                wait_s=retry_after_s(answered),
            )
        # Outside the handler, so that no error of aiohttp, which knows the headers, hangs on to this one.
        self._log.warning("no answer", method=method, path=url.path, error=failure)
        raise failure

    async def _await_turn(self) -> None:
        async with self._turn:
            if len(self._sent_at) == REQUESTS_PER_MINUTE:
                await asyncio.sleep(self._sent_at[0] + MINUTE_S - time.monotonic())
            self._sent_at.append(time.monotonic())


def unanswered(error: BaseException, url: URL) -> Unanswered:
    """The same in our words: those of aiohttp and of OpenSSL quote addresses, and their errors carry the headers."""
    place = _place(url)
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, socket.gaierror):
            return Unanswered(f"the name {url.host} cannot be resolved", is_sent=False, is_unresolved=True)
        return Unanswered(f"no connection to {place}: {error.os_error.strerror or 'it is refused'}", is_sent=False)
    if isinstance(error, aiohttp.ClientSSLError):
        return Unanswered(f"no secure connection to {place}: its certificate is not trusted", is_sent=False)
    if isinstance(error, TimeoutError):
        return Unanswered(f"{place} does not answer in time")
    return Unanswered(f"the connection to {place} was lost")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What ``Retry-After`` asks for, five minutes at most; `None` where it gives no seconds."""
    value = headers.get("Retry-After", "").strip()
    return min(float(value), 300.0) if value.isascii() and value.isdigit() else None


def backoff_s(failures_before: int) -> float:
    """Seconds to wait after a failure: doubled by each one before it, between half and all of it at random."""
    first, longest = RETRY_WAIT_S
    ceiling: float = min(longest, first * 2 ** min(failures_before, 20))
    return ceiling * random.uniform(0.5, 1.0)


def refusal(answer: Answer, what: str, *, hint: str = "") -> SetupError:
    """The error for an answer that says no: ``what`` was asked, in the words of the answer, and what may be done."""
    said = _said(answer)
    return SetupError(
        f"Scalingo refuses {what}: "
        + (f"{said} (HTTP {answer.status}" if said else f"HTTP {answer.status} (no reason given")
        + (f", request id {answer.request_id})" if answer.request_id else ")")
        + (f"; {hint}" if hint else "")
    )


def _said(answer: Answer) -> str:
    """The reason: ``{error, code}``, ``{resource, error}``, ``{errors: {field: [..]}}``, or a line of text."""
    content = answer.content
    if not isinstance(content, dict):
        line = answer.text.strip()
        return "" if line.startswith(("<", "{", "[")) or "\n" in line else _clean(line)
    parts = [str(content[key]) for key in ("resource", "error", "code") if content.get(key)]
    if isinstance(fields := content.get("errors"), dict):
        parts += [
            f"{field} {', '.join(map(str, reasons)) if isinstance(reasons, list) else reasons}"
            for field, reasons in fields.items()
        ]
    return _clean(", ".join(parts))


def _clean(text: str) -> str:
    return logs.redact(_SECRETS.sub("***", text))[:_LONGEST_TEXT]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _place(url: URL) -> str:
    return f"{url.host}" if url.is_default_port() else f"{url.host}:{url.port}"


def _error_of(state: tenacity.RetryCallState) -> Unanswered:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, Unanswered) else Unanswered("nothing was tried")


def _wait_s(error: Unanswered, failures_before: int) -> float:
    if error.wait_s is not None:
        return error.wait_s * random.uniform(1.0, 1.2)
    return random.uniform(*BUSY_WAIT_S) if error.is_busy else backoff_s(failures_before)
