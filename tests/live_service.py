"""A real service on a free loopback port, in a thread of the test's process: only the model is toy-sized."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes import make_bundle
from sarm2_models.checkpoint import load_bundle
from sarm2_service.run import DrainingServer, build_app, make_server
from sarm2_service.settings import Settings

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class LiveService:
    """A running service. `call` runs a function on its event loop, where its feed and sessions live."""

    port: int
    app: Any
    loop: asyncio.AbstractEventLoop

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The page."""
        return f"http://{self.address}/"

    def call(self, work: Callable[[], None]) -> None:
        """Run `work` on the service's event loop and wait for it."""
        done = threading.Event()

        def run() -> None:
            try:
                work()
            finally:
                done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(10)


@contextmanager
def live_service(folder: Path, port: int = 0, **settings: Any) -> Iterator[LiveService]:
    """Serve a tiny bundle until the block ends; it is drained and joined then.

    Args:
        folder: an empty one, for the bundle; one that was used before is served again.
        port: 0 for a free one.
        settings: fields of `Settings`.
    """
    bundle = folder / "bundle" if (folder / "bundle").exists() else make_bundle(folder)
    chosen = Settings(
        **{"port": port, "bundle": bundle, "torch_threads": 1, "drain_timeout_s": 0.2, **settings}
    )
    app = build_app(chosen, load_bundle(bundle, "cpu"))
    server = make_server(chosen, app)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve()), name="live-service")
    thread.start()
    try:
        yield LiveService(_port_of(server, thread), app, loop)
    finally:
        server.should_exit = True
        thread.join(STOP_TIMEOUT_S)
        assert not thread.is_alive(), "the service did not stop"
        loop.close()


def _port_of(server: DrainingServer, thread: threading.Thread) -> int:
    until = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        assert thread.is_alive(), "the service failed to start"
        assert time.monotonic() < until, "the service did not start in time"
        time.sleep(0.02)
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port
