"""The replay: demonstrations and rollouts as flat arrays, ready to draw transitions from.

The base policy is frozen, so its chunks are worked out once, for a few latents a frame; the update never
calls it. That holds for any base, however large.

Shapes: T frames of all episodes, F features, A action, M latents, K = executed x A, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sarm2_client.errors import InvalidInput
from sarm2_spiral.config import UpdateConfig
from sarm2_spiral.targets import monte_carlo, partial_returns

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

DONE_ABOVE = 0.9
"""An episode whose progress ends above this has nothing left to gain: no value is expected after it."""


@dataclass(frozen=True)
class Trajectory:
    """One episode as the update sees it.

    Attributes:
        features_TF: float32, of the policy.
        action_TA: float32, from each frame to the next.
        progress_T: float32, smoothed, from the reward model.
        base_TMK: float32, the base policy's executed chunks, for M latents.
        demo: whether it is a demonstration.
    """

    features_TF: Float32Array
    action_TA: Float32Array
    progress_T: Float32Array
    base_TMK: Float32Array
    demo: bool

    def __post_init__(self) -> None:
        lengths = {len(self.features_TF), len(self.action_TA), len(self.progress_T), len(self.base_TMK)}
        if len(lengths) != 1 or len(self.features_TF) < 2:
            raise InvalidInput(
                f"a trajectory: expected two frames or more, and as many features, actions, progress and "
                f"base chunks, got {len(self.features_TF)}, {len(self.action_TA)}, "
                f"{len(self.progress_T)} and {len(self.base_TMK)}"
            )


@dataclass(frozen=True)
class Batch:
    """Transitions.

    Attributes:
        features_BF, chunk_BK: where, and what was done.
        base_BMK: the base policy's chunks there.
        later_BF, later_base_BMK: the frame from which the critics' estimate takes over.
        partial_B, monte_carlo_B: rewards up to there, and to the end.
        discount_B: gamma to the power of the frames between, 0 where nothing follows.
    """

    features_BF: Tensor
    chunk_BK: Tensor
    base_BMK: Tensor
    later_BF: Tensor
    later_base_BMK: Tensor
    partial_B: Tensor
    monte_carlo_B: Tensor
    discount_B: Tensor


class Replay:
    """Every transition of some trajectories.

    Raises InvalidInput for none.
    """

    def __init__(self, trajectories: Sequence[Trajectory], config: UpdateConfig) -> None:
        if not trajectories:
            raise InvalidInput("a replay needs at least one trajectory, got none")
        self._config = config
        lengths = np.array([len(one.progress_T) for one in trajectories])
        ends = np.cumsum(lengths)
        self._last_T = np.repeat(ends - 1, lengths)
        self._features_TF = _joined(one.features_TF for one in trajectories)
        self._base_TMK = _joined(one.base_TMK for one in trajectories)
        self._chunk_TK = _joined(executed_chunks(one.action_TA, config.executed) for one in trajectories)
        curves = [one.progress_T for one in trajectories]
        self._partial_T = _joined(partial_returns(one, config.gamma, config.returns) for one in curves)
        self._earned_T = _joined(monte_carlo(one, config.gamma, config.monte_carlo) for one in curves)
        self._done_T = np.repeat([float(one[-1]) > DONE_ABOVE for one in curves], lengths)
        demo_T = np.repeat([one.demo for one in trajectories], lengths)
        startable_T = np.arange(len(self)) < self._last_T
        self._demo_N = np.flatnonzero(startable_T & demo_T)
        self._rollout_N = np.flatnonzero(startable_T & ~demo_T)

    def __len__(self) -> int:
        return len(self._last_T)

    def draw(self, rng: np.random.Generator) -> Batch:
        """A batch, of which `demo_share` is from demonstrations where there are both kinds."""
        config = self._config
        both = len(self._demo_N) > 0 and len(self._rollout_N) > 0
        share = config.demo_share if both else float(len(self._demo_N) > 0)
        demos = round(share * config.batch)
        picked = [rng.choice(self._demo_N, demos)] if demos else []
        picked += [rng.choice(self._rollout_N, config.batch - demos)] if demos < config.batch else []
        return self.at(np.concatenate(picked))

    def at(self, frames_B: IntArray) -> Batch:
        """The transitions that start at these frames."""
        last_B = self._last_T[frames_B]
        later_B = np.minimum(frames_B + self._config.returns, last_B)
        nothing_B = self._done_T[frames_B] & (later_B == last_B)
        discount_B = np.where(nothing_B, 0.0, self._config.gamma ** (later_B - frames_B))
        here, later = torch.from_numpy(frames_B), torch.from_numpy(later_B)
        return Batch(
            features_BF=self._features_TF[here],
            chunk_BK=self._chunk_TK[here],
            base_BMK=self._base_TMK[here],
            later_BF=self._features_TF[later],
            later_base_BMK=self._base_TMK[later],
            partial_B=self._partial_T[here],
            monte_carlo_B=self._earned_T[here],
            discount_B=torch.from_numpy(discount_B.astype(np.float32)),
        )


def executed_chunks(action_TA: Float32Array, executed: int) -> Float32Array:
    """What was done from each frame on, flat: (T, executed x A). The last action goes on after the end."""
    count = len(action_TA)
    ahead_TE = np.minimum(np.arange(count)[:, None] + np.arange(executed), count - 1)
    chunk_TK: Float32Array = np.clip(action_TA[ahead_TE], -1.0, 1.0).reshape(count, -1).astype(np.float32)
    return chunk_TK


def _joined(parts: object) -> Tensor:
    arrays: list[Float32Array] = list(parts)  # type: ignore[call-overload]
    return torch.from_numpy(np.concatenate(arrays).astype(np.float32))
