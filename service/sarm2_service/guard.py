"""What every request passes first: host, origin, key, size, encoding, time. No caller ever sees a traceback.

A browser page of another origin may neither write nor listen; programs send no `Origin` and are not
concerned. On loopback the `Host` header must be a loopback name, so that a page cannot reach the service
through a name of its own that resolves here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sarm2_client.errors import Draining, InvalidInput, NotAllowed, Sarm2Error, TooLarge, WaitTimeout
from sarm2_service.auth import CHALLENGE, OPEN, KeyNeeded, check_key
from sarm2_service.logs import log, log_failure, new_error_id
from sarm2_service.state import Service

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
MAX_HEADERS = 128
MAX_HEADER_BYTES = 32 * 1024
ALWAYS_OPEN = (*OPEN, "/metrics")
"""What is answered while the service drains, too."""
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; "
        b"frame-ancestors 'none'",
    ),
)


def error_response(error: Sarm2Error, status: int | None = None) -> JSONResponse:
    """The JSON answer of an error: code, message, field, error_id."""
    error_id = error.error_id or new_error_id()
    log(logging.INFO, "refused", code=error.code, error_id=error_id, text=error.message)
    content = {"code": error.code, "message": error.message, "field": error.field, "error_id": error_id}
    headers = {"Retry-After": "1"} if error.retryable else {}
    if isinstance(error, KeyNeeded):
        headers |= CHALLENGE
    return JSONResponse(content, error.http_status if status is None else status, headers)


def check_origin(headers: Headers, service: Service) -> str | None:
    """The allowlisted foreign origin, or None for no or the same origin. Raises NotAllowed for any other."""
    host = headers.get("host", "")
    _check_host(host, service)
    origin = headers.get("origin")
    if origin is None:
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            raise NotAllowed("pages of other origins may not use this service", field="origin")
        return None
    if origin in service.settings.allowed_origins:
        return origin
    if _place(origin) != host.lower() or not host:
        raise NotAllowed(
            "this origin may not use the service; add it to SARM2_ALLOWED_ORIGINS if it is yours",
            field="origin",
        )
    return None


def _check_host(host: str, service: Service) -> None:
    allowed: Iterable[str] = service.settings.allowed_hosts
    if not allowed:
        if not service.settings.loopback:
            return
        allowed = LOOPBACK_NAMES
    name = (urlsplit(f"//{host}").hostname or "") if _is_host(host) else ""
    if name not in [one.lower() for one in allowed]:
        raise NotAllowed(
            "this Host is not served here; add it to SARM2_ALLOWED_HOSTS if it is yours", field="host"
        )


def _place(origin: str) -> str:
    """Host and port, in lower case; empty for what is no origin."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_host(host: str) -> bool:
    try:
        urlsplit(f"//{host}").port  # noqa: B018 - raises for a malformed host
    except ValueError:
        return False
    return True


def _check_size(scope: Scope) -> None:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if (
        len(headers) > MAX_HEADERS
        or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES
    ):
        raise TooLarge(
            f"expected at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together", field="headers"
        )


class Guard:
    """ASGI middleware for HTTP; websockets are checked by their own endpoint."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, pass it on within its time, and turn whatever comes out into an answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            await self._serve(scope, receive, answer)
        except Sarm2Error as error:
            await self._refuse(error, scope, receive, answer)
        except Exception as error:
            error_id = log_failure("request_failed", error, path=scope["path"])
            failure = Sarm2Error("the server failed on this request", error_id=error_id)
            await self._refuse(failure, scope, receive, answer)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = Headers(scope=scope)
        path = scope["path"]
        _check_size(scope)
        answer.origin = check_origin(headers, self._service)
        if self._service.draining and path not in ALWAYS_OPEN:
            raise Draining("the server is going away; ask another replica")
        if scope["method"] == "OPTIONS" and answer.origin is not None:  # a browser sends no key with these
            await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, answer)
            return
        check_key(headers, self._service.settings.keys, path)
        body = _Body(receive, headers, self._service)
        if path.endswith("/events"):
            await self._app(scope, body, answer)
            return
        limit = self._service.settings.request_timeout_s
        try:
            async with asyncio.timeout(limit):
                await self._app(scope, body, answer)
        except TimeoutError:
            raise WaitTimeout(f"no answer within {limit:g} s; send less at once") from None

    async def _refuse(self, error: Sarm2Error, scope: Scope, receive: Receive, answer: _Answer) -> None:
        self._service.metrics.errors.labels(error.code).inc()
        if not answer.started:
            await error_response(error)(scope, receive, answer)


_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "authorization, content-type, last-event-id",
    "Access-Control-Max-Age": "600",
}


class _Answer:
    """`send` with security headers, which remembers whether the answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.origin: str | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = [*message.get("headers", []), *_SECURITY_HEADERS]
            if self.origin is not None:
                headers += [(b"access-control-allow-origin", self.origin.encode()), (b"vary", b"origin")]
            message = {**message, "headers": headers}
        await self._send(message)


class _Body:
    """`receive` with a limit of bytes and of time, chunked or not; compressed bodies are refused."""

    def __init__(self, receive: Receive, headers: Headers, service: Service) -> None:
        self._receive = receive
        self._left = service.settings.max_body_bytes
        self._limit = self._left
        self._timeout_s = service.settings.body_timeout_s
        self._until = time.monotonic() + self._timeout_s
        self._done = False
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise InvalidInput(
                "compressed bodies are refused; send the body as it is", field="content-encoding"
            )
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._limit:
            raise self._too_large()

    async def __call__(self) -> Message:
        if self._done:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise WaitTimeout(
                f"the body did not arrive within {self._timeout_s:g} s; send less at once"
            ) from None
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._done = not message.get("more_body", False)
            if self._left < 0:
                raise self._too_large()
        return message

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"expected a body of at most {self._limit} bytes; send fewer frames at once", field="body"
        )


def http_error(status: int, detail: object) -> dict[str, Any]:
    """The JSON of an error that the web framework found: an unknown path, a wrong method, a bad form."""
    codes = {404: "not_found", 405: "invalid_input", 413: "too_large"}
    text = detail if isinstance(detail, str) else json.dumps(detail, default=str)[:500]
    code = codes.get(status, "invalid_input" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "internal")
    return {"code": code, "message": text, "field": None, "error_id": new_error_id()}
