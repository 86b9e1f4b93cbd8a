"""Progress without learning: how far the picture has come from the first frame towards the goal frame.

Shapes: T frames, C cameras, D embedding.
"""

from __future__ import annotations

import numpy as np

from sarm2_models.train.corpus import Corpus
from sarm2_models.train.windows import Frames
from sarm2_models.window import Float32Array, IntArray


def goal_frames(corpus: Corpus, frames: Frames) -> Float32Array:
    """The mean last frame of each task's successful training episodes, float32 (tasks, C, D)."""
    last_N = corpus.first_N + corpus.length_N - 1
    goals = [
        frames.embeddings_TCD[last_N[(corpus.task_N == task) & (corpus.success_N == 1)]]
        for task in range(len(corpus.task_names))
    ]
    return np.stack([goal.astype(np.float32).mean(axis=0) for goal in goals])


def goal_progress(frames: Frames, goals_NCD: Float32Array, deviation_CD: Float32Array) -> Float32Array:
    """1 - distance to the goal frame / distance of the episode's first frame to it, in [0, 1], (T,).

    Args:
        goals_NCD: of `goal_frames`.
        deviation_CD: standard deviations of the training embeddings: the unit of each dimension.
    """
    unit_CD = np.maximum(deviation_CD, 1e-6)

    def distance(index_T: IntArray) -> Float32Array:
        gap_TCD = (frames.embeddings_TCD[index_T] - goals_NCD[frames.task_T]) / unit_CD
        return np.asarray(np.sqrt((gap_TCD**2).sum(axis=(1, 2))), dtype=np.float32)

    every_T = np.arange(len(frames))
    share_T = distance(every_T) / np.maximum(distance(frames.first_T), 1e-6)
    return np.clip(1.0 - share_T, 0.0, 1.0).astype(np.float32)
