"""Reward-weighted behaviour cloning (RA-BC): imitate the frames from which progress grew.

Shapes: T frames of one episode, N frames of a dataset.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]

KAPPA = 0.01
EPSILON = 1e-6
"""LeRobot's defaults."""


def gains(progress_T: npt.ArrayLike, frames: int) -> FloatArray:
    """phi(t + frames) - phi(t), float64 (T,); past the end the last frame counts."""
    curve_T = np.asarray(progress_T, dtype=np.float64)
    ahead_T = np.minimum(np.arange(len(curve_T)) + frames, len(curve_T) - 1)
    return np.asarray(curve_T[ahead_T] - curve_T)


def rabc_weights(gain_N: npt.ArrayLike, kappa: float = KAPPA, epsilon: float = EPSILON) -> Float32Array:
    """LeRobot's weights, float32 in [0, 1]: 1 above kappa, 0 for a loss, and between them a ramp.

    The ramp is clip((r - (mu - 2 sigma)) / (4 sigma + eps), 0, 1), with mean (at least 0) and standard
    deviation (at least eps) of all gains.
    """
    gain = np.asarray(gain_N, dtype=np.float64)
    known = gain[np.isfinite(gain)]
    mean = max(float(known.mean()), 0.0) if len(known) else 0.0
    deviation = max(float(known.std()), epsilon) if len(known) else epsilon
    ramp = np.clip((gain - (mean - 2 * deviation)) / (4 * deviation + epsilon), 0.0, 1.0)
    weight = np.where(gain > kappa, 1.0, np.where(gain >= 0, ramp, 0.0))
    return np.where(np.isfinite(gain), weight, 0.0).astype(np.float32)


def gain_weights(progress_T: npt.ArrayLike, frames: int, kappa: float) -> Float32Array:
    """What each frame of a curve is worth to an imitator, float32 (T,) in [0, 1]; unknown ones nothing.

    clip(max(gain, phi(t + frames) - (1 - kappa)) / kappa, 0, 1) squared: sharper than LeRobot's ramp, which
    takes slow frames for fast ones. The second part is for frames that leave what is done as it is. They can
    gain nothing more, yet a policy that never learned from them undoes its work: one that had pulled a drawer
    open let it slip back in a fifth of the scenes.
    """
    gain_T = gains(progress_T, frames)
    short_T = 1.0 - (np.asarray(progress_T, dtype=np.float64) + gain_T)  # of done, when the frames are over
    worth_T = np.maximum(gain_T, kappa - short_T)
    return np.square(np.clip(np.nan_to_num(worth_T) / kappa, 0.0, 1.0)).astype(np.float32)


def suggested_kappa(gain_N: npt.ArrayLike, share: float = 0.25) -> float:
    """The gain that the best `share` of the frames reach: a kappa by which about so many get full weight."""
    gain = np.asarray(gain_N, dtype=np.float64)
    known = gain[np.isfinite(gain)]
    return float(max(np.quantile(known, 1 - share), EPSILON)) if len(known) else KAPPA
