"""One live episode over a websocket that may break: frames out, scores in, resumed where it was lost.

    push -> outbox -> prepare (a worker thread) -> resend buffer -> websocket -> service
                                                                       |
    scores, errors, latest, waiting `step` calls <- settle <-----------+

Two tasks a connection, one that sends and one that receives; a third opens the next connection when one is
lost. A frame is settled once it is scored, dropped or refused; until then each new connection sends it again.
At most `limits.max_in_flight` frames of a connection are unsettled; the others wait in the outbox.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType

import numpy.typing as npt

from sarm2_client import wire
from sarm2_client.answers import Answers
from sarm2_client.codec import error_from
from sarm2_client.connection import Address, Connection
from sarm2_client.errors import (
    ConnectionLost,
    InvalidMessage,
    InvalidSequence,
    Sarm2Error,
    WaitTimeout,
)
from sarm2_client.images import Picture
from sarm2_client.opener import Opener
from sarm2_client.options import EpisodeOptions
from sarm2_client.outbox import Outbox, PendingFrame, ResendBuffer, own_images, own_state
from sarm2_client.replicas import Replicas
from sarm2_client.timeouts import bounded

_log = logging.getLogger("sarm2_client")

_LOOK_S = 0.5  # how often a quiet connection is looked at for answers that are overdue


class AsyncEpisode:
    """An open episode; use it as `async with client.episode(...) as episode`.

    Attributes:
        failure: what ended the episode early, or None.
        summary: the service's summary, after the episode was closed.
    """

    def __init__(
        self,
        start: wire.Start,
        replicas: Replicas,
        idle: Callable[[], Connection | None],
        connect: Callable[[Address], Awaitable[Connection]],
        release: Callable[[Connection], Awaitable[None]],
        options: EpisodeOptions,
    ) -> None:
        self.start = start
        self.failure: Sarm2Error | None = None
        self.summary: wire.Summary | None = None
        self._opener = Opener(start, replicas, idle, connect, options)
        self._release = release
        self._options = options
        self._timeouts = options.timeouts
        self._outbox = Outbox(options.queue_frames, options.queue_bytes)
        self._resend = ResendBuffer(options.resend_frames, options.resend_bytes)
        self._taken: PendingFrame | None = None  # out of the outbox, not yet in the resend buffer
        self._changed = asyncio.Event()
        self._answers = Answers(self._changed.set, self._opener.bore_fruit)
        self._last_pushed = -1
        self._last_sent: int | None = None
        self._ending = False
        self._connection: Connection | None = None  # the latest one
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def scores(self) -> list[wire.Score]:
        """Every score so far, in the order of arrival; the list grows while frames are scored."""
        return self._answers.scores

    @property
    def latest(self) -> wire.Score | None:
        """The score of the newest frame scored, or None."""
        return self._answers.latest

    @property
    def errors(self) -> list[Sarm2Error]:
        """What went wrong with single frames; the episode goes on after each."""
        return self._answers.errors

    @property
    def dropped(self) -> int:
        """Realtime frames that the service dropped."""
        return self._answers.dropped

    @property
    def dropped_unsent(self) -> int:
        """Realtime frames that were pushed out of the full queue before they could be sent."""
        return self._outbox.dropped

    @property
    def resumes(self) -> int:
        """How often a lost connection was replaced."""
        return self._opener.resumes

    @property
    def hello(self) -> wire.Hello:
        """What the service said of itself on the latest connection."""
        if self._opener.hello is None:
            raise InvalidSequence("the episode is not open; use it in a `with` block")
        return self._opener.hello

    # --- opening and closing -----------------------------------------------------------------------

    async def __aenter__(self) -> AsyncEpisode:
        self._loop = asyncio.get_running_loop()
        connection, started = await self._opener.open()
        self._connection = connection
        self._task = asyncio.create_task(self._run(connection, started))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.close()
        else:
            await self.abort()

    async def close(self) -> wire.Summary:
        """Send what waits, end the episode and return its summary; at most `timeouts.summary` seconds.

        Raises what ended the episode early, if something did, or WaitTimeout.
        """
        if self._task is None:
            raise InvalidSequence("the episode was never opened; use it in a `with` block")
        self._ending = True
        self._changed.set()
        try:
            if not self._task.done():
                await bounded(asyncio.wait({self._task}), self._timeouts.summary, "summary")
        except WaitTimeout as error:
            self.failure = self.failure or error
        finally:
            await self.abort()
        if self.summary is None:
            raise self._why()
        return self.summary

    async def abort(self) -> None:
        """Leave without a summary: unsent frames are forgotten, the connection is dropped.

        `close`, and with it the end of a `with` block, then raises ConnectionLost.
        """
        self._ending = True
        self._outbox.clear()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=self._timeouts.close * 3)
        if self._connection is not None and self.summary is None:
            self._connection.abort()  # a task that is cancelled before its first step does not

    def _why(self) -> Sarm2Error:
        error = self.failure or ConnectionLost("the episode was left before its summary came")
        return error.with_traceback(None)

    # --- frames in ---------------------------------------------------------------------------------

    def make_frame(
        self,
        images: Mapping[str, Picture],
        state: npt.ArrayLike,
        seq: int | None = None,
        t_ns: int | None = None,
        deadline_ms: float | None = None,
    ) -> PendingFrame:
        """Check a step and copy it. From any thread, one at a time. Raises InvalidInput or `failure`."""
        if self.failure is not None:
            raise self._why()
        if self._ending or self._task is None:
            raise InvalidSequence("the episode is not open; push frames inside its `with` block")
        chosen = self._last_pushed + 1 if seq is None else seq
        if not self._last_pushed < chosen <= wire.MAX_SEQ:
            raise InvalidSequence(
                f"expected seq above {self._last_pushed}, got {chosen}", field="seq", seq=chosen
            )
        frame = PendingFrame(
            seq=chosen,
            t_ns=time.time_ns() if t_ns is None else t_ns,
            images=own_images(images, self.start.cameras),
            state=own_state(state, self.hello.model.state_dim),
            deadline_ms=deadline_ms,
        )
        self._last_pushed = chosen
        return frame

    def offer(self, frame: PendingFrame) -> None:
        """Queue a frame, from any thread, without waiting; a full queue drops its oldest frame."""
        self._outbox.put(frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._changed.set)

    async def push(
        self,
        images: Mapping[str, Picture],
        state: npt.ArrayLike,
        seq: int | None = None,
        t_ns: int | None = None,
        deadline_ms: float | None = None,
    ) -> int:
        """Queue one step for scoring and return its `seq`.

        Realtime episodes never wait: when the queue is full, its oldest frame is dropped and counted in
        `dropped_unsent`. Batch episodes wait for room, for `timeouts.queue` seconds at most.

        Args:
            images: per camera a picture: a uint8 RGB array (H, W, 3), which is copied, or a JPEG file.
            state: the proprioceptive state, (S,), finite, in the robot's units.
            seq: number of the frame, above the last; the next one by default. Gaps are allowed.
            t_ns: any clock, echoed in the score; now by default.
            deadline_ms: realtime only: after this time the service drops the frame instead of scoring it.

        Raises InvalidInput, WaitTimeout where there was no room (the same frame may be pushed again), or
        `failure`.
        """
        if self.start.qos == "batch":  # first: a frame that waits in vain must not use its seq up
            await bounded(self._room(), self._timeouts.queue, "queue")
        frame = self.make_frame(images, state, seq, t_ns, deadline_ms)
        self.offer(frame)
        return frame.seq

    async def step(
        self,
        images: Mapping[str, Picture],
        state: npt.ArrayLike,
        seq: int | None = None,
        t_ns: int | None = None,
    ) -> wire.Score:
        """Push one step and wait for its score, for `timeouts.score` seconds at most.

        Raises what the service said of this frame (Overloaded for a dropped one), WaitTimeout, or `failure`.
        """
        frame = self.make_frame(images, state, seq, t_ns)
        waiter = self._answers.waiter(frame.seq)
        try:
            self.offer(frame)
            return await bounded(waiter, self._timeouts.score, "score")
        finally:
            self._answers.forget_waiter(frame.seq)

    async def _room(self) -> None:
        while self._outbox.full:
            if self.failure is not None:
                raise self._why()
            await self._change()

    # --- connections -------------------------------------------------------------------------------

    async def _run(self, connection: Connection, started: wire.Started) -> None:
        try:
            while True:
                try:
                    self.summary = await self._talk(connection, started)
                    await self._release(connection)
                    return
                except ConnectionLost as lost:
                    connection.abort()
                    connection, started = await self._opener.reopen(lost, self._first_unsettled())
                    self._connection = connection
        except Sarm2Error as error:
            self.failure = error
        except asyncio.CancelledError:
            self.failure = self.failure or ConnectionLost("the episode was left before its summary came")
            raise
        except Exception as error:  # a fault of ours: the caller must hear of it
            self.failure = Sarm2Error(f"the episode failed: {type(error).__name__}: {error}")
            _log.exception("episode %s failed", self.start.session_id)
        finally:
            if self.summary is None:
                connection.abort()
            self._answers.fail_all(self._why())

    def _first_unsettled(self) -> int:
        return min(self._answers.unsettled, default=0 if self._last_sent is None else self._last_sent + 1)

    async def _talk(self, connection: Connection, started: wire.Started) -> wire.Summary:
        """Send and receive until the summary. Raises ConnectionLost to be resumed."""
        again = self._resend.wanted(started.next_seq, self._answers.unsettled)
        self._answers.begin_connection()
        sender = asyncio.create_task(self._send_all(connection, again))
        try:
            return await self._receive_all(connection)
        finally:
            sender.cancel()
            await asyncio.wait({sender})
            if not sender.cancelled() and (error := sender.exception()) is not None:
                raise error

    # --- sending -----------------------------------------------------------------------------------

    async def _send_all(self, connection: Connection, again: list[tuple[int, bytes]]) -> None:
        try:
            for seq, message in again:
                await self._send(connection, seq, message)
            while await self._next_frame():
                await self._send_taken(connection)
            await connection.send(wire.End(seq=self._last_sent))
        except (ConnectionLost, WaitTimeout):
            connection.abort()  # the receiver notices, and knows the server's last word
        except BaseException:
            connection.abort()
            raise

    async def _next_frame(self) -> bool:
        """Wait for a frame, into `_taken`; False when there will be no more."""
        while self._taken is None:
            await self._credit()
            self._taken = self._outbox.take()
            if self._taken is None:
                if self._ending:
                    return False
                await self._change()
            else:
                self._changed.set()  # there is room in the outbox
        return True

    async def _send_taken(self, connection: Connection) -> None:
        """Prepare the taken frame on a worker thread and send it."""
        frame = self._taken
        if frame is None:
            return
        size = self._options.image_size or self.hello.preprocess.size
        loop = asyncio.get_running_loop()
        try:
            message = await loop.run_in_executor(None, frame.to_message, size)
        except Sarm2Error as error:
            error.seq = frame.seq
            self._taken = None
            self._answers.refuse(frame.seq, error)
            return
        self._resend.keep(frame.seq, message)
        self._taken = None
        self._last_sent = frame.seq
        await self._send(connection, frame.seq, message)

    async def _send(self, connection: Connection, seq: int, message: bytes) -> None:
        await self._credit()
        self._answers.expect(seq)
        self._resend.shrink(self._answers.unsettled)
        await connection.send(message)

    async def _credit(self) -> None:
        while len(self._answers.in_flight) >= self.hello.limits.max_in_flight:
            await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # --- receiving ---------------------------------------------------------------------------------

    async def _receive_all(self, connection: Connection) -> wire.Summary:
        while True:
            try:
                message = await connection.receive(_LOOK_S, "score")
            except WaitTimeout:
                if self._answers.overdue(self._timeouts.score):
                    raise ConnectionLost(f"no answer to a frame within {self._timeouts.score:g} s") from None
                await _keep_alive(connection)
                continue
            if isinstance(message, wire.Summary):
                return message
            self._take(message)

    def _take(self, message: wire.ServerMessage) -> None:
        if isinstance(message, wire.Score):
            self._answers.take_score(message)
        elif isinstance(message, wire.Dropped):
            self._resend.forget(message.seq)
            self._answers.take_dropped(message)
        elif isinstance(message, wire.Error):
            self._take_error(message)
        elif isinstance(message, (wire.Hello, wire.Started)):
            raise InvalidMessage(f"expected scores, got {type(message).__name__} in the middle of an episode")

    def _take_error(self, message: wire.Error) -> None:
        if message.seq is not None:
            self._resend.forget(message.seq)
            self._answers.take_error(message, message.seq)
            return
        error = error_from(message)
        if error.retryable or type(error) is Sarm2Error:
            raise ConnectionLost(f"the server gave up: {error.message}") from error
        raise error


async def _keep_alive(connection: Connection) -> None:
    """Let the server know of a robot that pauses, well before `limits.idle_timeout_s`."""
    now = time.monotonic()
    if now - connection.last_sent > connection.hello.limits.idle_timeout_s / 3:
        await connection.send(wire.Ping(t_ns=time.time_ns()))
