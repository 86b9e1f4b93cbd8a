"""A robot's websocket: one connection, one open episode at a time.

A frame that cannot be scored is answered by an `error` with its `seq`, and the episode goes on. A client that
breaks the protocol is told why and disconnected; its episode can still be resumed. Nothing a client does or
fails to do reaches another connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import NoReturn

from starlette.types import Receive, Send

from sarm2_client import wire
from sarm2_client.codec import encode, error_message
from sarm2_client.errors import (
    Conflict,
    Draining,
    InvalidInput,
    InvalidMessage,
    InvalidSequence,
    Overloaded,
    Sarm2Error,
    WaitTimeout,
)
from sarm2_service import __version__
from sarm2_service.logs import log, log_failure, new_error_id
from sarm2_service.session import Session
from sarm2_service.state import Service
from sarm2_service.stream_codec import StreamCodec

CLOSE_NORMAL = 1000
CLOSE_TEXT = 1003
CLOSE_GOING_AWAY = 1012
_OUTBOX_SPARE = 64


class _Close(Exception):  # noqa: N818  # a signal, not an error
    """Leave the reading loop and close with this code once everything queued is sent."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Connection:
    """One accepted websocket."""

    def __init__(self, service: Service, codec: StreamCodec, receive: Receive, send: Send) -> None:
        self._service = service
        self._codec = codec
        self._settings = service.settings
        self._limits = service.limits
        self._receive = receive
        self._send_event = send
        self._outbox: deque[bytes] = deque()
        self._outbox_limit = 2 * service.settings.max_in_flight + _OUTBOX_SPARE
        self._resent = 0  # room above the limit, until the answers that a resume asked for are sent
        self._wake = asyncio.Event()
        self._close: _Close | None = None
        self._session: Session | None = None
        self._draining = False
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until either side ends it. The websocket has been accepted."""
        service = self._service
        self._say(
            wire.Hello(
                protocol=wire.PROTOCOL,
                server_version=__version__,
                model=service.scorer.info,
                preprocess=service.scorer.preprocess,
                limits=self._limits,
                server_time_ns=time.time_ns(),
            )
        )
        self._writer = asyncio.create_task(self._write())
        self._reader = asyncio.create_task(self._read())
        tasks = (self._writer, self._reader)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._leave()

    async def drain(self, timeout_s: float) -> None:
        """Tell the client to go elsewhere, finish what was accepted within `timeout_s`, and close."""
        self._draining = True
        self._say(wire.DrainingNotice(deadline_s=timeout_s))
        if self._session is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._session.settled()
        self._finish(_Close(CLOSE_GOING_AWAY, "draining: resume elsewhere"))
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=self._settings.send_timeout_s)

    # --- writing ---------------------------------------------------------------------------------

    def _say(self, message: wire.ServerMessage) -> None:
        self._put(encode(message))

    def _put(self, data: bytes) -> None:
        if len(self._outbox) >= self._outbox_limit + self._resent:
            self._drop_slow_reader()
            return
        self._outbox.append(data)
        self._wake.set()

    def _resend(self, answers: list[bytes]) -> None:
        """Queue what the client asked for, however much it is: the session keeps these bytes anyway."""
        self._resent += len(answers)
        for answer in answers:
            self._put(answer)

    def _tell(self, error: Sarm2Error) -> None:
        """Report an error to the client and count it."""
        self._service.metrics.errors.labels(error.code).inc()
        error_id = error.error_id or new_error_id()
        message = error_message(error, error_id=error_id)
        name = self._session.start.session_id if self._session else None
        log(logging.INFO, "refused", code=error.code, error_id=error_id, session_id=name, text=error.message)
        self._say(message)

    def _finish(self, close: _Close) -> None:
        self._close = self._close or close
        self._wake.set()

    def _drop_slow_reader(self) -> None:
        log(logging.WARNING, "slow_reader", waiting=len(self._outbox))
        if self._writer is not None:
            self._writer.cancel()

    async def _write(self) -> None:
        try:
            while True:
                while self._outbox:
                    event = self._codec.event(self._outbox.popleft())
                    if event is not None:
                        async with asyncio.timeout(self._settings.send_timeout_s):
                            await self._send_event(event)
                    self._resent = min(self._resent, len(self._outbox))
                if self._close is not None:
                    await self._send_close(self._close)
                    return
                await self._wake.wait()
                self._wake.clear()
        except TimeoutError:
            self._drop_slow_reader()
        except OSError:
            return  # the client has gone

    async def _send_close(self, close: _Close) -> None:
        async with asyncio.timeout(self._settings.send_timeout_s):
            await self._send_event({"type": "websocket.close", "code": close.code, "reason": close.reason})

    # --- reading ---------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while (event := await self._next_event())["type"] == "websocket.receive":
                await self._handle_event(event.get("bytes"), time.monotonic())
        except _Close as close:
            self._finish(close)
            await asyncio.Event().wait()  # until the writer has sent everything, and this task is cancelled
        except Exception as error:
            error_id = log_failure("connection_failed", error)
            self._tell(Sarm2Error("the server failed; reconnect and resume", error_id=error_id))
            self._finish(_Close(Sarm2Error.close_code, error_id))
            await asyncio.Event().wait()

    async def _next_event(self) -> dict[str, object]:
        try:
            async with asyncio.timeout(self._settings.idle_timeout_s):
                return dict(await self._receive())
        except TimeoutError:
            limit = self._settings.idle_timeout_s
            self._tell(WaitTimeout(f"nothing came for {limit:g} s; send frames or pings more often"))
            raise _Close(1001, "idle") from None

    async def _handle_event(self, data: object, received: float) -> None:
        if not isinstance(data, bytes):
            self._tell(InvalidMessage("expected binary messages (msgpack), got text"))
            raise _Close(CLOSE_TEXT, "binary messages only")
        try:
            for message in self._codec.read(data):
                await self._handle(message, received)
        except InvalidMessage as error:
            self._tell(error)
            if error.seq is None:
                raise _Close(error.close_code, error.code) from None
        except Sarm2Error as error:
            self._tell(error)
            if isinstance(error, Conflict | Draining) or (
                isinstance(error, Overloaded) and error.seq is None
            ):
                raise _Close(error.close_code, error.code) from None

    async def _handle(self, message: wire.ClientMessage, received: float) -> None:
        if self._session is not None:
            self._session.last_heard = received
        if isinstance(message, wire.Frame):
            await self._frame(message, received)
        elif isinstance(message, wire.Start):
            await self._start(message)
        elif isinstance(message, wire.End):
            await self._end()
        else:
            self._say(wire.Pong(t_ns=message.t_ns, server_time_ns=time.time_ns()))

    async def _start(self, start: wire.Start) -> None:
        if self._session is not None:
            self._violation("an episode is open on this connection; end it before starting another")
        if self._draining:
            raise Draining("the server is going away; start on another replica")
        session, resumed = await self._service.sessions.open(start)
        session.attach(self._put, self._displaced)
        self._session = session
        self._say(
            wire.Started(
                session_id=start.session_id,
                next_seq=session.next_seq,
                resumed=resumed,
                task_known=session.lane.instruction.known,
            )
        )
        log(logging.INFO, "session_resumed" if resumed else "session_started", session_id=start.session_id)
        if resumed and start.resume_from is not None:
            self._resend(session.answers_from(start.resume_from))

    async def _frame(self, frame: wire.Frame, received: float) -> None:
        session = self._session
        if session is None:
            self._violation("expected `start` before the first frame")
        if session.start.qos == "batch":
            await session.room()
        if self._draining or self._session is not session:
            return  # not accepted: the client sends it again where it resumes
        try:
            await session.accept(frame, received)
        except Sarm2Error as error:
            error.seq = frame.seq
            raise

    async def _end(self) -> None:
        session = self._session
        if session is None:
            self._violation("expected `start` and frames before `end`")
        await session.settled()
        if self._session is not session:
            return  # another connection has resumed it meanwhile: it is no longer ours to end
        self._session = None
        self._say(self._ended(session))

    def _ended(self, session: Session) -> wire.Summary:
        log(logging.INFO, "session_ended", session_id=session.start.session_id)
        return self._service.sessions.end(session)

    def _violation(self, text: str) -> NoReturn:
        self._tell(InvalidSequence(text))
        raise _Close(InvalidInput.close_code, "invalid_sequence")

    # --- leaving ---------------------------------------------------------------------------------

    def _displaced(self) -> None:
        """Another connection resumed this episode."""
        self._session = None
        self._tell(Conflict("another connection resumed this episode", field="session_id"))
        self._finish(_Close(Conflict.close_code, "resumed by another connection"))

    def _leave(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        if self._codec.resumes:
            log(logging.INFO, "session_detached", session_id=session.start.session_id)
            session.detach()
        else:
            self._ended(session)
