"""Waiting for a service that has gone away: the loop pauses, and goes on when it is back."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from sarm2_client.errors import ConnectionLost, Draining, Overloaded, WaitTimeout

OUTAGE_S = 600.0
"""How long a service may be away before the loop gives up. What is finished is kept."""
PAUSE_S = 2.0
LONGEST_PAUSE_S = 30.0

Thing = TypeVar("Thing")
Say: TypeAlias = Callable[[str], None]


def _on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # a worker process has no console


def patiently(
    work: Callable[[], Thing],
    *,
    outage_s: float = OUTAGE_S,
    tell: Say = _on_stderr,
) -> Thing:
    """Do some work that needs the service, again and again while the service is away.

    Args:
        work: may be done several times; what it did before the service went must not count.
        tell: told once when the waiting begins; by default stderr, which worker processes share with people.

    Raises what the work raised last, once `outage_s` seconds have passed since the service went away first:
    one that comes back only to go again at the same piece of work is not waited for without end.
    """
    gone_since: float | None = None
    pause = PAUSE_S
    while True:
        try:
            return work()
        except (ConnectionLost, WaitTimeout, Overloaded, Draining) as error:
            now = time.monotonic()
            if gone_since is None:
                gone_since = now
                tell(f"the service is away ({error.message}); waiting for it, at most {outage_s:.0f} s")
            if now - gone_since > outage_s:
                raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
