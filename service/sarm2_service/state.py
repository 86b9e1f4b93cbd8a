"""What the routes share: made by `create_app`, held by the app, gone with it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from sarm2_client.errors import Overloaded
from sarm2_service.cache import EmbeddingCache
from sarm2_service.events import EpisodeFeed
from sarm2_service.logs import log
from sarm2_service.metrics import Metrics
from sarm2_service.scorer import Scorer
from sarm2_service.sessions import Sessions
from sarm2_service.settings import Settings

LAG_INTERVAL_S = 0.05
LAG_LIMIT_S = 0.1


class Drainable(Protocol):
    """A connection that can be told to go elsewhere."""

    async def drain(self, timeout_s: float) -> None:
        """Finish what was accepted within the time, then close."""


class AcceptLimit:
    """A token bucket: at most `rate` a second, with a second's worth of burst. Monotonic clock."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._burst = max(1.0, rate)
        self._tokens = self._burst
        self._updated = time.monotonic()

    def take(self, now: float) -> bool:
        """Whether one more may come in at `now`."""
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Service:
    """Everything one running server holds. For the event loop, which is `loop` once started."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, settings: Settings, scorer: Scorer, cache: EmbeddingCache) -> None:
        self.settings = settings
        self.limits = settings.limits()
        self.scorer = scorer
        self.cache = cache
        self.metrics: Metrics = scorer.metrics
        self.feed = EpisodeFeed(settings, scorer.info)
        self.sessions = Sessions(scorer, settings, self.feed)
        self.uploads = asyncio.Semaphore(settings.max_uploads)
        self.embeds = asyncio.Semaphore(settings.max_embeds)
        self.draining = False
        self._connections: set[Drainable] = set()
        self._accepts = AcceptLimit(settings.accepts_per_s)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the cache, warm the model, and begin reaping and measuring."""
        self.loop = asyncio.get_running_loop()
        await self.cache.start()
        await self.scorer.start()
        self._tasks = [asyncio.create_task(self.sessions.run()), asyncio.create_task(self._measure_lag())]
        log(logging.INFO, "ready", model=self.scorer.info.id, version=self.scorer.info.version)

    async def stop(self) -> None:
        """Stop everything; bounded in time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.scorer.stop)
        await self.cache.stop()

    async def drain(self) -> None:
        """Refuse new work, finish accepted frames within the drain time, and send the clients elsewhere."""
        if self.draining:
            return
        self.draining = True
        connections = list(self._connections)
        log(logging.INFO, "draining", connections=len(connections), timeout_s=self.settings.drain_timeout_s)
        await asyncio.gather(
            *(connection.drain(self.settings.drain_timeout_s) for connection in connections),
            return_exceptions=True,
        )
        self.feed.close()

    def admit(self, connection: Drainable) -> None:
        """Count a new connection in. Raises Overloaded at the limit of connections or of accepts a second."""
        if len(self._connections) >= self.settings.max_connections:
            raise Overloaded(f"{self.settings.max_connections} connections are open, the most allowed")
        if not self._accepts.take(time.monotonic()):
            raise Overloaded(
                f"more than {self.settings.accepts_per_s:g} connections a second; back off and retry"
            )
        self._connections.add(connection)
        self.metrics.connections.set(len(self._connections))

    def release(self, connection: Drainable) -> None:
        """Count a connection out."""
        self._connections.discard(connection)
        self.metrics.connections.set(len(self._connections))

    async def _measure_lag(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_INTERVAL_S)
            lag_s = max(0.0, time.monotonic() - before - LAG_INTERVAL_S)
            self.metrics.event_loop_lag.observe(lag_s)
            if lag_s > LAG_LIMIT_S:
                log(logging.WARNING, "event_loop_stalled", lag_s=round(lag_s, 3))
