"""Opens the connection of an episode, and another one when it is lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import structs

from sarm2_client import wire
from sarm2_client.codec import error_from
from sarm2_client.connection import Address, Connection
from sarm2_client.errors import Conflict, ConnectionLost, Draining, Overloaded, Sarm2Error, WaitTimeout
from sarm2_client.options import EpisodeOptions
from sarm2_client.replicas import Replicas
from sarm2_client.timeouts import bounded

_log = logging.getLogger("sarm2_client")

MAX_FRUITLESS: Final = 6
"""Resumes in a row that may bring no new answer: a frame that breaks the server must not do so for ever."""


class Opener:
    """Knows how an episode starts and resumes.

    Args:
        replicas: where to.
        idle: gives a connection on which an earlier episode ran, or None.
        connect: makes a connection.

    Attributes:
        hello: what the service said on the latest connection.
        resumes: how often a lost connection was replaced.
        fruitless: resumes since the last answer that was new.
    """

    def __init__(
        self,
        start: wire.Start,
        replicas: Replicas,
        idle: Callable[[], Connection | None],
        connect: Callable[[Address], Awaitable[Connection]],
        options: EpisodeOptions,
    ) -> None:
        self.hello: wire.Hello | None = None
        self.resumes = 0
        self.fruitless = 0
        self._start = start
        self._replicas = replicas
        self._idle = idle
        self._connect = connect
        self._address = replicas.current  # of the latest connection
        self._timeouts = options.timeouts
        self._backoff = options.backoff

    async def open(self) -> tuple[Connection, wire.Started]:
        """A connection on which the episode has started.

        An idle connection that went stale is replaced. Raises what the last of all addresses raised, where
        each is lost, draining or too slow, and what the service refuses for good.
        """
        idle = self._idle()
        if idle is not None:
            try:
                return await self._begin(idle, self._start)
            except (ConnectionLost, Draining, WaitTimeout):
                pass
        return await self._replicas.ask(lambda address: self._begin_at(address, self._start))

    def bore_fruit(self) -> None:
        """A new answer came. One to a frame that was sent again tells nothing of the frame that broke it."""
        self.fruitless = 0

    async def reopen(self, lost: Sarm2Error, resume_from: int) -> tuple[Connection, wire.Started]:
        """The episode on a new connection, tried again and again with growing pauses.

        Raises ConnectionLost after `timeouts.resume` seconds, and what the service refuses for good.
        """
        _log.warning("episode %s: %s; resuming", self._start.session_id, lost.message)
        if self.fruitless > MAX_FRUITLESS:
            raise ConnectionLost(
                f"the connection broke {self.fruitless} times without a new answer between ({lost.message})"
            ) from lost
        self._replicas.leave(self._address)
        start = structs.replace(self._start, resume_from=resume_from)
        deadline = time.monotonic() + self._timeouts.resume
        attempt = self.fruitless
        self.fruitless += 1
        while time.monotonic() + (pause := self._backoff.pause(attempt)) < deadline:
            await asyncio.sleep(pause)
            attempt += 1
            address = self._replicas.current
            try:
                opened = await bounded(self._begin_at(address, start), deadline - time.monotonic(), "resume")
            except (ConnectionLost, WaitTimeout, Draining, Overloaded, Conflict) as error:
                lost = error  # Conflict: the server has not noticed yet that the old connection is dead
                self._replicas.leave(address)
                continue
            self.resumes += 1
            return opened
        raise ConnectionLost(
            f"the connection broke and was not back within {self._timeouts.resume:g} s ({lost.message})"
        ) from lost

    async def _begin_at(self, address: Address, start: wire.Start) -> tuple[Connection, wire.Started]:
        return await self._begin(await self._connect(address), start)

    async def _begin(self, connection: Connection, start: wire.Start) -> tuple[Connection, wire.Started]:
        try:
            await connection.send(start)
            started = await bounded(_started(connection, self._timeouts.start), self._timeouts.start, "start")
        except BaseException:
            connection.abort()
            raise
        self.hello = connection.hello
        self._address = connection.address
        return connection, started


async def _started(connection: Connection, seconds: float) -> wire.Started:
    while True:
        message = await connection.receive(seconds, "start")
        if isinstance(message, wire.Started):
            return message
        if isinstance(message, wire.Error):
            raise error_from(message)
        if isinstance(message, wire.DrainingNotice):
            raise Draining("the server is going away; start on another one")
