"""Rewards, returns and the critics' target, as plain functions of arrays.

The reward of frame t is the progress that the move from t to t + 1 gains: r_t = p_{t+1} - p_t.

Shapes: T frames of one episode, B batch, N critics.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sarm2_spiral.config import MonteCarlo

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]

SMOOTH_REACH = 4.0
"""The Gaussian is cut off after this many standard deviations."""


def smoothed(progress_T: npt.ArrayLike, deviation: float) -> Float32Array:
    """A progress curve smoothed by a Gaussian of `deviation` frames; its ends are continued.

    Jitter of a reward costs a policy more than bias, and a recorded curve may look ahead.
    """
    curve_T = np.asarray(progress_T, dtype=np.float64)
    if deviation <= 0:
        return curve_T.astype(np.float32)
    reach = int(np.ceil(SMOOTH_REACH * deviation))
    weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    padded = np.pad(curve_T, reach, mode="edge")
    curve_T = np.convolve(padded, weight / weight.sum(), mode="valid")
    return curve_T.astype(np.float32)


def rewards(progress_T: npt.ArrayLike) -> FloatArray:
    """r_t = p_{t+1} - p_t, float64 (T,); nothing follows the last frame, whose reward is 0."""
    curve_T = np.asarray(progress_T, dtype=np.float64)
    return np.append(np.diff(curve_T), 0.0)


def monte_carlo(progress_T: npt.ArrayLike, gamma: float, kind: MonteCarlo) -> Float32Array:
    """What was really earned from each frame on, (T,).

    Args:
        kind: `return`: sum_k gamma^k r_{t+k} of the rewards above. `final_progress`: p_T gamma^(T-1-t), as
            published.
    """
    curve_T = np.asarray(progress_T, dtype=np.float64)
    if kind == "final_progress":
        left_T = np.arange(len(curve_T) - 1, -1, -1)
        return np.asarray(curve_T[-1] * gamma**left_T, dtype=np.float32)
    earned_T, following = rewards(curve_T), 0.0
    for t in range(len(earned_T) - 1, -1, -1):
        following = earned_T[t] + gamma * following
        earned_T[t] = following
    return earned_T.astype(np.float32)


def partial_returns(progress_T: npt.ArrayLike, gamma: float, frames: int) -> Float32Array:
    """sum_{j < frames} gamma^j r_{t+j}, (T,); rewards after the end are 0."""
    earned_T = rewards(progress_T)
    padded = np.append(earned_T, np.zeros(frames))
    total_T = sum(gamma**j * padded[j : j + len(earned_T)] for j in range(frames))
    return np.asarray(total_T, dtype=np.float32)


def hybrid_target(
    monte_carlo_B: Tensor,
    partial_B: Tensor,
    discount_B: Tensor,
    later_NB: Tensor,
    alpha: float,
) -> Tensor:
    """y = alpha G_MC + (1 - alpha) [partial return + discount x min over critics of the later value], (B,).

    Args:
        discount_B: gamma^n, or 0 where the episode ended in success and nothing is left to gain.
        later_NB: every slow critic's value of the later frame and chunk.
    """
    bootstrapped_B = partial_B + discount_B * later_NB.min(0).values
    return alpha * monte_carlo_B + (1 - alpha) * bootstrapped_B


def actor_loss(value_NB: Tensor, residual_BK: Tensor, beta: float) -> Tensor:
    """E[-min_i Q_i + beta |s|^2]; B holds every latent of every frame, so the mean is over both."""
    return (-value_NB.min(0).values + beta * residual_BK.square().sum(1)).mean()


def critic_loss(value_NB: Tensor, target_B: Tensor) -> Tensor:
    """Mean squared error of all critics to one target."""
    return torch.nn.functional.mse_loss(value_NB, target_B.expand_as(value_NB))
