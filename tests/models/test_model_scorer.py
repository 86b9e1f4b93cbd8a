"""A model in process scores a recording as a service does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fakes
from running_server import RunningServer
from sarm2_client.client import RewardClient
from sarm2_models.model_scorer import ModelScorer
from sarm2_models.reward_model import RewardModel
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.episode_scorer import ServiceScorer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return fakes.make_model(tmp_path_factory.mktemp("encoder"))


def recording(frames: int = 9) -> Episode:
    images = {
        camera: [fakes.jpeg(t + place).data for t in range(frames)]
        for place, camera in enumerate(fakes.CAMERAS)
    }
    state_TS = np.linspace(0, 1, frames * fakes.STATE_DIM, dtype=np.float32).reshape(frames, -1)
    return Episode(task=fakes.TASKS[0], fps=fakes.FPS, images=images, state_TS=state_TS)


def test_its_scores_are_those_of_a_service(model: RewardModel) -> None:
    episode, here = recording(), ModelScorer(model)
    with RunningServer(model) as server, RewardClient(port=server.port) as client:
        there = ServiceScorer(client)
        assert here.model == there.model
        ours, theirs = here.score(episode), there.score(episode)
    np.testing.assert_allclose(ours.progress_T, theirs.progress_T, atol=1e-6)
    assert ours.primitives_T == theirs.primitives_T
    assert ours.failures == theirs.failures == ()


def test_a_damaged_picture_costs_its_frame_alone(model: RewardModel) -> None:
    episode = recording()
    broken = {camera: [*files] for camera, files in episode.images.items()}
    broken[fakes.CAMERAS[1]][4] = b"\xff\xd8 no picture"
    scores = ModelScorer(model).score(replace(episode, images=broken))
    assert np.flatnonzero(np.isnan(scores.progress_T)).tolist() == [4]
    ((frame, why),) = scores.failures
    assert frame == 4
    assert why
