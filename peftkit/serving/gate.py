"""What every request passes first: the key, the kind and the size of what is sent, and headers that keep a browser safe."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any

from peftkit.serving.problems import AskedError, shaped
from peftkit.serving.worker import where

log = logging.getLogger(__name__)
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN = ("/", "/docs", "/health", "/ready")
"""What needs no key: it says nothing of the model."""
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
]


@dataclass(frozen=True)
class Limits:
    """What a request may be."""

    max_body: int = 10 * 10**6
    """Bytes that are sent."""
    timeout: float = 120.0
    """Seconds from its first byte to its answer's last."""


class Gate:
    """An ASGI application around another one. It reads a body whole, so that what is behind it is never kept waiting."""

    def __init__(
        self,
        app: App,
        limits: Limits,
        key: str | None,
        paths: Collection[str],
        count: Callable[[str, int, float], None],
    ) -> None:
        self.app, self.limits, self.count, self.paths = app, limits, count, paths
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), 499  # nginx's: the asker has gone before anything was answered

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        path = scope["path"] if scope["path"] in self.paths else "other"
        try:
            await self._pass(scope, receive, answer)
        except Exception as problem:  # answered already; its words may hold what was asked, so no server may log them
            log.error("a request failed: %s", where(problem))
        finally:
            self.count(path, status, time.monotonic() - begun)

    async def _pass(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            self._check_key(scope["path"], headers)
            body = await self._body(scope["method"], headers, receive)
        except AskedError as problem:
            await refuse(send, problem)
            return
        except ConnectionAbortedError:
            return
        sent = False

        async def again() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()  # only a disconnect can come

        await self.app(scope, again, send)

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self.key is None or path in OPEN:
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Compared in a time that does not tell how much of it is right.
        if not hmac.compare_digest(given.strip(), self.key) or kind.lower() != b"bearer":
            raise AskedError("the API key is missing or wrong: Authorization: Bearer KEY", None, "invalid_api_key", 401)

    async def _body(self, method: str, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        if method not in ("POST", "PUT", "PATCH"):
            return b""
        # A page of another origin may send a form or plain text without asking; JSON it may not.
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise AskedError("send JSON, with Content-Type: application/json", None, None, 415)
        told = headers.get(b"content-length", b"0")
        if told.isdigit() and int(told) > self.limits.max_body:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await self._read(receive)
        except TimeoutError:
            raise AskedError("the body did not come in time", None, None, 408) from None

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionAbortedError
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self.limits.max_body:
                raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> AskedError:
        return AskedError(f"the body has more than {self.limits.max_body} bytes, which is the limit", None, None, 413)


async def refuse(send: Send, problem: AskedError) -> None:
    """Answer with the problem; the connection is closed, as not all of the body may have been read."""
    body = json.dumps(shaped(problem.status, str(problem), problem.param, problem.code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")]
    headers += [(b"www-authenticate", b"Bearer")] if problem.status == 401 else []
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
