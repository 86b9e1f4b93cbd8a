"""Small work for child processes, in a module that costs nothing to import."""

from __future__ import annotations

from pathlib import Path

from sarm2_models.train.jobs import Ticker


def leave_a_note(ticker: Ticker, path: Path) -> None:
    """Write a file."""
    ticker.tick(1, 1)
    path.write_text("done")


def fail(ticker: Ticker, path: Path) -> None:
    """Raise, naming the file."""
    raise ValueError(f"no luck with {path.name}")
