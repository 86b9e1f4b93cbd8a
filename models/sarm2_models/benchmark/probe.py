"""How exactly the frozen embeddings tell where things are: a linear probe within each task.

R2 is taken within a task, against the variance of that task's own frames: over tasks nearly all variance is
which task it is, and any picture tells that. Episodes of random motion are asked apart: they take the tool to
where no attempt at a task goes, often out of every fixed camera's view.

Shapes: T frames, F features, 3 axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_models.estimate import Estimate, ratio
from sarm2_models.train.corpus import Corpus
from sarm2_models.train.plan import KINDS
from sarm2_models.train.windows import Frames
from sarm2_models.window import BoolArray, IntArray
from sarm2_rollouts.simulator_state import columns

POINTS = ("tool", "object", "goal")
WITH_RANDOM = "with random motion"
RIDGE = 30.0
"""Weight of the squared coefficients, on features of unit variance."""
LEAST_DEVIATION = 0.005
"""An axis along which a point moves less than this (metres) inside a task is not asked for there."""

Floats: TypeAlias = npt.NDArray[np.float64]
Known: TypeAlias = tuple[Corpus, Frames]


def probe_tasks(train: Known, test: Known, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """R2 on the test episodes by point, for every task and the mean of the tasks: of the episodes in which a
    task is tried (`all`), and with random motion too (`WITH_RANDOM`).

    Fitted on all training episodes of the same task, from the embeddings of all views. The interval is over
    test episodes. No value where a point does not move.
    """
    tried_T = np.repeat(test[0].kind_N != KINDS.index("random"), test[0].length_N)
    said = _said(train, test)
    tried, every = (_table(test, said, asked_T, seed) for asked_T in (tried_T, np.ones_like(tried_T)))
    return {"all": _means(tried)} | tried | {WITH_RANDOM: _means(every)}


def _said(train: Known, test: Known) -> dict[str, Floats]:
    """Where the probe of each task puts every point, (T, 3), in all test frames."""
    said = {point: np.zeros((len(test[1]), 3)) for point in POINTS}
    for task in range(len(train[0].task_names)):
        mine_T = test[1].task_T == task
        known_T = train[1].task_T == task
        seen_TF, new_TF = _features(train[1], known_T), _features(test[1], mine_T)
        mean_F, scale_F = seen_TF.mean(axis=0), np.maximum(seen_TF.std(axis=0), 1e-6)
        seen_TF, new_TF = (seen_TF - mean_F) / scale_F, (new_TF - mean_F) / scale_F
        gram = seen_TF.T @ seen_TF + RIDGE * np.eye(seen_TF.shape[1])
        for point in POINTS:
            true_T3 = _true(train[0], point)[known_T]
            centre_3 = true_T3.mean(axis=0)
            weights = np.linalg.solve(gram, seen_TF.T @ (true_T3 - centre_3))
            said[point][mine_T] = new_TF @ weights + centre_3
    return said


def _table(
    test: Known, said: Mapping[str, Floats], asked_T: BoolArray, seed: int
) -> dict[str, dict[str, Estimate]]:
    table: dict[str, dict[str, Estimate]] = {}
    for task, name in enumerate(test[0].task_names):
        mine_T = asked_T & (test[1].task_T == task)
        episode_T = test[1].first_T[mine_T]
        table[name] = {
            point: r2(_true(test[0], point)[mine_T], said[point][mine_T], episode_T, seed + task)
            for point in POINTS
        }
    return table


def r2(true_T3: Floats, said_T3: Floats, episode_T: IntArray, seed: int = 0) -> Estimate:
    """Share of the variance that is explained, over the axes that move, with its interval over episodes; no
    value where none moves. The variance is about the mean of all frames."""
    moves_3 = true_T3.std(axis=0) > LEAST_DEVIATION
    error_T = ((true_T3 - said_T3)[:, moves_3] ** 2).sum(axis=1)
    spread_T = ((true_T3 - true_T3.mean(axis=0))[:, moves_3] ** 2).sum(axis=1)
    _, place_T = np.unique(episode_T, return_inverse=True)
    sums = [np.bincount(place_T, weights=values_T) for values_T in (error_T, spread_T)]
    unexplained = ratio(np.stack(sums, axis=1).tolist(), seed)
    if unexplained.value is None:
        return unexplained
    samples = 1.0 - unexplained.samples if unexplained.samples is not None else np.array([])
    return Estimate.of(1.0 - unexplained.value, samples, unexplained.n)


def _means(table: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Estimate]:
    return {point: _mean([row[point] for row in table.values()]) for point in POINTS}


def _mean(by_task: Sequence[Estimate]) -> Estimate:
    """The mean of the tasks that have a value; each task's episodes were drawn apart."""
    known = [(one.value, one.samples) for one in by_task if one.value is not None and one.samples is not None]
    if not known:
        return Estimate(None, None, None, 0)
    values, samples = zip(*known, strict=True)
    return Estimate.of(float(np.mean(values)), np.mean(samples, axis=0), sum(one.n for one in by_task))


def _features(frames: Frames, chosen_T: BoolArray) -> Floats:
    return frames.embeddings_TCD[chosen_T].reshape(int(chosen_T.sum()), -1).astype(np.float64)


def _true(corpus: Corpus, point: str) -> Floats:
    return columns(corpus.simulator_TK, point, corpus.simulator_names)
