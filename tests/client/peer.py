"""A scripted server of `sarm.v1` on a real websocket: the other end for the client's tests.

It keeps episodes as a service does (duplicates are answered again, a lost episode goes on), scores a frame by
its `seq` and pictures alone, and breaks in the ways that a test asks for.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from sarm2_client import wire
from sarm2_client.codec import decode_client_message, encode

CAMERAS = ["corner", "wrist"]
STATE_DIM = 4
SIZE = 16

LIMITS = wire.Limits(
    max_message_bytes=2**20,
    max_image_pixels=2**20,
    max_episode_frames=1000,
    max_in_flight=8,
    max_sessions=4,
    max_task_chars=200,
    max_fps=240.0,
    idle_timeout_s=60.0,
)


def hello(limits: wire.Limits = LIMITS, protocol: str = wire.PROTOCOL) -> wire.Hello:
    """What the peer says first."""
    model = wire.ModelInfo(
        id="peer",
        version="1",
        weights_sha256="0" * 64,
        window=6,
        gap_s=0.4,
        causal=True,
        cameras=CAMERAS,
        state_dim=STATE_DIM,
        primitives=["reach", "null"],
        groups=["acquire", "other"],
        primitive_groups=[0, 1],
        experts=2,
        tasks=["open the drawer"],
    )
    preprocess = wire.Preprocess(
        size=SIZE, resize="pad", colour="rgb", mean=[0.5] * 3, std=[0.5] * 3, hash="0" * 64
    )
    return wire.Hello(
        protocol=protocol,
        server_version="0",
        model=model,
        preprocess=preprocess,
        limits=limits,
        server_time_ns=time.time_ns(),
    )


def score_of(frame: wire.Frame, previous: float | None) -> wire.Score:
    """A score that depends on the frame's number and pictures alone."""
    digest = hashlib.sha256(b"".join(frame.images[camera].data for camera in sorted(frame.images))).digest()
    progress = (frame.seq % 100) / 100 + digest[0] / 25600
    return wire.Score(
        seq=frame.seq,
        t_ns=frame.t_ns,
        progress=progress,
        value=progress - 1,
        reward=None if previous is None else progress - previous,
        primitive="reach",
        group="acquire",
        primitive_probs=[0.9, 0.1],
        confidence=0.9,
        uncertain=False,
        task_known=True,
        interval=(max(0.0, progress - 0.1), min(1.0, progress + 0.1)),
        experts=[0.6, 0.4],
        durable_seq=frame.seq,
        filled=0,
        model_version="1",
        timing=wire.Timing(total_ms=1.0, queue_ms=0.1, encode_ms=0.6, heads_ms=0.2),
    )


def summary_of(session: Session) -> wire.Summary:
    """The end of an episode."""
    return wire.Summary(
        session_id=session.start.session_id,
        task=session.start.task,
        task_known=True,
        frames=len(session.answers),
        scored=sum(isinstance(answer, wire.Score) for answer in session.answers.values()),
        dropped=0,
        duration_s=1.0,
        final_progress=session.previous,
        max_progress=session.previous,
        largest_fall=0.0,
        mean_confidence=0.9,
        uncertain_share=0.0,
        segments=[],
        model_version="1",
    )


@dataclass
class Session:
    """What the peer knows of an episode."""

    start: wire.Start
    answers: dict[int, wire.ServerMessage] = field(default_factory=dict)
    previous: float | None = None
    last: int = -1


@dataclass
class Script:
    """How the peer behaves. `answer` may return other messages than a score, or none at all."""

    limits: wire.Limits = LIMITS
    protocol: str = wire.PROTOCOL
    subprotocol: str | None = wire.PROTOCOL
    greet: bool = True
    close_after: dict[int, int] = field(default_factory=dict)
    """Frames accepted in all -> close code (1006 breaks the connection without a word)."""
    forget_on_close: bool = False
    withhold: frozenset[int] = frozenset()
    """Frames whose answers are lost on the way the first time."""
    close_resumes: int = 0
    """How many connections break once they have resumed an episode, before any answer."""
    refuse_starts: list[wire.Error] = field(default_factory=list)
    refuse_resumes: list[wire.Error] = field(default_factory=list)
    answer: Callable[[wire.Frame, float | None], list[wire.ServerMessage]] = lambda frame, previous: [
        score_of(frame, previous)
    ]
    delay_s: float = 0.0
    summarise: bool = True
    key: str | None = None
    refuse_status: int | None = None


