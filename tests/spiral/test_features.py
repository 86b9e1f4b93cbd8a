"""What policies and critics see of a frame: the same live and recorded, however long the recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fakes
from rollouts.small_episodes import small_episode
from running_server import RunningServer
from sarm2_client.client import RewardClient
from sarm2_rollouts.metaworld_robot import Observation
from sarm2_service.settings import Settings
from sarm2_spiral import features
from sarm2_spiral.features import PICTURES_A_CALL, ImageFeatures

FRAMES = 7


def test_a_recording_of_more_pictures_than_a_service_takes_at_once_has_the_features_of_its_live_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings().max_embed_images >= PICTURES_A_CALL
    episode = small_episode(0, FRAMES, task=fakes.TASKS[0], cameras=fakes.CAMERAS)
    some = FRAMES * len(fakes.CAMERAS) // 2
    monkeypatch.setattr(features, "PICTURES_A_CALL", some)
    model = fakes.make_model(tmp_path / "model")
    with (
        RunningServer(model, max_embed_images=some) as service,
        RewardClient(port=service.port) as client,
    ):
        source = ImageFeatures(client, fakes.CAMERAS)
        recorded_TF = source.recorded(episode)
        for frame in range(FRAMES):
            images: Any = {camera: files[frame] for camera, files in episode.images.items()}
            now = Observation(images, episode.state_TS[frame], np.zeros(0, np.float32), np.zeros(39), False)
            live_F = source.live(now, episode.task)
            np.testing.assert_allclose(recorded_TF[frame], live_F, atol=2e-3)
    width = len(fakes.CAMERAS) * model.encoder.dim + fakes.STATE_DIM + model.encoder.dim
    assert recorded_TF.shape == (FRAMES, width)
