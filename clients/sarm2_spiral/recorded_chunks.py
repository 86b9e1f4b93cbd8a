"""A frozen base policy's chunks for every frame of recorded episodes, worked out once.

A policy of billions of parameters takes hours for a dataset, so its chunks are kept episode by episode: a
killed run goes on where it was, and the rounds that follow find them.

Shapes: T frames, F features, M latents, L numbers of a latent, K = executed actions x A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_spiral.base_policy import BasePolicy, Float32Array, Moment, executed_part
from sarm2_spiral.kept_array import kept_array
from sarm2_spiral.patience import patiently
from sarm2_spiral.recorded_moments import recorded_moments


@dataclass(frozen=True)
class RecordedChunks:
    """What a base policy would do at every frame.

    Attributes:
        latents: chunks a frame. executed: actions of each that are carried out.
        seed: of the latents, with a dataset's name.
    """

    policy: BasePolicy
    latents: int
    executed: int
    seed: int

    def of(
        self,
        name: str,
        root: Path,
        numbers: Sequence[int],
        tasks: Sequence[str],
        features: Sequence[Float32Array],
        kept: Path | None = None,
    ) -> Iterator[Float32Array]:
        """Executed chunks (T, M, K) of episodes of a dataset, in order.

        Args:
            name: draws the latents: the same name and seed draw the same ones.
            root: the dataset; read only for a policy that looks at pictures.
            numbers, tasks, features: which episode, its instruction and its features (T, F).
            kept: folder where chunks are kept, and found again.
        """
        rng = np.random.default_rng([self.seed, 13, *name.encode()])
        dataset = open_dataset(root)
        for number, task, features_TF in zip(numbers, tasks, features, strict=True):
            shape = (len(features_TF), self.latents, self.policy.latent_size)
            latent_TML = rng.normal(size=shape).astype(np.float32)
            moments = recorded_moments(
                task, partial(dataset.episode, number), features_TF, self.policy.history
            )
            chunks = partial(self._chunks, moments, latent_TML)
            yield chunks() if kept is None else kept_array(kept / f"{number:06d}.npy", chunks)

    def _chunks(self, moments: Sequence[Moment], latent_TML: Float32Array) -> Float32Array:
        ask = partial(self.policy.sample_chunks, moments, latent_TML)
        return executed_part(patiently(ask), self.executed)
