"""What was done against what the policy would do, as its critics judge."""

from __future__ import annotations

import numpy as np
import torch

from sarm2_spiral.advantages import FRAMES, advantage, advantages
from sarm2_spiral.replay import Replay
from sarm2_spiral.residual import Learner
from spiral.small_data import SMALL, trajectory


def make_learner() -> Learner:
    torch.manual_seed(0)
    learner = Learner(2, 1, SMALL.update)
    torch.nn.init.normal_(learner.actor.net[-1].weight)  # type: ignore[arg-type]  # a Linear
    return learner


def test_an_advantage_is_the_least_value_of_what_was_done_over_the_mean_of_the_policys_own() -> None:
    learner = make_learner()
    batch = Replay([trajectory(seed) for seed in range(3)], SMALL.update).at(np.array([0, 3, 41]))
    expected = []
    with torch.no_grad():
        for row in range(3):
            state_1F = batch.features_BF[row : row + 1]
            done = learner.critics(state_1F, batch.chunk_BK[row : row + 1]).min()
            would = [
                learner.critics(state_1F, learner.corrected(state_1F, base_K[None])).min()
                for base_K in batch.base_BMK[row]
            ]
            expected.append(float(done - torch.stack(would).mean()))
    np.testing.assert_allclose(advantage(learner, batch).numpy(), expected, atol=1e-5)


def test_every_frame_has_its_own_however_many_are_judged_at_a_time() -> None:
    learner = make_learner()
    replay = Replay([trajectory(seed, frames=100) for seed in range(7)], SMALL.update)
    frames_T = np.arange(50, 690)
    assert len(frames_T) > FRAMES
    found_T = advantages(learner, replay, frames_T)
    assert (found_T.shape, found_T.dtype) == ((640,), np.dtype(np.float32))
    turned_T = advantages(learner, replay, frames_T[::-1].copy())
    np.testing.assert_allclose(found_T, turned_T[::-1], atol=1e-5)
    assert found_T.std() > 1e-3
