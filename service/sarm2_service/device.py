"""The one thread that owns the model, and the watchdog that ends the process when that thread is lost.

Crash-only: a hung device, a broken GPU context or a dead thread cannot be mended from inside, so the process
ends, its supervisor starts a new one, and clients resume.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from sarm2_service.logs import log, log_failure

R = TypeVar("R")

EXIT_CODE = 70
"""Exit status after a lost device (EX_SOFTWARE)."""


def end_process(reason: str) -> None:
    """Leave at once: no handler, no flush can be trusted while the device hangs."""
    log(logging.CRITICAL, "device_lost", reason=reason, exit_code=EXIT_CODE)
    logging.shutdown()
    os._exit(EXIT_CODE)


class DeviceLostError(Exception):
    """Raised on the device thread when the device can no longer be used."""


def is_device_lost(error: BaseException) -> bool:
    """Whether an exception means a broken accelerator rather than a bad input or too little memory."""
    if isinstance(error, DeviceLostError):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names:
        return False
    return "AcceleratorError" in names or "CUDA error" in str(error)


class DeviceThread:
    """Runs calls, then batches, one at a time on a thread of its own.

    Args:
        work: takes and runs one batch; returns False when nothing waits. Called on the device thread.
        timeout_s: one call or batch longer than this is a hang.
        on_lost: called once with the reason when the device is lost; ends the process by default.
    """

    def __init__(
        self,
        work: Callable[[], bool],
        *,
        timeout_s: float,
        on_lost: Callable[[str], None] = end_process,
    ) -> None:
        self.condition = threading.Condition(threading.Lock())
        self._work = work
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._calls: deque[Callable[[], None]] = deque()
        self._pending = False
        self._stopping = False
        self._busy_since: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="device-watchdog", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Whether a call or a batch is running now."""
        return self._busy_since is not None

    def start(self) -> None:
        """Start the thread and its watchdog."""
        self._thread.start()
        self._watchdog.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Finish what runs now and end both threads; waits at most `timeout_s`."""
        with self.condition:
            self._stopping = True
            self.condition.notify_all()
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def wake(self) -> None:
        """Say that work waits. The caller holds `condition`."""
        self._pending = True
        self.condition.notify()

    async def call(self, function: Callable[..., R], *arguments: Any) -> R:
        """Run a function on the device thread, before any waiting batch, and return what it returns."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()

        def settle(result: R | None, error: Exception | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            try:
                result = function(*arguments)
            except Exception as error:
                loop.call_soon_threadsafe(settle, None, error)
                if is_device_lost(error):
                    raise
            else:
                loop.call_soon_threadsafe(settle, result, None)

        with self.condition:
            self._calls.append(run)
            self.wake()
        return await future

    def _run(self) -> None:
        try:
            while self._wait():
                self._busy_since = time.monotonic()
                call = self._calls.popleft() if self._calls else None
                if call is not None:
                    call()
                elif not self._work():
                    self._settle()
                self._busy_since = None
        except BaseException as error:
            log_failure("device_thread_failed", error)
            # The thread ends here; the watchdog would see it too, a moment later.
            self._lost(f"the device thread failed: {type(error).__name__}")

    def _wait(self) -> bool:
        with self.condition:
            while not self._pending and not self._calls and not self._stopping:
                self.condition.wait()
            return not self._stopping

    def _settle(self) -> None:
        """Nothing waits: sleep until woken, unless something came in since `work` looked."""
        with self.condition:
            self._pending = False
        if self._work():
            with self.condition:
                self._pending = True

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._timeout_s / 4)):
            since = self._busy_since
            if since is not None and time.monotonic() - since > self._timeout_s:
                self._lost(f"one batch ran for more than {self._timeout_s:g} s")
                return
            if not self._thread.is_alive():
                self._lost("the device thread is dead")
                return

    def _lost(self, reason: str) -> None:
        if not self._stopped.is_set():
            self._stopped.set()
            self._on_lost(reason)
