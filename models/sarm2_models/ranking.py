"""Ranking: does final progress put a success above a half-done try, and that above a failure?

The metric of quality is the mean of Kendall's tau_a over all triples of one failure, one partial success and
one success of the same task: (pairs in order - pairs out of order) / 3, a tie being neither.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.floating]

PARTIAL_FROM = 1 / 3
"""True final progress from which on an unsuccessful rollout is a partial success, not a failure."""


def quality_of(true_final_N: Floats, success_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """0 failure, 1 partial success, 2 success, by rollout."""
    return np.where(success_N, 2, np.where(true_final_N >= PARTIAL_FROM, 1, 0)).astype(np.int64)


def kendall_of_triples(final_N: Floats, quality_N: npt.NDArray[np.integer]) -> float | None:
    """Mean tau_a over all (failure, partial, success) triples, in [-1, 1]; None where there is no triple.

    The mean over triples of a sum over pairs is the sum of the three means over pairs.
    """
    classes = [np.asarray(final_N)[quality_N == level] for level in range(3)]
    if any(not len(one) for one in classes):
        return None
    in_order = [
        float(np.sign(classes[high][:, None] - classes[low][None, :]).mean())
        for low, high in ((0, 1), (0, 2), (1, 2))
    ]
    return sum(in_order) / 3


def _ranks(values_N: Floats) -> Floats:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def roc_auc(scores_N: Floats, positive_N: npt.NDArray[np.bool_]) -> float | None:
    """Chance that a random positive scores above a random negative, ties counting half; None without both."""
    positives = int(positive_N.sum())
    negatives = len(positive_N) - positives
    if positives == 0 or negatives == 0:
        return None
    above = _ranks(scores_N)[positive_N].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def spearman(left_N: Floats, right_N: Floats) -> float | None:
    """Rank correlation; None where one side is constant. With time on one side this is VOC."""
    left, right = _ranks(left_N), _ranks(right_N)
    if left.std() == 0 or right.std() == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


def average_precision(scores_N: Floats, positive_N: npt.NDArray[np.bool_]) -> float | None:
    """Area under the precision-recall curve, in steps: the sum of precision times the gain of recall, from
    the highest score down; equal scores make one step. None without both positives and negatives: with
    positives alone anything has 1.
    """
    positives = int(positive_N.sum())
    if positives in (0, len(positive_N)):
        return None
    _, place_N = np.unique(-np.asarray(scores_N, np.float64), return_inverse=True)
    hits = np.cumsum(np.bincount(place_N, weights=positive_N.astype(np.float64)))
    called = np.cumsum(np.bincount(place_N))
    return float((np.diff(hits, prepend=0.0) * hits / called).sum() / positives)
