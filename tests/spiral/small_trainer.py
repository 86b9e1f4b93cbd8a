"""A trainer to be killed: a small run with the service's rewards, in a process of its own.

python tests/spiral/small_trainer.py FOLDER PORT
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from sarm2_client.client import RewardClient
from sarm2_rollouts.collection import iterate_episodes
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.run import SpiralRun
from spiral.small_run import SMALL

CONFIG = replace(
    SMALL,
    policy=replace(SMALL.policy, steps=1500, width=64),
    update=replace(SMALL.update, updates=600, critic_only=100),
    loop=replace(SMALL.loop, rollouts=4, longest=30),
)


def folder_at(root: Path) -> SpiralFolder:
    """The run that is trained there."""
    return SpiralFolder(root, "drawer-open", "state", 7, CONFIG, own_service=False)


if __name__ == "__main__":
    root, port = Path(sys.argv[1]), int(sys.argv[2])
    with RewardClient(port=port) as client:
        one = partial(iterate_episodes, workers=1)
        SpiralRun(folder_at(root), client, "127.0.0.1", port, collector=one).start(resume=True)
