"""Ranking: does final progress put a success above a half-done try, and that above a failure?

The metric is the mean of Kendall's tau_a over all triples of one failure, one partial success and one
success of the same task: (pairs in order - pairs out of order) / 3, a tie being neither.
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
