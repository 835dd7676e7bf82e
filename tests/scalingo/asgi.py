"""The least of ASGI that the stand-in needs: a request, an answer, a body that may be cut."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    """One request, as the tests may look at it afterwards."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def credentials(self) -> str:
        """What stands behind ``Basic`` or ``Bearer``."""
        return self.headers.get("authorization", "").partition(" ")[2]


@dataclass(frozen=True)
class Response:
    """One answer. Text is sent as plain text, another body as JSON; a status of 0 closes the connection."""

    status: int
    body: object = ""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: AsyncIterator[bytes] | None = None


async def read(scope: Scope, receive: Receive) -> Request:
    """The whole request."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
    return Request(scope["method"], scope["path"], scope["query_string"].decode(), headers, body)


async def answer(response: Response, send: Send) -> None:
    """Send it. Where ``chunks`` end before the length that was announced, the server cuts the connection."""
    if response.status == 0:
        # uvicorn cuts the connection when the body that was announced does not come.
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        return
    is_text = isinstance(response.body, str)
    body = str(response.body).encode() if is_text else json.dumps(response.body).encode()
    headers = {"x-request-id": "3f1c9c2e", **response.headers}
    if response.chunks is None:
        headers.setdefault("content-type", "text/plain" if is_text else "application/json")
        headers["content-length"] = str(len(body))
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": raw})
    if response.chunks is None:
        await send({"type": "http.response.body", "body": body})
        return
    async for chunk in response.chunks:
        if not chunk:
            return
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
