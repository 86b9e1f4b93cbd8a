"""A policy at the robot's controls: base chunk, correction, the best of several latents, and exploration.

Shapes: F features, M latents, H actions of a chunk, E executed ones, A action.
"""

from __future__ import annotations

from collections import deque
from functools import cache

import numpy as np
import torch

from sarm2_rollouts.metaworld_robot import Observation
from sarm2_spiral.base_policy import BasePolicy, Float32Array, Moment, executed_part
from sarm2_spiral.features import Features
from sarm2_spiral.residual import Learner


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
        self._seen: deque[Observation] = deque(maxlen=base.history)
        self._instruction = ""

    @property
    def looks(self) -> bool:
        """Whether the next action needs pictures: it begins a chunk, or is near enough to one to be seen."""
        return len(self._waiting) < self._base.history

    def reset(self, instruction: str) -> None:
        """Begin an episode."""
        self._waiting.clear()
        self._seen.clear()
        self._instruction = instruction

    def act(self, now: Observation) -> Float32Array:
        """The next action (A,)."""
        if self.looks:
            self._seen.append(now)
        if not self._waiting:
            self._waiting.extend(self._chunk(self._moment(now)))
        action_A = self._waiting.popleft()
        noise_A = self._exploration * self._rng.normal(size=len(action_A))
        return np.clip(action_A + noise_A, -1.0, 1.0).astype(np.float32)

    def _moment(self, now: Observation) -> Moment:
        instruction = self._instruction
        return Moment(instruction, tuple(self._seen), cache(lambda: self._features.live(now, instruction)))

    def _chunk(self, moment: Moment) -> Float32Array:
        count = self._latents if self._learner is not None else 1
        latent_ML = self._rng.normal(size=(count, self._base.latent_size)).astype(np.float32)
        chunk_MHA = self._base.sample_chunks([moment], latent_ML[None])
        chunk_MK = executed_part(chunk_MHA, self._executed)[0]
        if self._learner is None:
            chosen_K: Float32Array = chunk_MK[0]
        else:
            seen_F = torch.from_numpy(moment.features())
            chosen_K = self._learner.best(seen_F, torch.from_numpy(chunk_MK)).numpy()
        return chosen_K.reshape(self._executed, -1)
