"""A dataset that LeRobot 0.4.4 wrote itself is read exactly."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from av.video.reformatter import Interpolation

from sarm2_client.images import decode_jpeg, encode_jpeg
from sarm2_rollouts.lerobot_reader import Dataset, open_dataset

SAMPLE = Path(__file__).parent / "lerobot_v3_sample"
ACCURATE = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
CAMERAS = ("top", "left_wrist", "right_wrist")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return open_dataset(SAMPLE)


def test_what_the_dataset_says_of_itself(dataset: Dataset) -> None:
    assert dataset.fps == 30.0
    assert dataset.cameras == CAMERAS
    assert dataset.tasks == ("fold the towel", "stack the cups")
    assert dataset.state_names == tuple(f"j{i}" for i in range(14))
    assert len(dataset) == 3
    assert dataset.frames == 360
    assert [dataset.episode_length(i) for i in range(3)] == [150, 120, 90]


def test_states_actions_and_tasks_are_those_of_the_rows(dataset: Dataset) -> None:
    rows = pq.read_table(SAMPLE / "data/chunk-000/file-000.parquet").to_pylist()
    texts = pq.read_table(SAMPLE / "meta/tasks.parquet").to_pylist()
    tasks = {row["task_index"]: row["__index_level_0__"] for row in texts}
    for index, episode in enumerate(dataset):
        own = [row for row in rows if row["episode_index"] == index]
        expected = np.array([row["observation.state"] for row in own], dtype=np.float32)
        actions = np.array([row["action"] for row in own], dtype=np.float32)
        assert episode.state_TS.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(episode.action_TA), actions)
        assert episode.action_names == tuple(f"j{i}" for i in range(14))
        np.testing.assert_array_equal(episode.state_TS, expected)
        assert episode.task == tasks[own[0]["task_index"]]
        times = np.array([row["timestamp"] for row in own])
        np.testing.assert_allclose(np.arange(len(episode)) / episode.fps, times, atol=1e-6)


def test_labels_that_are_not_there_are_none(dataset: Dataset) -> None:
    episode = dataset.episode(2)
    assert episode.progress_T is None
    assert episode.segments is None
    assert episode.simulator_TK is None
    assert episode.success is None
    assert episode.kind == "unknown"


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_frame_is_the_one_an_independent_decoder_finds_at_its_time(
    dataset: Dataset, camera: str
) -> None:
    by_time = _decode_all(SAMPLE / f"videos/observation.images.{camera}/chunk-000/file-000.mp4")
    episodes = pq.read_table(SAMPLE / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for index, row in enumerate(episodes):
        start_s = row[f"videos/observation.images.{camera}/from_timestamp"]
        pictures = list(dataset.images(index, camera))
        assert len(pictures) == row["length"]
        for t, picture in enumerate(pictures):
            np.testing.assert_array_equal(picture, by_time[round((start_s + t / 30) * 1e6)])


def test_pictures_of_an_episode_are_its_frames_as_jpeg(dataset: Dataset) -> None:
    episode = dataset.episode(1)
    assert set(episode.images) == set(CAMERAS)
    for t, picture in enumerate(dataset.images(1, "left_wrist")):
        assert episode.images["left_wrist"][t] == encode_jpeg(picture)


def test_pictures_can_be_fitted_into_a_square() -> None:
    episode = open_dataset(SAMPLE, image_size=64).episode(2)
    square = decode_jpeg(episode.images["top"][0])
    assert square.shape == (64, 64, 3)
    assert not square[:6].any()  # 320 x 240 leaves black bars above and below


def _decode_all(path: Path) -> dict[int, npt.NDArray[np.uint8]]:
    """Every frame of a file by its time in microseconds."""
    with av.open(str(path)) as container:
        return {
            round(float(frame.time) * 1e6): frame.to_ndarray(format="rgb24", interpolation=ACCURATE)
            for frame in container.decode(video=0)
        }
