"""Transitions come out of the replay as they went in, within their own episode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sarm2_client.errors import InvalidInput
from sarm2_spiral.replay import Replay, Trajectory, executed_chunks
from spiral.small_data import SMALL, trajectory


def test_a_transition_ends_some_frames_later_in_the_same_episode() -> None:
    one, two = trajectory(0, frames=6), trajectory(1, frames=5)
    replay = Replay([one, two], SMALL.update)
    batch = replay.at(np.array([0, 4, 8]))
    np.testing.assert_array_equal(batch.features_BF[0], one.features_TF[0])
    np.testing.assert_array_equal(batch.later_BF[0], one.features_TF[3])
    np.testing.assert_array_equal(batch.later_BF[1], one.features_TF[5])  # the last frame, one ahead
    np.testing.assert_array_equal(batch.later_BF[2], two.features_TF[4])
    gamma = SMALL.update.gamma
    assert batch.discount_B.tolist() == pytest.approx([gamma**3, gamma, gamma**2])
    np.testing.assert_array_equal(batch.chunk_BK[1], one.action_TA[4])
    np.testing.assert_array_equal(batch.base_BMK[2], two.base_TMK[2])


def test_nothing_is_expected_after_an_episode_that_ended_in_success() -> None:
    done = replace(trajectory(0, frames=6), progress_T=np.linspace(0, 1, 6, dtype=np.float32))
    failed = replace(done, progress_T=np.linspace(0, 0.5, 6, dtype=np.float32))
    batch = Replay([done, failed], SMALL.update).at(np.array([1, 4, 10]))
    gamma = SMALL.update.gamma
    assert batch.discount_B.tolist() == pytest.approx([gamma**3, 0.0, gamma])


def test_half_of_a_batch_is_demonstrations_and_none_starts_at_an_end() -> None:
    demo, rollout = trajectory(0, demo=True), trajectory(1)
    rollout = replace(rollout, features_TF=rollout.features_TF + 10)  # never to be taken for the other
    replay = Replay([demo, rollout], SMALL.update)
    batch = replay.draw(np.random.default_rng(0))
    assert int((batch.features_BF[:, 0] < 10).sum()) == SMALL.update.batch // 2
    assert (batch.discount_B < 1).all()
    alone = Replay([rollout], SMALL.update).draw(np.random.default_rng(0))
    assert len(alone.features_BF) == SMALL.update.batch


def test_an_executed_chunk_goes_on_with_the_last_action() -> None:
    actions = np.array([[0.1], [0.2], [3.0]], np.float32)
    np.testing.assert_allclose(executed_chunks(actions, 2), [[0.1, 0.2], [0.2, 1.0], [1.0, 1.0]])


def test_what_does_not_fit_together_is_refused() -> None:
    good = trajectory(0)
    with pytest.raises(InvalidInput, match="as many features"):
        Trajectory(good.features_TF, good.action_TA[1:], good.progress_T, good.base_TMK, demo=True)
    with pytest.raises(InvalidInput, match="at least one trajectory"):
        Replay([], SMALL.update)