class Peer:
    """The server; `with Peer(Script(...)) as peer: ... peer.port`."""

    def __init__(self, script: Script | None = None, port: int = 0) -> None:
        self.script = script or Script()
        self.sessions: dict[str, Session] = {}
        self.frames: list[wire.Frame] = []
        self.starts: list[wire.Start] = []
        self.pings = 0
        self.connections = 0
        self.open = 0
        self._wanted_port = port
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Peer:
        self._server = serve(
            self._serve,
            "127.0.0.1",
            self._wanted_port,
            subprotocols=[Subprotocol(wire.PROTOCOL)] if self.script.subprotocol else None,
            process_request=self._admit,
            compression=None,
            ping_interval=None,
            close_timeout=0.2,
        )
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._thread.join()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.socket.getsockname()[1])

    def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        """Refuse the handshake where the script says so."""
        key = self.script.key
        if key is not None and request.headers.get("Authorization") != f"Bearer {key}":
            return socket.respond(401, "wrong key")
        if self.script.refuse_status is not None:
            return socket.respond(self.script.refuse_status, "scripted")
        return None

    def _serve(self, socket: ServerConnection) -> None:
        self.connections += 1
        self.open += 1
        try:
            if self.script.greet:
                socket.send(encode(hello(self.script.limits, self.script.protocol)))
            self._talk(socket)
        except ConnectionClosed:
            return
        finally:
            self.open -= 1

    def _talk(self, socket: ServerConnection) -> None:
        session: Session | None = None
        while True:
            data = socket.recv()
            assert isinstance(data, bytes)
            message = decode_client_message(data, self.script.limits)
            if isinstance(message, wire.Start):
                session = self._start(socket, message)
                if message.resume_from is not None and session is not None and self.script.close_resumes:
                    self.script.close_resumes -= 1
                    _close(socket, 1006)
                    return
            elif isinstance(message, wire.Frame) and session is not None:
                if self._frame(socket, session, message):
                    return
            elif isinstance(message, wire.End) and session is not None:
                if self.script.summarise:
                    socket.send(encode(summary_of(session)))
                self.sessions.pop(session.start.session_id, None)
                session = None
            else:
                assert isinstance(message, wire.Ping)
                self.pings += 1
                socket.send(encode(wire.Pong(t_ns=message.t_ns, server_time_ns=time.time_ns())))

    def _start(self, socket: ServerConnection, start: wire.Start) -> Session | None:
        self.starts.append(start)
        refusals = self.script.refuse_starts if start.resume_from is None else self.script.refuse_resumes
        if refusals:
            socket.send(encode(refusals.pop(0)))
            return None
        known = self.sessions.get(start.session_id)
        session = known or Session(start)
        self.sessions[start.session_id] = session
        socket.send(
            encode(
                wire.Started(
                    session_id=start.session_id,
                    next_seq=session.last + 1,
                    resumed=known is not None,
                    task_known=True,
                )
            )
        )
        return session

    def _frame(self, socket: ServerConnection, session: Session, frame: wire.Frame) -> bool:
        """Answer a frame; True when the connection was closed instead."""
        known = session.answers.get(frame.seq)
        if known is not None:
            socket.send(encode(known))
            return False
        self.frames.append(frame)
        answers = self.script.answer(frame, session.previous)
        for answer in answers:
            session.answers[frame.seq] = answer
            if isinstance(answer, wire.Score):
                session.previous = answer.progress
        session.last = frame.seq
        code = self.script.close_after.pop(len(self.frames), None)
        if code is not None:
            if self.script.forget_on_close:
                self.sessions.clear()
            _close(socket, code)
            return True
        if self.script.delay_s:
            time.sleep(self.script.delay_s)
        if frame.seq not in self.script.withhold:
            for answer in answers:
                socket.send(encode(answer))
        return False


def _close(socket: ServerConnection, code: int) -> None:
    if code == 1006:
        socket.socket.close()
    else:
        socket.close(code, "scripted")
