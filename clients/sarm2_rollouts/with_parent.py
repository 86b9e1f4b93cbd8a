"""A process that ends with the one that started it, even where that one was killed.

Whoever is killed ends nothing, and is started again: a second service or a second training would then work
on the same files.
"""

from __future__ import annotations

import os
import signal
import threading
import time

VARIABLE = "SARM2_END_WITH"
POLL_S = 0.5
GRACE_S = 20.0
"""How long an orphan may take to end in order."""


def ending_with_me() -> dict[str, str]:
    """This process's environment for a child that calls `end_with_parent`."""
    return {**os.environ, VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """End when the parent does, if it asked for that: by SIGTERM, after `GRACE_S` seconds by force."""
    parent = os.environ.pop(VARIABLE, None)
    if parent is not None:
        end_with(int(parent))


def end_with(parent: int) -> None:
    """End when `parent`, a process id, does: for a child that needs not be asked."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)
