"""What came back for each frame of an episode, and who waits for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from sarm2_client import wire
from sarm2_client.codec import error_from
from sarm2_client.errors import InvalidSequence, Overloaded, Sarm2Error

_log = logging.getLogger("sarm2_client")


class Answers:
    """The answers of one episode. A frame is settled once it is scored, dropped or refused.

    A resumed connection may bring an answer again, or another one; the first of each frame counts.

    Lives on the event loop; its lists may be read from any thread.

    Args:
        on_settled: called after each frame that settles.
        on_new: called at the first answer to a frame, not where it is sent and answered again.

    Attributes:
        scores: in the order of arrival.
        latest: the score of the newest frame scored, or None.
        errors: what went wrong with single frames.
        dropped: realtime frames that the service dropped.
        unsettled: seq of every frame sent on any connection and not settled.
        in_flight: those of them sent on this connection -> monotonic seconds of the sending.
    """

    def __init__(self, on_settled: Callable[[], None], on_new: Callable[[], None]) -> None:
        self.scores: list[wire.Score] = []
        self.latest: wire.Score | None = None
        self.errors: list[Sarm2Error] = []
        self.dropped = 0
        self.unsettled: set[int] = set()
        self.in_flight: dict[int, float] = {}
        self._on_settled = on_settled
        self._on_new = on_new
        self._counted: set[int] = set()
        self._waiters: dict[int, asyncio.Future[wire.Score]] = {}

    def expect(self, seq: int) -> None:
        """A frame is being sent, perhaps once more."""
        self.unsettled.add(seq)
        self.in_flight[seq] = time.monotonic()

    def begin_connection(self) -> None:
        """A new connection: nothing is on its way, and what was not answered before stays unsettled."""
        self.in_flight.clear()

    def overdue(self, seconds: float) -> bool:
        """Whether a frame has waited for its answer for longer than this."""
        oldest = min(self.in_flight.values(), default=None)
        return oldest is not None and time.monotonic() - oldest > seconds

    def waiter(self, seq: int) -> asyncio.Future[wire.Score]:
        """A future that gets the score of a frame, or the error that it met."""
        future: asyncio.Future[wire.Score] = asyncio.get_running_loop().create_future()
        self._waiters[seq] = future
        return future

    def forget_waiter(self, seq: int) -> None:
        """Nobody waits for this frame any more."""
        self._waiters.pop(seq, None)

    def take_score(self, score: wire.Score) -> None:
        """A score came. It settles all frames up to `durable_seq`: answers may be lost with a connection."""
        if self._counts(score.seq):
            self.scores.append(score)
            if self.latest is None or score.seq > self.latest.seq:
                self.latest = score
        self._settle(score.seq, score)
        for seq in sorted(seq for seq in self.unsettled if seq <= score.durable_seq):
            self._settle(seq, InvalidSequence(f"frame {seq} was scored, but its answer was lost", seq=seq))

    def take_dropped(self, dropped: wire.Dropped) -> None:
        """The service will not score this realtime frame."""
        if self._counts(dropped.seq):
            self.dropped += 1
        self._settle(
            dropped.seq, Overloaded(f"frame {dropped.seq} was dropped: {dropped.reason}", seq=dropped.seq)
        )

    def take_error(self, message: wire.Error, seq: int) -> None:
        """The service refused one frame."""
        self.refuse(seq, error_from(message))

    def refuse(self, seq: int, error: Sarm2Error) -> None:
        """A frame failed, here or at the service."""
        if self._counts(seq):
            self.errors.append(error)
            _log.warning("frame %d: %s", seq, error.message)
        self._settle(seq, error)

    def fail_all(self, error: Sarm2Error) -> None:
        """The episode is over: nobody waits any longer."""
        for seq in list(self._waiters):
            self._settle(seq, error)
        self.unsettled.clear()
        self.in_flight.clear()
        self._on_settled()

    def _counts(self, seq: int) -> bool:
        """Whether this is the first answer to a frame."""
        if seq in self._counted:
            return False
        self._counted.add(seq)
        self._on_new()
        return True

    def _settle(self, seq: int, outcome: wire.Score | Sarm2Error) -> None:
        self.unsettled.discard(seq)
        self.in_flight.pop(seq, None)
        waiter = self._waiters.pop(seq, None)
        if waiter is not None and not waiter.done():
            if isinstance(outcome, wire.Score):
                waiter.set_result(outcome)
            else:
                waiter.set_exception(outcome)
        self._on_settled()
