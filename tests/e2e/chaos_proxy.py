"""A TCP relay that breaks connections in the middle of a message, as a bad radio link does."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType

_CHUNK = 4096


class ChaosProxy:
    """Relays to `port`; each connection is reset once it has carried its share of bytes towards the server.

    Args:
        port: of the server, on loopback.
        budgets: bytes that the first, second, ... connection may carry; later ones are not limited.
    """

    def __init__(self, port: int, budgets: list[int]) -> None:
        self._target = port
        self._budgets = budgets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.resets = 0
        self._muted: list[socket.socket] = []

    def __enter__(self) -> ChaosProxy:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for relayed in self._sockets:
            _hang_up(relayed)
        for thread in self._threads:
            thread.join(5)

    def mute(self) -> None:
        """From now on, what the server says on the present connections is lost on the way."""
        self._muted = list(self._sockets)

    def reset(self) -> None:
        """Break the present connections."""
        self.resets += 1
        for relayed in self._sockets:
            _hang_up(relayed)

    def _spawn(self, work: object, *arguments: object) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            budget = self._budgets.pop(0) if self._budgets else None
            self._spawn(self._relay_to_server, client, server, budget)
            self._spawn(self._relay_to_client, server, client)

    def _relay_to_client(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(_CHUNK):
                if client not in self._muted:
                    client.sendall(data)
        _hang_up(server)
        _hang_up(client)

    def _relay_to_server(self, client: socket.socket, server: socket.socket, budget: int | None) -> None:
        carried = 0
        with suppress(OSError):
            while data := client.recv(_CHUNK):
                if budget is not None and carried + len(data) > budget:
                    server.sendall(data[: budget - carried])
                    self.resets += 1
                    break
                server.sendall(data)
                carried += len(data)
        _hang_up(client)
        _hang_up(server)


def _hang_up(relayed: socket.socket) -> None:
    with suppress(OSError):
        relayed.shutdown(socket.SHUT_RDWR)
    relayed.close()
