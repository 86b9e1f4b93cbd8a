"""Films of episodes: every frame, all views, and the curve so far."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from rollouts.small_episodes import small_episode
from rollouts.small_scores import small_score
from sarm2_client.errors import InvalidInput
from sarm2_rollouts.episode_video import PANEL_PX, TEXT_PX, VIEW_PX, draw_video
from sarm2_rollouts.video import read_frames

BLUE = np.array([37, 99, 235])


def blue_pixels(picture: np.ndarray) -> int:
    panel = picture[VIEW_PX:].astype(int)
    return int((np.abs(panel - BLUE).sum(axis=2) < 90).sum())


def test_a_film_has_every_frame_and_the_curve_grows(tmp_path: Path) -> None:
    episode = small_episode(0, 12)
    scores = [small_score(seq, progress=seq / 11) for seq in range(12)]
    path = draw_video(tmp_path / "e.mp4", episode, scores)
    film = list(read_frames(path, 0.0, 12, episode.fps))
    assert film[0].shape == (VIEW_PX + PANEL_PX, VIEW_PX * len(episode.images), 3)
    drawn = [blue_pixels(picture) for picture in film]
    assert drawn[0] < 10
    assert drawn[3] < drawn[7] < drawn[11]


def test_the_primitive_is_told_under_the_views(tmp_path: Path) -> None:
    episode = small_episode(0, 4)
    films = []
    for primitive in ("grasp", "strike"):
        scores = [structs.replace(small_score(seq), primitive=primitive) for seq in range(4)]
        path = draw_video(tmp_path / f"{primitive}.mp4", episode, scores)
        films.append(next(iter(read_frames(path, 0.0, 1, episode.fps))).astype(int))
    changed = np.abs(films[0] - films[1]).max(axis=2) > 60
    rows, columns = np.nonzero(changed)
    assert len(rows) > 20
    assert rows.min() >= VIEW_PX
    assert rows.max() < VIEW_PX + TEXT_PX
    assert columns.max() < VIEW_PX, "the instruction on the right stays"


def test_missing_scores_leave_a_gap_and_no_scores_are_fine(tmp_path: Path) -> None:
    episode = small_episode(0, 8)
    some = [small_score(seq) for seq in (0, 1, 5, 7)]
    draw_video(tmp_path / "gaps.mp4", episode, some)
    bare = replace(episode, progress_T=None, segments=None)
    path = draw_video(tmp_path / "bare.mp4", bare)
    assert blue_pixels(next(iter(read_frames(path, 0.7, 1, episode.fps)))) == 0


def test_an_episode_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="at least one frame and one camera"):
        draw_video(tmp_path / "x.mp4", replace(small_episode(0, 4), images={}))
