"""Scores recorded episodes with a model in this process: what a service would answer, without one."""

from __future__ import annotations

import numpy as np

from sarm2_client.errors import Sarm2Error
from sarm2_client.images import decode_jpeg
from sarm2_client.wire import EpisodeSource
from sarm2_models.predictor import Predictor
from sarm2_models.reward_model import RewardModel
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.episode_scorer import EpisodeScores, model_name


class ModelScorer:
    """An `EpisodeScorer` of `sarm2_rollouts`, in process.

    Args:
        model: used from this thread alone.
        source: where all episodes come from; by default what each says of itself.
    """

    def __init__(self, model: RewardModel, source: EpisodeSource | None = None) -> None:
        self._model, self._predictor, self._source = model, Predictor(model), source

    @property
    def model(self) -> str:
        """Id, version and weights, as a service spells them."""
        return model_name(self._model.model_id, self._model.version, self._model.weights_sha256)

    def score(self, episode: Episode) -> EpisodeScores:
        """One score a frame. As in a service, a bad frame is reported and costs itself alone."""
        progress_T = np.full(len(episode), np.nan, dtype=np.float32)
        primitives_T, uncertain_T = [""] * len(episode), np.ones(len(episode), dtype=bool)
        failures = []
        self._predictor.reset(episode.task, episode.fps, self._source or episode.source)
        for frame in range(len(episode)):
            try:
                images = {camera: decode_jpeg(files[frame]) for camera, files in episode.images.items()}
                step = self._predictor.step(images, episode.state_TS[frame], frame)
            except Sarm2Error as error:
                failures.append((frame, error.message))
                continue
            progress_T[frame], uncertain_T[frame] = step.progress, step.uncertain
            primitives_T[frame] = step.primitive
        return EpisodeScores(progress_T, tuple(primitives_T), uncertain_T, tuple(failures))
