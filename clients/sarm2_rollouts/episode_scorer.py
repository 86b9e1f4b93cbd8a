"""Whatever scores a recorded episode: a service, or a model in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sarm2_client.client import Episode as LiveEpisode
from sarm2_client.client import RewardClient
from sarm2_client.wire import EpisodeSource, Score
from sarm2_rollouts.episode import Episode

PAUSES_S = (0.5, 2.0, 8.0)
"""Seconds before an episode is scored again."""


@dataclass(frozen=True)
class EpisodeScores:
    """What a reward model says of every frame of an episode.

    Attributes:
        progress_T: float32 in [0, 1]; NaN where a frame could not be scored.
        primitives_T: names; empty where it could not.
        uncertain_T: bool; True where it could not.
        failures: (frame, why) of each that could not.
    """

    progress_T: npt.NDArray[np.float32]
    primitives_T: tuple[str, ...]
    uncertain_T: npt.NDArray[np.bool_]
    failures: tuple[tuple[int, str], ...] = ()


class EpisodeScorer(Protocol):
    """Scores whole episodes, frame by frame."""

    @property
    def model(self) -> str:
        """Id, version and weights: the scores of two models are never mixed."""

    def score(self, episode: Episode) -> EpisodeScores:
        """One score a frame. A frame that cannot be scored is reported, and the others are scored."""


class ServiceScorer:
    """Scores through a service, which keeps the embeddings of every frame for the next time.

    Args:
        client: reaches it.
        source: where all episodes come from; by default what each says of itself.
    """

    def __init__(self, client: RewardClient, source: EpisodeSource | None = None) -> None:
        self._client, self._source = client, source

    @property
    def model(self) -> str:
        """Id, version and weights of the service's model."""
        model = self._client.models()["models"][0]["model"]  # never from memory: it may have been reloaded
        return model_name(model["id"], model["version"], model["weights_sha256"])

    def score(self, episode: Episode) -> EpisodeScores:
        """One score a frame. Where a frame's answer may well be another the next time (an overloaded device),
        the episode is scored again after each of `PAUSES_S`; then that answer is raised."""
        live = self._streamed(episode)
        progress_T = np.full(len(episode), np.nan, dtype=np.float32)
        primitives_T, uncertain_T = [""] * len(episode), np.ones(len(episode), dtype=bool)
        for score in live.scores:
            progress_T[score.seq], uncertain_T[score.seq] = score.progress, score.uncertain
            primitives_T[score.seq] = score.primitive
        said = {error.seq: error.message for error in live.errors if error.seq is not None}
        missing = np.flatnonzero(np.isnan(progress_T))
        failures = tuple((int(frame), said.get(int(frame), "it was not answered")) for frame in missing)
        return EpisodeScores(progress_T, tuple(primitives_T), uncertain_T, failures)

    def _streamed(self, episode: Episode) -> LiveEpisode:
        for pause_s in (*PAUSES_S, None):
            live = stream_episode(self._client, episode, self._source)
            passing = [error for error in live.errors if error.retryable]
            if not passing:
                break
            if pause_s is None:
                raise passing[0]
            time.sleep(pause_s)
        return live


def stream_episode(
    client: RewardClient, episode: Episode, source: EpisodeSource | None = None
) -> LiveEpisode:
    """Every frame of a recorded episode, as fast as the service answers; closed, with its scores and errors.

    Args:
        source: where it comes from; by default what it says of itself.
    """
    cameras = list(episode.images)
    where = source or episode.source
    with client.episode(episode.task, episode.fps, cameras, qos="batch", source=where) as live:
        for frame in range(len(episode)):
            pictures = {camera: files[frame] for camera, files in episode.images.items()}
            live.push(pictures, episode.state_TS[frame])
    return live


def scores_of(client: RewardClient, episode: Episode, source: EpisodeSource | None = None) -> list[Score]:
    """One score a frame. Raises what the first frame that cannot be scored was answered."""
    live = stream_episode(client, episode, source)
    if live.errors:
        raise live.errors[0]
    return live.scores


def model_name(model_id: str, version: str, weights_sha256: str) -> str:
    """The one spelling of a model's identity in files."""
    return f"{model_id}@{version}#{weights_sha256[:16]}"
