"""A real server on loopback, in a thread of the test's process, and a plain robot that talks to it.

with RunningServer(model, max_in_flight=2) as server, server.robot() as robot:
    robot.start("episode")
    robot.score(fakes.frame(0))
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import httpx2 as httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import fakes
from sarm2_client import wire
from sarm2_client.codec import decode_server_message, encode
from sarm2_models.reward_model import RewardModel
from sarm2_service.run import bind, build_app, make_server
from sarm2_service.settings import Settings
from sarm2_service.state import Service

WAIT_S = 10.0
M = TypeVar("M")
T = TypeVar("T")


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what another thread brings about; fails after `WAIT_S` seconds."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class RunningServer:
    """The shipped server around `model`, from entering a `with` block until leaving it.

    Args:
        model: any; a test that breaks nothing in it may share it with others.
        settings: fields of `Settings`. `port` is a free one unless given, for a server that comes back.
    """

    def __init__(self, model: RewardModel, **settings: Any) -> None:
        self.settings = Settings(**{"port": 0, "drain_timeout_s": 2, "torch_threads": 1, **settings})
        self.model = model
        self._socket = bind(self.settings)
        self.port = int(self._socket.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self.stream_url = f"ws://{self.address}/v1/stream"
        self.app = build_app(self.settings, model)
        self.service: Service = self.app.state.service
        self._server = make_server(self.settings, self.app)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def __enter__(self) -> RunningServer:
        self._thread.start()
        for _ in range(1000):
            if self._server.started:
                return self
            self._thread.join(0.01)
        raise AssertionError("the server did not start")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the server did not stop"

    def stop(self) -> None:
        """What SIGTERM does."""
        self._server.should_exit = True

    def call(self, work: Callable[[], T]) -> T:
        """What `work` returns, run on the server's event loop, where its feed and sessions live."""

        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self.service.loop).result(WAIT_S)

    def http(self, **options: Any) -> httpx.Client:
        """An HTTP client for this server."""
        return httpx.Client(base_url=self.url, timeout=WAIT_S, trust_env=False, **options)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric now; 0 if it was never touched."""
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    @contextmanager
    def robot(self, **options: Any) -> Iterator[Robot]:
        """A connected robot that has had its `hello`."""
        with connect(
            self.stream_url,
            subprotocols=[wire.PROTOCOL],  # type: ignore[list-item]
            compression=None,
            max_size=2**26,
            open_timeout=WAIT_S,
            close_timeout=1,
            **options,
        ) as connection:
            robot = Robot(connection)
            robot.hello = robot.expect(wire.Hello)
            yield robot


Serve: TypeAlias = Callable[..., RunningServer]
"""Starts a server with the settings a test needs: `serve(cache_bytes=0)`."""


class Robot:
    """Sends and receives messages of the protocol, one at a time."""

    hello: wire.Hello

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def send(self, message: Any) -> None:
        """One message; bytes and text go out as they are."""
        self.connection.send(message if isinstance(message, bytes | str) else encode(message))

    def receive(self) -> wire.ServerMessage:
        """The next message."""
        data = self.connection.recv(timeout=WAIT_S)
        assert isinstance(data, bytes)
        return decode_server_message(data)

    def expect(self, kind: type[M]) -> M:
        """The next message, which must be of this kind."""
        message = self.receive()
        assert isinstance(message, kind), message
        return message

    def start(self, session_id: str, **fields: Any) -> wire.Started:
        """Open an episode."""
        self.send(fakes.start(session_id, **fields))
        return self.expect(wire.Started)

    def score(self, frame: wire.Frame) -> wire.Score:
        """Send a frame and wait for its score."""
        self.send(frame)
        return self.expect(wire.Score)

    def end(self, seq: int | None = None) -> wire.Summary:
        """End the episode."""
        self.send(wire.End(seq=seq))
        return self.expect(wire.Summary)

    def collect(self, messages: list[wire.ServerMessage]) -> None:
        """Receive into `messages` until the server closes."""
        try:
            while True:
                messages.append(self.receive())
        except ConnectionClosed:
            return

    def closed(self) -> int:
        """Wait for the server to close; returns the close code."""
        self.collect([])
        assert self.connection.close_code is not None
        return self.connection.close_code
