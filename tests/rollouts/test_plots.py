"""Pictures of episodes, with and without what a picture may show."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rollouts.small_episodes import small_episode
from rollouts.small_scores import small_score
from sarm2_client import wire
from sarm2_client.errors import InvalidInput
from sarm2_rollouts.plots import DPI, WIDTH_IN, draw_episode


def scores(frames: Iterable[int], *, uncertain: bool = False) -> list[wire.Score]:
    return [small_score(seq, uncertain=uncertain) for seq in frames]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def test_labels_and_scores_are_drawn(tmp_path: Path) -> None:
    path = draw_episode(
        tmp_path / "new" / "a.png", small_episode(0, cameras=("corner",)), scores(range(12)), title="A drop"
    )
    width, height = size_of(path)
    assert width == WIDTH_IN * DPI
    assert height > 600


def test_nothing_but_pictures_is_enough(tmp_path: Path) -> None:
    bare = small_episode(0, 1, labelled=False, simulator=False)
    with_truth = draw_episode(tmp_path / "b.png", small_episode(0, cameras=("corner", "wrist")))
    assert size_of(draw_episode(tmp_path / "a.png", bare))[1] < size_of(with_truth)[1]


def test_missing_and_uncertain_frames_change_the_picture(tmp_path: Path) -> None:
    episode = small_episode(0, cameras=("corner",))
    pictures = [
        np.asarray(Image.open(draw_episode(tmp_path / f"{name}.png", episode, given)))
        for name, given in (
            ("whole", scores(range(12))),
            ("gap", scores([0, 1, 2, 8, 9, 10, 11])),
            ("uncertain", scores(range(12), uncertain=True)),
        )
    ]
    for other in pictures[1:]:
        assert other.shape == pictures[0].shape
        assert (other != pictures[0]).any()


def test_scores_may_come_in_any_order(tmp_path: Path) -> None:
    forwards = draw_episode(tmp_path / "a.png", small_episode(0, cameras=("corner",)), scores(range(12)))
    backwards = draw_episode(
        tmp_path / "b.png", small_episode(0, cameras=("corner",)), scores(reversed(range(12)))
    )
    assert forwards.read_bytes() == backwards.read_bytes()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="frame 12"):
        draw_episode(tmp_path / "a.png", small_episode(0, cameras=("corner",)), scores([12]))
    empty = dataclasses.replace(
        small_episode(0, labelled=False), images={}, state_TS=np.zeros((0, 4), np.float32)
    )
    with pytest.raises(InvalidInput, match="at least one frame"):
        draw_episode(tmp_path / "a.png", empty)
