"""Makers whose episodes never come, or not at once, for worker processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from sarm2_rollouts.episode import Episode
from sarm2_rollouts.metaworld_robot import EpisodePlan


def die(entry: EpisodePlan) -> Episode:
    os._exit(1)


def die_once(number: int, mark: Path, entry: EpisodePlan) -> Episode:
    """Die over one episode, the first time; make the others, and it when it comes again."""
    if entry.seed == number and not mark.exists():
        mark.touch()
        os._exit(1)
    return Episode("task", 10.0, {}, np.zeros((2, 4), dtype=np.float32), seed=entry.seed)


def hang(entry: EpisodePlan) -> Episode:
    time.sleep(600)
    raise AssertionError
