"""A robot that must reach 1 on a line, in a few lines: what its trajectories look like to the learner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sarm2_spiral.config import METAWORLD, SpiralConfig
from sarm2_spiral.replay import Trajectory

SMALL: SpiralConfig = replace(
    METAWORLD,
    policy=replace(METAWORLD.policy, horizon=2, width=32, layers=2, steps=60, batch=32, flow_steps=2),
    update=replace(
        METAWORLD.update,
        executed=1,
        returns=3,
        width=32,
        batch=32,
        latents=2,
        critics=3,
        updates=40,
        critic_only=10,
    ),
)


def trajectory(seed: int, *, frames: int = 20, demo: bool = False) -> Trajectory:
    """A walk along the line; features are the place and a constant, the only action is the step."""
    rng = np.random.default_rng(seed)
    action_TA = rng.uniform(-0.5, 1.0, (frames, 1)).astype(np.float32)
    place_T = np.clip(np.cumsum(0.1 * np.append(0.0, action_TA[:-1, 0])), 0, 1)
    return Trajectory(
        features_TF=np.stack([place_T, np.ones(frames)], axis=1).astype(np.float32),
        action_TA=action_TA,
        progress_T=place_T.astype(np.float32),
        base_TMK=rng.uniform(-0.2, 0.6, (frames, 2, 1)).astype(np.float32),
        demo=demo,
    )
