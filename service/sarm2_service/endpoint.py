"""The door of `/v1/stream`: who may open a websocket, and how the others are told."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from sarm2_client.errors import Draining, InvalidInput, Sarm2Error
from sarm2_client.wire import PROTOCOL
from sarm2_service.auth import check_key
from sarm2_service.guard import check_origin, error_response
from sarm2_service.state import Service
from sarm2_service.stream import Connection


class StreamEndpoint:
    """ASGI application of one websocket path. A refusal is an HTTP answer before the upgrade."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, accept with the subprotocol, and serve."""
        await receive()  # websocket.connect
        connection = Connection(self._service, receive, send)
        try:
            self._check(scope)
            self._service.admit(connection)
        except Sarm2Error as error:
            self._service.metrics.errors.labels(error.code).inc()
            await _deny(error, scope, receive, send)
            return
        try:
            await send({"type": "websocket.accept", "subprotocol": PROTOCOL})
            await connection.run()
        except OSError:
            return  # the client went away during the handshake
        finally:
            self._service.release(connection)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        check_origin(headers, self._service)
        check_key(headers, self._service.settings.keys, scope["path"])
        if PROTOCOL not in scope.get("subprotocols", []):
            raise InvalidInput(
                f"expected the websocket subprotocol {PROTOCOL!r}, got {scope.get('subprotocols', [])[:5]}",
                field="sec-websocket-protocol",
            )
        if self._service.draining:
            raise Draining("the server is going away; connect to another replica")


async def _deny(error: Sarm2Error, scope: Scope, receive: Receive, send: Send) -> None:
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": error.close_code, "reason": error.code})
        return
    response = error_response(error)
    headers = list(response.raw_headers)
    await send({"type": "websocket.http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": bytes(response.body)})
