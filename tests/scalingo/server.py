"""The stand-in itself: what it knows, and the thread that serves it."""

from __future__ import annotations

import socket
import threading
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from uuid import uuid4

import uvicorn
from pydantic import SecretStr

from cdc.config import BootstrapConfig
from tests.scalingo.asgi import Receive, Request, Response, Scope, Send, answer, read
from tests.scalingo.dumps import Addon, StoredBackup
from tests.scalingo.faults import Downloads, Faults
from tests.scalingo.sending import Address, send_archive

APP = "pix-api-production"
START_TIMEOUT_S = 30.0


class StandIn:
    """Scalingo, for one application. Its attributes are what a test may set, and what it may look at."""

    def __init__(self, pg_dump: Path, directory: Path) -> None:
        self.app = APP
        self.api_token = f"tk-us-{uuid4().hex}"
        self.url = ""
        self.addons: dict[str, Addon] = {}
        self.backups: list[StoredBackup] = []
        self.requests: list[Request] = []
        self.faults = Faults()
        self.downloads = Downloads()
        self.token_lifetime_s = 3600.0
        """Of a user's token, by what it says and by when it is refused."""
        self.addon_token_lifetime_s = 3600.0
        self.old_place = 200
        """What the database API answers in its old place: 200 for its answers, 404 or 410 when it is gone."""
        self.new_place = 404
        """The same for the place that it is moving to."""
        self.looks: list[str] = []
        """Statuses that a new backup shows first, one a look."""
        self.may_begin = threading.Event()
        """While it is not set, a new backup is asked for but does not begin."""
        self.may_begin.set()
        self.hook_statuses: list[int] = []
        """What the next calls of ``/hooks/…`` are answered; then 204."""
        self._pg_dump, self._directory = pg_dump, directory
        self._tokens: dict[str, tuple[str, float]] = {}
        self._addresses: dict[str, Address] = {}

    def add_database(self, dsn: str, *, provider: str = "postgresql", status: str = "running") -> str:
        """Give the application a database; returns the addon's id."""
        addon = Addon(f"ad-{uuid4()}", dsn, provider, status)
        self.addons[addon.id] = addon
        return addon.id

    def add_backup(self, addon: str, archive: Path, *, began_at: datetime, status: str = "done") -> StoredBackup:
        """A backup that was there before."""
        backup = StoredBackup(uuid4().hex[:24], self.addons[addon], began_at, began_at, archive)
        backup.failure = "it failed" if status == "error" else None
        backup.is_running.set()
        if status in ("done", "error"):
            backup.is_made.set()
        self.backups.append(backup)
        return backup

    def bootstrap(self, **settings: object) -> BootstrapConfig:
        """The configuration that leads here, with a quick eye."""
        return BootstrapConfig.model_validate(
            {
                "scalingo_app": self.app,
                "scalingo_api_token": SecretStr(self.api_token),
                "scalingo_auth_url": f"{self.url}/auth/v1",
                "scalingo_api_url": f"{self.url}/v1",
                "scalingo_database_api_url": f"{self.url}/db-api/api",
                "backup_poll_s": 0.05,
                **settings,
            }
        )

    def environ(self) -> dict[str, str]:
        """The same for a `cdc` in a process of its own."""
        config = self.bootstrap()
        return {
            "SCALINGO_APP": self.app,
            "SCALINGO_API_TOKEN": self.api_token,
            "CDC_BOOTSTRAP__SCALINGO_AUTH_URL": config.scalingo_auth_url,
            "CDC_BOOTSTRAP__SCALINGO_API_URL": f"{self.url}/v1",
            "CDC_BOOTSTRAP__SCALINGO_DATABASE_API_URL": f"{self.url}/db-api/api",
            "CDC_BOOTSTRAP__BACKUP_POLL_S": str(config.backup_poll_s),
        }

    def asked(self, method: str, path: str) -> list[Request]:
        """The requests so far whose path ends so."""
        return [request for request in self.requests if request.method == method and request.path.endswith(path)]

    def hooks(self, name: str) -> list[Request]:
        """The notifications that arrived at ``{url}/hooks/{name}``."""
        return self.asked("POST", f"/hooks/{name}")

    def revoke(self) -> None:
        """Every token that was given out is refused from now on."""
        self._tokens.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        request = await read(scope, receive)
        self.requests.append(request)
        fault = self.faults.of(request.method, request.path)
        response = self._answer(request) if fault is None or fault.is_done_first else Response(0)
        if fault is not None:
            response = Response(fault.status, fault.body, fault.headers)
        await answer(response, send)

    def _answer(self, request: Request) -> Response:
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["auth", "v1", "tokens", "exchange"]:
                return self._exchange(request)
            case _, ["v1", "apps", app, *rest]:
                return self._of_app(request, app, rest)
            case _, ["db-api", "api", "databases", addon, *rest]:
                if self.old_place != 200:
                    return Response(self.old_place, {"error": "gone"} if self.old_place == 410 else "<html></html>")
                return self._of_database(request, addon, addon, rest)
            case _, ["api", "databases", addon, *rest]:
                if self.new_place != 200:
                    return Response(self.new_place, "<html>no such page</html>", {"content-type": "text/html"})
                return self._of_database(request, "user", addon, rest)
            case "GET", ["downloads", secret]:
                return send_archive(request, self._addresses.get(secret), self.downloads)
            case "POST", ["hooks", _]:
                return Response(self.hook_statuses.pop(0) if self.hook_statuses else 204)
            case _:
                return Response(404, "<html>no such page</html>", {"content-type": "text/html"})

    def _exchange(self, request: Request) -> Response:
        try:
            user, _, password = b64decode(request.credentials).decode().partition(":")
        except ValueError:
            return Response(400, {"error": "malformed", "code": "bad_request"})
        if user or password != self.api_token:
            return Response(401, {"error": "invalid API token"})
        return Response(200, {"token": self._give("user", self.token_lifetime_s)})

    def _give(self, owner: str, lifetime_s: float) -> str:
        """A JWT, which nobody verifies."""
        now = time.time()
        parts = ({"alg": "HS512"}, {"iat": int(now), "exp": int(now + lifetime_s), "uuid": uuid4().hex})
        token = ".".join(urlsafe_b64encode(dumps(part).encode()).decode().rstrip("=") for part in parts) + ".c2lnbmVk"
        self._tokens[token] = (owner, now + lifetime_s)
        return token

    def _is(self, request: Request, owner: str) -> bool:
        is_for, ends_at = self._tokens.get(request.credentials, ("", 0.0))
        return is_for == owner and time.time() < ends_at and request.headers["authorization"].startswith("Bearer ")

    def _of_app(self, request: Request, app: str, rest: list[str]) -> Response:
        if not self._is(request, "user"):
            return Response(401, {"error": "the token is not valid"})
        if app != self.app:
            return Response(404, {"resource": "App", "error": "not found"})
        match request.method, rest:
            case "GET", ["addons"]:
                return Response(200, {"addons": [addon.described() for addon in self.addons.values()]})
            case "POST", ["addons", addon, "token"] if addon in self.addons:
                token = self._give(addon, self.addon_token_lifetime_s)
                return Response(200, {"addon": {"id": addon, "app_id": "5343eccd", "token": token}})
        return Response(404, {"resource": "Addon", "error": "not found"})

    def _of_database(self, request: Request, owner: str, addon: str, rest: list[str]) -> Response:
        if not self._is(request, owner):
            return Response(401, {"error": "unauthorized"})
        if addon not in self.addons:
            return Response(404, {"resource": "Database", "error": "not found"})
        backups = [backup for backup in self.backups if backup.addon.id == addon]
        match request.method, rest:
            case "GET", ["backups"]:
                listed = [backup.described(self.downloads.size_said) for backup in backups]
                return Response(200, {"database_backups": listed})
            case "POST", ["backups"]:
                backup = StoredBackup(uuid4().hex[:24], self.addons[addon], datetime.now(UTC))
                # The one that is described here is the first look.
                backup.looks.extend([*(self.looks or ["scheduled"])])
                backup.make(self._pg_dump, self._directory, self.may_begin)
                self.backups.append(backup)
                return Response(201, {"database_backup": backup.described(None)})
            case "GET", ["backups", wanted, "archive"]:
                found = next((backup for backup in backups if backup.id == wanted and backup.archive), None)
                if found is not None and found.archive is not None:
                    secret = uuid4().hex
                    self._addresses[secret] = Address(found.archive, time.monotonic())
                    return Response(200, {"download_url": f"{self.url}/downloads/{secret}?token={secret}"})
        return Response(404, {"resource": "DatabaseBackup", "error": "not found"})


@contextmanager
def serve(pg_dump: Path, directory: Path) -> Iterator[StandIn]:
    """The stand-in on a socket of its own, as long as the context lasts. Archives are kept in ``directory``."""
    stand_in = StandIn(pg_dump, directory)
    config = uvicorn.Config(
        stand_in, lifespan="off", ws="none", log_config=None, log_level="critical", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stand_in.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="stand-in for Scalingo")
        thread.start()
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not server.started and time.monotonic() < deadline:
                time.sleep(0.005)
            assert server.started, "the stand-in did not start"
            yield stand_in
        finally:
            stand_in.may_begin.set()
            for backup in stand_in.backups:
                if backup.thread is not None:
                    backup.thread.join()
            server.should_exit = True
            thread.join()
