"""A policy server as openpi runs one: a websocket that greets, and then answers every question in turn.

A failure is told as text, a traceback, and ends the connection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from sarm2_client import openpi_wire

WAIT_S = 10.0

Answer = Callable[[dict[str, Any]], Mapping[str, Any]]


class PolicyServer:
    """A server in a thread, from entering a `with` block until leaving it.

    Args:
        answer: gives what the policy says to an observation; what it raises is told to the client.
        pack, unpack: the wire.
        port: a free one unless given, for a server that comes back.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        pack: Callable[[Any], bytes] = openpi_wire.pack,
        unpack: Callable[[bytes], Any] = openpi_wire.unpack,
        port: int = 0,
    ) -> None:
        self._answer, self._pack, self._unpack = answer, pack, unpack
        self.asked: list[dict[str, Any]] = []
        self._server = serve(self._talk, "127.0.0.1", port, compression=None, max_size=None, close_timeout=1)
        self.port = int(self._server.socket.getsockname()[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._talking: list[ServerConnection] = []

    def __enter__(self) -> PolicyServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self.hang_up()
        self._thread.join(WAIT_S)

    def hang_up(self) -> None:
        """End every connection, as a server does that is stopped."""
        for connection in self._talking:
            connection.close()

    def _talk(self, connection: ServerConnection) -> None:
        self._talking.append(connection)
        connection.send(self._pack({"policy": "small"}))
        try:
            while True:
                question = self._unpack(bytes(connection.recv()))  # type: ignore[arg-type]
                self.asked.append(question)
                try:
                    connection.send(self._pack(self._answer(question)))
                except ValueError as error:
                    connection.send(f"Traceback (most recent call last):\n  ...\nValueError: {error}")
                    connection.close(1011)
        except ConnectionClosed:
            return
