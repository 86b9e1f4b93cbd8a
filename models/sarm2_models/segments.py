"""Segments of primitives: how many predicted ones match a true one, whatever frames their borders miss.

The segment F1 of Lea et al. (arXiv 1611.05267, section 4): a predicted segment counts as right when it has
the primitive of a true segment that no earlier one matched, and overlaps it by `OVERLAP` of their union.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.integer]

OVERLAP = 0.5
"""Intersection over union from which on a segment counts as found: the "@.5" of segment F1@.5."""


def runs(primitive_T: Ints) -> npt.NDArray[np.int64]:
    """The segments of a sequence: (segments, 3) of primitive, first frame and end."""
    if not len(primitive_T):
        return np.zeros((0, 3), dtype=np.int64)
    edges = np.flatnonzero(np.diff(primitive_T)) + 1
    starts = np.concatenate([[0], edges])
    ends = np.concatenate([edges, [len(primitive_T)]])
    return np.stack([np.asarray(primitive_T)[starts], starts, ends], axis=1).astype(np.int64)


def matched_segments(primitive_T: Ints, true_primitive_T: Ints) -> tuple[int, int, int]:
    """How many predicted segments match a true one, how many were predicted, and how many are true.

    F1 is 2 x matched / (predicted + true), over any number of episodes.
    """
    predicted, true = runs(primitive_T), runs(true_primitive_T)
    free = np.ones(len(true), dtype=bool)
    matched = 0
    for primitive, start, end in predicted:
        common = np.clip(np.minimum(end, true[:, 2]) - np.maximum(start, true[:, 1]), 0, None)
        union = (end - start) + (true[:, 2] - true[:, 1]) - common
        overlap = np.where(free & (true[:, 0] == primitive), common / union, 0.0)
        best = int(np.argmax(overlap)) if len(overlap) else 0
        if len(overlap) and overlap[best] >= OVERLAP:
            free[best] = False
            matched += 1
    return matched, len(predicted), len(true)
