"""The moments of a recorded episode; its pictures are read and decoded when a policy looks at them.

Shapes: T frames, F features, S state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from sarm2_client.images import decode_jpeg
from sarm2_rollouts.episode import Episode
from sarm2_spiral.base_policy import Float32Array, Moment


class RecordedFrame:
    """One frame of a recorded episode, as the robot saw it.

    Args:
        episode: gives the episode with its pictures.
        place: the frame's number in it.
    """

    def __init__(self, episode: Callable[[], Episode], place: int) -> None:
        self._episode, self._place = episode, place

    @property
    def images(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Per camera uint8 (H, W, 3), RGB; decoded anew each time: an episode's pixels are many."""
        return {name: decode_jpeg(files[self._place]) for name, files in self._episode().images.items()}

    @property
    def state_S(self) -> Float32Array:
        """Proprioception."""
        state_S: Float32Array = self._episode().state_TS[self._place]
        return state_S


def recorded_moments(
    instruction: str, read: Callable[[], Episode], features_TF: Float32Array, history: int
) -> list[Moment]:
    """Every frame of an episode as a moment.

    Args:
        read: reads the episode with its pictures; called once, and only for a policy that looks.
        features_TF: of all its frames.
        history: frames that the policy sees at a time.
    """
    episode = cache(read)
    frames = [RecordedFrame(episode, place) for place in range(len(features_TF))]
    return [
        Moment(
            instruction,
            tuple(frames[max(0, place - history + 1) : place + 1]),
            partial(features_TF.__getitem__, place),
        )
        for place in range(len(frames))
    ]
