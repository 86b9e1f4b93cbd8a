"""An episode as a film: all views side by side; under them the progress so far and the primitive."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sarm2_client import wire
from sarm2_client.errors import InvalidInput
from sarm2_client.images import ImageHWC
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.plots import GRID, INK, MUTED, PREDICTED, TRUE, shown_picture
from sarm2_rollouts.video import VideoWriter

VIEW_PX: Final = 240
PANEL_PX: Final = 150
MARGIN_PX: Final = 14
TEXT_PX: Final = 26
FONT_PX: Final = 15
BAND: Final = "#d3e0fb"


def draw_video(path: Path | str, episode: Episode, scores: Sequence[wire.Score] | None = None) -> Path:
    """Draw an episode to an mp4 file, at its own frame rate.

    Args:
        path: the file to make.
        episode: with pictures. Its true progress is drawn, dashed, where it is known.
        scores: in any order; `seq` counts the episode's frames from 0. Missing frames leave a gap.

    Raises InvalidInput for an episode without frames or cameras.
    """
    if not len(episode) or not episode.images:
        raise InvalidInput("expected an episode with at least one frame and one camera to film")
    path, known = Path(path), {score.seq: score for score in scores or ()}
    width = VIEW_PX * len(episode.images)
    with VideoWriter(path, episode.fps, VIEW_PX + PANEL_PX, width) as film:
        for frame in range(len(episode)):
            picture = Image.new("RGB", (width, VIEW_PX + PANEL_PX), "white")
            for place, files in enumerate(episode.images.values()):
                picture.paste(_view(shown_picture(files[frame])), (place * VIEW_PX, 0))
            _Panel(picture, len(episode)).draw(episode, known, frame)
            film.write(np.asarray(picture, dtype=np.uint8))
    return path


def _view(image_HWC: ImageHWC) -> Image.Image:
    """A picture fitted into a square, black around it."""
    image = Image.fromarray(image_HWC)
    scale = VIEW_PX / max(image.size)
    fitted = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (VIEW_PX, VIEW_PX))
    square.paste(fitted, ((VIEW_PX - fitted.width) // 2, (VIEW_PX - fitted.height) // 2))
    return square


class _Panel:
    """The lower part of a frame: a line of text, and the curve up to now."""

    def __init__(self, picture: Image.Image, frames: int) -> None:
        self._canvas = ImageDraw.Draw(picture)
        self._frames = frames
        self._left, self._right = MARGIN_PX, picture.width - MARGIN_PX
        self._top, self._bottom = VIEW_PX + TEXT_PX + 8, VIEW_PX + PANEL_PX - MARGIN_PX

    def draw(self, episode: Episode, known: dict[int, wire.Score], now: int) -> None:
        """Everything, up to a frame."""
        for level in (0.0, 0.5, 1.0):
            self._canvas.line([self._at(0, level), self._at(self._frames - 1, level)], fill=GRID)
        if episode.progress_T is not None:
            points = [self._at(t, float(episode.progress_T[t])) for t in range(now + 1)]
            for start, end in list(itertools.pairwise(points))[::2]:
                self._canvas.line([start, end], fill=TRUE)
        so_far = [known[seq] for seq in range(now + 1) if seq in known]
        for one, two in itertools.pairwise(so_far):
            if two.seq == one.seq + 1:
                corners = [(s.seq, s.interval[side]) for s, side in ((one, 0), (one, 1), (two, 1), (two, 0))]
                self._canvas.polygon([self._at(*corner) for corner in corners], fill=BAND)
        for one, two in itertools.pairwise(so_far):
            if two.seq == one.seq + 1:
                ends = [self._at(score.seq, score.progress) for score in (one, two)]
                self._canvas.line(ends, fill=PREDICTED, width=3)
        self._say(episode, known.get(now))

    def _say(self, episode: Episode, score: wire.Score | None) -> None:
        font = ImageFont.load_default(FONT_PX)
        place = (self._left, VIEW_PX + 6)
        if score is None:
            self._canvas.text(place, episode.task, fill=MUTED, font=font)
            return
        words = f"{score.progress:.2f}   {score.primitive.replace('_', ' ')}"
        self._canvas.text(place, words, fill=MUTED if score.uncertain else INK, font=font)
        task_px = self._canvas.textlength(episode.task, font=font)
        self._canvas.text((self._right - task_px, place[1]), episode.task, fill=MUTED, font=font)

    def _at(self, frame: int, value: float) -> tuple[float, float]:
        across = frame / max(1, self._frames - 1)
        return (
            self._left + across * (self._right - self._left),
            self._bottom - value * (self._bottom - self._top),
        )
