"""Makers of episodes that never come, for worker processes."""

from __future__ import annotations

import os
import time

from sarm2_rollouts.episode import Episode
from sarm2_rollouts.metaworld_robot import EpisodePlan


def die(entry: EpisodePlan) -> Episode:
    os._exit(1)


def hang(entry: EpisodePlan) -> Episode:
    time.sleep(600)
    raise AssertionError
