"""Where the rewards come from: the service, or one of the controls that say what its rewards are worth.

`service` is the only source that a loop without supervision has. The others are for comparison: `true` is
the simulator's own progress, `linear` the clock, `success` the simulator's verdict at the end, and `uniform`
no reward at all.

Shapes: T frames of one episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np

from sarm2_client.errors import InvalidInput
from sarm2_rollouts.lerobot_reader import Dataset
from sarm2_rollouts.relabel import PROGRESS_FILE, curves, is_skipped
from sarm2_spiral.targets import Float32Array

Reward: TypeAlias = Literal["service", "true", "linear", "success", "uniform"]
REWARDS: tuple[Reward, ...] = get_args(Reward)

DECIMALS = 4
"""Scores are rounded to this many places: a frame that is scored again, alone or among others, differs in the
last bits, and a training that goes on after a kill must not."""


def progress_curves(dataset: Dataset, reward: Reward, demo_frames: float) -> Sequence[Float32Array | None]:
    """The progress (T,) of every episode of a dataset, by a source; None for one that could not be scored.

    Args:
        demo_frames: mean length of a demonstration, for the clock.

    Raises InvalidInput or NotFound where the dataset does not have what the source needs.
    """
    if reward == "service":
        return [_scored(curve_T) for curve_T in curves(dataset.root / PROGRESS_FILE)]
    if reward == "true":
        return [_known(episode.progress_T) for episode in dataset]
    lengths = [dataset.episode_length(index) for index in range(len(dataset))]
    if reward == "linear":
        return [np.minimum(np.arange(n) / demo_frames, 1.0).astype(np.float32) for n in lengths]
    if reward == "success":
        return _verdicts(lengths, [bool(episode.success) for episode in dataset])
    return [np.zeros(n, dtype=np.float32) for n in lengths]


def _scored(curve_T: Float32Array) -> Float32Array | None:
    return None if is_skipped(curve_T) else np.round(curve_T, DECIMALS)


def _known(progress_T: Float32Array | None) -> Float32Array:
    if progress_T is None:
        raise InvalidInput("the reward `true` needs episodes with true progress", field="reward")
    return progress_T


def _verdicts(lengths: Sequence[int], successes: Sequence[bool]) -> list[Float32Array]:
    found = [np.zeros(n, dtype=np.float32) for n in lengths]
    for curve_T, success in zip(found, successes, strict=True):
        curve_T[-1] = float(success)
    return found
