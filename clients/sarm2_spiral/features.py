"""What a policy and its critics see of a frame, live and recorded.

An image policy sees what a vision-language-action model sees: the service's frozen embeddings of all views,
the proprioceptive state, and the instruction's embedding. A state policy is a fast control, and openly
privileged: it sees the true positions of object and goal.

Shapes: T frames, C cameras, D embedding, F features, K simulator quantities.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from sarm2_client.client import RewardClient
from sarm2_client.errors import InvalidInput
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.metaworld_robot import SIMULATOR_NAMES, Observation

Float32Array = npt.NDArray[np.float32]

PRIVILEGED = (
    *(f"{point}_{axis}" for point in ("object", "part", "goal") for axis in "xyz"),
    "joint",
)
_COLUMNS = [SIMULATOR_NAMES.index(name) for name in PRIVILEGED]

PICTURES_A_CALL = 512
"""Half of what a service takes by default, and soon answered even where an encoder is slow."""


class Features(Protocol):
    """Turns frames into feature vectors."""

    def live(self, now: Observation, instruction: str) -> Float32Array:
        """Features (F,) of the present moment."""

    def recorded(self, episode: Episode) -> Float32Array:
        """Features (T, F) of every frame of an episode."""


class StateFeatures:
    """Proprioception, and the true positions of object and goal."""

    def live(self, now: Observation, instruction: str) -> Float32Array:
        """Features (F,) of the present moment."""
        return np.concatenate([now.state_S, now.simulator_K[_COLUMNS]])

    def recorded(self, episode: Episode) -> Float32Array:
        """Features (T, F). Raises InvalidInput for an episode without the simulator's quantities."""
        if episode.simulator_TK is None or episode.simulator_names != SIMULATOR_NAMES:
            raise InvalidInput("a state policy needs the simulator's quantities", field="policy")
        return np.concatenate([episode.state_TS, episode.simulator_TK[:, _COLUMNS]], axis=1)


class ImageFeatures:
    """Embeddings of all views and of the instruction from the service, and proprioception.

    Args:
        client: reaches the service.
        cameras: in the order in which their embeddings are joined.
    """

    def __init__(self, client: RewardClient, cameras: tuple[str, ...]) -> None:
        self._client, self._cameras = client, cameras
        self._texts: dict[str, Float32Array] = {}

    def live(self, now: Observation, instruction: str) -> Float32Array:
        """Features (F,) of the present moment."""
        embedding_CD = self._client.embed([now.images[camera] for camera in self._cameras])
        return np.concatenate([embedding_CD.ravel(), now.state_S, self._text(instruction)]).astype(np.float32)

    def recorded(self, episode: Episode) -> Float32Array:
        """Features (T, F) of every frame of an episode."""
        frames = range(len(episode))
        pictures = [episode.images[camera][t] for t in frames for camera in self._cameras]
        calls = [pictures[at : at + PICTURES_A_CALL] for at in range(0, len(pictures), PICTURES_A_CALL)]
        embedding_TD = np.concatenate([self._client.embed(some) for some in calls]).reshape(len(episode), -1)
        text_TD = np.tile(self._text(episode.task), (len(episode), 1))
        return np.concatenate([embedding_TD, episode.state_TS, text_TD], axis=1).astype(np.float32)

    def _text(self, instruction: str) -> Float32Array:
        if instruction not in self._texts:
            self._texts[instruction] = self._client.embed_texts([instruction])[0].astype(np.float32)
        return self._texts[instruction]
