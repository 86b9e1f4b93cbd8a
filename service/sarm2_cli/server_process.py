"""The service as a child process, for commands that need one of their own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import urlopen

from sarm2_client.errors import ConnectionLost, WaitTimeout
from sarm2_rollouts.with_parent import ending_with_me

DEFAULT_PORT = 8765
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
RESTART_PAUSE_S = 2.0
PROBE_TIMEOUT_S = 2.0
PROBE_EVERY_S = 0.2
INTERRUPT_CHECK_S = 0.5

KILLED = (-signal.SIGKILL, -signal.SIGTERM)
"""Ends that somebody else made; after any other it would end the same way again."""


class ServerProcess:
    """`sarm2 serve` on loopback, ready on entry, ended on exit.

    Args:
        port: where to listen; None takes 8765, or a free port where that is taken; 0 takes any free port.
        bundle: the bundle to serve; None takes the shipped one.
        reload: whether it may take what the bundle's folder holds later.
        restart: whether it is started again, at the same port, where it ends before it is told to: killed
            while it starts too, but one that cannot start is told of.

    Raises:
        ConnectionLost: the process ended before it was ready; its last lines are in the message.
        WaitTimeout: it was not ready within READY_TIMEOUT_S.
    """

    def __init__(
        self,
        port: int | None = None,
        bundle: Path | None = None,
        *,
        reload: bool = False,
        restart: bool = False,
    ) -> None:
        self.port = port or free_port(DEFAULT_PORT if port is None else 0)
        self.url = f"http://127.0.0.1:{self.port}/"
        self._bundle, self._reload, self._restart = bundle, reload, restart
        self._process: subprocess.Popen[bytes] | None = None
        self._changing = threading.Lock()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process does

    def __enter__(self) -> ServerProcess:
        self._process = self._begin()
        try:
            ready = self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise
        if self._restart:
            threading.Thread(target=self._begin_again, args=(ready,), daemon=True).start()
        return self

    def _begin(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sarm2_cli.main", "serve", "--port", str(self.port)]
        if self._bundle is not None:
            command += ["--bundle", str(self._bundle)]
        if self._reload:
            command.append("--allow-reload")
        # A session of its own: Ctrl-C reaches this process alone, and the server is then ended in order.
        return subprocess.Popen(  # noqa: S603  # our own command, no shell
            command, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True, env=ending_with_me()
        )

    def _begin_again(self, process: subprocess.Popen[bytes]) -> None:
        """Whoever waits for the service decides how long; one that cannot start is tried again and again."""
        while True:
            process.wait()
            with self._changing:
                if self._process is not process:
                    return
                self._process = process = self._begin()
            time.sleep(RESTART_PAUSE_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                if not self._restart or process.returncode not in KILLED:
                    raise ConnectionLost(
                        f"the server ended with code {process.returncode}:\n{self.log_tail()}"
                    )
                time.sleep(RESTART_PAUSE_S)
                self._process = process = self._begin()
            try:
                with urlopen(self.url + "readyz", timeout=PROBE_TIMEOUT_S):  # noqa: S310  # always http on loopback
                    return process
            except (URLError, OSError):
                time.sleep(PROBE_EVERY_S)
        raise WaitTimeout(f"the server was not ready within {READY_TIMEOUT_S:.0f} s:\n{self.log_tail()}")

    def log_tail(self, lines: int = 12) -> str:
        """The last lines that the server printed."""
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-lines:])

    def wait(self, interrupted: threading.Event) -> None:
        """Block until the server ends or the user interrupts: by KeyboardInterrupt, or by the event alone."""
        assert self._process is not None
        try:
            while self._process.poll() is None and not interrupted.wait(INTERRUPT_CHECK_S):
                pass
        except KeyboardInterrupt:
            return

    def stop(self) -> None:
        """End the server: first politely, after STOP_TIMEOUT_S by force."""
        with self._changing:
            process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._log.close()


def free_port(preferred: int) -> int:
    """`preferred` if nobody listens there, else any free port of loopback."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConnectionLost("no free port on 127.0.0.1; close something or name one with --port")
