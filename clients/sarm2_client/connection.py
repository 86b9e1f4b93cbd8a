"""One websocket to a service: messages in, messages out, and every way to break under one error tree."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from sarm2_client import wire
from sarm2_client.codec import decode_server_message, encode, error_from
from sarm2_client.errors import (
    BY_STATUS,
    ConnectionLost,
    InvalidMessage,
    NotAllowed,
    Sarm2Error,
    TooLarge,
    WaitTimeout,
)
from sarm2_client.timeouts import Timeouts, bounded

MAX_SERVER_MESSAGE_BYTES: Final = 4 * 2**20
STREAM_PATH: Final = "/v1/stream"

RESUMABLE_CLOSE_CODES: Final = frozenset({1001, 1006, 1011, 1012, 1013})
"""Going away, broken without a word, failed, restarting, try again later: the episode is resumed."""

_CLOSE_ERRORS: Final[dict[int, type[Sarm2Error]]] = {
    1002: InvalidMessage,
    1003: InvalidMessage,
    1007: InvalidMessage,
    1008: NotAllowed,
    1009: TooLarge,
}


@dataclass(frozen=True)
class Address:
    """Where a service listens.

    Attributes:
        host: name or number. port: 1 to 65535. tls: whether to encrypt (wss, https).
        api_key: sent as a bearer token, never in the query string.
    """

    host: str
    port: int
    tls: bool = False
    api_key: str | None = None

    @property
    def stream_url(self) -> str:
        """Of the websocket."""
        return f"{'wss' if self.tls else 'ws'}://{self._authority}{STREAM_PATH}"

    @property
    def http_url(self) -> str:
        """Of the HTTP routes, without a trailing slash."""
        return f"{'https' if self.tls else 'http'}://{self._authority}"

    @property
    def headers(self) -> dict[str, str]:
        """What to send with every request."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    @property
    def _authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Connection:
    """An open websocket whose `hello` has been read. Made by `open_connection`.

    Attributes:
        address: where it leads.
        hello: what the service said of itself.
        last_sent: monotonic seconds of the latest message sent.
    """

    def __init__(
        self, socket: ClientConnection, address: Address, hello: wire.Hello, timeouts: Timeouts
    ) -> None:
        self._socket = socket
        self._timeouts = timeouts
        self.address = address
        self.hello = hello
        self.last_sent = time.monotonic()

    @property
    def usable(self) -> bool:
        """Whether nothing has closed it yet."""
        return self._socket.close_code is None and self._socket.state.name == "OPEN"

    async def send(self, message: wire.ClientMessage | bytes) -> None:
        """Send a message, or one encoded earlier. Raises ConnectionLost and its kin, or WaitTimeout."""
        data = message if isinstance(message, bytes) else encode(message)
        try:
            await bounded(self._socket.send(data), self._timeouts.send, "send")
            self.last_sent = time.monotonic()
        except ConnectionClosed as error:
            raise closed_error(error) from error

    async def receive(self, seconds: float, waited_for: str) -> wire.ServerMessage:
        """The next message. Raises WaitTimeout after `seconds`; the connection is still good then."""
        try:
            data = await bounded(self._socket.recv(), seconds, waited_for)
        except ConnectionClosed as error:
            raise closed_error(error) from error
        if isinstance(data, str):
            raise InvalidMessage("expected a binary message from the server, got text")
        return decode_server_message(data)

    async def close(self) -> None:
        """Say good-bye, for at most `timeouts.close` seconds. Never raises."""
        try:
            await asyncio.wait_for(self._socket.close(), self._timeouts.close * 2)
        except (OSError, WebSocketException, TimeoutError, asyncio.TimeoutError):  # noqa: UP041
            self.abort()

    def abort(self) -> None:
        """Drop the connection without a word."""
        self._socket.transport.abort()


async def open_connection(address: Address, timeouts: Timeouts) -> Connection:
    """Connect and read the server's `hello`.

    Raises ConnectionLost where nobody listens, NotAllowed for a refused key, InvalidMessage where the other
    side does not speak `sarm.v1`, Overloaded or Draining where it asks to come back later, or WaitTimeout.
    """
    socket = await _connect(address, timeouts)
    try:
        if socket.subprotocol != wire.PROTOCOL:
            raise InvalidMessage(
                f"expected {wire.PROTOCOL} from {address.stream_url}, got subprotocol {socket.subprotocol}"
            )
        hello = await _receive_hello(socket, timeouts)
    except BaseException:
        socket.transport.abort()
        raise
    return Connection(socket, address, hello, timeouts)


async def _connect(address: Address, timeouts: Timeouts) -> ClientConnection:
    opening = connect(
        address.stream_url,
        subprotocols=[Subprotocol(wire.PROTOCOL)],
        additional_headers=address.headers,
        compression=None,  # JPEG does not shrink; deflate only costs the robot's CPU
        proxy=None,
        open_timeout=timeouts.connect,
        ping_interval=timeouts.ping,
        ping_timeout=timeouts.ping,
        close_timeout=timeouts.close,
        max_size=MAX_SERVER_MESSAGE_BYTES,
    )
    try:
        return await opening
    except InvalidStatus as error:
        status = error.response.status_code
        kind = BY_STATUS.get(status, ConnectionLost)
        raise kind(f"{address.stream_url} refused the connection with status {status}") from error
    except (TimeoutError, asyncio.TimeoutError) as error:  # noqa: UP041 - two classes before Python 3.11
        raise WaitTimeout(
            f"waited {timeouts.connect:g} s for a connection to {address.stream_url}", field="connect"
        ) from error
    except (OSError, WebSocketException) as error:
        raise ConnectionLost(
            f"no connection to {address.stream_url} ({error}); is the service running there?"
        ) from error


async def _receive_hello(socket: ClientConnection, timeouts: Timeouts) -> wire.Hello:
    try:
        data = await bounded(socket.recv(), timeouts.hello, "hello")
    except ConnectionClosed as error:
        raise closed_error(error) from error
    if isinstance(data, str):
        raise InvalidMessage("expected a binary message from the server, got text")
    message = decode_server_message(data)
    if isinstance(message, wire.Error):
        raise error_from(message)
    if not isinstance(message, wire.Hello) or message.protocol != wire.PROTOCOL:
        raise InvalidMessage(f"expected hello of {wire.PROTOCOL} first, got {type(message).__name__}")
    return message


def closed_error(closed: ConnectionClosed) -> Sarm2Error:
    """What a closed connection means, from the code that the server closed it with.

    ConnectionLost where the episode can go on elsewhere, as for a connection that broke without a word.
    """
    code = 1006 if closed.rcvd is None else closed.rcvd.code
    reason = "" if closed.rcvd is None else closed.rcvd.reason
    if code in RESUMABLE_CLOSE_CODES or code not in _CLOSE_ERRORS:
        return ConnectionLost(f"the connection was closed with code {code} {reason}".rstrip())
    return _CLOSE_ERRORS[code](f"the server closed the connection with code {code}: {reason or 'no reason'}")
