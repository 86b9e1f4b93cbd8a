"""How exactly the frozen embeddings tell where things are: a linear probe within each task.

R2 is taken within a task, against the variance of that task's own frames: over tasks nearly all variance is
which task it is, and any picture tells that.

Shapes: T frames, F features, 3 axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_models.train.corpus import Corpus
from sarm2_models.train.windows import Frames
from sarm2_rollouts.simulator_state import columns

POINTS = ("tool", "object", "goal")
RIDGE = 30.0
"""Weight of the squared coefficients, on features of unit variance."""
LEAST_DEVIATION = 0.005
"""An axis along which a point moves less than this (metres) inside a task is not asked for there."""

Floats: TypeAlias = npt.NDArray[np.float64]
Known: TypeAlias = tuple[Corpus, Frames]


def probe_tasks(train: Known, test: Known) -> dict[str, dict[str, float | None]]:
    """R2 on the test episodes by point, for every task and the mean of the tasks (`all`).

    Fitted on the training episodes of the same task, from the embeddings of all views. None where a point
    does not move.
    """
    names = train[0].task_names
    table = {name: _probe(train, test, task) for task, name in enumerate(names)}
    means: dict[str, float | None] = {}
    for point in POINTS:
        known = [row[point] for row in table.values() if row[point] is not None]
        means[point] = float(np.mean(np.array(known, dtype=float))) if known else None
    return {"all": means} | table


def _probe(train: Known, test: Known, task: int) -> dict[str, float | None]:
    seen_TF, asked = _task(*train, task)
    new_TF, wanted = _task(*test, task)
    mean_F, scale_F = seen_TF.mean(axis=0), np.maximum(seen_TF.std(axis=0), 1e-6)
    seen_TF, new_TF = (seen_TF - mean_F) / scale_F, (new_TF - mean_F) / scale_F
    gram = seen_TF.T @ seen_TF + RIDGE * np.eye(seen_TF.shape[1])
    found: dict[str, float | None] = {}
    for point in POINTS:
        centre_3 = asked[point].mean(axis=0)
        weights = np.linalg.solve(gram, seen_TF.T @ (asked[point] - centre_3))
        found[point] = r2(wanted[point], new_TF @ weights + centre_3)
    return found


def r2(true_T3: Floats, said_T3: Floats) -> float | None:
    """Share of the variance that is explained, over the axes that move; None where none does."""
    moves_3 = true_T3.std(axis=0) > LEAST_DEVIATION
    if not moves_3.any():
        return None
    error = ((true_T3 - said_T3)[:, moves_3] ** 2).sum()
    spread = ((true_T3 - true_T3.mean(axis=0))[:, moves_3] ** 2).sum()
    return float(1.0 - error / spread)


def _task(corpus: Corpus, frames: Frames, task: int) -> tuple[Floats, Mapping[str, Floats]]:
    mine_T = np.flatnonzero(frames.task_T == task)
    features_TF = frames.embeddings_TCD[mine_T].reshape(len(mine_T), -1).astype(np.float64)
    simulator_TK = corpus.simulator_TK[mine_T]
    return features_TF, {point: columns(simulator_TK, point, corpus.simulator_names) for point in POINTS}
