"""A recorded dataset and a toy bundle for the commands to work on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fakes
from sarm2_client.images import encode_jpeg
from sarm2_rollouts.episode import Episode, LabelledSegment
from sarm2_rollouts.lerobot_writer import write_dataset

LENGTH = 14


def recorded(seed: int) -> Episode:
    """A short labelled episode of the toy robot."""
    rng = np.random.default_rng(seed)
    return Episode(
        task=fakes.TASKS[seed % len(fakes.TASKS)],
        fps=fakes.FPS,
        images={
            camera: [encode_jpeg(fakes.picture(100 * seed + 10 * index + t)) for t in range(LENGTH)]
            for index, camera in enumerate(fakes.CAMERAS)
        },
        state_TS=rng.normal(size=(LENGTH, fakes.STATE_DIM)).astype(np.float32),
        success=True,
        task_name="pick-place",
        progress_T=np.linspace(0, 1, LENGTH, dtype=np.float32),
        segments=(LabelledSegment("reach", 0, 8), LabelledSegment("grasp", 8, LENGTH)),
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes, pictures kept as they are."""
    root = tmp_path_factory.mktemp("dataset") / "two"
    write_dataset([recorded(0), recorded(1)], root, storage="image")
    return root


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained toy bundle."""
    return fakes.make_bundle(tmp_path_factory.mktemp("bundle"))
