"""Everything that can wait, by name, with a finite default in seconds."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable
from dataclasses import dataclass, fields
from typing import TypeVar

from sarm2_client.errors import InvalidInput, WaitTimeout

_T = TypeVar("_T")


@dataclass(frozen=True)
class Timeouts:
    """How long a client waits, in seconds; each is finite and above 0.

    Attributes:
        connect: one attempt to open a connection.
        hello: the server's first message.
        start: the answer to `start`.
        send: one message to leave this machine.
        score: the answer to one frame. A stream whose answer is later counts as lost and is resumed.
        queue: room for one more frame; only episodes of `qos="batch"` wait for it.
        summary: from closing an episode to its summary, frames still on their way included.
        resume: from losing a connection to having the episode back; then ConnectionLost.
        request: one HTTP call to one service, whole episodes included.
        ping: silence after which the connection is probed, and again until it counts as lost.
        close: the closing handshake.
    """

    connect: float = 5.0
    hello: float = 5.0
    start: float = 10.0
    send: float = 5.0
    score: float = 10.0
    queue: float = 30.0
    summary: float = 30.0
    resume: float = 30.0
    request: float = 300.0
    ping: float = 5.0
    close: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise InvalidInput(
                    f"expected a finite number of seconds above 0 for the wait {field.name!r}, got {value}",
                    field=field.name,
                )


@dataclass(frozen=True)
class Backoff:
    """Pauses between attempts to reconnect: they double from `first` to `longest` seconds, each jittered.

    The jitter takes away up to half, so that robots that lost one server do not come back in step.
    """

    first: float = 0.1
    longest: float = 3.0

    def pause(self, attempt: int) -> float:
        """Seconds to wait before attempt number `attempt` (from 0)."""
        whole = min(self.longest, self.first * 2.0 ** min(attempt, 32))
        return whole * random.uniform(0.5, 1.0)


async def bounded(awaitable: Awaitable[_T], seconds: float, waited_for: str) -> _T:
    """The awaited value. Raises WaitTimeout, naming what was waited for, after `seconds`."""
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except (TimeoutError, asyncio.TimeoutError) as error:  # noqa: UP041 - two classes before Python 3.11
        raise WaitTimeout(
            f"waited {seconds:g} s for {waited_for}; the server is slow or gone, or the wait too short",
            field=waited_for,
        ) from error
