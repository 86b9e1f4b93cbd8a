"""Ctrl-C that cannot get lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def remembered_interrupts() -> Iterator[threading.Event]:
    """Ctrl-C raises KeyboardInterrupt as ever, and also sets the event.

    Python drops an exception that is raised inside a destructor or a weak reference's callback, and a
    KeyboardInterrupt may be raised anywhere: who is about to wait for Ctrl-C looks at the event first.
    Use it in the main thread, which alone gets signals.
    """
    seen = threading.Event()

    def remember(number: int, frame: FrameType | None) -> None:
        seen.set()
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
