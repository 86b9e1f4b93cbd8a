"""A policy at the robot's controls: base chunk, correction, the best of several latents, and exploration.

Shapes: F features, M latents, H actions of a chunk, E executed ones, A action.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from sarm2_rollouts.metaworld_robot import Observation
from sarm2_spiral.features import Features
from sarm2_spiral.residual import Learner

Float32Array = npt.NDArray[np.float32]


class BasePolicy(Protocol):
    """What SPIRAL improves, and never changes.

    A latent decides what the policy leaves open: the same observation and latent give the same chunk.
    """

    @property
    def latent_size(self) -> int:
        """Numbers of a latent."""

    def sample_chunk(self, features_BF: torch.Tensor, latent_BL: torch.Tensor) -> torch.Tensor:
        """Action chunks (B, H, A) in [-1, 1]."""


class Driver:
    """Drives a robot with a base policy and, where there is one, a learner's correction.

    Args:
        executed: actions of a chunk that are carried out before it looks again.
        latents: base chunks to choose from; without a learner the first is taken.
        seed: of latents and exploration.
        exploration: standard deviation of the noise on every action.
    """

    def __init__(
        self,
        base: BasePolicy,
        features: Features,
        learner: Learner | None,
        *,
        executed: int,
        latents: int,
        seed: int,
        exploration: float = 0.0,
    ) -> None:
        self._base, self._features, self._learner = base, features, learner
        self._executed, self._latents, self._exploration = executed, latents, exploration
        self._rng = np.random.default_rng([seed, 11])
        self._waiting: deque[Float32Array] = deque()
        self._instruction = ""

    @property
    def looks(self) -> bool:
        """Whether the next action needs pictures."""
        return not self._waiting

    def reset(self, instruction: str) -> None:
        """Begin an episode."""
        self._waiting.clear()
        self._instruction = instruction

    def act(self, now: Observation) -> Float32Array:
        """The next action (A,)."""
        if not self._waiting:
            self._waiting.extend(self._chunk(self._features.live(now, self._instruction)))
        action_A = self._waiting.popleft()
        noise_A = self._exploration * self._rng.normal(size=len(action_A))
        return np.clip(action_A + noise_A, -1.0, 1.0).astype(np.float32)

    @torch.no_grad()
    def _chunk(self, features_F: Float32Array) -> Float32Array:
        count = self._latents if self._learner is not None else 1
        latent_ML = self._rng.normal(size=(count, self._base.latent_size)).astype(np.float32)
        seen_F = torch.from_numpy(features_F)
        base_MHA = self._base.sample_chunk(seen_F.expand(count, -1), torch.from_numpy(latent_ML))
        chunk_MK = base_MHA[:, : self._executed].flatten(1)
        chosen_K = chunk_MK[0] if self._learner is None else self._learner.best(seen_F, chunk_MK)
        return chosen_K.view(self._executed, -1).numpy()
