"""The door of a websocket: who may open one, and how the others are told."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from sarm2_client.errors import Draining, InvalidInput, Sarm2Error
from sarm2_service.auth import check_key
from sarm2_service.guard import check_origin, error_response
from sarm2_service.state import Service
from sarm2_service.stream import Connection
from sarm2_service.stream_codec import StreamCodec


class StreamEndpoint:
    """ASGI application of one websocket path. A refusal is an HTTP answer before the upgrade.

    Args:
        codec: makes what a connection speaks.
        subprotocol: that a client has to ask for, if any.
    """

    def __init__(self, service: Service, codec: Callable[[], StreamCodec], subprotocol: str | None) -> None:
        self._service, self._codec, self._subprotocol = service, codec, subprotocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, accept with the subprotocol, and serve."""
        await receive()  # websocket.connect
        connection = Connection(self._service, self._codec(), receive, send)
        try:
            self._check(scope)
            self._service.admit(connection)
        except Sarm2Error as error:
            self._service.metrics.errors.labels(error.code).inc()
            await _deny(error, scope, receive, send)
            return
        try:
            await send({"type": "websocket.accept", "subprotocol": self._subprotocol})
            await connection.run()
        except OSError:
            return  # the client went away during the handshake
        finally:
            self._service.release(connection)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        check_origin(headers, self._service)
        check_key(headers, self._service.settings.keys, scope["path"])
        asked = scope.get("subprotocols", [])
        if self._subprotocol is not None and self._subprotocol not in asked:
            raise InvalidInput(
                f"expected the websocket subprotocol {self._subprotocol!r}, got {asked[:5]}",
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
