"""The service as a child process, for commands that need one of their own."""

from __future__ import annotations

import os
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
from urllib.request import ProxyHandler, build_opener

from sarm2_client.errors import ConnectionLost, InvalidInput, WaitTimeout
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

_LISTENING = b'"event": "listening"'
_direct = build_opener(ProxyHandler({}))  # a proxy of the environment knows nothing of our loopback


class ServerProcess:
    """`sarm2 serve` on loopback, ready on entry, ended on exit.

    Args:
        port: where to listen; None takes 8765, or a free port where that is taken; 0 takes any free port.
            The attribute `port` is final on entry.
        bundle: the bundle to serve; None takes the shipped one.
        reload: whether it may take what the bundle's folder holds later.
        restart: whether it is started again, at the same port, where it ends before it is told to: killed
            while it starts too, but one that cannot start is told of.

    Raises:
        InvalidInput: another program listens at `port`.
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
        self._fixed = bool(port)
        self.port = free_port(DEFAULT_PORT if port is None else port)
        if port and self.port != port:
            raise _taken(port)
        self._bundle, self._reload, self._restart = bundle, reload, restart
        self._process: subprocess.Popen[bytes] | None = None
        self._changing = threading.Lock()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process does
        self._log_start = 0  # of the latest process

    @property
    def url(self) -> str:
        """The page, with a slash at the end."""
        return f"http://127.0.0.1:{self.port}/"

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
        self._log_start = os.fstat(self._log.fileno()).st_size
        command = [sys.executable, "-m", "sarm2_cli.main", "serve", "--port", str(self.port)]
        command += ["--host", "127.0.0.1"]  # whatever the environment says: it is for this command alone
        command += ["--log-level", "info"]  # at which it says that it listens
        if self._bundle is not None:
            command += ["--bundle", str(self._bundle)]
        if self._reload:
            command.append("--allow-reload")
        # A session of its own: Ctrl-C reaches this process alone, and the server is then ended in order.
        return subprocess.Popen(  # noqa: S603  # our own command, no shell
            command, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True, env=own_environment()
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
                self._process = process = self._begin_after(process.returncode)
            if self._answers():
                return process
            time.sleep(PROBE_EVERY_S)
        raise WaitTimeout(f"the server was not ready within {READY_TIMEOUT_S:.0f} s:\n{self.log_tail()}")

    def _begin_after(self, code: int) -> subprocess.Popen[bytes]:
        """Another process for one that ended with `code`. Raises where that would end the same way."""
        if free_port(self.port) != self.port:  # somebody was faster
            if self._fixed:
                raise _taken(self.port)
            self.port = free_port(0)
        elif self._restart and code in KILLED:
            time.sleep(RESTART_PAUSE_S)
        else:
            raise ConnectionLost(f"the server ended with code {code}:\n{self.log_tail()}")
        return self._begin()

    def _answers(self) -> bool:
        """Whether it is ready. While it does not listen yet, somebody else may answer at its port."""
        if _LISTENING not in self._printed()[self._log_start :]:
            return False
        try:
            with _direct.open(self.url + "readyz", timeout=PROBE_TIMEOUT_S):
                return True
        except (URLError, OSError):
            return False

    def _printed(self) -> bytes:
        """What the server printed. The process writes at the file's position, so that stays where it is."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0)

    def log_tail(self, lines: int = 12) -> str:
        """The last lines that the server printed."""
        return "\n".join(self._printed().decode(errors="replace").splitlines()[-lines:])

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


def _taken(port: int) -> InvalidInput:
    return InvalidInput(
        f"another program listens at port {port} of 127.0.0.1; end that, or name a free one with --port",
        field="port",
    )


def own_environment() -> dict[str, str]:
    """The environment of a service of our own: on loopback, for this command alone, it needs no keys."""
    return {name: value for name, value in ending_with_me().items() if name != "SARM2_API_KEYS"}
