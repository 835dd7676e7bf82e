"""The worker's door for machines: ``/metrics``, ``/healthz`` and ``/readyz``.

- ``/metrics``: Prometheus' text, behind a password where one is configured (any user name).
- ``/healthz``: 200 as long as the event loop turns. It says nothing of databases: a platform that restarts the worker
  because a database is away would only make things worse.
- ``/readyz``: 200 when the worker holds the slot and has taken every target, otherwise 503; the JSON body says what is
  missing, to those who know the password where there is one.

No answer holds a secret or a row value: the reasons are sentences of ours.
"""

from __future__ import annotations

import errno
import socket
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from hmac import compare_digest

from aiohttp import web
from pydantic import SecretStr

from cdc.errors import ConfigurationError
from cdc.observe.metrics import Metrics

Readiness = Callable[[], Mapping[str, str]]
"""What is not ready yet and why: ``source`` or a target's name to a sentence. Empty: everything is."""

SHUTDOWN_S = 2.0
"""How long answers that are under way may take at the end: a scrape takes milliseconds, the worker has 20 s for all."""

_REASONS = {
    errno.EADDRINUSE: "another process listens there already",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "the operating system does not allow it (ports below 1024 need a privilege)",
}


@asynccontextmanager
async def serve(
    host: str, port: int, *, metrics: Metrics, readiness: Readiness, password: SecretStr | None = None
) -> AsyncIterator[tuple[str, int]]:
    """Listen as long as the context lasts, and yield the address in use (``port`` 0 takes a free one).

    ``host`` is a name or an address of IPv4 or IPv6; empty or ``*`` listens on every interface. Requests are answered
    by the running event loop; leaving the context closes the port within `SHUTDOWN_S`.

    Raises `ConfigurationError` when it cannot listen there.
    """
    runner = web.AppRunner(application(metrics, readiness, password), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        address = host.removeprefix("[").removesuffix("]")
        try:
            await web.TCPSite(runner, None if address in ("", "*") else address, port).start()
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, error.strerror or "it is refused")
            if isinstance(error, socket.gaierror):
                reason = "the name cannot be resolved"
            raise ConfigurationError(
                f"cannot listen on {host}:{port} for metrics: {reason}; set worker.metrics_address to another one"
            ) from None
        bound = runner.addresses[0]
        yield str(bound[0]), int(bound[1])
    finally:
        await runner.cleanup()


def application(metrics: Metrics, readiness: Readiness, password: SecretStr | None) -> web.Application:
    """The three pages, without a port."""

    async def show_metrics(request: web.Request) -> web.Response:
        if not _may_enter(request, password):
            return _ask()
        return web.Response(body=metrics.render(), headers={"Content-Type": metrics.content_type})

    async def show_health(_request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def show_readiness(request: web.Request) -> web.Response:
        missing = readiness()
        body: dict[str, object] = {"ready": not missing}
        if _may_enter(request, password):
            body["missing"] = dict(missing)
        return web.json_response(body, status=503 if missing else 200)

    pages: dict[str, Callable[[web.Request], Awaitable[web.Response]]] = {
        "/metrics": show_metrics,
        "/healthz": show_health,
        "/readyz": show_readiness,
    }
    app = web.Application()
    app.add_routes([web.get(path, page) for path, page in pages.items()])
    return app


def _may_enter(request: web.Request, password: SecretStr | None) -> bool:
    if password is None:
        return True
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        given = b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return False
    return compare_digest(given, password.get_secret_value().encode())


def _ask() -> web.Response:
    return web.Response(
        status=401,
        text="this page needs the metrics password\n",
        headers={"WWW-Authenticate": 'Basic realm="cdc", charset="UTF-8"'},
    )
