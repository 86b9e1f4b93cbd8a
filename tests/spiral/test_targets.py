"""Every term of the update against a case worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sarm2_spiral.targets import (
    actor_loss,
    critic_loss,
    hybrid_target,
    monte_carlo,
    partial_returns,
    rewards,
    smoothed,
)

CURVE = [0.0, 0.2, 0.5, 0.4, 1.0]


def test_a_reward_is_the_progress_that_the_next_frame_gains() -> None:
    np.testing.assert_allclose(rewards(CURVE), [0.2, 0.3, -0.1, 0.6, 0.0])


def test_the_return_adds_up_the_rewards_that_follow() -> None:
    g = 0.5
    by_hand = [0.2 + g * 0.3 - g**2 * 0.1 + g**3 * 0.6, 0.3 - g * 0.1 + g**2 * 0.6, -0.1 + g * 0.6, 0.6, 0.0]
    np.testing.assert_allclose(monte_carlo(CURVE, g, "return"), by_hand, atol=1e-7)


def test_without_discount_the_return_is_the_progress_that_is_left_to_gain() -> None:
    np.testing.assert_allclose(monte_carlo(CURVE, 1.0, "return"), 1.0 - np.array(CURVE), atol=1e-7)


def test_the_published_return_is_final_progress_discounted_to_the_last_frame() -> None:
    curve = [0.0, 0.4, 0.8]
    np.testing.assert_allclose(monte_carlo(curve, 0.5, "final_progress"), [0.2, 0.4, 0.8], atol=1e-7)


def test_partial_returns_stop_after_some_frames_and_at_the_end() -> None:
    by_hand = [0.2 + 0.5 * 0.3, 0.3 - 0.5 * 0.1, -0.1 + 0.5 * 0.6, 0.6, 0.0]
    np.testing.assert_allclose(partial_returns(CURVE, 0.5, 2), by_hand, atol=1e-7)


def test_the_hybrid_target_takes_the_least_critic_and_mixes_both_returns() -> None:
    later_NB = torch.tensor([[0.8, 0.1], [0.5, 0.3], [0.9, 0.2]])
    target = hybrid_target(
        monte_carlo_B=torch.tensor([0.6, 0.4]),
        partial_B=torch.tensor([0.1, 0.2]),
        discount_B=torch.tensor([0.9, 0.0]),  # the second episode has ended in success
        later_NB=later_NB,
        alpha=0.25,
    )
    by_hand = [0.25 * 0.6 + 0.75 * (0.1 + 0.9 * 0.5), 0.25 * 0.4 + 0.75 * 0.2]
    assert target.tolist() == pytest.approx(by_hand)


def test_the_actor_climbs_the_least_critic_and_pays_for_its_residual() -> None:
    value_NB = torch.tensor([[0.4, 0.9], [0.6, 0.7]])
    residual_BK = torch.tensor([[0.1, 0.2], [0.0, 0.3]])
    by_hand = ((-0.4 + 2 * 0.05) + (-0.7 + 2 * 0.09)) / 2
    assert float(actor_loss(value_NB, residual_BK, beta=2.0)) == pytest.approx(by_hand)


def test_all_critics_learn_the_same_target() -> None:
    value_NB = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    by_hand = (0.25 + 0.25 + 0.0 + 0.0) / 4
    assert float(critic_loss(value_NB, torch.tensor([0.5, 0.5]))) == pytest.approx(by_hand)


def test_smoothing_keeps_level_and_ends_and_spreads_a_jump() -> None:
    np.testing.assert_allclose(smoothed(np.full(9, 0.4), 2.0), 0.4, atol=1e-6)
    jump = smoothed(np.repeat([0.0, 1.0], 20), 2.0)
    assert jump[0] == pytest.approx(0, abs=1e-4)
    assert jump[-1] == pytest.approx(1, abs=1e-4)
    assert jump[19] == pytest.approx(0.4, abs=0.01)  # half a frame before the middle of the jump
    assert (np.diff(jump) >= 0).all()
    np.testing.assert_array_equal(smoothed([0.0, 1.0, 0.0], 0.0), [0.0, 1.0, 0.0])
