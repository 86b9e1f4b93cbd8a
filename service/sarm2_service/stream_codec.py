"""What a robot's websocket speaks: bytes to checked messages, and answers to websocket events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from sarm2_client import wire
from sarm2_client.codec import decode_client_message

Event = dict[str, Any]
"""What the server sends on a websocket (ASGI)."""


class StreamCodec(Protocol):
    """The language of one connection.

    Attributes:
        resumes: whether an episode can be gone on with on another connection, and so outlives its own.
    """

    resumes: bool

    def read(self, data: bytes) -> Iterator[wire.ClientMessage]:
        """What a message asks for, one after the other. Raises a Sarm2Error for what cannot be read."""
        ...

    def event(self, data: bytes) -> Event | None:
        """How an answer of `sarm.v1`, encoded, is told; None where it is not."""
        ...


class SarmCodec:
    """`sarm.v1` itself."""

    resumes = True

    def __init__(self, limits: wire.Limits) -> None:
        self._limits = limits

    def read(self, data: bytes) -> Iterator[wire.ClientMessage]:
        """The one message."""
        yield decode_client_message(data, self._limits)

    def event(self, data: bytes) -> Event:
        """The answer as it is."""
        return {"type": "websocket.send", "bytes": data}
