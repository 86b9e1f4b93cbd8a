"""Weights of reward-weighted cloning against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sarm2_rollouts.rabc import EPSILON, gain_weights, gains, rabc_weights, suggested_kappa


def test_a_gain_looks_some_frames_ahead_and_past_the_end_at_the_last_frame() -> None:
    np.testing.assert_allclose(gains([0.0, 0.1, 0.4, 0.3], 2), [0.4, 0.2, -0.1, 0.0])


def test_above_kappa_weighs_one_a_loss_nothing_and_between_them_a_ramp() -> None:
    gain = np.array([0.02, 0.01, 0.0, -0.01])
    mean, deviation = 0.005, float(np.std(gain))
    ramp = (np.array([0.01, 0.0]) - (mean - 2 * deviation)) / (4 * deviation + EPSILON)
    np.testing.assert_allclose(rabc_weights(gain), [1.0, *ramp, 0.0], atol=1e-6)


def test_a_mean_loss_counts_as_no_gain_and_equal_gains_have_the_least_deviation() -> None:
    assert rabc_weights([-0.2, -0.2, 0.0])[2] == pytest.approx(0.5, abs=1e-5)
    assert rabc_weights([0.005, 0.005])[0] == pytest.approx(2 / (4 + 1), abs=1e-3)


def test_what_is_not_known_weighs_nothing() -> None:
    assert rabc_weights([np.nan, 0.5, 0.0])[0] == 0
    assert gain_weights([np.nan, 0.0, 0.5, np.nan], 1, 0.1).tolist() == [0, 1, 0, 0]


def test_gain_weights_are_the_square_of_the_share_of_kappa() -> None:
    np.testing.assert_allclose(gain_weights([0.2, 0.25, 0.35, 0.65, 0.55], 1, 0.1), [0.25, 1, 1, 0, 0])


def test_staying_done_weighs_as_much_as_a_gain_and_slipping_back_the_less_the_farther() -> None:
    weight_T = gain_weights([1.0, 1.0, 0.95, 0.9, 0.9], 1, 0.1)
    np.testing.assert_allclose(weight_T, [1, 0.25, 0, 0, 0], atol=1e-6)


def test_the_suggested_kappa_is_reached_by_a_quarter_of_the_frames() -> None:
    gain = np.random.default_rng(0).normal(0.02, 0.05, 4000)
    assert (gain > suggested_kappa(gain)).mean() == pytest.approx(0.25, abs=0.01)
    assert suggested_kappa([0.0, 0.0]) == EPSILON
