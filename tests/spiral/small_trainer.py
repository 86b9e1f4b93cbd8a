"""A trainer to be killed: a small run with the service's rewards, in a process of its own.

python tests/spiral/small_trainer.py FOLDER PORT     a state policy, through a running service
python tests/spiral/small_trainer.py FOLDER          an image policy, and a service of its own that is adapted
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from sarm2_cli.spiral_reach import reaching
from sarm2_client.client import RewardClient
from sarm2_rollouts.collection import iterate_episodes
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.run import SpiralRun
from spiral.small_run import SMALL

CONFIG = replace(
    SMALL,
    policy=replace(SMALL.policy, steps=1500, width=64),
    update=replace(SMALL.update, updates=600, critic_only=100),
    loop=replace(SMALL.loop, rollouts=4, longest=30, adapt=False),
)
ADAPTED = replace(
    CONFIG, loop=replace(CONFIG.loop, first=8, adapt_steps=60, remember=4, rounds=1, adapt=True)
)
"""Eight episodes of each kind are the fewest that an adaptation holds some back from."""


def folder_at(root: Path, *, own_service: bool) -> SpiralFolder:
    """The run that is trained there."""
    if own_service:
        return SpiralFolder(root, "drawer-open", "image", 7, ADAPTED)
    return SpiralFolder(root, "drawer-open", "state", 7, CONFIG, own_service=False)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    if len(sys.argv) == 2:
        with reaching(folder_at(root, own_service=True), None, None, 1) as run:
            run.start(resume=True)
    else:
        port = int(sys.argv[2])
        folder, one = folder_at(root, own_service=False), partial(iterate_episodes, workers=1)
        with RewardClient(port=port) as client:
            SpiralRun(folder, client, "127.0.0.1", port, collector=one).start(resume=True)
