"""Wilson's interval against published values."""

from __future__ import annotations

import math

import pytest

from sarm2_spiral.wilson import Rate


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (285, 300, 0.9192, 0.9694)],
)
def test_the_interval_is_wilsons(successes: int, trials: int, low: float, high: float) -> None:
    rate = Rate(successes, trials)
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=2e-4)


def test_rates_of_several_seeds_add_up() -> None:
    assert Rate(3, 10) + Rate(7, 10) == Rate(10, 20)


def test_without_trials_nothing_is_known() -> None:
    assert math.isnan(Rate(0, 0).value)
    assert (Rate(0, 0).low, Rate(0, 0).high) == (0.0, 1.0)


def test_the_interval_holds_its_value_to_the_last_bit() -> None:
    for trials in range(1, 60):
        for successes in range(trials + 1):
            rate = Rate(successes, trials)
            assert 0.0 <= rate.low <= rate.value <= rate.high <= 1.0
