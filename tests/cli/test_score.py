"""`sarm2 score` draws and keeps every chosen episode, through its own service or a running one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fakes
from cli.small_dataset import LENGTH, damage, lose, recorded
from running_server import RunningServer
from sarm2_cli.score import score
from sarm2_cli.scoring import camera_names, with_names
from sarm2_client.errors import InvalidInput
from sarm2_models.checkpoint import load_bundle
from sarm2_rollouts.lerobot_writer import write_dataset
from sarm2_rollouts.video import read_frames

PNG = b"\x89PNG"


def call(dataset: Path, out: Path, **options: object) -> None:
    """The command's function with its defaults."""
    defaults: dict[str, object] = {
        "episode": None,
        "bundle": None,
        "server": None,
        "camera": None,
        "task": None,
    }
    score(dataset, out=out, **{**defaults, **options})  # type: ignore[arg-type]


def test_every_episode_gets_a_picture_and_one_score_a_frame(
    dataset: Path, bundle: Path, tmp_path: Path
) -> None:
    call(dataset, tmp_path, bundle=bundle)
    for index in range(2):
        assert (tmp_path / f"episode_{index:06d}.png").read_bytes().startswith(PNG)
        scores = json.loads((tmp_path / f"episode_{index:06d}.json").read_bytes())
        assert [one["seq"] for one in scores] == list(range(14))
        assert all(0 <= one["progress"] <= 1 for one in scores)
        assert all(one["task_known"] for one in scores)


def test_a_running_service_gives_the_same_scores_as_a_bundle(
    dataset: Path, bundle: Path, tmp_path: Path
) -> None:
    call(dataset, tmp_path / "own", bundle=bundle, episode=[1])
    with RunningServer(load_bundle(bundle, "cpu")) as server:
        call(dataset, tmp_path / "running", server=server.address, episode=[1])
    own, running = (
        json.loads((tmp_path / name / "episode_000001.json").read_bytes()) for name in ("own", "running")
    )
    for ours, theirs in zip(own, running, strict=True):
        assert ours["progress"] == pytest.approx(theirs["progress"], abs=1e-5)
    assert not (tmp_path / "own" / "episode_000000.json").exists()


def test_another_instruction_is_scored_as_an_unknown_task(
    dataset: Path, bundle: Path, tmp_path: Path
) -> None:
    call(dataset, tmp_path, bundle=bundle, episode=[0], task="make me a coffee")
    scores = json.loads((tmp_path / "episode_000000.json").read_bytes())
    assert all(one["uncertain"] and not one["task_known"] for one in scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episode": [2]}, "episodes 0 to 1"),
        ({"server": "nowhere"}, "expected HOST:PORT"),
        ({"server": "127.0.0.1:8765", "bundle": Path("x")}, "exclude each other"),
        ({"camera": ["wrist"]}, "MODEL_CAMERA=DATASET_CAMERA"),
        ({"camera": ["wrist=hand"], "server": "127.0.0.1:8765"}, "no camera 'hand'"),
        ({"camera": ["wrist=a", "wrist=b"]}, "'wrist' is named twice"),
        (
            {"camera": ["wrist=top", "corner=observation.images.top"]},
            "'observation.images.top' is named twice",
        ),
    ],
)
def test_wrong_options_name_what_was_expected(
    dataset: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        call(dataset, tmp_path, **options)


def test_camera_names_map_the_datasets_to_the_models() -> None:
    assert camera_names(["wrist=observation.images.hand", "top=overhead", "side=observation.left"]) == {
        "hand": "wrist",
        "overhead": "top",
        "left": "side",
    }
    assert len(fakes.CAMERAS) == 3


def test_a_camera_that_is_asked_for_takes_the_place_of_its_namesake() -> None:
    episode = recorded(0)
    first, second, third = fakes.CAMERAS
    shown = with_names(episode, camera_names([f"{first}={second}"]), None)
    assert list(shown.images) == [first, third]
    assert shown.images[first] == episode.images[second]


def test_an_episode_that_cannot_be_read_costs_no_other(bundle: Path, tmp_path: Path) -> None:
    write_dataset([recorded(0), recorded(1)], tmp_path / "d", storage="image")
    lose(tmp_path / "d", episode=0)
    with pytest.raises(InvalidInput, match="1 episodes could not be read"):
        call(tmp_path / "d", tmp_path / "out", bundle=bundle, video=False)
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"episode_000001"}


def test_a_damaged_picture_costs_its_own_frame_alone(bundle: Path, tmp_path: Path) -> None:
    write_dataset([recorded(0), recorded(1)], tmp_path / "d", storage="image")
    damage(tmp_path / "d", episode=0, frame=7)
    with pytest.raises(InvalidInput, match="1 frames could not be scored"):
        call(tmp_path / "d", tmp_path / "out", bundle=bundle)
    scores = json.loads((tmp_path / "out" / "episode_000000.json").read_bytes())
    assert [one["seq"] for one in scores] == [seq for seq in range(LENGTH) if seq != 7]
    for index in (0, 1):
        assert (tmp_path / "out" / f"episode_{index:06d}.png").read_bytes().startswith(PNG)
        film = list(read_frames(tmp_path / "out" / f"episode_{index:06d}.mp4", 0.0, LENGTH, fakes.FPS))
        assert len(film) == LENGTH
        assert all(picture.std() > 20 for picture in film)
