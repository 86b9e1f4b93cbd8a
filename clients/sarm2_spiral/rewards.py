"""The rewards of a run's episodes, and what every frame weighs by them when a policy is cloned.

Shapes: T frames, E episodes, N frames of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_client.errors import InvalidInput
from sarm2_rollouts.lerobot_reader import Dataset, open_dataset
from sarm2_rollouts.rabc import gain_weights, gains, rabc_weights, suggested_kappa
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.progress import progress_curves
from sarm2_spiral.targets import Float32Array

Rule: TypeAlias = Literal["alike", "gain", "lerobot"]
"""The weight of a frame in cloning: that of any other, `gain_weights`, or LeRobot's."""

BoolArray: TypeAlias = npt.NDArray[np.bool_]


def rewards(run: SpiralFolder, root: Path) -> dict[int, Float32Array]:
    """The progress (T,) of the episodes of a dataset, by their number and the source that the run has for it.

    One that could not be scored is left out. Raises InvalidInput where none could.
    """
    demo_frames = float(np.mean(_lengths(open_dataset(run.demos))))
    found = progress_curves(open_dataset(root, pictures=False), run.reward, demo_frames)
    known = {number: curve_T for number, curve_T in enumerate(found) if curve_T is not None}
    if not known:
        raise InvalidInput(f"{root}: no episode could be scored: there is nothing to learn", field="frames")
    return known


def smoothing(run: SpiralFolder) -> float:
    """Standard deviation, in frames, that progress is smoothed with; a verdict is no curve."""
    return 0.0 if run.reward == "success" else run.config.loop.smooth


def with_demo_share(weights: Sequence[Float32Array], demo_E: BoolArray, share: float) -> list[Float32Array]:
    """Weights (T,) of each episode of which demonstrations have `share` in all, as in the residual update's
    batches; as they are where all episodes are of one kind, or one kind weighs nothing.

    Args:
        demo_E: whether each is a demonstration.
    """
    sums_E = np.array([float(weight_T.sum()) for weight_T in weights])
    demos, rollouts = sums_E[demo_E].sum(), sums_E[~demo_E].sum()
    if not (demos > 0 and rollouts > 0):
        return list(weights)
    scale_E = np.where(demo_E, share / demos, (1 - share) / rollouts)
    return [(scale * weight_T).astype(np.float32) for scale, weight_T in zip(scale_E, weights, strict=True)]


def frame_weights(run: SpiralFolder, curves: Sequence[Float32Array], rule: Rule) -> list[Float32Array]:
    """The weight (T,) of every frame of some curves. Without rewards all frames weigh the same."""
    loop = run.config.loop
    if rule == "alike" or run.reward == "uniform":
        return [np.ones(len(curve_T), dtype=np.float32) for curve_T in curves]
    if run.reward == "success":  # a verdict says nothing of single frames: whole episodes count, or do not
        return [np.full(len(curve_T), curve_T[-1], dtype=np.float32) for curve_T in curves]
    if rule == "gain":
        return [gain_weights(curve_T, loop.gain_frames, loop.kappa) for curve_T in curves]
    gain_N = np.concatenate([gains(curve_T, loop.gain_frames) for curve_T in curves])
    weight_N = rabc_weights(gain_N, suggested_kappa(gain_N))
    return np.split(weight_N, np.cumsum([len(curve_T) for curve_T in curves])[:-1])


def _lengths(dataset: Dataset) -> list[int]:
    return [dataset.episode_length(index) for index in range(len(dataset))]
