"""The open episodes: who may open, resume or take over one, and when a lost one is given up."""

from __future__ import annotations

import asyncio
import logging
import time

from sarm2_client import wire
from sarm2_client.errors import Conflict, InvalidInput, Overloaded
from sarm2_service.events import EpisodeFeed
from sarm2_service.logs import log
from sarm2_service.scorer import Scorer
from sarm2_service.session import Session
from sarm2_service.settings import Settings

REAP_INTERVAL_S = 1.0


class Sessions:
    """All open episodes of this process, by session id. For the event loop."""

    def __init__(self, scorer: Scorer, settings: Settings, feed: EpisodeFeed) -> None:
        self._scorer = scorer
        self._settings = settings
        self._feed = feed
        self._open: dict[str, Session] = {}
        self._opening: set[str] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def open(self, start: wire.Start) -> tuple[Session, bool]:
        """The episode of a `start` message, and whether it is an earlier one that goes on.

        Raises:
            InvalidInput: cameras that the model does not have.
            Conflict: the session id is another connection's, or was started differently.
            Overloaded: as many episodes are open as are allowed.
        """
        if sorted(start.cameras) != sorted(self._scorer.info.cameras):
            raise InvalidInput(
                f"this model needs the cameras {self._scorer.info.cameras}, got {start.cameras[:10]}",
                field="cameras",
            )
        known = self._open.get(start.session_id)
        if known is not None and start.resume_from is not None and self._may_take(known):
            known.check_same(start)
            return known, True
        self._check_free(start.session_id, known)
        if known is not None:  # a lost episode whose id is used anew
            self.end(known)
        self._check_room()
        self._opening.add(start.session_id)
        try:
            return await self._new(start), False
        finally:
            self._opening.discard(start.session_id)

    async def _new(self, start: wire.Start) -> Session:
        lane = await self._scorer.open_lane(start.task, start.fps, start.qos, start.source)
        session = Session(start, lane, self._scorer, self._settings, self._feed.open(start))
        self._open[start.session_id] = session
        self._count()
        return session

    async def renew(self) -> None:
        """After a reload: every open episode goes on with what the new model knows of its instruction."""
        for session in list(self._open.values()):
            await self._scorer.renew_lane(session.lane, session.start.task)

    def _may_take(self, session: Session) -> bool:
        """A lost episode is free; so is one whose connection has been silent: it may be half-open."""
        return (
            session.sink is None or time.monotonic() - session.last_heard >= self._settings.takeover_after_s
        )

    def _check_free(self, session_id: str, known: Session | None) -> None:
        if session_id in self._opening or (known is not None and known.sink is not None):
            raise Conflict(
                "this session id is in use by another connection; choose another id, or resume it "
                f"{self._settings.takeover_after_s:g} s after that connection fell silent",
                field="session_id",
            )

    def _check_room(self) -> None:
        if len(self._open) + len(self._opening) < self._settings.max_sessions:
            return
        lost = [session for session in self._open.values() if session.detached_at is not None]
        if not lost:
            raise Overloaded(
                f"{self._settings.max_sessions} episodes are open, the most allowed; try again later"
            )
        self.end(min(lost, key=lambda session: session.detached_at or 0.0))

    def end(self, session: Session) -> wire.Summary:
        """Close an episode and forget it; its view stays."""
        if self._open.get(session.start.session_id) is session:
            del self._open[session.start.session_id]
        self._count()
        return session.close()

    def _count(self) -> None:
        self._scorer.metrics.sessions.set(len(self._open))

    def reap(self, now: float) -> None:
        """End the episodes that were lost longer ago than the resume window."""
        for session in list(self._open.values()):
            lost = session.detached_at
            if lost is not None and now - lost > self._settings.resume_window_s:
                log(logging.INFO, "session_expired", session_id=session.start.session_id)
                self.end(session)

    async def run(self) -> None:
        """Reap for ever; cancel to stop."""
        while True:
            await asyncio.sleep(min(REAP_INTERVAL_S, max(0.01, self._settings.resume_window_s / 4)))
            self.reap(time.monotonic())
