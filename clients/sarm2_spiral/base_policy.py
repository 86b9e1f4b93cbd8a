"""What SPIRAL improves, and never changes: a base policy, and the moments that it is asked about.

Shapes: B moments, M latents, L numbers of a latent, H actions of a chunk, A action, F features, S state,
K = executed actions x A (a flat executed chunk).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sarm2_client.errors import InvalidInput

Float32Array = npt.NDArray[np.float32]


class Frame(Protocol):
    """What the robot's sensors say at one frame; a live `Observation` is one."""

    @property
    def images(self) -> Mapping[str, npt.NDArray[np.uint8]]:
        """Per camera uint8 (H, W, 3), RGB; empty where nothing is rendered."""

    @property
    def state_S(self) -> Float32Array:
        """Proprioception, in the robot's own units."""


@dataclass(frozen=True)
class Moment:
    """A frame at which a base policy is asked what to do. What is dear is worked out when it is asked for.

    Attributes:
        instruction: in words.
        frames: the latest ones, as many as the policy's `history` or all since the episode's beginning; the
            present one is last.
        features: gives the critics' features (F,) of the present one. Cheap from the second call on.
    """

    instruction: str
    frames: tuple[Frame, ...]
    features: Callable[[], Float32Array]


class BasePolicy(Protocol):
    """A frozen policy that makes action chunks.

    A latent decides what the policy leaves open: the same moment and latent give the same chunk. A policy
    that leaves nothing open has a `latent_size` of 0; so has one that cannot be told its noise, whose chunks
    then differ from call to call.
    """

    @property
    def latent_size(self) -> int:
        """Numbers of a latent, which are drawn from a standard normal distribution; 0 for none."""

    @property
    def history(self) -> int:
        """Frames that it sees at a time, the present one among them: 1 or more."""

    def sample_chunks(self, moments: Sequence[Moment], latent_BML: Float32Array) -> Float32Array:
        """Chunks (B, M, H, A), float32 in [-1, 1], each beginning with the action of its moment.

        Raises an error of `sarm2_client.errors` for moments that lack what it sees.
        """


def executed_part(chunk_BMHA: Float32Array, executed: int) -> Float32Array:
    """What is carried out of chunks, flat: (B, M, K). Raises InvalidInput for chunks shorter than that."""
    horizon = chunk_BMHA.shape[2]
    if horizon < executed:
        raise InvalidInput(
            f"the base policy plans {horizon} actions at a time, and {executed} of a chunk are carried out; "
            f"take one that plans {executed} or more",
            field="executed",
        )
    part_BMK: Float32Array = chunk_BMHA[:, :, :executed].reshape(*chunk_BMHA.shape[:2], -1)
    return part_BMK
