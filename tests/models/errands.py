"""Small work for child processes, in a module that costs nothing to import."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from rich.console import Console

from sarm2_client.errors import NotFound
from sarm2_models.train.jobs import Job, Ticker, run_jobs


def leave_a_note(ticker: Ticker, path: Path) -> None:
    """Write a file."""
    ticker.tick(1, 1)
    path.write_text("done")


def count_on(ticker: Ticker, path: Path) -> None:
    """Write ever higher numbers, for a minute at most."""
    for number in range(1200):
        path.write_text(str(number))
        time.sleep(0.05)


def fail(ticker: Ticker, path: Path) -> None:
    """Raise, naming the file."""
    raise ValueError(f"no luck with {path.name}")


def find(ticker: Ticker, path: Path) -> None:
    """Raise an error for users, unless the file is there."""
    if not path.exists():
        raise NotFound(f"there is no {path.name} [yet]", field="place")


def give_up(ticker: Ticker, path: Path) -> None:
    """End without a word."""
    os._exit(3)


if __name__ == "__main__":  # a parent to be killed: its job counts on into the given file
    place = Path(sys.argv[1])
    run_jobs([Job("counting", count_on, (place,), place.parent)], at_once=1, console=Console(quiet=True))
