"""A run so small that it ends in seconds; its rewards need no service."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from sarm2_client.client import RewardClient
from sarm2_rollouts.collection import iterate_episodes
from sarm2_spiral.config import QUICK, SpiralConfig
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.run import SpiralRun

SMALL = SpiralConfig(
    replace(QUICK.policy, steps=40, width=32, batch=64),
    replace(QUICK.update, updates=20, critic_only=5, width=32, batch=32),
    replace(QUICK.loop, demos=3, first=8, rounds=2, rollouts=3, trial=1, evaluation=2, between=1, longest=25),
)


def in_round_1(root: Path, settings: SpiralConfig = SMALL) -> SpiralFolder:
    """The folder of a run that has done nothing, with a place for its first round."""
    folder = SpiralFolder(root, "drawer-open", "state", 7, settings, "true")
    folder.round(1).mkdir(parents=True)
    return folder


def quiet_run(folder: SpiralFolder, client: RewardClient) -> SpiralRun:
    """A run that prints nothing and makes its episodes in this process."""
    here = partial(iterate_episodes, workers=0)
    return SpiralRun(folder, client, "127.0.0.1", 0, collector=here, console=Console(quiet=True))
