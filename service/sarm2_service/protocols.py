"""uvicorn's protocols, with a bound on two waits: for headers, and for a peer that reads no more."""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

LIVENESS = "/livez"
HEADER_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
UNREAD_TIMEOUT_MS = 20_000
"""The kernel cuts a connection whose peer takes no byte of what waits this long: it is gone or asleep."""


class HttpProtocol(H11Protocol):
    """Closes a connection that has not sent the whole headers of its next request within HEADER_TIMEOUT_S."""

    _header_timer: asyncio.TimerHandle | None = None
    _limit: int | None = None

    @property
    def limit_concurrency(self) -> int | None:
        """uvicorn answers 503 at this many connections, idle ones too; liveness is answered always."""
        # uvicorn sets the scope of a request before it looks here.
        return None if self.scope is not None and self.scope["path"] == LIVENESS else self._limit

    @limit_concurrency.setter
    def limit_concurrency(self, limit: int | None) -> None:
        self._limit = limit

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the headers."""
        super().connection_made(transport)
        tcp = transport.get_extra_info("socket")
        if tcp is not None and tcp.family in (socket.AF_INET, socket.AF_INET6):
            # Covers event streams and websockets too: they keep this socket.
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT_MS)
        self._await_headers()

    def on_response_complete(self) -> None:
        """Begin to wait for the next headers: their first byte ends uvicorn's own keep-alive limit."""
        self._await_headers()
        super().on_response_complete()  # a request that came meanwhile begins in here

    def _await_headers(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._check_headers, self.cycle)

    def _check_headers(self, before: RequestResponseCycle | None) -> None:
        upgraded = self.transport.get_protocol() is not self
        if self.cycle is before and not upgraded and not self.transport.is_closing():
            self.transport.close()


class StreamProtocol(WebSocketsSansIOProtocol):
    """Once the application is done, a peer that does not take the rest is cut off after CLOSE_TIMEOUT_S."""

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """The application has returned."""
        super().on_task_complete(task)
        self.loop.call_later(CLOSE_TIMEOUT_S, self._cut)

    def _cut(self) -> None:
        if not self.disconnected:
            self.transport.abort()
