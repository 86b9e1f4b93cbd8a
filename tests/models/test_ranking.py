"""Ranking of rollouts: equal to Kendall's tau_a counted triple by triple."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sarm2_models.ranking import average_precision, kendall_of_triples, quality_of


def counted(final: np.ndarray, quality: np.ndarray) -> float:
    taus = []
    classes = [final[quality == level] for level in range(3)]
    for triple in itertools.product(*classes):
        pairs = itertools.combinations(triple, 2)
        taus.append(sum(float(np.sign(b - a)) for a, b in pairs) / 3)
    return float(np.mean(taus))


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_over_pairs_is_the_mean_over_triples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    quality = np.concatenate([[0, 1, 2], rng.integers(0, 3, 15)])
    final = rng.integers(0, 6, 18) / 6  # with ties
    assert kendall_of_triples(final, quality) == pytest.approx(counted(final, quality))


def test_perfect_and_reversed_order() -> None:
    quality = np.array([0, 1, 2])
    assert kendall_of_triples(np.array([0.1, 0.5, 0.9]), quality) == 1.0
    assert kendall_of_triples(np.array([0.9, 0.5, 0.1]), quality) == -1.0
    assert kendall_of_triples(np.array([0.5, 0.5, 0.5]), quality) == 0.0


def test_without_one_of_the_classes_there_is_no_ranking() -> None:
    assert kendall_of_triples(np.array([0.1, 0.9]), np.array([0, 2])) is None


def test_an_unfinished_rollout_is_partial_from_a_third_on() -> None:
    final, success = np.array([0.2, 1 / 3, 0.9, 0.1]), np.array([False, False, False, True])
    assert quality_of(final, success).tolist() == [0, 1, 1, 2]


def test_average_precision_by_hand() -> None:
    scores, good = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert average_precision(scores, good) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision(-scores, good) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert average_precision(np.full(4, 0.5), good) == pytest.approx(0.5)  # one step: the share of positives
    assert average_precision(scores, np.zeros(4, dtype=bool)) is None
    assert average_precision(scores, np.ones(4, dtype=bool)) is None
