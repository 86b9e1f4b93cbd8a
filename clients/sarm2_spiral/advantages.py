"""Advantages: by how much what was done in a frame beats what the policy does there, by its critics.

Shapes: T frames, B of them at a time, F features, M latents, K a flat executed chunk, R = B x M.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sarm2_spiral.replay import Batch, Replay
from sarm2_spiral.residual import Learner

FRAMES = 512
"""Judged at a time."""


def advantages(learner: Learner, replay: Replay, frames_T: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Of some frames of a replay, at least one, float32 (T,), in units of progress."""
    parts = np.array_split(frames_T, -(-len(frames_T) // FRAMES))
    return np.concatenate([advantage(learner, replay.at(part_B)).numpy() for part_B in parts])


@torch.no_grad()
def advantage(learner: Learner, batch: Batch) -> Tensor:
    """Q(s, what was done) - V(s), (B,). Q is the critics' minimum, and V the mean of Q over the policy's
    chunks, of which the critics' target draws one. Deployed, the policy carries out the best of them."""
    base_RK = batch.base_BMK.flatten(0, 1)
    would_RK = learner.corrected(batch.features_BF, base_RK)
    done_B: Tensor = learner.critics(batch.features_BF, batch.chunk_BK).min(0).values
    would_R: Tensor = learner.critics(batch.features_BF, would_RK).min(0).values
    return done_B - would_R.view(len(done_B), -1).mean(1)
