"""The motions that scripted experts share."""

from __future__ import annotations

import numpy as np

from sarm2_rollouts.experts import CLOSE, Array, around, descend

PLACE = np.array([0.0, 0.7, 0.1])


def off(x: float, z: float) -> Array:
    """A hand `x` metres to the right of the place and `z` above it."""
    return np.array([PLACE[0] + x, PLACE[1], PLACE[2] + z])


def test_a_point_goes_around_its_hinge_anticlockwise_and_level() -> None:
    arms = np.array([[0.2, 0.0, 0.1], [0.0, 0.3, -0.2]])
    np.testing.assert_allclose(around(arms), [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose(around(arms[0]), [0.0, 1.0, 0.0], atol=1e-12)


def test_a_hand_beside_and_below_rises_where_it_is() -> None:
    action = descend(off(0.08, 0.0), PLACE, CLOSE)
    assert action is not None
    np.testing.assert_allclose(action, [0.0, 0.0, 1.0, CLOSE], atol=1e-6)


def test_a_hand_far_off_rises_on_its_way() -> None:
    action = descend(off(0.4, 0.0), PLACE, CLOSE)
    assert action is not None
    np.testing.assert_allclose(action, [-1.0, 0.0, 1.0, CLOSE], atol=1e-6)


def test_a_hand_over_the_place_goes_down_until_it_is_there() -> None:
    above = descend(off(0.01, 0.1), PLACE, CLOSE)
    assert above is not None
    assert above[2] == -1.0
    assert descend(off(0.01, 0.005), PLACE, CLOSE) is None
