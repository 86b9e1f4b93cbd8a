"""One websocket to an openpi policy server: a question and an answer at a time, each wait with an end.

`openpi_client.WebsocketClientPolicy` is not used: it wants numpy below 2, and it waits for ever for a server
that is away or stuck.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from sarm2_client import openpi_wire
from sarm2_client.errors import ConnectionLost, InvalidMessage, ModelFailed, Sarm2Error, WaitTimeout
from sarm2_client.timeouts import bounded

MAX_ANSWER_BYTES = 64 * 2**20

_T = TypeVar("_T")


@dataclass(frozen=True)
class Waits:
    """How long a policy server is waited for, in seconds.

    Attributes:
        connect: one attempt to open a connection. greeting: the server's first message.
        send: a question to leave this machine.
        answer: one answer; the first may have to compile the server's model.
        close: the closing handshake.
    """

    connect: float = 10.0
    greeting: float = 10.0
    send: float = 30.0
    answer: float = 300.0
    close: float = 2.0


class OpenPiConnection:
    """A server's address, and a connection to it that is opened anew where it was lost. For one thread."""

    def __init__(self, host: str, port: int, waits: Waits) -> None:
        self.address = f"ws://{host}:{port}"
        self._waits = waits
        self._runner: asyncio.Runner | None = None
        self._socket: ClientConnection | None = None

    def ask(self, question: bytes) -> bytes:
        """The server's answer.

        Raises ConnectionLost or WaitTimeout where there is none, ModelFailed where the server failed.
        """
        return self._run(self._ask(question))

    def open(self) -> None:
        """Connect, where that was not done. Raises ConnectionLost or WaitTimeout where there is no server."""
        self._run(self._opened())

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._runner is None:
            return
        if self._socket is not None:
            self._runner.run(self._socket.close())
        self._runner.close()
        self._runner = self._socket = None

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        self._runner = self._runner or asyncio.Runner()
        try:
            return self._runner.run(work)
        except (Sarm2Error, KeyboardInterrupt):
            self.close()  # a late answer would be taken for the next question's
            raise

    async def _ask(self, question: bytes) -> bytes:
        socket, waits = await self._opened(), self._waits
        try:
            await bounded(socket.send(question), waits.send, "the policy server to take a question")
            answer = await bounded(socket.recv(), waits.answer, "an answer of the policy server")
        except ConnectionClosed as error:
            raise ConnectionLost(f"the policy server at {self.address} went away: {error}") from error
        if isinstance(answer, str):
            raise ModelFailed(f"the policy server at {self.address} failed: {_last_line(answer)}")
        return answer

    async def _opened(self) -> ClientConnection:
        if self._socket is None:
            self._socket = await self._connected()
        return self._socket

    async def _connected(self) -> ClientConnection:
        opening = connect(
            self.address,
            compression=None,
            max_size=MAX_ANSWER_BYTES,
            open_timeout=self._waits.connect,
            close_timeout=self._waits.close,
            ping_interval=None,  # openpi's server answers no ping while it computes
            proxy=None,
        )
        try:
            socket = await opening
        except TimeoutError as error:
            raise WaitTimeout(
                f"waited {self._waits.connect:g} s for the policy server at {self.address}", field="connect"
            ) from error
        except (OSError, WebSocketException) as error:
            raise ConnectionLost(
                f"there is no policy server at {self.address} ({error}); start it, or name another"
            ) from error
        await self._greeted(socket)
        return socket

    async def _greeted(self, socket: ClientConnection) -> None:
        """openpi's server speaks first, and tells things about the policy that nothing here needs."""
        try:
            greeting = await bounded(socket.recv(), self._waits.greeting, "the policy server's greeting")
            if isinstance(greeting, str):
                raise InvalidMessage(f"{self.address} greets with text: it is no policy server of openpi")
            openpi_wire.unpack(greeting)
        except ConnectionClosed as error:
            raise ConnectionLost(f"the policy server at {self.address} went away: {error}") from error
        except Sarm2Error:
            await socket.close()
            raise


def _last_line(text: str) -> str:
    """Of a server's traceback what people read."""
    return text.strip().rpartition("\n")[2][:300]
